"""Translates DraftService: news of decode steps in, proposals out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from itertools import count

import grpc

from forebay.engine_loop import EngineLoop
from forebay.errors import ForebayError, InvalidArgument, ResourceExhausted
from forebay.types import SamplingParams
from forebay.v1 import draft_pb2 as pb
from forebay.v1 import draft_pb2_grpc

from .engine import Begin, DraftEngine, News, Proposal

MAX_UNSENT_FRAMES = 256
Item = list[Proposal] | ForebayError | None


class DraftServicer(draft_pb2_grpc.DraftServiceServicer):
    """Event loop only."""

    def __init__(self, engine: DraftEngine, engine_loop: EngineLoop) -> None:
        self._engine, self._engine_loop = engine, engine_loop
        self._outboxes: dict[int, asyncio.Queue[Item]] = {}
        self._stream_ids = count(1)

    async def Mux(
        self, requests: AsyncIterator[pb.DraftRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.DraftFrame]:
        """One decode worker. Its histories go with the stream, however that ends."""
        stream, outbox = next(self._stream_ids), asyncio.Queue[Item]()
        self._outboxes[stream] = outbox
        reader = asyncio.create_task(self._read(requests, stream, outbox))
        context.add_done_callback(lambda _: self._close(stream, reader))
        try:
            await context.send_initial_metadata(())  # tells the decode worker that somebody is here
            while (item := await outbox.get()) is not None:
                if isinstance(item, ForebayError):
                    raise item
                yield to_frame(item)
        finally:
            self._close(stream, reader)

    def publish(self, proposals: dict[int, list[Proposal]]) -> None:
        """Give proposals to their streams; a stream that is not read ends."""
        for stream, batch in proposals.items():
            if (outbox := self._outboxes.get(stream)) is not None:
                is_full = outbox.qsize() >= MAX_UNSENT_FRAMES
                outbox.put_nowait(ResourceExhausted("the stream is not read") if is_full else batch)

    def fail(self, error: ForebayError) -> None:
        """End every stream with `error`."""
        for outbox in self._outboxes.values():
            outbox.put_nowait(error)

    async def _read(
        self, requests: AsyncIterator[pb.DraftRequest], stream: int, outbox: asyncio.Queue[Item]
    ) -> None:
        try:
            async for request in requests:
                self._engine_loop.post(self._engine.tell, stream, to_news(request))
        except ForebayError as error:
            outbox.put_nowait(error)
        finally:
            outbox.put_nowait(None)

    def _close(self, stream: int, reader: asyncio.Task[None]) -> None:
        if self._outboxes.pop(stream, None) is not None:
            reader.cancel()
            self._engine_loop.post(self._engine.close_stream, stream)


def to_news(request: pb.DraftRequest) -> News:
    """Columns to per-slot lists; raises InvalidArgument if they do not add up."""
    if len(request.slots) != len(request.num_tokens) or sum(request.num_tokens) != len(request.token_ids):
        raise InvalidArgument("columns of different length", field="num_tokens")
    extends: list[tuple[int, Sequence[int]]] = []
    end = 0
    for slot, num_tokens in zip(request.slots, request.num_tokens, strict=True):
        start, end = end, end + num_tokens
        extends.append((slot, request.token_ids[start:end]))
    begins = [Begin(begun.slot, begun.token_ids, _params(begun)) for begun in request.opens]
    return News(begins, list(request.closes), extends, request.num_draft_tokens)


def to_frame(proposals: list[Proposal]) -> pb.DraftFrame:
    """Per-slot proposals to columns."""
    return pb.DraftFrame(
        slots=[proposal.slot for proposal in proposals],
        positions=[proposal.position for proposal in proposals],
        num_tokens=[len(proposal.token_ids) for proposal in proposals],
        token_ids=[token_id for proposal in proposals for token_id in proposal.token_ids],
        tails=[proposal.tail for proposal in proposals],
    )


def _params(begun: pb.DraftOpen) -> SamplingParams:
    return SamplingParams(
        temperature=begun.temperature,
        top_k=begun.top_k,
        top_p=begun.top_p or 1.0,
        min_p=begun.min_p,
        seed=begun.seed,
    )
