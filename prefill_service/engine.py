"""Prefill's engine: admit → schedule → run → postprocess, all on the engine thread."""

from __future__ import annotations

import time
from collections.abc import Callable

from forebay.errors import FailedPrecondition
from forebay.transport.local import LocalHandoff

from .metrics import PrefillStats
from .runner import Runner
from .scheduler import Scheduler, num_blocks_to_pull
from .sequence import Admitted, BlocksComputed, Chunk, Event, Sequence

RATE_WEIGHT = 0.2


class Engine:
    """Owns scheduler, pool and runner; every method but the read-only properties is for the engine thread.

    `publish` gets the events of a step at once. `budget()` is the tokens that a step may compute.
    """

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        budget: Callable[[], int],
        handoff: LocalHandoff | None = None,
    ) -> None:
        self.scheduler, self.runner, self.pool = scheduler, runner, scheduler.pool
        self.publish: Callable[[list[Event]], None] = lambda events: None
        self.tokens_per_s = 0.0
        self.stats = PrefillStats()
        self._budget, self._handoff = budget, handoff
        self._sequences: set[Sequence] = set()  # from `add` to `release`

    def step(self) -> bool:
        """One batch of chunks; False if there was nothing to compute."""
        events: list[Event] = self._admit()
        chunks = self.scheduler.schedule(self._budget())
        if chunks:
            events += self._compute(chunks)
        if events:
            self.publish(events)
        return bool(chunks)

    def add(self, sequence: Sequence) -> None:
        """Queue a prompt."""
        self._sequences.add(sequence)
        self.scheduler.add(sequence)

    def finish_pull(self, sequence: Sequence, num_blocks: int, pull_s: float) -> None:
        """The pull that Admitted asked for ended with `num_blocks` good leading blocks."""
        sequence.times.pull_s = pull_s
        self.scheduler.finish_pull(sequence, num_blocks)

    def cancel(self, sequence: Sequence) -> None:
        """Compute no more of it; `release` must follow."""
        self.scheduler.remove(sequence)

    def withdraw(self, sequence: Sequence) -> None:
        """Take the local handoff back unless decode took it."""
        if self._handoff is not None and sequence.is_offered:
            sequence.is_offered = False
            self.pool.release(self._handoff.drop(sequence.request_id))

    def release(self, sequence: Sequence) -> None:
        """Nobody reads or writes the sequence's blocks any more: give them back."""
        self.scheduler.release(sequence)
        self._sequences.discard(sequence)

    def check_integrity(self, is_idle: bool) -> None:
        """Raise FailedPrecondition if the pool's accounts are wrong or, when idle, anything is held."""
        try:
            self.pool.check_integrity()
            if is_idle:
                left = sorted(sequence.request_id for sequence in self._sequences)
                assert not left, f"sequences are left: {left}"
                assert self.scheduler.num_queued_tokens == 0, "queued tokens are left"
                assert self.pool.num_used == 0, f"{self.pool.num_used} blocks are referenced"
        except AssertionError as error:
            raise FailedPrecondition(f"prefill: {error}", reason="INTEGRITY") from error

    def _admit(self) -> list[Event]:
        return [
            Admitted(sequence, sequence.num_computed_blocks, num_blocks_to_pull(sequence))
            for sequence in self.scheduler.admit()
        ]

    def _compute(self, chunks: list[Chunk]) -> list[Event]:
        started = time.monotonic()
        for chunk in chunks:
            chunk.sequence.times.first_chunk = chunk.sequence.times.first_chunk or started
        firsts = self.runner.run(chunks)
        self.scheduler.complete(chunks)
        ended = time.monotonic()
        self._measure(sum(chunk.num_tokens for chunk in chunks), ended - started)
        for first in firsts:
            first.sequence.times.first_token = ended
            self.stats.add_prompt(first.sequence)
            self._offer(first.sequence)
        return [*firsts, *self._progress(chunks)]

    def _progress(self, chunks: list[Chunk]) -> list[Event]:
        """Blocks that became final: computed in this step, or adopted from another sequence before it."""
        events: list[Event] = []
        for sequence in (chunk.sequence for chunk in chunks):
            if sequence.num_computed_blocks > sequence.num_reported_blocks:
                sequence.num_reported_blocks = sequence.num_computed_blocks
                events.append(BlocksComputed(sequence, sequence.num_computed_blocks))
        return events

    def _offer(self, sequence: Sequence) -> None:
        if self._handoff is not None:
            self.pool.release(self._handoff.drop(sequence.request_id))  # of an attempt that nobody took
            self.pool.share(sequence.block_table)
            self._handoff.offer(sequence.request_id, list(sequence.block_table), sequence.num_tokens)
            sequence.is_offered = True

    def _measure(self, num_tokens: int, step_s: float) -> None:
        """Tokens per second, exponentially weighted over busy steps."""
        rate = num_tokens / max(step_s, 1e-9)
        self.stats.add_step(num_tokens, step_s)
        weight = RATE_WEIGHT if self.tokens_per_s else 1.0
        self.tokens_per_s += weight * (rate - self.tokens_per_s)
