"""Translates DecodeService: commands in, one frame per step out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from itertools import count

import grpc

from forebay.engine_loop import EngineLoop
from forebay.errors import ForebayError, ResourceExhausted, Unavailable
from forebay.types import SamplingParams, TokenLogprobs
from forebay.v1 import common_pb2, decode_pb2_grpc
from forebay.v1 import decode_pb2 as pb

from .admission import Admission, AttachRequest
from .engine import DecodeEngine
from .outputs import Event, Finished, StepOutput
from .sequence import Owner


class Outbox:
    """What one stream has not sent yet. Later steps join earlier ones: a slow reader gets bigger frames."""

    def __init__(self, max_tokens: int) -> None:
        self._max_tokens = max_tokens
        self._pending: StepOutput | None = None
        self._error: ForebayError | None = None
        self._is_closed = False
        self._wake = asyncio.Event()

    def put(self, output: StepOutput) -> None:
        """A step's output; too much unread ends the stream."""
        if self._pending is None:
            self._pending = output
        else:
            self._pending.absorb(output)
        if len(self._pending.token_ids) > self._max_tokens:
            self.close(ResourceExhausted("the stream is not read", reason="SLOW_CONSUMER"))
        self._wake.set()

    def close(self, error: ForebayError | None = None) -> None:
        """End the stream."""
        self._is_closed, self._error = True, self._error or error
        self._wake.set()

    async def outputs(self) -> AsyncIterator[StepOutput]:
        """Until closed; raises the error it was closed with."""
        while not self._is_closed:
            await self._wake.wait()
            self._wake.clear()
            output, self._pending = self._pending, None
            if output is not None and self._error is None:
                yield output
        if self._error is not None:
            raise self._error


class DecodeServicer(decode_pb2_grpc.DecodeServiceServicer):
    """Event loop only."""

    def __init__(
        self, engine: DecodeEngine, engine_loop: EngineLoop, admission: Admission, max_pending_tokens: int
    ) -> None:
        self._engine, self._engine_loop, self._admission = engine, engine_loop, admission
        self._max_pending_tokens = max_pending_tokens
        self._outboxes: dict[int, Outbox] = {}
        self._stream_ids = count(1)
        self._is_draining = False

    async def Mux(
        self, requests: AsyncIterator[pb.MuxRequest], context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.StepFrame]:
        """One gateway. Its sequences go with the stream, however that ends."""
        stream, outbox = next(self._stream_ids), Outbox(self._max_pending_tokens)
        self._outboxes[stream] = outbox
        reader = asyncio.create_task(self._read(requests, stream, outbox))
        context.add_done_callback(lambda _: self._close(stream, reader))
        try:
            async for output in outbox.outputs():
                yield to_frame(output)
        finally:
            self._close(stream, reader)

    def publish(self, outputs: dict[int, StepOutput]) -> None:
        """Give a step's outputs to their streams."""
        for stream, output in outputs.items():
            if stream in self._outboxes:
                self._outboxes[stream].put(output)

    async def drain(self) -> None:
        """Refuse new requests; when those at hand have ended, end the streams."""
        self._is_draining = True
        while await self._engine_loop.call(lambda: self._engine.num_slots):
            await asyncio.sleep(0.05)
        for outbox in self._outboxes.values():
            outbox.close()

    def fail(self, error: ForebayError) -> None:
        """End every stream with `error`."""
        for outbox in self._outboxes.values():
            outbox.close(error)

    async def _read(self, requests: AsyncIterator[pb.MuxRequest], stream: int, outbox: Outbox) -> None:
        try:
            async for request in requests:
                self._command(Owner(stream, request.slot), request)
        except ForebayError as error:
            outbox.close(error)
        finally:
            outbox.close()

    def _command(self, owner: Owner, request: pb.MuxRequest) -> None:
        post, engine = self._engine_loop.post, self._engine
        match request.WhichOneof("command"):
            case "attach":
                self._attach(owner, request.attach)
            case "ready":
                post(engine.ready, owner, request.ready.num_blocks)
            case "start":
                start = request.start
                post(engine.start, owner, list(start.first_token_ids), start.num_blocks)
            case "cancel":
                cancel = request.cancel
                post(engine.cancel, owner, cancel.choice if cancel.HasField("choice") else None)

    def _attach(self, owner: Owner, attach: pb.Attach) -> None:
        request = AttachRequest(
            attach.request_id,
            list(attach.token_ids),
            attach.num_prompt_tokens,
            SamplingParams.from_pb(attach.sampling),
            attach.salt,
            attach.fingerprint,
            attach.choice if attach.HasField("choice") else None,
        )
        try:
            if self._is_draining:
                raise Unavailable("the decode worker is draining", reason="DRAINING")
            lead = self._admission.build(owner, request)
        except ForebayError as error:
            self._engine_loop.post(self._engine.refuse, owner, request.choices(), error)
        else:
            self._engine_loop.post(self._engine.attach, request.request_id, lead)

    def _close(self, stream: int, reader: asyncio.Task[None]) -> None:
        if self._outboxes.pop(stream, None) is not None:
            reader.cancel()
            self._engine_loop.post(self._engine.close_stream, stream)


def to_frame(output: StepOutput) -> pb.StepFrame:
    """Columns to packed fields."""
    return pb.StepFrame(
        step=output.step,
        slots=output.slots,
        choices=bytes(output.choices),
        token_ids=output.token_ids,
        spills=[_to_spill(slot, choice, event) for slot, choice, event in output.events],
        num_running=output.num_running,
        num_waiting=output.num_waiting,
        num_used_blocks=output.num_used_blocks,
    )


def _to_spill(slot: int, choice: int, event: Event) -> pb.Spill:
    if isinstance(event, TokenLogprobs):
        return pb.Spill(slot=slot, choice=choice, logprobs=event.to_pb())
    if isinstance(event, Finished):
        return pb.Spill(slot=slot, choice=choice, finished=_to_finished(event))
    started = pb.Started(
        pull_ms=event.pull_ms,
        queue_ms=event.queue_ms,
        num_local_cached_tokens=event.num_local_tokens,
        num_pulled_tokens=event.num_pulled_tokens,
        num_computed_tokens=event.num_computed_tokens,
    )
    return pb.Spill(slot=slot, choice=choice, started=started)


def _to_finished(event: Finished) -> pb.Finished:
    return pb.Finished(
        reason=common_pb2.FinishReason.Name(event.reason),
        error_reason=event.error.reason if event.error else "",
        error_message=event.error.message if event.error else "",
        num_draft_tokens=event.num_draft_tokens,
        num_accepted_tokens=event.num_accepted_tokens,
        stop_token_id=event.stop_token_id,
        num_preemptions=event.num_preemptions,
    )
