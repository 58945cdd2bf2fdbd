"""The life of one request between its placement and its last piece."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable

import structlog

from forebay import errors
from forebay.errors import ForebayError
from forebay.kv.hashing import BlockHasher
from forebay.types import FinishReason
from forebay.v1.decode_pb2 import Finished
from forebay.v1.inference_pb2 import ExplainResponse, Receipt, Usage

from .attempt import Attempt
from .buffer import Chunk
from .metrics import (
    CACHED_TOKENS,
    DURATION,
    OUTPUT_TOKENS,
    PROMPT_TOKENS,
    REQUESTS,
    TIME_PER_OUTPUT_TOKEN,
    TIME_TO_FIRST_TOKEN,
)
from .receipt import make_receipt, make_usage
from .request import Choice, Piece, Request
from .router import Route

log = structlog.get_logger(__name__)
_ERRORS = {
    kind.reason: kind
    for kind in (
        errors.Unavailable,
        errors.PoolExhausted,
        errors.ResourceExhausted,
        errors.FailedPrecondition,
    )
}


class Generation:
    """One entry of the gateway's journal. `close` frees everything, at any time, twice too."""

    def __init__(self, request: Request, on_close: Callable[[Generation], None]) -> None:
        self.request = request
        self.choices = [Choice(request, index) for index in range(request.params.n)]
        self.outcome = "CANCELLED"
        self._on_close = on_close
        self._attempt: Attempt | None = None
        self.route: Route | None = None
        self._hasher = BlockHasher(request.model.root, request.model.info.block_size)
        self.keys: list[bytes] = []
        self._num_open = request.params.n
        self._num_draft = self._num_accepted = 0
        self._receipt: Receipt | None = None
        self._is_closed = False

    def start(self, attempt: Attempt, route: Route, timeout_s: float | None) -> None:
        """Begin at the chosen workers."""
        self._attempt, self.route = attempt, route
        attempt.start(timeout_s)

    async def pieces(self) -> AsyncIterator[Piece]:
        """Output as it comes; the last piece has usage and receipt."""
        assert self._attempt is not None
        try:
            while self._num_open:
                for chunk in await self._attempt.buffer.take():
                    piece = self._accept(chunk, self._attempt)
                    if piece is not None:
                        yield piece
            self.outcome = "OK"
        except ForebayError as error:
            self.outcome = error.reason
            raise
        finally:
            self.close()

    def hash_prompt(self) -> list[bytes]:
        """Keys of the prompt's full blocks; call once."""
        self.keys = [key.key for key in self._hasher.extend(self.request.token_ids)]
        return self.keys

    def hash_output(self) -> list[bytes]:
        """Keys of prompt and output at the end of a single choice; the last token's KV was never computed."""
        output_ids = self.choices[0].output_ids[:-1] if len(self.choices) == 1 else []
        return self.keys + [key.key for key in self._hasher.extend(output_ids)]

    @property
    def num_blocks_ready(self) -> int:
        """Leading prompt blocks that the store held when last heard."""
        return self._attempt.num_ready if self._attempt is not None else 0

    @property
    def num_output_tokens(self) -> int:
        """Tokens of all choices."""
        return sum(len(choice.output_ids) for choice in self.choices)

    def close(self) -> None:
        """Free slot, prefill call and journal entry."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._attempt is not None:
            self._attempt.close()
        self.request.timeline.ended = self.request.timeline.ended or time.perf_counter()
        self._on_close(self)
        _observe(self)

    def story(self) -> ExplainResponse:
        """What happened, once it has ended."""
        request = self.request
        return ExplainResponse(
            receipt=self._make_receipt(),
            usage=self._make_usage(),
            outcome=self.outcome,
            operation=request.operation,
            model=request.model.name,
        )

    def _make_receipt(self) -> Receipt:
        if self._receipt is None:
            request = self.request
            counts = (self._num_draft, self._num_accepted)
            self._receipt = make_receipt(
                request.request_id, request.params.seed, request.timeline, self.route, *counts
            )
        return self._receipt

    def _make_usage(self) -> Usage:
        request = self.request
        return make_usage(len(request.token_ids), self.num_output_tokens, request.timeline)

    def _accept(self, chunk: Chunk, attempt: Attempt) -> Piece | None:
        if chunk.choice >= len(self.choices) or self.choices[chunk.choice].is_finished:
            return None
        timeline = self.request.timeline
        if not timeline.first_token and chunk.token_ids:
            timeline.first_token = time.perf_counter()
        if not timeline.started and attempt.buffer.started is not None:
            timeline.started, timeline.decode = attempt.buffer.started_at, attempt.buffer.started
        if chunk.finished is not None:
            self._take_end(chunk.finished)
        choice = self.choices[chunk.choice]
        piece = choice.accept(chunk)
        if choice.is_finished:
            self._end_choice(piece, chunk, attempt)
        return piece

    def _take_end(self, finished: Finished) -> None:
        self._num_draft += finished.num_draft_tokens
        self._num_accepted += finished.num_accepted_tokens
        if int(finished.reason) == FinishReason.ERROR:
            raise _error_of(finished)

    def _end_choice(self, piece: Piece, chunk: Chunk, attempt: Attempt) -> None:
        self._num_open -= 1
        if self._num_open:
            if chunk.finished is None:
                attempt.cancel_choice(chunk.choice)
            return
        # Before the last write: a slow client must not keep blocks that nobody needs.
        attempt.close(is_complete=True)
        self.request.timeline.ended = time.perf_counter()
        piece.usage, piece.receipt = self._make_usage(), self._make_receipt()


def _error_of(finished: Finished) -> ForebayError:
    """The error that the worker named; an unknown reason is internal."""
    kind = _ERRORS.get(finished.error_reason, ForebayError)
    return kind(
        finished.error_message or "the decode worker could not go on", reason=finished.error_reason or None
    )


def _observe(generation: Generation) -> None:
    """Metrics and one log line per request."""
    request, timeline = generation.request, generation.request.timeline
    labels = (request.operation, request.model.name)
    num_output = generation.num_output_tokens
    REQUESTS.labels(*labels, generation.outcome).inc()
    PROMPT_TOKENS.labels(*labels).inc(len(request.token_ids))
    CACHED_TOKENS.labels(*labels).inc(timeline.num_cached_tokens)
    OUTPUT_TOKENS.labels(*labels).inc(num_output)
    DURATION.labels(*labels).observe(timeline.total_s)
    if timeline.first_token:
        TIME_TO_FIRST_TOKEN.labels(*labels).observe(timeline.ttft_s)
    if num_output > len(generation.choices):
        decode_s = timeline.ended - timeline.first_token
        num_steps = num_output / len(generation.choices) - 1
        TIME_PER_OUTPUT_TOKEN.labels(*labels).observe(decode_s / num_steps)
    log.info(
        "request_ended",
        request_id=request.request_id,
        outcome=generation.outcome,
        prompt_tokens=len(request.token_ids),
        output_tokens=num_output,
        ttft_ms=round(timeline.ttft_s * 1e3, 1) if timeline.first_token else None,
        total_ms=round(timeline.total_s * 1e3, 1),
    )
