"""Pulls and pushes off the engine thread: the engine asks, the event loop moves, the engine is told.

Whoever asks holds a reference on each block until told, so a block that moves is never handed out.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from forebay.engine_loop import EngineLoop
from forebay.kv.connector import KvConnector
from forebay.kv.hashing import BlockKey

Move = Callable[[], Awaitable[int]]


class BlockMover:
    """`pull` and `push` are called by the engine thread; before `bind` it is not enabled."""

    def __init__(self) -> None:
        self.is_enabled = False
        self._tasks: set[asyncio.Task[None]] = set()

    def bind(self, connector: KvConnector, engine_loop: EngineLoop) -> None:
        """Move blocks with `connector`; on the event loop, before the engine loop starts."""
        self._connector, self._engine_loop = connector, engine_loop
        self._event_loop = asyncio.get_running_loop()
        self.is_enabled = True

    def pull(self, keys: list[BlockKey], blocks: list[int], on_done: Callable[[int], None]) -> None:
        """Fill `blocks`; `on_done(number of good leading blocks)` runs on the engine thread."""
        self._start(lambda: self._connector.pull(keys, blocks), on_done)

    def push(
        self,
        root: bytes,
        keys: list[BlockKey],
        blocks: list[int],
        parent: BlockKey | None,
        on_done: Callable[[int], None],
    ) -> None:
        """Offer `blocks` to the store; `on_done(number stored)` runs on the engine thread."""
        self._start(lambda: self._connector.push(root, keys, blocks, parent), on_done)

    async def drain(self, timeout_s: float) -> None:
        """Wait until nothing moves, `timeout_s` at most."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)

    async def close(self) -> None:
        """Cancel what still moves; the engine is told about each."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _start(self, move: Move, on_done: Callable[[int], None]) -> None:
        self._event_loop.call_soon_threadsafe(self._spawn, move, on_done)

    def _spawn(self, move: Move, on_done: Callable[[int], None]) -> None:
        task = asyncio.create_task(self._run(move, on_done))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self, move: Move, on_done: Callable[[int], None]) -> None:
        num_good = 0
        try:
            num_good = await move()
        finally:
            self._engine_loop.post(on_done, num_good)
