"""Translates PrefillService: checks a request, follows its delivery, reports events."""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable

import grpc

from forebay.errors import AlreadyExists, FailedPrecondition, ForebayError, Unavailable
from forebay.kv.hashing import block_keys, prefix_root
from forebay.limits import check_request_id, check_sampling, check_token_ids
from forebay.types import SamplingParams
from forebay.v1 import prefill_pb2 as pb
from forebay.v1 import prefill_pb2_grpc
from forebay.v1.common_pb2 import ModelInfo

from .delivery import Delivery
from .engine import Engine
from .sequence import Event, FirstTokens, Sequence

OpenDelivery = Callable[[Sequence, Callable[[Sequence], None]], Delivery]


class PrefillServicer(prefill_pb2_grpc.PrefillServiceServicer):
    """Event loop only. `open_delivery(sequence, on_end)` starts a prompt's way through the engine."""

    def __init__(
        self, info: ModelInfo, engine: Engine, open_delivery: OpenDelivery, max_waiting: int
    ) -> None:
        self._info, self._engine, self._open_delivery = info, engine, open_delivery
        self._max_waiting = max_waiting
        self._deliveries: dict[Sequence, Delivery] = {}

    async def Prefill(
        self, request: pb.PrefillRequest, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[pb.PrefillEvent]:
        """One prompt; the delivery is told when the RPC ends in whatever way."""
        sequence = self._sequence(request)
        delivery = self._open_delivery(sequence, self._forget)
        self._deliveries[sequence] = delivery
        context.add_done_callback(functools.partial(_cancel, delivery))
        async for event in delivery.events():
            yield self._to_pb(event, delivery)

    def handle(self, events: list[Event]) -> None:
        """Give a step's events to their deliveries."""
        for event in events:
            if event.sequence in self._deliveries:
                self._deliveries[event.sequence].handle(event)

    def fail(self, error: ForebayError) -> None:
        """End every stream with `error`: the engine is gone."""
        for delivery in self._deliveries.values():
            delivery.cancel(error)

    async def close(self) -> None:
        """Cancel what is left and wait until nothing is in flight."""
        for delivery in list(self._deliveries.values()):
            delivery.cancel(Unavailable("the prefill worker stops", reason="STOPPING"))
            await delivery.finished()

    def check_idle(self) -> None:
        """Raise FailedPrecondition if a request is in care."""
        if self._deliveries:
            left = sorted(sequence.request_id for sequence in self._deliveries)
            raise FailedPrecondition(f"prefill: deliveries are left: {left}", reason="INTEGRITY")

    def _forget(self, sequence: Sequence) -> None:
        del self._deliveries[sequence]

    def _sequence(self, request: pb.PrefillRequest) -> Sequence:
        params = SamplingParams.from_pb(request.sampling)
        self._check(request, params)
        token_ids, block_size = list(request.token_ids), self._info.block_size
        root = prefix_root(request.fingerprint, request.salt)
        keys = block_keys(root, token_ids, block_size)
        return Sequence(
            request.request_id, token_ids, params, root, keys, block_size, request.num_store_blocks
        )

    def _check(self, request: pb.PrefillRequest, params: SamplingParams) -> None:
        info = self._info
        if request.fingerprint != info.fingerprint:
            raise FailedPrecondition(
                "fingerprint: this worker serves another model", reason="FINGERPRINT_MISMATCH"
            )
        check_request_id(request.request_id)
        check_token_ids(request.token_ids, info.vocab_size, info.max_context)
        check_sampling(params, info.vocab_size)
        if any(sequence.request_id == request.request_id for sequence in self._deliveries):
            raise AlreadyExists(f"request {request.request_id!r} is in progress")
        if len(self._deliveries) >= self._max_waiting:
            raise Unavailable("the prefill queue is full", reason="QUEUE_FULL")

    def _to_pb(self, event: FirstTokens | int, delivery: Delivery) -> pb.PrefillEvent:
        if isinstance(event, int):
            return pb.PrefillEvent(blocks_ready=pb.BlocksReady(num_blocks=event))
        sequence, engine = event.sequence, self._engine
        return pb.PrefillEvent(
            first_token=pb.FirstToken(
                token_ids=event.token_ids,
                logprobs=[entry.to_pb() for entry in event.logprobs],
                num_local_cached_tokens=sequence.num_local_cached_tokens,
                num_store_cached_tokens=sequence.num_store_cached_tokens,
                queue_ms=1e3 * sequence.times.queue_s,
                pull_ms=1e3 * sequence.times.pull_s,
                compute_ms=1e3 * sequence.times.compute_s,
                num_queued_tokens=engine.scheduler.num_queued_tokens,
                prefill_tokens_per_s=engine.tokens_per_s,
                num_blocks_ready=delivery.num_ready_blocks,
            )
        )


def _cancel(delivery: Delivery, context: grpc.aio.ServicerContext) -> None:
    """Called at the end of the RPC; a delivered request ignores it."""
    delivery.cancel()
