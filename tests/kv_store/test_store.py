"""BlockStore rules one by one: closure, eviction order, leases, corruption, refusal."""

from __future__ import annotations

import pytest

from forebay.errors import InvalidArgument, NotFound
from forebay.kv.hashing import BlockKey
from forebay.kv.payload import HEADER_BYTES, BlockIdentity, write_header
from kv_store.arena import Arena
from kv_store.lease import Purpose
from kv_store.store import BlockStore, Event, Outcome

PAGE = 4096
ROOT = b"r" * 32


def chain(name: str, num: int) -> list[bytes]:
    return [f"{name}{i}".encode().ljust(16, b".") for i in range(num)]


def put(store: BlockStore, keys: list[bytes], parent: bytes | None = None) -> int:
    reservation = store.reserve(ROOT, parent, keys, PAGE, 10.0)
    for grant in reservation.grants:
        identity = BlockIdentity(BlockKey(grant.entry.key, b"c" * 16), b"f" * 32, PAGE - HEADER_BYTES)
        write_header(store.arena.view(grant.offset, PAGE), identity, grant.generation)
    store.commit(reservation.lease_id, [grant.handle for grant in reservation.grants])
    return store.lookup(keys)


def test_a_block_is_visible_only_once_committed(store: BlockStore) -> None:
    keys = chain("a", 3)
    reservation = store.reserve(ROOT, None, keys, PAGE, 10.0)
    assert store.lookup(keys) == 0
    assert store.commit(reservation.lease_id, [g.handle for g in reservation.grants[:2]]) == 2
    assert store.lookup(keys) == 2
    store.check_integrity()


def test_the_second_writer_is_told_it_is_present(store: BlockStore) -> None:
    keys = chain("a", 2)
    put(store, keys)
    again = store.reserve(ROOT, None, chain("a", 3), PAGE, 10.0)
    assert (again.num_present, len(again.grants), again.outcome) == (2, 1, Outcome.COMPLETE)
    assert store.reserve(ROOT, None, chain("a", 3), PAGE, 10.0).outcome is Outcome.PENDING


def test_blocks_commit_root_first(store: BlockStore) -> None:
    reservation = store.reserve(ROOT, None, chain("a", 2), PAGE, 10.0)
    first, second = (grant.handle for grant in reservation.grants)
    assert store.commit(reservation.lease_id, [second]) == 0
    assert store.commit(reservation.lease_id, [first, second]) == 2


def test_a_chain_continues_under_its_parent_only(store: BlockStore) -> None:
    keys = chain("a", 4)
    assert store.reserve(ROOT, keys[1], keys[2:], PAGE, 10.0).outcome is Outcome.PARENT_MISSING
    put(store, keys[:2])
    assert put(store, keys[2:], parent=keys[1]) == 2
    assert store.lookup(keys) == 4


def test_the_coldest_leaf_goes_first_and_a_chain_goes_from_its_leaf(store: BlockStore) -> None:
    put(store, chain("cold", 3))
    put(store, chain("warm", 3))
    store.release(store.acquire(chain("cold", 1), 1.0).lease_id)
    put(store, chain("new", 4))
    assert store.lookup(chain("cold", 3)) == 1
    assert store.lookup(chain("warm", 3)) == 3
    put(store, chain("more", 2))
    assert (store.lookup(chain("warm", 3)), store.lookup(chain("cold", 1))) == (1, 1)
    store.check_integrity()


def test_a_leased_block_is_never_evicted_and_a_full_store_refuses(store: BlockStore) -> None:
    put(store, chain("a", 8))
    lease = store.acquire(chain("a", 8), 5.0)
    refused = store.reserve(ROOT, None, chain("b", 2), PAGE, 5.0)
    assert (refused.outcome, refused.grants, store.stats.num_refused) == (Outcome.FULL, [], 2)
    store.release(lease.lease_id)
    assert put(store, chain("b", 2)) == 2


def test_making_room_never_evicts_the_chain_itself(store: BlockStore) -> None:
    put(store, chain("a", 8))
    longer = chain("a", 10)
    assert store.reserve(ROOT, None, longer, PAGE, 5.0).outcome is Outcome.FULL
    assert store.lookup(longer) == 8
    store.check_integrity()


def test_leases_end_by_the_monotonic_clock(store: BlockStore, clock: object) -> None:
    reservation = store.reserve(ROOT, None, chain("a", 2), PAGE, 5.0)
    handle = reservation.grants[0].handle
    store.resolve(handle, Purpose.WRITE)
    clock.now += 5.0  # type: ignore[attr-defined]
    with pytest.raises(NotFound):
        store.resolve(handle, Purpose.WRITE)
    assert store.commit(reservation.lease_id, [handle]) == 0
    assert store.arena.num_used == 0 and store.stats.num_expired_leases == 1
    store.check_integrity()


def test_what_was_committed_outlives_an_expired_writer(store: BlockStore, clock: object) -> None:
    reservation = store.reserve(ROOT, None, chain("a", 3), PAGE, 5.0)
    store.commit(reservation.lease_id, [reservation.grants[0].handle])
    clock.now += 6.0  # type: ignore[attr-defined]
    assert store.lookup(chain("a", 3)) == 1 and store.arena.num_used == 1
    store.check_integrity()


def test_a_handle_allows_one_purpose(store: BlockStore) -> None:
    reservation = store.reserve(ROOT, None, chain("a", 1), PAGE, 5.0)
    with pytest.raises(NotFound):
        store.resolve(reservation.grants[0].handle, Purpose.READ)
    with pytest.raises(NotFound):
        store.resolve(b"\0" * 16, Purpose.WRITE)


def test_a_duration_must_be_positive(store: BlockStore) -> None:
    with pytest.raises(InvalidArgument):
        store.reserve(ROOT, None, chain("a", 1), PAGE, 0.0)
    with pytest.raises(InvalidArgument):
        store.acquire(chain("a", 1), float("nan"))
    store.check_integrity()


def test_a_corrupt_block_goes_with_all_that_hangs_on_it(store: BlockStore) -> None:
    keys = chain("a", 4)
    put(store, keys)
    assert not store.report_corrupt(keys[1]), "an intact block cannot be purged"
    lease = store.acquire(keys, 10.0)
    store.arena.view(lease.grants[1].offset, PAGE)[PAGE - 1] ^= 1
    assert store.report_corrupt(keys[1])
    assert store.lookup(keys) == 1 and store.arena.num_used == 4
    store.check_integrity()
    assert put(store, keys[1:2], parent=keys[0]) == 1, "the key can be written again meanwhile"
    store.release(lease.lease_id)
    assert store.arena.num_used == 2
    store.check_integrity()


def test_a_writer_below_a_corrupt_block_cannot_commit(store: BlockStore) -> None:
    keys = chain("a", 2)
    put(store, keys[:1])
    below = store.reserve(ROOT, keys[0], keys[1:], PAGE, 10.0)
    store.arena.view(0, store.arena.num_bytes)[PAGE - 1 :: PAGE] = b"\xff" * 8
    assert store.report_corrupt(keys[0])
    assert store.commit(below.lease_id, [below.grants[0].handle]) == 0
    store.release(below.lease_id)
    assert store.arena.num_used == 0
    store.check_integrity()


def test_events_say_what_became_visible_in_order(arena: Arena) -> None:
    events: list[Event] = []
    store = BlockStore(arena, on_event=events.append)
    put(store, chain("a", 2))
    put(store, chain("b", 7))
    a, b = chain("a", 2), chain("b", 7)
    assert [(e.is_added, e.key) for e in events[:3]] == [(True, a[0]), (True, a[1]), (False, a[1])]
    assert [e.key for e in events if e.is_added] == a + b
