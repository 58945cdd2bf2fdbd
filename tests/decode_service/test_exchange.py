"""What is pulled and pushed, and when, with moves that the test ends itself."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest

from decode_service.sequence import Owner
from forebay.types import SamplingParams

GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
PROMPT = [3 + i % 90 for i in range(100)]


@dataclass
class Move:
    """A pull or push under way."""

    kind: str
    num_before: int
    blocks: list[int]
    done: Callable[[int], None]


class Moves:
    """Stands for the mover."""

    is_enabled = True

    def __init__(self, rig: Any) -> None:
        self.moves: list[Move] = []
        self.rig = rig
        rig.engine._blocks._mover = self

    def pull(self, keys: list[Any], blocks: list[int], on_done: Callable[[int], None]) -> None:
        assert len(keys) == len(blocks)
        first = self.keys.index(keys[0])
        assert keys == self.keys[first : first + len(keys)]
        self.moves.append(Move("pull", first, blocks, on_done))

    def push(
        self, root: bytes, keys: list[Any], blocks: list[int], parent: Any, on_done: Callable[[int], None]
    ) -> None:
        assert len(keys) == len(blocks)
        self.moves.append(Move("push", 0 if parent is None else 1, blocks, on_done))

    @property
    def keys(self) -> list[Any]:
        return self.rig.engine._slots[Owner(1, 1)].lead.keys(100)


@pytest.fixture
def rig(make_rig: Any) -> Any:
    return make_rig(push_batch_blocks=2)


def end(moves: Moves, num_good: int) -> None:
    moves.moves.pop(0).done(num_good)


def test_ready_blocks_are_pulled_one_range_after_the_other(rig: Any) -> None:
    moves = Moves(rig)
    rig.attach(1, PROMPT, GREEDY)
    rig.engine.step()
    rig.engine.ready(Owner(1, 1), 2)
    rig.engine.ready(Owner(1, 1), 5)
    rig.start(1, num_blocks=6)
    assert [(m.num_before, len(m.blocks)) for m in moves.moves] == [(0, 2)]
    rig.engine.step()
    assert rig.choices == {}, "it waits for its pull"
    end(moves, 2)
    assert [(m.num_before, len(m.blocks)) for m in moves.moves] == [(2, 4)]
    end(moves, 3)
    assert moves.moves == []
    rig.engine.step()
    started = rig.choice(1).started
    assert (started.num_pulled_tokens, started.num_computed_tokens) == (80, 20)
    rig.engine.cancel(Owner(1, 1))
    for move in list(moves.moves):
        move.done(len(move.blocks))


def test_a_short_pull_is_tried_again_when_more_is_ready(rig: Any) -> None:
    moves = Moves(rig)
    rig.attach(1, PROMPT, GREEDY)
    rig.engine.step()
    rig.engine.ready(Owner(1, 1), 3)
    end(moves, 1)
    assert moves.moves == []
    rig.engine.ready(Owner(1, 1), 4)
    assert [(m.num_before, len(m.blocks)) for m in moves.moves] == [(1, 3)]
    end(moves, 3)
    rig.engine.cancel(Owner(1, 1))
    rig.run()


def test_blocks_are_held_until_the_move_ends(rig: Any) -> None:
    moves = Moves(rig)
    rig.attach(1, PROMPT, GREEDY)
    rig.engine.step()
    rig.engine.ready(Owner(1, 1), 3)
    rig.engine.cancel(Owner(1, 1))
    rig.run()
    assert rig.scheduler.pool.num_used == 3
    end(moves, 3)
    assert rig.scheduler.pool.num_used == 0


def test_full_blocks_are_pushed_in_batches_and_the_rest_at_the_end(rig: Any) -> None:
    moves = Moves(rig)
    rig.submit(1, PROMPT, GREEDY)
    rig.run()
    assert [len(m.blocks) for m in moves.moves] == [6, 2]
    assert rig.scheduler.pool.num_used == 8
    for move in moves.moves:
        move.done(0)


def test_a_store_that_is_slow_gets_no_more_than_a_quarter_of_the_pool(make_rig: Any) -> None:
    rig = make_rig(num_blocks=32, push_batch_blocks=1)
    moves = Moves(rig)
    for slot in range(1, 4):
        rig.submit(slot, [slot, *PROMPT], GREEDY)
        rig.run()
    assert sum(len(m.blocks) for m in moves.moves) <= 8
    for move in moves.moves:
        move.done(0)
