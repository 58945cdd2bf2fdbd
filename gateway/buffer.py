"""Tokens of one request between the decode link, which never waits, and the client, which may be slow."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from forebay.errors import ForebayError, ResourceExhausted
from forebay.v1.common_pb2 import TokenLogprobs
from forebay.v1.decode_pb2 import Finished, Spill, Started


@dataclass(slots=True)
class Chunk:
    """What came for one choice since the client was last served; several steps' tokens if it is slow."""

    choice: int
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finished: Finished | None = None


class TokenBuffer:
    """One producer (the link), one consumer (the request's handler); holds `max_tokens` at most."""

    def __init__(self, num_choices: int, max_tokens: int, on_overflow: Callable[[], None]) -> None:
        self._on_overflow = on_overflow
        self.started: Started | None = None
        self.started_at = 0.0
        self.num_unfinished = num_choices
        self._chunks: dict[int, Chunk] = {}
        self._num_tokens, self._max_tokens = 0, max_tokens
        self._error: BaseException | None = None
        self._waiter: asyncio.Future[None] | None = None

    def add(self, choice: int, token_id: int) -> None:
        """One token; the per-token path, kept short."""
        chunk = self._chunks.get(choice)
        if chunk is None:
            chunk = self._chunks[choice] = Chunk(choice)
            self._wake()
        chunk.token_ids.append(token_id)
        self._num_tokens += 1
        if self._num_tokens > self._max_tokens:
            self._overflow()

    def spill(self, spill: Spill) -> None:
        """A rare event of one choice."""
        event = spill.WhichOneof("event")
        if event == "finished":
            self.num_unfinished -= 1
            self.finish(spill.choice, spill.finished)
        elif event == "logprobs":
            self._chunk(spill.choice).logprobs.append(spill.logprobs)
        elif self.started is None:
            self.started, self.started_at = spill.started, time.perf_counter()

    def finish(self, choice: int, finished: Finished) -> None:
        """The choice ends after the tokens added so far."""
        self._chunk(choice).finished = finished

    def add_logprobs(self, choice: int, logprobs: TokenLogprobs) -> None:
        """Log-probabilities of a token that was added here, in the same order."""
        self._chunk(choice).logprobs.append(logprobs)

    def fail(self, error: BaseException) -> None:
        """`take` raises `error` once the tokens before it were taken; the first error stays."""
        self._error = self._error or error
        self._wake()

    @property
    def has_failed(self) -> bool:
        """Whether nothing more will come."""
        return self._error is not None

    async def take(self) -> Sequence[Chunk]:
        """All that came since the last call, at least one chunk; waits for it."""
        while not self._chunks:
            if self._error is not None:
                raise self._error
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunks = list(self._chunks.values())
        self._chunks = {}
        self._num_tokens = 0
        return chunks

    def _chunk(self, choice: int) -> Chunk:
        chunk = self._chunks.get(choice)
        if chunk is None:
            chunk = self._chunks[choice] = Chunk(choice)
            self._wake()
        return chunk

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None and not waiter.done():
            waiter.set_result(None)

    def _overflow(self) -> None:
        self._chunks.clear()
        self._num_tokens = 0
        self.fail(slow_consumer(self._max_tokens))
        self._on_overflow()


def slow_consumer(max_tokens: int) -> ForebayError:
    """The client did not read for too long."""
    message = f"the client is slow: more than {max_tokens} tokens were waiting for it"
    return ResourceExhausted(message, reason="SLOW_CONSUMER", limit=max_tokens)
