"""inference.GRPCInferenceService: descriptions, one answer, or any number of streamed ones."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc

from forebay.errors import ForebayError, InvalidArgument
from forebay.kserve import grpc_predict_v2_pb2 as pb
from forebay.kserve.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceServicer
from forebay.v1.inference_pb2 import Usage

from ..engine import Engine
from ..intake import Intake
from . import models
from .inference import Inference, read

# More wait in the client's send buffer: what is read here holds memory.
MAX_STREAM_REQUESTS = 256
Write = Callable[[pb.ModelStreamInferResponse], Awaitable[None]]


class KServeServicer(GRPCInferenceServiceServicer):
    """Before the same intake and engine as the other dialects."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._is_served = engine.workers.is_served
        self._intake = Intake(engine.models, self._is_served)

    async def ServerLive(
        self, request: pb.ServerLiveRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerLiveResponse:
        """It answers."""
        return pb.ServerLiveResponse(live=True)

    async def ServerReady(
        self, request: pb.ServerReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerReadyResponse:
        """Whether some model has living workers."""
        return pb.ServerReadyResponse(ready=bool(self._served()))

    async def ModelReady(
        self, request: pb.ModelReadyRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelReadyResponse:
        """Whether one has; an unknown model is not ready."""
        is_version = request.version in ("", models.VERSION)
        return pb.ModelReadyResponse(ready=is_version and request.name in self._served())

    async def ServerMetadata(
        self, request: pb.ServerMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ServerMetadataResponse:
        """Name and version."""
        return models.server_metadata()

    async def ModelMetadata(
        self, request: pb.ModelMetadataRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelMetadataResponse:
        """Tensors of one model."""
        return models.metadata(self._name(request.name, request.version))

    async def ModelConfig(
        self, request: pb.ModelConfigRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelConfigResponse:
        """Configuration of one model."""
        return models.configuration(self._name(request.name, request.version))

    async def RepositoryIndex(
        self, request: pb.RepositoryIndexRequest, context: grpc.aio.ServicerContext
    ) -> pb.RepositoryIndexResponse:
        """All models."""
        return models.repository(self._engine.models.names(), self._served(), request.ready)

    async def ModelInfer(
        self, request: pb.ModelInferRequest, context: grpc.aio.ServicerContext
    ) -> pb.ModelInferResponse:
        """One prompt, one answer."""
        inference = await read(request, self._intake)
        if inference.is_stream:
            raise InvalidArgument("needs ModelStreamInfer", field=models.STREAMING)
        return await self._whole(inference, context.time_remaining())

    async def ModelStreamInfer(
        self, request_iterator: AsyncIterator[pb.ModelInferRequest], context: grpc.aio.ServicerContext
    ) -> None:
        """Requests run side by side; their responses carry their ids."""
        lock = asyncio.Lock()

        async def write(response: pb.ModelStreamInferResponse) -> None:
            async with lock:
                await context.write(response)

        room = asyncio.Semaphore(MAX_STREAM_REQUESTS)
        async with asyncio.TaskGroup() as tasks:
            async for request in request_iterator:
                await room.acquire()
                task = tasks.create_task(self._serve(request, write, context.time_remaining()))
                task.add_done_callback(lambda _: room.release())

    async def _serve(self, message: pb.ModelInferRequest, write: Write, timeout_s: float | None) -> None:
        """One request of a stream; its failure is its own."""
        try:
            inference = await read(message, self._intake)
            if inference.is_stream:
                await self._pieces(inference, write, timeout_s)
            else:
                whole = await self._whole(inference, timeout_s)
                await write(pb.ModelStreamInferResponse(infer_response=whole))
        except ForebayError as error:
            failed = pb.ModelInferResponse(id=message.id, model_name=message.model_name)
            await write(pb.ModelStreamInferResponse(error_message=error.message, infer_response=failed))

    async def _pieces(self, inference: Inference, write: Write, timeout_s: float | None) -> None:
        generation = self._engine.open(inference.request)
        try:
            await self._engine.place(generation, timeout_s)
            async for piece in generation.pieces():
                if piece.text or piece.finish_reason:
                    response = inference.response([piece.text], [piece.finish_reason], piece.usage)
                    await write(pb.ModelStreamInferResponse(infer_response=response))
        finally:
            generation.close()

    async def _whole(self, inference: Inference, timeout_s: float | None) -> pb.ModelInferResponse:
        texts, reasons = [""] * inference.request.params.n, [0] * inference.request.params.n
        usage = Usage()
        generation = self._engine.open(inference.request)
        try:
            await self._engine.place(generation, timeout_s)
            async for piece in generation.pieces():
                texts[piece.choice] += piece.text
                reasons[piece.choice] = piece.finish_reason
                usage = piece.usage or usage
        finally:
            generation.close()
        return inference.response(texts, reasons, usage)

    def _served(self) -> set[str]:
        return {model.name for model in self._engine.models.served(self._is_served)}

    def _name(self, name: str, version: str) -> str:
        models.check_version(version)
        return self._engine.models.find(name or None, self._is_served).name
