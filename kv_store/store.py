"""The block store: which block is where, who holds it, what goes first. Plain and synchronous, no I/O.

Every slot of the arena that is in use is in exactly one state:

    reserved    handed to a writer under a lease; not visible to readers
    committed   complete; visible, found by key
    detached    dropped (corrupt) while a reader still holds a lease; its slot is freed with the last lease

Closure: a block is resident only while its parent is, so "has block n" implies "has blocks 0 to n".
A child may be reserved only when its parent is committed or reserved under the same lease, blocks commit
from root to leaf, and only leaves are evicted.

All state is changed only by the methods of BlockStore, on one thread.
"""

from __future__ import annotations

import heapq
import secrets
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum

from forebay.errors import InvalidArgument, NotFound
from forebay.kv.payload import is_intact, stamp_generation

from .arena import Arena
from .eviction import LeafQueue
from .lease import HANDLE_BYTES, Entry, Grant, Lease, Purpose, make_grants


class Outcome(Enum):
    """Why a reservation ends where it ends."""

    COMPLETE = "complete"
    PENDING = "pending"
    FULL = "full"
    PARENT_MISSING = "parent_missing"


@dataclass(frozen=True)
class Reservation:
    """Of the chain asked for: `num_present` leading blocks are held already, `grants` are to be written."""

    lease_id: bytes
    num_present: int
    grants: list[Grant]
    outcome: Outcome


@dataclass(frozen=True)
class Acquisition:
    """Leading blocks of the chain asked for, readable until the lease ends."""

    lease_id: bytes
    grants: list[Grant]


@dataclass
class StoreStats:
    """Counters since start."""

    num_hits: int = 0
    num_misses: int = 0
    num_commits: int = 0
    num_evictions: int = 0
    num_refused: int = 0
    num_expired_leases: int = 0
    num_corrupt: int = 0


@dataclass(frozen=True, slots=True)
class Event:
    """A block became visible (`is_added`) or ceased to be; what the index is told, in order."""

    is_added: bool
    root: bytes
    key: bytes


@dataclass
class BlockStore:
    """Blocks of any number of prefix trees in one arena."""

    arena: Arena
    max_lease_s: float = 60.0
    clock: Callable[[], float] = time.monotonic
    on_event: Callable[[Event], None] | None = None
    stats: StoreStats = field(default_factory=StoreStats)

    def __post_init__(self) -> None:
        self._entries: dict[bytes, Entry] = {}
        self._detached: set[Entry] = set()
        self._leaves = LeafQueue()
        self._leases: dict[bytes, Lease] = {}
        self._grants: dict[bytes, tuple[Lease, Grant]] = {}
        self._expiries: list[tuple[float, bytes]] = []
        self._tick = 0
        self._num_committed = 0

    @property
    def num_blocks(self) -> int:
        """Committed blocks."""
        return self._num_committed

    @property
    def num_leases(self) -> int:
        """Leases that have neither ended nor expired."""
        return len(self._leases)

    def lookup(self, keys: Sequence[bytes]) -> int:
        """Number of leading blocks that readers can acquire now."""
        self.expire()
        num = 0
        for key in keys:
            entry = self._entries.get(key)
            if entry is None or not entry.is_committed:
                break
            num += 1
        return num

    def reserve(
        self, root: bytes, parent: bytes | None, keys: Sequence[bytes], num_bytes: int, duration_s: float
    ) -> Reservation:
        """Slots of `num_bytes` for what is lacking of a chain, root to leaf; `parent` precedes keys[0]."""
        self._check_duration(duration_s)
        self.expire()
        above = self._entries.get(parent) if parent else None
        if parent and (above is None or not above.is_committed):
            return Reservation(b"", 0, [], Outcome.PARENT_MISSING)
        num_present = self.lookup(keys)
        self._touch(keys[:num_present])
        above = self._entries[keys[num_present - 1]] if num_present else above
        missing = keys[num_present:]
        if not missing:
            return Reservation(b"", num_present, [], Outcome.COMPLETE)
        if missing[0] in self._entries:
            return Reservation(b"", num_present, [], Outcome.PENDING)
        entries = self._reserve_chain(root, above, missing, num_bytes)
        outcome = Outcome.COMPLETE if len(entries) == len(missing) else Outcome.FULL
        self.stats.num_refused += len(missing) - len(entries)
        if not entries:
            return Reservation(b"", num_present, [], outcome)
        lease = self._grant(Purpose.WRITE, entries, duration_s)
        return Reservation(lease.lease_id, num_present, list(lease.grants.values()), outcome)

    def commit(self, lease_id: bytes, handles: Sequence[bytes]) -> int:
        """Make written blocks visible, root to leaf; returns how many leading ones are."""
        self.expire()
        lease = self._leases.get(lease_id)
        if lease is None or lease.purpose is not Purpose.WRITE:
            return 0
        for num, handle in enumerate(handles):
            grant = lease.grants.get(handle)
            if grant is None or not self._commit(grant.entry):
                return num
            self._revoke(lease, grant)
            self._unlease(grant.entry)
        return len(handles)

    def acquire(self, keys: Sequence[bytes], duration_s: float) -> Acquisition:
        """Protect the leading blocks that are here and say where they are."""
        self._check_duration(duration_s)
        num = self.lookup(keys)
        self.stats.num_hits += num
        self.stats.num_misses += len(keys) - num
        self._touch(keys[:num])
        if not num:
            return Acquisition(b"", [])
        lease = self._grant(Purpose.READ, [self._entries[key] for key in keys[:num]], duration_s)
        return Acquisition(lease.lease_id, list(lease.grants.values()))

    def release(self, lease_id: bytes) -> bool:
        """End a lease; what it reserved and did not commit is dropped. False if it had ended before."""
        lease = self._leases.pop(lease_id, None)
        if lease is None:
            return False
        for grant in reversed(list(lease.grants.values())):
            self._revoke(lease, grant)
            self._unlease(grant.entry)
            if not grant.entry.is_committed:
                self._drop(grant.entry)
        return True

    def expire(self) -> int:
        """End every lease whose time is over; returns how many."""
        now, num = self.clock(), 0
        while self._expiries and self._expiries[0][0] <= now:
            _, lease_id = heapq.heappop(self._expiries)
            num += self.release(lease_id)
        self.stats.num_expired_leases += num
        return num

    def report_corrupt(self, key: bytes) -> bool:
        """A reader says that a block is damaged: check, and drop it with all that hangs on it if so."""
        entry = self._entries.get(key)
        if entry is None or not entry.is_committed:
            return False
        if is_intact(self.arena.view(entry.offset, entry.num_bytes), key, entry.generation):
            return False
        self.stats.num_corrupt += 1
        for descendant in reversed(list(self._subtree(entry))):
            self._detach(descendant)
        return True

    def report_corrupt_all(self, keys: Sequence[bytes]) -> int:
        """Check several blocks; returns how many were dropped for it."""
        return sum(self.report_corrupt(key) for key in keys)

    def resolve(self, handle: bytes, purpose: Purpose) -> memoryview:
        """The memory that a handle allows to read or write; raises NotFound once it has ended."""
        self.expire()
        held = self._grants.get(handle)
        if held is None or held[0].purpose is not purpose:
            raise NotFound("the handle is unknown or its lease has ended", reason="LEASE_EXPIRED")
        # Under a lease the slot belongs to its block; what is in it is for the reader to verify.
        return self.arena.view(held[1].offset, held[1].num_bytes)

    def committed(self) -> Iterator[Entry]:
        """Every visible block, parents before children."""
        visible = (entry for entry in self._entries.values() if entry.is_committed)
        return iter(sorted(visible, key=lambda entry: entry.depth))

    def check_integrity(self) -> None:
        """Raise AssertionError unless slots, closure, leaves and leases add up."""
        self.arena.check_integrity()
        entries = list(self._entries.values())
        committed = [entry for entry in entries if entry.is_committed]
        num_reserved = len(entries) - len(committed)
        num_in_use = num_reserved + len(committed) + len(self._detached)
        assert self.arena.num_free + num_in_use == self.arena.num_carved, "a slot is lost"
        assert self._num_committed == len(committed), "committed blocks are miscounted"
        for entry in entries:
            self._check_entry(entry)
        leaves = {e.key for e in committed if not e.children and not e.num_leases}
        assert len(leaves) == len(self._leaves) and all(key in self._leaves for key in leaves), (
            "leaf set is wrong"
        )
        granted = {handle for lease in self._leases.values() for handle in lease.grants}
        assert granted == self._grants.keys(), "handles and leases disagree"
        num_granted = sum(e.num_leases for e in [*entries, *self._detached])
        assert num_granted == len(granted), "lease counts are wrong"

    def _check_entry(self, entry: Entry) -> None:
        if entry.parent is not None:
            assert self._entries.get(entry.parent.key) is entry.parent, "closure: a block without its parent"
            assert entry.key in entry.parent.children, "a parent does not know its child"
            assert entry.parent.is_committed or not entry.is_committed, (
                "a block is committed before its parent"
            )
        for child in entry.children:
            assert self._entries[child].parent is entry, "a child does not know its parent"
        assert entry.is_committed or entry.num_leases == 1, "a reserved block without a writer"

    def _reserve_chain(
        self, root: bytes, above: Entry | None, keys: Sequence[bytes], num_bytes: int
    ) -> list[Entry]:
        chain: list[Entry] = []
        for key in keys:
            if above is not None:
                self._lease(above)  # so that making room cannot evict the chain itself
            offset = None if key in self._entries else self._make_room(num_bytes)
            if above is not None:
                self._unlease(above)
            if offset is None:
                break
            above = self._insert(root, above, key, offset, num_bytes)
            chain.append(above)
        return chain

    def _make_room(self, num_bytes: int) -> int | None:
        while (offset := self.arena.allocate(num_bytes)) is None:
            victim = self._leaves.pop()
            if victim is None:
                return None
            self.stats.num_evictions += 1
            self._drop(self._entries[victim])
        return offset

    def _insert(self, root: bytes, parent: Entry | None, key: bytes, offset: int, num_bytes: int) -> Entry:
        self._tick += 1
        depth = parent.depth + 1 if parent else 0
        entry = Entry(key, root, parent, depth, offset, num_bytes, self._tick, last_use=self._tick)
        stamp_generation(self.arena.view(offset, num_bytes), entry.generation)
        self._entries[key] = entry
        if parent is not None:
            parent.children.add(key)
            self._leaves.discard(parent.key)
        return entry

    def _commit(self, entry: Entry) -> bool:
        if entry.is_detached or (entry.parent is not None and not entry.parent.is_committed):
            return False
        entry.is_committed = True
        self._num_committed += 1
        self.stats.num_commits += 1
        self._emit(True, entry)
        return True

    def _grant(self, purpose: Purpose, entries: list[Entry], duration_s: float) -> Lease:
        expires_at = self.clock() + min(duration_s, self.max_lease_s)
        lease = Lease(secrets.token_bytes(HANDLE_BYTES), purpose, expires_at, make_grants(entries))
        self._leases[lease.lease_id] = lease
        heapq.heappush(self._expiries, (expires_at, lease.lease_id))
        for handle, grant in lease.grants.items():
            self._grants[handle] = (lease, grant)
            self._lease(grant.entry)
        return lease

    def _check_duration(self, duration_s: float) -> None:
        if not duration_s > 0:
            raise InvalidArgument(
                "must be positive", field="duration_s", limit=self.max_lease_s, got=duration_s
            )

    def _emit(self, is_added: bool, entry: Entry) -> None:
        if self.on_event is not None:
            self.on_event(Event(is_added, entry.root, entry.key))

    def _revoke(self, lease: Lease, grant: Grant) -> None:
        del lease.grants[grant.handle], self._grants[grant.handle]
        if not lease.grants:
            self._leases.pop(lease.lease_id, None)

    def _lease(self, entry: Entry) -> None:
        entry.num_leases += 1
        self._leaves.discard(entry.key)

    def _unlease(self, entry: Entry) -> None:
        entry.num_leases -= 1
        if entry.is_detached and not entry.num_leases:
            self._detached.discard(entry)
            self.arena.free(entry.offset)
        self._update_leaf(entry)

    def _update_leaf(self, entry: Entry) -> None:
        if entry.is_committed and not entry.is_detached and not entry.children and not entry.num_leases:
            self._leaves.add(entry)

    def _touch(self, keys: Sequence[bytes]) -> None:
        self._tick += 1
        for key in keys:
            entry = self._entries[key]
            entry.last_use = self._tick
            if key in self._leaves:
                self._leaves.add(entry)

    def _subtree(self, entry: Entry) -> Iterator[Entry]:
        """The block and its descendants, parents before children."""
        waiting = [entry]
        for parent in waiting:
            waiting.extend(self._entries[key] for key in parent.children)
            yield parent

    def _detach(self, entry: Entry) -> None:
        """Drop a block that somebody may still hold: unseen at once, its slot freed with the last lease."""
        entry.is_detached = True
        if entry.num_leases:
            self._detached.add(entry)
            self._unlink(entry)
        else:
            self._drop(entry)

    def _drop(self, entry: Entry) -> None:
        if self._entries.get(entry.key) is entry:
            self._unlink(entry)
            self.arena.free(entry.offset)

    def _unlink(self, entry: Entry) -> None:
        del self._entries[entry.key]
        self._leaves.discard(entry.key)
        if entry.is_committed:
            self._num_committed -= 1
            self._emit(False, entry)
        if entry.parent is not None:
            entry.parent.children.discard(entry.key)
            self._update_leaf(entry.parent)
