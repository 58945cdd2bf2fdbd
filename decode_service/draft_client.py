"""One stream to the draft service. Broken, slow or talking nonsense, it costs speed only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping

import grpc
import structlog

from forebay.rpc.client import connect
from forebay.v1 import draft_pb2 as pb
from forebay.v1 import draft_pb2_grpc

from .drafting import Open, Proposal, ProposalBox, Update

log = structlog.get_logger(__name__)

MAX_QUEUED_UPDATES = 64
RECONNECT_S = 0.5
GARBAGE_BYPASS_S = 5.0


class Garbage(Exception):
    """A frame that no draft service of ours would send."""


class DraftClient:
    """A `DraftSource` over gRPC: `send` and `take` for the engine thread, the rest for the event loop."""

    def __init__(self, address: str, vocab_size: int, max_draft_tokens: int) -> None:
        self._address, self._vocab_size, self._max_draft_tokens = address, vocab_size, max_draft_tokens
        self.epoch = -1
        self._num_connects = 0
        self._box = ProposalBox()
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Connect in the background; on the event loop."""
        self._event_loop = asyncio.get_running_loop()
        self._task = asyncio.create_task(self._stay_connected())

    async def close(self) -> None:
        """Disconnect."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def send(self, update: Update) -> None:
        """Queue news for the service; what is asked for becomes expected."""
        self._box.forget(update.closes)
        if update.num_draft_tokens:
            for begun in update.opens:
                self._box.expect(begun.slot, len(begun.token_ids))
            for extend in update.extends:
                self._box.expect(extend.slot, extend.num_tokens)
        self._event_loop.call_soon_threadsafe(self._enqueue, self.epoch, update)

    def take(self, histories: Mapping[int, list[int]], timeout_s: float) -> dict[int, list[int]]:
        """Proposals that fit, waiting while any is on its way."""
        if timeout_s > 0:
            self._box.wait(histories, timeout_s)
        return self._box.take(histories)

    def _enqueue(self, epoch: int, update: Update) -> None:
        if epoch != self.epoch:
            return
        if self._queue.qsize() >= MAX_QUEUED_UPDATES:
            self._down()  # it does not keep up: forget it, begin anew
            self._queue.put_nowait(None)
        else:
            self._queue.put_nowait(_to_request(update))

    async def _stay_connected(self) -> None:
        async with connect(self._address) as channel:
            stub = draft_pb2_grpc.DraftServiceStub(channel)
            while True:
                pause_s = RECONNECT_S
                try:
                    await self._talk(stub)
                except grpc.aio.AioRpcError as error:
                    log.debug("draft_down", address=self._address, code=error.code().name)
                except Garbage as error:
                    log.warning("draft_garbage", address=self._address, problem=str(error))
                    pause_s = GARBAGE_BYPASS_S
                finally:
                    self._down()
                await asyncio.sleep(pause_s)

    async def _talk(self, stub: draft_pb2_grpc.DraftServiceStub) -> None:
        """One connection's life."""
        self._queue: asyncio.Queue[pb.DraftRequest | None] = asyncio.Queue()
        call = stub.Mux(self._requests(), wait_for_ready=True)
        try:
            await call.initial_metadata()  # the service sends it at once
            self._num_connects += 1
            self.epoch = self._num_connects
            log.info("draft_up", address=self._address)
            async for frame in call:
                self._box.put(self._proposals(frame))
        finally:
            call.cancel()

    async def _requests(self) -> AsyncIterator[pb.DraftRequest]:
        while (request := await self._queue.get()) is not None:
            yield request

    def _proposals(self, frame: pb.DraftFrame) -> Iterator[tuple[int, Proposal]]:
        """Check a frame; unknown token ids end their proposal."""
        num_slots = len(frame.slots)
        if {len(frame.positions), len(frame.num_tokens), len(frame.tails)} != {num_slots}:
            raise Garbage("columns of different length")
        if sum(frame.num_tokens) != len(frame.token_ids):
            raise Garbage("wrong number of tokens")
        end = 0
        columns = zip(frame.slots, frame.positions, frame.num_tokens, frame.tails, strict=True)
        for slot, position, num_tokens, tail in columns:
            start, end = end, end + num_tokens
            drafts = list(frame.token_ids[start : min(end, start + self._max_draft_tokens)])
            known = [i for i, token_id in enumerate(drafts) if token_id >= self._vocab_size]
            yield slot, Proposal(position, tail, drafts[: known[0]] if known else drafts)

    def _down(self) -> None:
        self.epoch = -1
        self._box.forget()


def _to_request(update: Update) -> pb.DraftRequest:
    return pb.DraftRequest(
        opens=[_to_open(begun) for begun in update.opens],
        closes=update.closes,
        slots=[extend.slot for extend in update.extends],
        num_tokens=[len(extend.token_ids) for extend in update.extends],
        token_ids=[token_id for extend in update.extends for token_id in extend.token_ids],
        num_draft_tokens=update.num_draft_tokens,
    )


def _to_open(begun: Open) -> pb.DraftOpen:
    return pb.DraftOpen(
        slot=begun.slot,
        token_ids=begun.token_ids,
        temperature=begun.temperature,
        seed=begun.seed,
        top_k=begun.top_k,
        top_p=begun.top_p,
        min_p=begun.min_p,
    )
