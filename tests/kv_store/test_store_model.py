"""BlockStore against a dictionary: whatever the order of calls, it holds what was put and nothing else."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from forebay.kv.hashing import BlockKey
from forebay.kv.payload import HEADER_BYTES, BlockIdentity, write_header
from kv_store.arena import Arena
from kv_store.lease import Purpose
from kv_store.store import BlockStore, Reservation

PAGE = 4096
ROOT = b"r" * 32


def path(branches: list[int]) -> list[bytes]:
    """Keys of a node of the tree and its ancestors, root first."""
    return [bytes(branches[: depth + 1]).ljust(16, b"\xff") for depth in range(len(branches))]


class StoreMachine(RuleBasedStateMachine):
    """A tree of fan-out 2; the model maps a key to the byte that its payload repeats."""

    writes = Bundle("writes")
    reads = Bundle("reads")
    paths = st.lists(st.integers(0, 1), min_size=1, max_size=5)

    def __init__(self) -> None:
        super().__init__()
        self.now = 0.0
        self.store = BlockStore(Arena(10 * PAGE, 2 * PAGE), clock=lambda: self.now)
        self.model: dict[bytes, int] = {}
        self.leased: dict[bytes, tuple[float, list[bytes]]] = {}

    def teardown(self) -> None:
        self.store.arena.close()

    @rule(target=writes, branches=paths, duration=st.sampled_from([1.0, 3.0]))
    def reserve(self, branches: list[int], duration: float) -> Reservation:
        reservation = self.store.reserve(ROOT, None, path(branches), PAGE, duration)
        for grant in reservation.grants:
            self.model[grant.entry.key] = fill = len(self.model) % 251
            memory = self.store.resolve(grant.handle, Purpose.WRITE)
            memory[HEADER_BYTES:] = bytes([fill]) * (PAGE - HEADER_BYTES)
            identity = BlockIdentity(BlockKey(grant.entry.key, b"c" * 16), b"f" * 32, PAGE - HEADER_BYTES)
            write_header(memory, identity, grant.generation)
            memory.release()
        return reservation

    @rule(reservation=writes, num=st.integers(0, 5))
    def commit(self, reservation: Reservation, num: int) -> None:
        self.store.commit(reservation.lease_id, [grant.handle for grant in reservation.grants[:num]])

    @rule(reservation=consumes(writes))
    def abort(self, reservation: Reservation) -> None:
        self.store.release(reservation.lease_id)

    @rule(target=reads, branches=paths, duration=st.sampled_from([1.0, 3.0]))
    def acquire(self, branches: list[int], duration: float) -> Any:
        acquired = self.store.acquire(path(branches), duration)
        if acquired.grants:
            keys = [grant.entry.key for grant in acquired.grants]
            self.leased[acquired.lease_id] = (self.now + duration, keys)
        for grant in acquired.grants:
            memory = self.store.resolve(grant.handle, Purpose.READ)
            assert set(memory[HEADER_BYTES:]) == {self.model[grant.entry.key]}
            memory.release()
        return acquired

    @rule(acquired=consumes(reads))
    def release(self, acquired: Any) -> None:
        self.leased.pop(acquired.lease_id, None)
        self.store.release(acquired.lease_id)

    @rule(seconds=st.sampled_from([0.5, 2.0]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(branches=paths)
    def corrupt(self, branches: list[int]) -> None:
        acquired = self.store.acquire(path(branches), 1.0)
        if len(acquired.grants) == len(branches) and not self.leased:
            memory = self.store.resolve(acquired.grants[-1].handle, Purpose.READ)
            memory[-1] ^= 1
            memory.release()
            assert self.store.report_corrupt(path(branches)[-1])
            assert self.store.lookup(path(branches)) == len(branches) - 1
        self.store.release(acquired.lease_id)

    @invariant()
    def adds_up(self) -> None:
        self.store.expire()
        self.store.check_integrity()

    @invariant()
    def leased_blocks_stay(self) -> None:
        for ends, keys in self.leased.values():
            if ends > self.now:
                assert self.store.lookup(keys) == len(keys)


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
