"""The store's life: arena, block store, lease clock, publication. Runs on the event loop.

Every call into the store takes microseconds and none blocks, so no thread of its own is needed; payload
bytes do not pass through here.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Coroutine
from typing import Any

import structlog

from forebay.errors import FailedPrecondition
from forebay.kv.index import PrefixIndex
from forebay.kv.membership import Member, Membership
from forebay.rpc.admin import new_epoch

from .arena import ALIGNMENT_BYTES, Arena
from .arena_server import ArenaServer
from .config import KvStoreConfig
from .publisher import IndexPublisher
from .store import BlockStore

log = structlog.get_logger(__name__)

ROLE = "kv_store"
_STEP_S = 0.25
_MAX_SLAB_BYTES = 64 << 20


def slab_bytes(config: KvStoreConfig) -> int:
    """The configured slab size, or 1/16 of the arena in whole memory pages."""
    automatic = min(config.arena_bytes // 16, _MAX_SLAB_BYTES) // ALIGNMENT_BYTES * ALIGNMENT_BYTES
    return config.slab_bytes or max(automatic, ALIGNMENT_BYTES)


class StoreEngine:
    """Owns every part of a running store."""

    def __init__(self, config: KvStoreConfig) -> None:
        self.epoch = new_epoch()
        self.arena = Arena(config.arena_bytes, slab_bytes(config), prefault=config.prefault)
        self.store = BlockStore(self.arena, max_lease_s=config.max_lease_s)
        self.sockets = ArenaServer(self.arena.fd) if config.shared_memory else None
        self._redis_url = config.redis_url
        self._index: PrefixIndex | None = None
        self._members: Membership | None = None
        self._tasks: list[asyncio.Task[None]] = []
        self.num_steps = 0

    def start(self) -> None:
        """Begin to hand out the arena and to end leases; needs a running event loop."""
        if self.sockets is not None:
            self.sockets.start()
        self._spawn(self._loop())

    def publish(self, address: str) -> None:
        """Begin to tell Redis which blocks are here, under `address`; without Redis: nothing."""
        if not self._redis_url:
            return
        self._index = PrefixIndex(self._redis_url, budget_s=None)
        self._members = Membership(self._redis_url)
        publisher = IndexPublisher(self._index, self.store.committed)
        self.store.on_event = publisher
        member = Member(ROLE, address, self.epoch, capacity=self.arena.num_bytes)
        self._spawn(publisher.run(address))
        self._spawn(self._members.keep(lambda: member))

    def step(self) -> int:
        """End leases whose time is over; returns how many."""
        self.num_steps += 1
        return self.store.expire()

    def check_epoch(self, epoch: int) -> None:
        """Raise FailedPrecondition for a peer that shook hands with an earlier process."""
        if epoch != self.epoch:
            raise FailedPrecondition("the store was restarted; say Hello again", reason="STALE_EPOCH")

    async def check_integrity(self, idle: bool) -> None:
        """Raise FailedPrecondition with what does not add up; `idle` also refuses leases."""
        try:
            self.store.check_integrity()
        except AssertionError as error:
            raise FailedPrecondition(str(error), reason="INTEGRITY") from error
        if idle and self.store.num_leases:
            raise FailedPrecondition(f"{self.store.num_leases} leases are held", reason="NOT_IDLE")

    async def close(self) -> None:
        """Stop everything and give the memory back."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for link in (self._index, self._members, self.sockets):
            if link is not None:
                await link.close()
        with contextlib.suppress(BufferError):
            self.arena.close()

    async def _loop(self) -> None:
        while True:
            self.step()
            await asyncio.sleep(_STEP_S)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self._tasks.append(asyncio.create_task(work))
