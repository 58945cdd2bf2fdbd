"""Slabs and slots: accounting, class change, bounds, seals."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kv_store.arena import Arena, SlabAllocator

PAGE = 4096


def test_slots_of_one_class_do_not_overlap() -> None:
    slabs = SlabAllocator(4 * 4 * PAGE, 4 * PAGE)
    offsets = [slabs.allocate(PAGE + 1) for _ in range(8)]
    assert sorted(offsets) == [slab * 4 * PAGE + slot * 2 * PAGE for slab in range(4) for slot in range(2)]
    assert slabs.allocate(PAGE + 1) is None
    slabs.check_integrity()


def test_an_empty_slab_changes_class() -> None:
    slabs = SlabAllocator(4 * PAGE, 4 * PAGE)
    offset = slabs.allocate(4 * PAGE)
    assert offset == 0 and slabs.allocate(PAGE) is None
    slabs.free(offset)
    assert [slabs.allocate(PAGE) for _ in range(4)] == [0, PAGE, 2 * PAGE, 3 * PAGE]


def test_a_block_larger_than_a_slab_is_refused() -> None:
    assert SlabAllocator(8 * PAGE, PAGE).allocate(PAGE + 1) is None


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 5 * PAGE)), max_size=60))
def test_accounting_holds_under_any_order(actions: list[tuple[bool, int]]) -> None:
    slabs, held = SlabAllocator(16 * PAGE, 4 * PAGE), []
    for is_allocation, size in actions:
        if is_allocation:
            offset = slabs.allocate(size)
            if offset is not None:
                assert slabs.capacity(offset) >= size
                held.append((offset, slabs.capacity(offset)))
        elif held:
            slabs.free(held.pop(size % len(held))[0])
        slabs.check_integrity()
        ranges = sorted(held)
        assert all(a + n <= b for (a, n), (b, _) in zip(ranges, ranges[1:], strict=False))
    assert slabs.num_used == len(held)


def test_views_stay_inside(arena: Arena) -> None:
    with pytest.raises(ValueError, match="outside"):
        arena.view(arena.num_bytes - 1, 2)
    with pytest.raises(ValueError, match="outside"):
        arena.view(-1, 1)


def test_a_peer_cannot_resize_the_arena(arena: Arena) -> None:
    with pytest.raises(PermissionError):
        os.ftruncate(arena.fd, 0)
