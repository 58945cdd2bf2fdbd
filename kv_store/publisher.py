"""Keeps the prefix index in step with the store, in the background.

The store's events are sent in order, in batches. Whenever the index may have missed some (it was flushed,
restarted or away) the root is published anew under a fresh epoch, which makes the old entries void at once.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterable
from itertools import groupby

import structlog

from forebay.kv.index import PrefixIndex

from .lease import Entry
from .store import Event

log = structlog.get_logger(__name__)

_EPOCH_BITS = 63


class IndexPublisher:
    """Callable for `BlockStore.on_event`; `run` does the talking. All on one event loop."""

    def __init__(
        self,
        index: PrefixIndex,
        committed: Callable[[], Iterable[Entry]],
        *,
        beat_s: float = 1.0,
        refresh_s: float = 2 * 3600.0,
    ) -> None:
        self._index, self._committed = index, committed
        self._beat_s, self._refresh_s = beat_s, refresh_s
        self._events: list[Event] = []
        self._num_blocks: Counter[bytes] = Counter()
        self._epochs: dict[bytes, int] = {}
        self._wake = asyncio.Event()
        self.num_republished = 0

    def __call__(self, event: Event) -> None:
        """Note what happened; never blocks."""
        self._num_blocks[event.root] += 1 if event.is_added else -1
        self._events.append(event)
        self._wake.set()

    async def run(self, node: str) -> None:
        """Publish as `node` until cancelled."""
        next_beat, next_refresh = 0.0, time.monotonic() + self._refresh_s
        while True:
            now = time.monotonic()
            if now >= next_beat:
                await self._beat(node)
                next_beat = now + self._beat_s
            await self._flush(node)
            if now >= next_refresh:
                await self._republish(node, set(self._epochs))
                next_refresh = now + self._refresh_s
            await self._wait(next_beat)

    async def _wait(self, until: float) -> None:
        try:
            async with asyncio.timeout(max(0.0, until - time.monotonic())):
                await self._wake.wait()
        except TimeoutError:
            pass
        self._wake.clear()

    async def _beat(self, node: str) -> None:
        lost = set()
        for root, num_blocks in list(self._num_blocks.items()):
            if num_blocks <= 0:
                # Nothing to say of this root: its node entry expires by itself.
                del self._num_blocks[root]
                self._epochs.pop(root, None)
            elif not await self._announce(root, node):
                lost.add(root)
        if lost:
            await self._republish(node, lost)

    async def _announce(self, root: bytes, node: str) -> bool:
        """Heartbeat of one root; False if all its blocks must be registered (again)."""
        epoch = self._epochs.get(root)
        is_known = await self._index.announce(root, node, epoch) if epoch is not None else False
        if is_known is not False:
            return True
        epoch = secrets.randbits(_EPOCH_BITS)
        if await self._index.announce(root, node, epoch) is None:
            self._epochs.pop(root, None)
            return True
        self._epochs[root] = epoch
        return False

    async def _republish(self, node: str, roots: set[bytes]) -> None:
        """Register every block of `roots`. Events that wait meanwhile only repeat what the snapshot holds."""
        keys: dict[bytes, list[bytes]] = {root: [] for root in roots}
        for entry in self._committed():
            if entry.root in keys:
                keys[entry.root].append(entry.key)
        for root, chain in keys.items():
            await self._send(node, root, True, chain)
        self.num_republished += len(roots)
        log.info("index_republished", num_roots=len(roots), num_blocks=sum(map(len, keys.values())))

    async def _flush(self, node: str) -> None:
        events, self._events = self._events, []
        for (root, is_added), group in groupby(events, key=lambda event: (event.root, event.is_added)):
            if root in self._epochs:
                await self._send(node, root, is_added, [event.key for event in group])
            elif is_added:
                await self._publish_new(node, root)

    async def _publish_new(self, node: str, root: bytes) -> None:
        if self._num_blocks[root] > 0 and self._index.is_healthy and not await self._announce(root, node):
            await self._republish(node, {root})

    async def _send(self, node: str, root: bytes, is_added: bool, keys: list[bytes]) -> None:
        epoch = self._epochs.get(root)
        if epoch is None:
            return
        send = self._index.register if is_added else self._index.unregister
        if await send(root, node, epoch, keys) is not True:
            self._epochs.pop(root, None)
