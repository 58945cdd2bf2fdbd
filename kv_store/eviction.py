"""Least-recently-used order over leaf blocks: a heap whose stale entries are dropped when they surface."""

from __future__ import annotations

import heapq

from .lease import Entry


class LeafQueue:
    """The evictable blocks: committed, without resident children, without a lease."""

    def __init__(self) -> None:
        self._last_use: dict[bytes, int] = {}
        self._heap: list[tuple[int, int, bytes]] = []

    def __len__(self) -> int:
        return len(self._last_use)

    def __contains__(self, key: bytes) -> bool:
        return key in self._last_use

    def add(self, entry: Entry) -> None:
        """Make a block evictable at its place in the order; of one chain, the deepest goes first."""
        if self._last_use.get(entry.key) != entry.last_use:
            self._last_use[entry.key] = entry.last_use
            heapq.heappush(self._heap, (entry.last_use, -entry.depth, entry.key))
            self._compact()

    def discard(self, key: bytes) -> None:
        """A block is no longer evictable."""
        self._last_use.pop(key, None)

    def pop(self) -> bytes | None:
        """Remove and return the key of the block to evict next, or None."""
        while self._heap:
            last_use, _, key = heapq.heappop(self._heap)
            if self._last_use.get(key) == last_use:
                del self._last_use[key]
                return key
        return None

    def _compact(self) -> None:
        if len(self._heap) > 4 * len(self._last_use) + 64:
            self._heap = [item for item in self._heap if self._last_use.get(item[2]) == item[0]]
            heapq.heapify(self._heap)
