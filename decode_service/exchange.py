"""The engine's side of block movement: what to pull before a sequence joins, what to push once it is full."""

from __future__ import annotations

import time
from functools import partial

from .mover import BlockMover
from .scheduler import Scheduler
from .sequence import Sequence, Status


class BlockExchange:
    """Engine thread only. A block that moves carries an extra reference, so that it is never handed out."""

    def __init__(self, scheduler: Scheduler, mover: BlockMover, push_batch_blocks: int) -> None:
        """`push_batch_blocks` 0: nothing computed here is pushed to the store."""
        self._scheduler, self._pool, self._mover = scheduler, scheduler.pool, mover
        self._push_batch_blocks = push_batch_blocks
        self.num_moving = 0

    def note_ready(self, sequence: Sequence, num_blocks: int) -> None:
        """The store is said to hold `num_blocks` blocks; what an earlier pull lacked may be there now."""
        if not sequence.stats.has_joined:
            sequence.num_ready_blocks = max(sequence.num_ready_blocks, num_blocks)
            sequence.can_pull = True
            self._pull(sequence)

    def note_admitted(self, sequence: Sequence) -> None:
        """The sequence got its blocks."""
        stats = sequence.stats
        if not stats.has_joined:
            stats.num_local_tokens = sequence.num_computed
        else:  # preempted: what was published and pushed may still be in the store
            sequence.num_ready_blocks = len(sequence.token_ids) // self._pool.block_size
        self._pull(sequence)

    def _pull(self, sequence: Sequence) -> None:
        """Ask for the blocks that the store holds and the pool lacks, one pull at a time per sequence."""
        if sequence.status is not Status.RESERVED or sequence.is_pulling or not sequence.can_pull:
            return
        first = sequence.num_full_blocks()
        keys = sequence.keys(sequence.num_ready_blocks)[first:]
        if keys and self._mover.is_enabled:
            blocks = sequence.block_table[first : first + len(keys)]
            self._pool.share(blocks)
            self.num_moving += len(blocks)
            sequence.is_pulling = True
            self._mover.pull(keys, blocks, partial(self._on_pulled, sequence, first, blocks))

    def _on_pulled(self, sequence: Sequence, first: int, blocks: list[int], num_good: int) -> None:
        sequence.is_pulling = False
        self.num_moving -= len(blocks)
        if sequence.status is Status.RESERVED:
            block_size, stats = self._pool.block_size, sequence.stats
            sequence.num_computed = (first + num_good) * block_size
            sequence.num_pushed = first + num_good
            sequence.can_pull = num_good == len(blocks)
            self._scheduler.publish(sequence)
            if not stats.has_joined:
                stats.num_pulled_tokens += num_good * block_size
                stats.pulled_s = time.monotonic()
        self._pool.release(blocks)
        self._pull(sequence)

    def push(self, sequence: Sequence, is_last: bool = False) -> None:
        """Offer full blocks to the store, a few at a time."""
        first, end = sequence.num_pushed, sequence.num_published
        if not (self._push_batch_blocks and self._mover.is_enabled) or end - first < 1:
            return
        if not is_last and end - first < self._push_batch_blocks:
            return
        keys, blocks = sequence.keys(end), sequence.block_table[first:end]
        if self.num_moving + len(blocks) > self._pool.num_blocks // 4:
            return  # the store is slow; what it does not get is computed again where it is needed
        self._pool.share(blocks)
        self.num_moving += len(blocks)
        sequence.num_pushed = end
        parent = keys[first - 1] if first else None
        self._mover.push(sequence.root, keys[first:], blocks, parent, partial(self._on_pushed, blocks))

    def _on_pushed(self, blocks: list[int], num_stored: int) -> None:
        self.num_moving -= len(blocks)
        self._pool.release(blocks)
