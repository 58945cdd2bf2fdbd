"""One multiplexed stream to one decode worker: slots, demultiplexing, reconnecting."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import grpc
import structlog

from forebay.errors import Unavailable
from forebay.v1 import decode_pb2 as pb
from forebay.v1.decode_pb2_grpc import DecodeServiceStub

from .buffer import TokenBuffer
from .router import WorkerState

log = structlog.get_logger(__name__)
RETRY_S = 0.1


class DecodeLink:
    """All requests of this gateway at one worker. State is touched on the event loop only."""

    def __init__(self, channel: grpc.aio.Channel, state: WorkerState) -> None:
        self._stub = DecodeServiceStub(channel)
        self._state = state
        self._buffers: dict[int, TokenBuffer] = {}
        self._commands: asyncio.Queue[pb.MuxRequest | None] | None = None
        self._last_slot = 0

    @property
    def is_connected(self) -> bool:
        """Whether a stream is open; that it works is known only once a frame came."""
        return self._commands is not None

    @property
    def num_slots(self) -> int:
        """Requests that wait for frames."""
        return len(self._buffers)

    async def run(self) -> None:
        """Keep a stream open until cancelled; when one breaks, its requests fail as WORKER_LOST."""
        while True:
            try:
                await self._stream()
            except grpc.aio.AioRpcError as error:
                log.debug("decode_stream_broken", worker=self._state.address, code=error.code().name)
            except ValueError as error:
                log.error("decode_frame_malformed", worker=self._state.address, error=str(error))
            await asyncio.sleep(RETRY_S)

    def open(self, buffer: TokenBuffer, attach: pb.Attach) -> int:
        """Attach a request; its frames go to `buffer`. Slots are never used twice on one gateway."""
        if self._commands is None:
            raise self._lost()
        self._last_slot += 1
        self._buffers[self._last_slot] = buffer
        self._commands.put_nowait(pb.MuxRequest(slot=self._last_slot, attach=attach))
        return self._last_slot

    def send(self, command: pb.MuxRequest) -> None:
        """A command for an open slot; dropped when the slot is gone."""
        if self._commands is not None and command.slot in self._buffers:
            self._commands.put_nowait(command)

    def close(self, slot: int) -> None:
        """Forget the slot; the worker is told unless it has said itself that all choices ended."""
        buffer = self._buffers.get(slot)
        if buffer is None:
            return
        if buffer.num_unfinished > 0:
            self.send(pb.MuxRequest(slot=slot, cancel=pb.Cancel()))
        del self._buffers[slot]

    async def _stream(self) -> None:
        commands: asyncio.Queue[pb.MuxRequest | None] = asyncio.Queue()
        call = self._stub.Mux(_iterate(commands))
        self._commands = commands
        try:
            async for frame in call:
                self._on_frame(frame)
        finally:
            self._commands = None
            commands.put_nowait(None)
            call.cancel()
            self._fail_all()

    def _on_frame(self, frame: pb.StepFrame) -> None:
        """The hot path: one dictionary look-up and one append a token."""
        state, buffers = self._state, self._buffers
        state.num_running, state.num_waiting = frame.num_running, frame.num_waiting
        state.num_used_blocks = frame.num_used_blocks
        for slot, choice, token_id in zip(frame.slots, frame.choices, frame.token_ids, strict=True):
            buffer = buffers.get(slot)
            if buffer is not None:
                buffer.add(choice, token_id)
        for spill in frame.spills:
            buffer = buffers.get(spill.slot)
            if buffer is not None:
                buffer.spill(spill)

    def _fail_all(self) -> None:
        buffers, self._buffers = self._buffers, {}
        if buffers:
            log.warning("decode_stream_lost", worker=self._state.address, num_requests=len(buffers))
        for buffer in buffers.values():
            buffer.fail(self._lost())

    def _lost(self) -> Unavailable:
        return Unavailable(
            f"decode worker {self._state.address} is not reachable",
            reason="WORKER_LOST",
            worker=self._state.address,
        )


async def _iterate(commands: asyncio.Queue[pb.MuxRequest | None]) -> AsyncIterator[pb.MuxRequest]:
    """Until None, which ends the stream from this side."""
    while (command := await commands.get()) is not None:
        yield command
