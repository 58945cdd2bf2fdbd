"""Protobuf in, engine call, protobuf out."""

from __future__ import annotations

from typing import TypeVar

import grpc

from forebay.telemetry import REQUEST_ID_KEY
from forebay.v1 import inference_pb2 as pb
from forebay.v1.inference_pb2_grpc import InferenceServiceServicer

from .engine import Engine
from .intake import Intake
from .request import Piece, Request

R = TypeVar("R", pb.GenerateResponse, pb.ChatResponse)


class InferenceServicer(InferenceServiceServicer):
    """The public API."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_served = engine.workers.is_served
        self._intake = Intake(engine.models, self._is_served)

    async def Generate(self, request: pb.GenerateRequest, context: grpc.aio.ServicerContext) -> None:
        """Continue a prompt."""
        await self._stream(await self._intake.generate(request), context, pb.GenerateResponse)

    async def Chat(self, request: pb.ChatRequest, context: grpc.aio.ServicerContext) -> None:
        """Answer a conversation."""
        await self._stream(await self._intake.chat(request), context, pb.ChatResponse)

    async def Tokenize(
        self, request: pb.TokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.TokenizeResponse:
        """Text to ids."""
        return await self._intake.tokenize(request)

    async def Detokenize(
        self, request: pb.DetokenizeRequest, context: grpc.aio.ServicerContext
    ) -> pb.DetokenizeResponse:
        """Ids to text."""
        return await self._intake.detokenize(request)

    async def ListModels(
        self, request: pb.ListModelsRequest, context: grpc.aio.ServicerContext
    ) -> pb.ListModelsResponse:
        """Models with living workers."""
        return pb.ListModelsResponse(models=[m.info for m in self._engine.models.served(self._is_served)])

    async def GetModel(
        self, request: pb.GetModelRequest, context: grpc.aio.ServicerContext
    ) -> pb.GetModelResponse:
        """One model; an empty name is the only one."""
        return pb.GetModelResponse(
            model=self._engine.models.find(request.model or None, self._is_served).info
        )

    async def Explain(
        self, request: pb.ExplainRequest, context: grpc.aio.ServicerContext
    ) -> pb.ExplainResponse:
        """What happened to a recent request."""
        return self._engine.explain(request.request_id)

    async def _stream(
        self, request: Request, context: grpc.aio.ServicerContext, response_type: type[R]
    ) -> None:
        """Writes rather than yields: a cancellation then arrives here, not at a dropped generator."""
        generation = self._engine.open(request)
        try:
            await context.send_initial_metadata(((REQUEST_ID_KEY, request.request_id),))
            await self._engine.place(generation, context.time_remaining())
            request_id = request.request_id
            async for piece in generation.pieces():
                await context.write(_to_pb(piece, response_type, request_id))
                request_id = ""
        finally:
            generation.close()


def _to_pb(piece: Piece, response_type: type[R], request_id: str) -> R:
    return response_type(
        choice=piece.choice,
        token_ids=piece.token_ids,
        text=piece.text,
        logprobs=piece.logprobs,
        finish_reason=int(piece.finish_reason),  # type: ignore[arg-type]
        usage=piece.usage,
        receipt=piece.receipt,
        request_id=request_id,
    )
