"""Which sequences hold blocks, which run, and how many tokens each computes in the next step.

Oldest first throughout. A sequence gets all blocks of its known tokens or none, so waiting for blocks holds
nothing and cannot deadlock; blocks beyond that are taken one by one as it grows, and when none is left the
youngest sequence gives up all of its own.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping
from collections.abc import Sequence as Seq
from dataclasses import dataclass, replace

from forebay.kv.pool import BlockPool

from .sequence import Sequence, Status

MIN_CHUNK_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Run:
    """One sequence's part of a step: `num_tokens` known tokens from `start`, then `drafts` to verify."""

    sequence: Sequence
    start: int
    num_tokens: int
    drafts: tuple[int, ...] = ()

    @property
    def num_queries(self) -> int:
        """Query tokens."""
        return self.num_tokens + len(self.drafts)

    @property
    def is_sampling(self) -> bool:
        """Whether the run reaches the last known token and the next one is to be sampled."""
        is_last = self.start + self.num_tokens == len(self.sequence.token_ids)
        return is_last and self.sequence.samples_next

    def query_ids(self) -> list[int]:
        """The query tokens."""
        known = self.sequence.token_ids[self.start : self.start + self.num_tokens]
        return [*known, *self.drafts] if self.drafts else known


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a step; with `reserve_early` blocks are taken before the sequence is told to start."""

    max_batch_size: int
    max_batch_tokens: int
    max_chunk_tokens: int  # of sequences that catch up, in a step that others decode in
    max_context: int
    reserve_early: bool = True
    num_ahead_tokens: int = 0  # tokens after a step's own that get blocks if there are any, for the next step


class Scheduler:
    """Pure decisions over the pool; no tensors, no I/O."""

    def __init__(self, pool: BlockPool, limits: Limits) -> None:
        self.pool, self.limits = pool, limits
        self.waiting: list[Sequence] = []
        self.reserved: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_preemptions = 0
        self._num_arrivals = 0

    @property
    def num_sequences(self) -> int:
        """Sequences in any state."""
        return len(self.waiting) + len(self.reserved) + len(self.running)

    def add(self, sequence: Sequence) -> None:
        """A new sequence; the youngest."""
        self._num_arrivals += 1
        sequence.arrival = self._num_arrivals
        self._enter(self.waiting, sequence, Status.WAITING)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence and free what it holds."""
        if sequence.status is not Status.FINISHED:
            self._leave(sequence)
            self._free(sequence)
            sequence.status = Status.FINISHED

    def admit(self) -> list[Sequence]:
        """Give blocks to waiting sequences, oldest first, until one does not fit; returns who got them."""
        admitted = []
        for sequence in list(self.waiting):
            if not (sequence.is_started or self.limits.reserve_early):
                continue
            if not self._reserve(sequence):
                break
            self._leave(sequence)
            self._enter(self.reserved, sequence, Status.RESERVED)
            admitted.append(sequence)
        return admitted

    def adopt(self, sequence: Sequence, blocks: list[int], num_computed: int) -> bool:
        """Take over blocks with computed KV; False, and nothing taken, if spare blocks are lacking."""
        num_spare = self._num_spare(sequence)
        if num_spare > self.pool.num_free:
            return False
        self._leave(sequence)
        sequence.block_table, sequence.num_computed = blocks, num_computed
        sequence.num_pushed = sequence.num_full_blocks()  # by whoever computed them
        sequence.spare_blocks = self.pool.allocate(num_spare)
        self._enter(self.reserved, sequence, Status.RESERVED)
        return True

    def join(self) -> list[Sequence]:
        """Move sequences that are ready into the batch, oldest first, up to its size; returns them."""
        joined = []
        for sequence in [s for s in self.reserved if s.is_ready]:
            if self.running and len(self.running) + sequence.num_choices > self.limits.max_batch_size:
                break
            self._leave(sequence)
            self._enter(self.running, sequence, Status.RUNNING)
            joined.append(sequence)
        return joined

    def part(self, lead: Sequence) -> list[tuple[int, int]]:
        """The prompt is computed: each follower gets the full blocks and a copy of the partial one.

        Returns the (source, destination) blocks to copy.
        """
        num_full = lead.num_full_blocks()
        full, partial = lead.block_table[:num_full], lead.block_table[num_full : num_full + 1]
        copies = []
        for follower in lead.followers:
            self.pool.share(full)
            own = [lead.spare_blocks.pop()] if partial else []
            copies += list(zip(partial, own, strict=True))
            follower.block_table, follower.num_computed = full + own, lead.num_computed
            follower.num_published, follower.num_pushed = lead.num_published, lead.num_pushed
            follower.is_started, follower.arrival, follower.stats = True, lead.arrival, replace(lead.stats)
            self._enter(self.running, follower, Status.RUNNING)
        lead.followers = []
        return copies

    def drop_follower(self, lead: Sequence, index: int) -> None:
        """A follower ends before the choices parted; with index 0 the lead goes on in its place.

        `index` counts the lead as 0, as `first_token_ids` does.
        """
        gone = lead.followers.pop(max(0, index - 1))
        if index == 0:
            lead.choice, lead.row = gone.choice, gone.row
        if lead.first_token_ids:
            del lead.first_token_ids[index]
        if lead.spare_blocks:
            self.pool.release([lead.spare_blocks.pop()])

    def plan(self, proposals: Mapping[Sequence, Seq[int]] | None = None) -> list[Run]:
        """The next step: a token (and its drafts) for each caught-up sequence, chunks for the others."""
        budget = self.limits.max_batch_tokens
        runs: dict[Sequence, Run] = {}
        caught_up = [s for s in self.running if s.num_unwritten == 1]
        behind = [s for s in self.running if s.num_unwritten > 1]
        for sequence in caught_up:
            drafts = tuple((proposals or {}).get(sequence, ()))[:budget]
            runs[sequence] = Run(sequence, sequence.query_start, 1, drafts)
            budget -= len(drafts)
        if caught_up:  # a little at least, or a full batch would starve those behind
            budget = max(min(budget, self.limits.max_chunk_tokens), MIN_CHUNK_TOKENS)
        for sequence in behind:
            if budget > 0:
                num_tokens = min(sequence.num_unwritten, budget)
                runs[sequence] = Run(sequence, sequence.query_start, num_tokens)
                budget -= num_tokens
        return self._with_blocks(runs)

    def preempt(self, sequence: Sequence) -> None:
        """Take all blocks of a sequence; it waits in its old place and is computed again."""
        self.num_preemptions += sequence.status is Status.RUNNING
        sequence.stats.num_preemptions += sequence.status is Status.RUNNING
        self._leave(sequence)
        self._free(sequence)
        sequence.can_pull = True
        self._enter(self.waiting, sequence, Status.WAITING)

    def publish(self, sequence: Sequence) -> None:
        """Make full blocks findable by others; an older block of the same key stays the published one."""
        num_full = sequence.num_full_blocks()
        if num_full > sequence.num_published:
            keys = sequence.keys(num_full)
            for i in range(sequence.num_published, num_full):
                self.pool.cache(sequence.block_table[i], keys[i].key)
            sequence.num_published = num_full

    def _with_blocks(self, runs: dict[Sequence, Run]) -> list[Run]:
        """Grow block tables, oldest first; runs whose sequence lost its blocks drop out."""
        planned = []
        for sequence in list(self.running):
            run = runs.get(sequence)
            if run is None or sequence.status is not Status.RUNNING:
                continue
            if run.drafts and not self._grow(sequence, run.start + run.num_queries):
                run = Run(sequence, run.start, run.num_tokens)
            if self._grow_or_preempt(sequence, run.start + run.num_tokens):
                planned.append(run)
        if self.limits.num_ahead_tokens:
            self._grow_ahead(planned)
        return planned

    def _grow_ahead(self, runs: list[Run]) -> None:
        for run in runs:
            num_tokens = run.start + run.num_queries + self.limits.num_ahead_tokens
            self._grow(run.sequence, min(num_tokens, self.limits.max_context))

    def _grow_or_preempt(self, sequence: Sequence, num_tokens: int) -> bool:
        while not self._grow(sequence, num_tokens):
            victim = self._youngest()
            self.preempt(victim)
            if victim is sequence:
                return False
        return True

    def _youngest(self) -> Sequence:
        """A running sequence, or one with reserved blocks that nobody is filling."""
        idle = [s for s in self.reserved if not s.is_pulling]
        return max([*self.running, *idle], key=_age)

    def _grow(self, sequence: Sequence, num_tokens: int) -> bool:
        num_missing = sequence.num_blocks(num_tokens) - len(sequence.block_table)
        if num_missing > self.pool.num_free:
            return False
        if num_missing > 0:
            sequence.block_table += self.pool.allocate(num_missing)
        return True

    def _reserve(self, sequence: Sequence) -> bool:
        """Match the local cache and allocate the rest, all or nothing.

        One block per running sequence is left free, or an admission would soon be preempted for their growth.
        """
        num_tokens, headroom = len(sequence.token_ids), len(self.running)
        if self.pool.num_free < headroom:
            return False
        matched = self.pool.match([key.key for key in sequence.keys(num_tokens // self.pool.block_size)])
        num_missing = sequence.num_blocks(num_tokens) - len(matched)
        num_spare = self._num_spare(sequence)
        if num_missing + num_spare + headroom > self.pool.num_free:
            self.pool.release(matched)
            return False
        sequence.block_table = matched + self.pool.allocate(num_missing)
        sequence.spare_blocks = self.pool.allocate(num_spare)
        sequence.num_computed = len(matched) * self.pool.block_size
        sequence.num_published = sequence.num_pushed = len(matched)
        return True

    def _num_spare(self, sequence: Sequence) -> int:
        is_partial = len(sequence.token_ids) % self.pool.block_size != 0
        return len(sequence.followers) if is_partial else 0

    def _free(self, sequence: Sequence) -> None:
        self.pool.release(sequence.block_table)
        self.pool.release(sequence.spare_blocks)
        sequence.block_table, sequence.spare_blocks = [], []
        sequence.num_computed = sequence.num_published = sequence.num_pushed = 0

    def _enter(self, queue: list[Sequence], sequence: Sequence, status: Status) -> None:
        bisect.insort(queue, sequence, key=_age)
        sequence.status = status

    def _leave(self, sequence: Sequence) -> None:
        queues = {Status.WAITING: self.waiting, Status.RESERVED: self.reserved, Status.RUNNING: self.running}
        queues[sequence.status].remove(sequence)


def _age(sequence: Sequence) -> tuple[int, int]:
    return sequence.arrival, sequence.choice
