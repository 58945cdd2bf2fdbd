"""What prefill and decode link to reach the KV store: look up, push, pull pool blocks.

The store is a cache: gone, slow, full or damaged, it costs recomputation and nothing else. So no method
raises for store trouble; they say how many leading blocks are good, count what went wrong, and log a change
of state once. Reconnection goes on in the background.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import grpc
import structlog
import torch
from tenacity import AsyncRetrying, retry_if_exception_type, wait_random_exponential
from torch import Tensor

from forebay.kv.codec import BlockCodec, Slot
from forebay.kv.hashing import BlockKey
from forebay.kv.layout import BlockLayout
from forebay.kv.session import Reserved, StoreSession, open_session
from forebay.transport.base import Grant, TransportError, check_fits

log = structlog.get_logger(__name__)
P = ParamSpec("P")
T = TypeVar("T")

_TROUBLE = (grpc.aio.AioRpcError, TransportError)
# The call was answered and refused: the store is fine.
_REFUSALS = {
    grpc.StatusCode.NOT_FOUND,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
}


@dataclass(frozen=True)
class ConnectorOptions:
    """Limits of a connector; times in seconds."""

    timeout_s: float = 0.25
    lease_s: float = 15.0
    pending_wait_s: float = 0.25
    batch_bytes: int = 64 << 20
    num_threads: int = 2
    reconnect_max_s: float = 0.5


@dataclass
class ConnectorStats:
    """Counters since start."""

    num_pushed: int = 0
    num_pulled: int = 0
    num_bytes: int = 0
    busy_s: float = 0.0
    num_corrupt: int = 0
    num_failures: int = 0
    num_connects: int = 0

    @property
    def bytes_per_s(self) -> float:
        """Mean speed of all transfers so far; 0 before the first."""
        return self.num_bytes / self.busy_s if self.busy_s else 0.0


class KvConnector:
    """Moves blocks between `kv` [L, num_blocks, 2, Hkv, bs, D] and the first healthy store of `addresses`.

    Blocks passed in must be referenced by the caller until the call returns; a cancelled call returns only
    when no thread touches them any more.
    """

    def __init__(
        self,
        addresses: Sequence[str],
        kv: Tensor,
        layout: BlockLayout,
        fingerprint: bytes,
        transport: str = "auto",
        options: ConnectorOptions | None = None,
    ) -> None:
        self._addresses, self._layout, self._preference = list(addresses), layout, transport
        self._options = options or ConnectorOptions()
        self._codec = BlockCodec(kv, layout, fingerprint)
        # One OpenMP thread each: copies are short, and more threads than cores would slow the engine's.
        self._threads = ThreadPoolExecutor(
            self._options.num_threads, "kv-connector", torch.set_num_threads, (1,)
        )
        self._session: StoreSession | None = None
        self._connecting: asyncio.Task[None] | None = None
        self._background: set[asyncio.Task[None]] = set()
        self.stats = ConnectorStats()

    @property
    def is_connected(self) -> bool:
        """Whether a store is there now."""
        return self._session is not None

    @property
    def scheme(self) -> str:
        """The transport in use; empty without a store."""
        return self._session.transport.scheme if self._session else ""

    async def start(self, wait_s: float = 1.0) -> bool:
        """Begin to connect and wait a moment for it; False if no store is there yet (or none configured)."""
        if self._addresses:
            self._reconnect()
            await asyncio.wait([t for t in (self._connecting,) if t], timeout=wait_s)
        return self.is_connected

    async def close(self) -> None:
        """Disconnect; transfers under way end first."""
        if self._connecting is not None:
            self._connecting.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        session, self._session, self._addresses = self._session, None, []
        if session is not None:
            await session.close()
        await asyncio.to_thread(self._threads.shutdown)

    async def lookup(self, keys: Sequence[BlockKey]) -> int:
        """The store holds this many leading blocks of `keys`."""
        session = self._session
        if session is None or not keys:
            return 0
        try:
            return await session.lookup(keys)
        except _TROUBLE as error:
            self._trouble(session, error)
            return 0

    async def push(
        self, root: bytes, keys: Sequence[BlockKey], block_ids: Sequence[int], parent: BlockKey | None = None
    ) -> int:
        """Store what it lacks of a chain, root to leaf; returns how many leading blocks it now holds.

        `parent` is the key of the block before `keys[0]`, None at the root.
        """
        session, num_held = self._session, 0
        if session is None:
            return 0
        try:
            for start, end in self._batches(len(keys)):
                above = keys[start - 1] if start else parent
                num = await self._push_batch(session, root, above, keys[start:end], block_ids[start:end])
                num_held += num
                if num < end - start:
                    break
        except _TROUBLE as error:
            self._trouble(session, error)
        return num_held

    async def pull(self, keys: Sequence[BlockKey], block_ids: Sequence[int]) -> int:
        """Fill pool blocks from the store; returns how many leading ones are good. The rest is scratch."""
        session, num_good = self._session, 0
        if session is None:
            return 0
        try:
            for start, end in self._batches(len(keys)):
                num = await self._pull_batch(session, keys[start:end], block_ids[start:end])
                num_good += num
                if num < end - start:
                    break
        except _TROUBLE as error:
            self._trouble(session, error)
        return num_good

    def _batches(self, num_blocks: int) -> list[tuple[int, int]]:
        size = max(1, self._options.batch_bytes // self._codec.slot_bytes)
        return [(start, min(start + size, num_blocks)) for start in range(0, num_blocks, size)]

    async def _push_batch(
        self,
        session: StoreSession,
        root: bytes,
        above: BlockKey | None,
        keys: Sequence[BlockKey],
        block_ids: Sequence[int],
    ) -> int:
        reserved = await self._reserve(session, root, above, keys)
        first, grants = reserved.num_present, reserved.grants
        if not grants:
            return first
        num_committed = 0
        try:
            chosen = slice(first, first + len(grants))
            await self._write(session, grants, keys[chosen], block_ids[chosen])
            num_committed = await session.commit(reserved.lease_id, grants)
        finally:
            if num_committed < len(grants):
                self._spawn(self._release(session, reserved.lease_id, ()))
        self.stats.num_pushed += num_committed
        return first + num_committed

    async def _reserve(
        self, session: StoreSession, root: bytes, above: BlockKey | None, keys: Sequence[BlockKey]
    ) -> Reserved:
        """Reserve; while another writer is at the same block, wait for it a moment."""
        give_up, parent = time.monotonic() + self._options.pending_wait_s, above.key if above else b""
        while True:
            reserved = await session.reserve(
                root, parent, keys, self._codec.slot_bytes, self._options.lease_s
            )
            if not reserved.is_pending or time.monotonic() > give_up:
                return reserved
            await asyncio.sleep(0.005)

    async def _write(
        self,
        session: StoreSession,
        grants: Sequence[Grant],
        keys: Sequence[BlockKey],
        block_ids: Sequence[int],
    ) -> None:
        started = time.monotonic()
        arena = session.transport.arena
        memory, slots = (arena, _in_arena(grants, arena)) if arena is not None else self._stage(grants)
        await self._in_thread(self._codec.seal, memory, slots, keys, block_ids)
        if arena is None:
            await session.transport.put(self._buffers(memory, slots, grants))
        self._count_bytes(len(grants), started)

    async def _pull_batch(
        self, session: StoreSession, keys: Sequence[BlockKey], block_ids: Sequence[int]
    ) -> int:
        acquired = await session.acquire(keys, self._options.lease_s)
        num = len(acquired.grants)
        if not num:
            return 0
        corrupt: Sequence[BlockKey] = ()
        try:
            num_good, reason = await self._read(session, acquired.grants, keys[:num], block_ids[:num])
            if num_good < num:
                corrupt = [keys[num_good]]
                self.stats.num_corrupt += 1
                log.warning("block_corrupt", key=keys[num_good].key.hex(), reason=reason)
        finally:
            self._spawn(self._release(session, acquired.lease_id, corrupt))
        self.stats.num_pulled += num_good
        return num_good

    async def _read(
        self,
        session: StoreSession,
        grants: Sequence[Grant],
        keys: Sequence[BlockKey],
        block_ids: Sequence[int],
    ) -> tuple[int, str]:
        started = time.monotonic()
        arena = session.transport.arena
        memory, slots = (arena, _in_arena(grants, arena)) if arena is not None else self._stage(grants)
        if arena is None:
            await session.transport.get(self._buffers(memory, slots, grants))
        num_good, reason = await self._in_thread(self._codec.open, memory, slots, keys, block_ids)
        self._count_bytes(num_good, started)
        return num_good, reason

    def _stage(self, grants: Sequence[Grant]) -> tuple[memoryview, list[Slot]]:
        """A buffer of our own, laid out like an arena, for transports that map none."""
        size = -(-self._codec.slot_bytes // 64) * 64
        slots = [Slot(index * size, grant.generation) for index, grant in enumerate(grants)]
        return memoryview(bytearray(size * len(grants))), slots

    def _buffers(
        self, memory: memoryview, slots: Sequence[Slot], grants: Sequence[Grant]
    ) -> list[tuple[Grant, memoryview]]:
        size = self._codec.slot_bytes
        return [(g, memory[s.offset : s.offset + size]) for g, s in zip(grants, slots, strict=True)]

    async def _in_thread(self, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Run in the pool. If cancelled, wait for the thread first: it may touch the caller's blocks."""
        future = asyncio.get_running_loop().run_in_executor(self._threads, lambda: work(*args, **kwargs))
        try:
            return await asyncio.shield(future)
        except asyncio.CancelledError:
            await asyncio.wait([future])
            raise

    def _count_bytes(self, num_blocks: int, started: float) -> None:
        self.stats.num_bytes += num_blocks * self._layout.block_bytes
        self.stats.busy_s += time.monotonic() - started

    async def _release(self, session: StoreSession, lease_id: bytes, corrupt: Sequence[BlockKey]) -> None:
        try:
            await session.release(lease_id, corrupt)
        except _TROUBLE as error:
            self._trouble(session, error)

    def _trouble(self, session: StoreSession, error: Exception) -> None:
        """Count; and unless the store merely refused, give the session up and connect anew."""
        self.stats.num_failures += 1
        if isinstance(error, grpc.aio.AioRpcError) and error.code() in _REFUSALS:
            return
        if self._session is session:
            reason = error.code().name if isinstance(error, grpc.aio.AioRpcError) else str(error)
            log.warning("store_lost", reason=reason)
            self._session = None
            self._spawn(session.close())
            self._reconnect()

    def _reconnect(self) -> None:
        if self._addresses and (self._connecting is None or self._connecting.done()):
            self._connecting = asyncio.create_task(self._connect())

    async def _connect(self) -> None:
        trials = AsyncRetrying(
            wait=wait_random_exponential(multiplier=0.05, max=self._options.reconnect_max_s),
            retry=retry_if_exception_type(_TROUBLE),
        )
        session: StoreSession = await trials(self._open_any)
        if session.transport.arena is not None:
            await asyncio.to_thread(self._codec.pin, session.transport.arena)
        self._session = session
        self.stats.num_connects += 1
        log.info("store_connected", transport=session.transport.scheme, epoch=session.epoch)

    async def _open_any(self) -> StoreSession:
        """A session with the first address that answers; raises what the last one raised."""
        error: Exception = TransportError("no store address")
        for address in self._addresses:
            try:
                return await open_session(address, self._layout, self._preference, self._options.timeout_s)
            except _TROUBLE as failure:
                error = failure
        raise error

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)


def _in_arena(grants: Sequence[Grant], arena: memoryview) -> list[Slot]:
    for grant in grants:
        check_fits(grant, arena[:0], arena.nbytes)
    return [Slot(grant.offset, grant.generation) for grant in grants]
