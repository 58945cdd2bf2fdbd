"""The event-loop side of one prompt: pulls what the store has, pushes what was computed, tells the client.

A delivery outlives its RPC: whatever ends the RPC, a pull or push in flight is waited for before the blocks
go back to the pool. Pushes run in order from the root, one at a time; what becomes ready meanwhile travels
together in the next one. The first token never waits for a push.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable

from forebay.engine_loop import EngineLoop
from forebay.errors import ForebayError
from forebay.kv.connector import KvConnector

from .engine import Engine
from .sequence import Admitted, BlocksComputed, Event, FirstTokens, Sequence


class Delivery:
    """Follows `sequence` from the engine's queue to the release of its blocks; event loop only."""

    def __init__(
        self,
        sequence: Sequence,
        engine: Engine,
        engine_loop: EngineLoop,
        connector: KvConnector,
        on_end: Callable[[Sequence], None],
        handoff_ttl_s: float = 0.0,
    ) -> None:
        self.sequence, self.num_ready_blocks = sequence, 0
        self._handoff_ttl_s = handoff_ttl_s
        self._engine, self._engine_loop, self._connector = engine, engine_loop, connector
        self._events: asyncio.Queue[FirstTokens | int | ForebayError | None] = asyncio.Queue()
        self._wake = asyncio.Event()
        self._pull: Admitted | None = None
        self._num_computed_blocks = self._num_tried_blocks = self._num_held_blocks = 0
        self._is_computed = self._is_ended = self._is_cancelled = False
        engine_loop.post(engine.add, sequence)
        self._task = asyncio.create_task(self._run(), name=f"prefill-{sequence.request_id}")
        self._task.add_done_callback(lambda task: on_end(sequence))

    def handle(self, event: Event) -> None:
        """An event of the engine."""
        match event:
            case Admitted():
                self._num_computed_blocks = event.num_cached
                self._pull = event if event.num_to_pull else None
            case BlocksComputed():
                self._num_computed_blocks = event.num_blocks
            case FirstTokens():
                self._is_computed = True
                self._events.put_nowait(event)
        self._wake.set()

    def cancel(self, error: ForebayError | None = None) -> None:
        """Stop computing and moving at the next chance; no-op once everything is delivered."""
        if self._is_ended or self._is_cancelled:
            return
        self._is_cancelled = True
        self._engine_loop.post(self._engine.cancel, self.sequence)
        self._events.put_nowait(error)
        self._wake.set()

    async def events(self) -> AsyncIterator[FirstTokens | int]:
        """The first tokens, and each new number of leading blocks that the store holds."""
        while (event := await self._events.get()) is not None:
            if isinstance(event, ForebayError):
                raise event
            yield event
        await asyncio.shield(self._task)

    async def finished(self) -> None:
        """Wait until the blocks are given back."""
        await asyncio.wait([self._task])

    async def _run(self) -> None:
        try:
            while not self._is_cancelled and not self._is_delivered:
                await self._wake.wait()
                self._wake.clear()
                await self._pull_blocks()
                await self._push_blocks()
        finally:
            self._end()

    def _end(self) -> None:
        self._is_ended = True
        if not self._is_delivered:
            self._engine_loop.post(self._engine.cancel, self.sequence)
        if self._handoff_ttl_s:  # what decode has not taken by then, it never will
            loop, sequence = asyncio.get_running_loop(), self.sequence
            loop.call_later(self._handoff_ttl_s, self._engine_loop.post, self._engine.withdraw, sequence)
        self._engine_loop.post(self._engine.release, self.sequence)
        self._events.put_nowait(None)

    @property
    def _is_delivered(self) -> bool:
        return self._is_computed and self._num_tried_blocks == self._num_computed_blocks

    async def _pull_blocks(self) -> None:
        if self._pull is None or self._is_cancelled:
            return
        blocks = slice(self._pull.num_cached, self._pull.num_cached + self._pull.num_to_pull)
        self._pull, started = None, time.monotonic()
        num_blocks = await self._connector.pull(self.sequence.keys[blocks], self.sequence.block_table[blocks])
        pull_s = time.monotonic() - started
        self._engine_loop.post(self._engine.finish_pull, self.sequence, num_blocks, pull_s)

    async def _push_blocks(self) -> None:
        """Offer the store all that is computed beyond what it is known to hold."""
        end = self._num_computed_blocks
        if end == self._num_tried_blocks or self._is_cancelled:
            return
        self._num_tried_blocks = end
        first = self._num_held_blocks
        self._num_held_blocks = await self._push(first, end)
        if first and self._num_held_blocks < end:  # the store may have lost what came before
            self._num_held_blocks = await self._push(0, end)
        if self._num_held_blocks > self.num_ready_blocks:
            self.num_ready_blocks = self._num_held_blocks
            self._events.put_nowait(self.num_ready_blocks)

    async def _push(self, first: int, end: int) -> int:
        """Number of leading blocks of the prompt that the store holds after pushing [first, end)."""
        sequence = self.sequence
        parent = sequence.keys[first - 1] if first else None
        keys, block_ids = sequence.keys[first:end], sequence.block_table[first:end]
        return first + await self._connector.push(sequence.root, keys, block_ids, parent)
