"""One placement of a request: its slot at decode, its call to prefill, and the commands between them."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

import grpc
import structlog

from forebay.rpc.client import request_metadata
from forebay.types import FinishReason, finish_of
from forebay.v1 import decode_pb2, prefill_pb2

from .buffer import TokenBuffer
from .decode_link import DecodeLink
from .metrics import PREFILL_FALLBACKS
from .request import Request
from .router import Route
from .workers import PrefillWorker

log = structlog.get_logger(__name__)


class Attempt:
    """Attached to decode from the start; the prompt is computed by `prefill`, or by decode without one.

    Commands to the slot are ordered: Attach, Ready*, Start, Cancel. After `close` no command leaves, so
    that a cancelled request cannot start, whatever prefill still says.
    """

    def __init__(
        self,
        request: Request,
        route: Route,
        link: DecodeLink,
        prefill: PrefillWorker | None,
        num_store_blocks: int,
        max_buffered_tokens: int,
    ) -> None:
        self.buffer = TokenBuffer(request.params.n, max_buffered_tokens, self.close)
        self._request, self._route, self._link, self._prefill = request, route, link, prefill
        self._num_store_blocks = self.num_ready = num_store_blocks
        self._shares_pool = prefill is not None and prefill.address == route.decode.address
        self._slot = 0
        self._task: asyncio.Task[None] | None = None
        self._is_closed = self._is_started = False
        self._first: prefill_pb2.FirstToken | None = None
        self._ended: list[int] = []

    def start(self, timeout_s: float | None) -> None:
        """Attach, and let the prompt be computed; raises Unavailable if the decode worker is gone."""
        request = self._request
        self._slot = self._link.open(
            self.buffer,
            decode_pb2.Attach(
                request_id=request.request_id,
                token_ids=request.token_ids,
                num_prompt_tokens=len(request.token_ids),
                sampling=request.params.to_pb(),
                fingerprint=request.model.info.fingerprint,
            ),
        )
        if self._prefill is None:
            self._start([])
        else:
            self._task = asyncio.create_task(self._compute(self._prefill, timeout_s))
            self._task.add_done_callback(self._on_done)

    def cancel_choice(self, choice: int) -> None:
        """The choice ended here; decode may stop it."""
        self._send(cancel=decode_pb2.Cancel(choice=choice))

    def close(self, is_complete: bool = False) -> None:
        """Free everything at both workers; idempotent, never waits.

        After a complete answer prefill may store its last blocks: that call ends by itself.
        """
        if self._is_closed:
            return
        self._is_closed = True
        self._route.close()
        if self._task is not None and not (is_complete and self._first is not None):
            self._task.cancel()
        self._link.close(self._slot)

    def _send(self, **command: decode_pb2.Ready | decode_pb2.Start | decode_pb2.Cancel) -> None:
        if not self._is_closed:
            self._link.send(decode_pb2.MuxRequest(slot=self._slot, **command))  # type: ignore[arg-type]

    def _start(self, first_token_ids: Sequence[int]) -> None:
        self._send(start=decode_pb2.Start(first_token_ids=first_token_ids, num_blocks=self.num_ready))

    def _ready(self, num_blocks: int) -> None:
        """Decode may pull; an aggregated worker has the blocks already."""
        self.num_ready = max(self.num_ready, num_blocks)
        if self.num_ready and not self._shares_pool:
            self._send(ready=decode_pb2.Ready(num_blocks=self.num_ready))

    async def _compute(self, worker: PrefillWorker, timeout_s: float | None) -> None:
        """Follow the prefill stream to its end; if it fails before the first token, decode computes."""
        self._ready(self._num_store_blocks)
        failure = "the stream ended early"
        try:
            await self._follow(worker, timeout_s)
        except grpc.aio.AioRpcError as error:
            failure = f"{error.code().name}: {error.details()}"
        self._route.prefill_done()
        if self._first is not None:
            self._go_on(self._first)
            return
        log.warning(
            "prefill_failed", worker=worker.address, request_id=self._request.request_id, error=failure
        )
        PREFILL_FALLBACKS.inc()
        worker.state.routed.clear()
        self._request.timeline.prefill_failed = time.perf_counter()
        self._start([])

    async def _follow(self, worker: PrefillWorker, timeout_s: float | None) -> None:
        """Until no more blocks become ready: the last ones are stored after the first token came."""
        request = self._request
        message = prefill_pb2.PrefillRequest(
            request_id=request.request_id,
            token_ids=request.token_ids,
            sampling=request.params.to_pb(),
            num_store_blocks=self._num_store_blocks,
            fingerprint=request.model.info.fingerprint,
        )
        call = worker.stub.Prefill(message, timeout=timeout_s, metadata=request_metadata(request.request_id))
        try:
            async for event in call:
                if event.HasField("blocks_ready"):
                    self._ready(event.blocks_ready.num_blocks)
                elif len(event.first_token.token_ids) == request.params.n:
                    self._take_first(event.first_token)
                else:
                    return
        finally:
            call.cancel()

    def _take_first(self, first: prefill_pb2.FirstToken) -> None:
        """To the client at once; decode goes on when it can have the blocks (aggregated: at once)."""
        timeline, state = self._request.timeline, self._prefill.state if self._prefill else None
        timeline.prefill, timeline.prefilled = first, time.perf_counter()
        if state is not None:
            state.num_queued_tokens = first.num_queued_tokens
            state.prefill_tokens_per_s = first.prefill_tokens_per_s or state.prefill_tokens_per_s
        self.num_ready = max(self.num_ready, first.num_blocks_ready)
        self._first, self._ended = first, self._publish_first(first)
        if self._shares_pool:
            self._go_on(first)

    def _go_on(self, first: prefill_pb2.FirstToken) -> None:
        """Start decode, once; choices that ended with their first token stay out."""
        if self._is_started or len(self._ended) == len(first.token_ids):
            return
        self._is_started = True
        self._start(first.token_ids)
        for choice in self._ended:
            self.cancel_choice(choice)

    def _publish_first(self, first: prefill_pb2.FirstToken) -> list[int]:
        """Put the first tokens into the buffer; returns the choices that ended with theirs."""
        info, params = self._request.model.info, self._request.params
        num_left = info.max_context - len(self._request.token_ids) - 1
        ended = []
        for choice, token_id in enumerate(first.token_ids):
            self.buffer.add(choice, token_id)
            if choice < len(first.logprobs):
                self.buffer.add_logprobs(choice, first.logprobs[choice])
            reason = finish_of(token_id, 1, params, tuple(info.eos_token_ids), num_left)
            if reason != FinishReason.UNSPECIFIED:
                self.buffer.finish(choice, decode_pb2.Finished(reason=int(reason)))  # type: ignore[arg-type]
                ended.append(choice)
        return ended

    def _on_done(self, task: asyncio.Task[None]) -> None:
        """A defect in the task must end the request, not hang it."""
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self.buffer.fail(error)
