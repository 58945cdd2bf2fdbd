"""A small arena, a clock that tests move, and payload helpers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from kv_store.arena import Arena
from kv_store.store import BlockStore

PAGE = 4096


@dataclass
class FakeClock:
    """Monotonic seconds under the test's control."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def arena() -> Iterator[Arena]:
    arena = Arena(8 * PAGE, PAGE)
    yield arena
    arena.close()


@pytest.fixture
def store(arena: Arena, clock: FakeClock) -> BlockStore:
    return BlockStore(arena, clock=clock)
