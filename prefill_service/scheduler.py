"""Decides which prompt tokens the next step computes. No tensors, no I/O, no clock.

A sequence waits (and holds nothing), is admitted when the pool has blocks for its whole prompt, possibly
waits for a pull from the store, runs in block-aligned chunks, and holds its blocks until `release`.

Fairness of a step's budget: the oldest running prompt gets at least half of it, the others get the rest,
shortest remainder first, and what they leave goes back to the oldest. So a long prompt is slowed down by
at most two and a short one never waits for a long one to end.
"""

from __future__ import annotations

from collections import deque

from forebay.kv.pool import BlockPool

from .sequence import Chunk, Sequence


class Scheduler:
    """First in, first admitted; only the engine thread calls it.

    `num_spare_blocks` stay free at admission while anything else is held, for a decode engine that shares
    the pool. `num_queued_tokens` counts the prompt tokens without KV of all sequences in its care.
    """

    def __init__(self, pool: BlockPool, max_running: int, num_spare_blocks: int = 0) -> None:
        self.pool, self.max_running, self.num_spare_blocks = pool, max_running, num_spare_blocks
        self.waiting: deque[Sequence] = deque()
        self.pulling: list[Sequence] = []
        self.running: list[Sequence] = []
        self.num_queued_tokens = 0

    def add(self, sequence: Sequence) -> None:
        """Queue a sequence; it holds no block yet."""
        self.waiting.append(sequence)
        self.num_queued_tokens += sequence.num_remaining_tokens

    def admit(self) -> list[Sequence]:
        """Give blocks to waiting sequences in order, as long as they fit; those with a useful hint pull."""
        admitted = []
        while self.waiting and len(self.running) + len(self.pulling) < self.max_running:
            if not self._reserve(self.waiting[0]):
                break
            sequence = self.waiting.popleft()
            (self.pulling if num_blocks_to_pull(sequence) else self.running).append(sequence)
            admitted.append(sequence)
        return admitted

    def finish_pull(self, sequence: Sequence, num_blocks: int) -> None:
        """`num_blocks` leading pulled blocks are good; no-op for a sequence that was removed meanwhile."""
        if sequence not in self.pulling:
            return
        self.pulling.remove(sequence)
        self.running.append(sequence)
        self._publish(sequence, sequence.num_computed_blocks, sequence.num_computed_blocks + num_blocks)
        sequence.num_store_cached_tokens = num_blocks * self.pool.block_size
        self._advance(sequence, sequence.num_store_cached_tokens)

    def schedule(self, max_tokens: int) -> list[Chunk]:
        """Chunks of the next step: at most `max_tokens`, but one block; they end at a block or the prompt."""
        picked = self._pick()
        if not picked:
            return []
        oldest, *others = picked
        budget = max(max_tokens, self.pool.block_size)
        reserved = min(oldest.num_remaining_tokens, max(budget // 2, self.pool.block_size))
        chunks, left = [], budget - reserved
        for sequence in sorted(others, key=lambda other: other.num_remaining_tokens):
            chunks.append(self._chunk(sequence, left))
            left -= chunks[-1].num_tokens
        chunks.insert(0, self._chunk(oldest, reserved + left))
        return [chunk for chunk in chunks if chunk.num_tokens]

    def complete(self, chunks: list[Chunk]) -> None:
        """The chunks are computed: publish their full blocks; sequences at their end stop running."""
        for chunk in chunks:
            sequence, block_size = chunk.sequence, self.pool.block_size
            self._publish(sequence, chunk.start // block_size, chunk.end // block_size)
            self._advance(sequence, chunk.num_tokens)
            if chunk.is_last:
                self.running.remove(sequence)

    def remove(self, sequence: Sequence) -> None:
        """Compute no more of a sequence, wherever it is; its blocks stay held until `release`."""
        for queue in (self.waiting, self.pulling, self.running):
            if sequence in queue:
                queue.remove(sequence)
                self.num_queued_tokens -= sequence.num_remaining_tokens

    def release(self, sequence: Sequence) -> None:
        """Give the blocks of a removed or finished sequence back."""
        self.pool.release(sequence.block_table)
        sequence.block_table = []

    def _reserve(self, sequence: Sequence) -> bool:
        """Take the locally cached prefix and new blocks for the rest, or nothing."""
        num_spare = self.num_spare_blocks if self.pool.num_used else 0
        keys = sequence.keys[: sequence.num_cacheable_blocks]
        cached = self.pool.match(key.key for key in keys)
        num_new = sequence.num_blocks - len(cached)
        if num_new + num_spare > self.pool.num_free:
            self.pool.release(cached)
            return False
        sequence.block_table = cached + self.pool.allocate(num_new)
        sequence.num_local_cached_tokens = len(cached) * self.pool.block_size
        self._advance(sequence, sequence.num_local_cached_tokens)
        return True

    def _pick(self) -> list[Sequence]:
        """Running sequences in order; of those that need the same block next, only the first computes it."""
        claimed: set[bytes] = set()
        picked = []
        for sequence in self.running:
            self._adopt(sequence)
            key = sequence.next_key
            if key is None or key not in claimed:
                picked.append(sequence)
            if key is not None:
                claimed.add(key)
        return picked

    def _adopt(self, sequence: Sequence) -> None:
        """Swap blocks still to be computed for equal ones that another sequence has published meanwhile."""
        first = sequence.num_computed_blocks
        keys = sequence.keys[first : sequence.num_cacheable_blocks]
        found = self.pool.match(key.key for key in keys)
        own = sequence.block_table[first : first + len(found)]
        sequence.block_table[first : first + len(found)] = found
        self.pool.release(own)
        sequence.num_local_cached_tokens += len(found) * self.pool.block_size
        self._advance(sequence, len(found) * self.pool.block_size)

    def _chunk(self, sequence: Sequence, max_tokens: int) -> Chunk:
        """The next chunk of at most `max_tokens`, rounded down to whole blocks unless it ends the prompt."""
        num = sequence.num_remaining_tokens
        if num > max_tokens:
            num = max_tokens // self.pool.block_size * self.pool.block_size
        start = sequence.num_computed_tokens
        return Chunk(sequence, start, start + num)

    def _publish(self, sequence: Sequence, first: int, end: int) -> None:
        for block in range(first, end):
            self.pool.cache(sequence.block_table[block], sequence.keys[block].key)

    def _advance(self, sequence: Sequence, num_tokens: int) -> None:
        sequence.num_computed_tokens += num_tokens
        self.num_queued_tokens -= num_tokens


def num_blocks_to_pull(sequence: Sequence) -> int:
    """Blocks that the store is said to hold beyond what is in the pool."""
    num_held = min(sequence.num_store_blocks, sequence.num_cacheable_blocks)
    return max(0, num_held - sequence.num_computed_blocks)
