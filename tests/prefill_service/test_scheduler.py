"""The scheduler alone: order, budget, fairness, caching, and what any mix of arrivals must keep."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from forebay.kv.hashing import block_keys
from forebay.kv.pool import BlockPool
from forebay.types import SamplingParams
from prefill_service.scheduler import Scheduler
from prefill_service.sequence import Sequence

BLOCK = 16


def make(name: str, token_ids: list[int], num_store_blocks: int = 0) -> Sequence:
    keys = block_keys(b"root", token_ids, BLOCK)
    return Sequence(name, token_ids, SamplingParams(), b"root", keys, BLOCK, num_store_blocks)


def prompt(seed: int, num_tokens: int) -> list[int]:
    return [seed * 1000 + i for i in range(num_tokens)]


def step(scheduler: Scheduler, budget: int) -> list[tuple[str, int, int]]:
    scheduler.admit()
    chunks = scheduler.schedule(budget)
    scheduler.complete(chunks)
    return [(chunk.sequence.request_id, chunk.start, chunk.end) for chunk in chunks]


def test_one_prompt_is_cut_at_block_ends() -> None:
    scheduler = Scheduler(BlockPool(20, BLOCK), max_running=4)
    scheduler.add(make("a", prompt(1, 110)))
    steps = [step(scheduler, 40) for _ in range(4)]
    assert steps == [[("a", 0, 32)], [("a", 32, 64)], [("a", 64, 96)], [("a", 96, 110)]]
    assert scheduler.num_queued_tokens == 0 and not scheduler.running


def test_short_prompts_join_behind_a_long_one_and_do_not_stop_it() -> None:
    scheduler = Scheduler(BlockPool(100, BLOCK), max_running=8)
    scheduler.add(make("long", prompt(1, 640)))
    step(scheduler, 64)
    scheduler.add(make("middle", prompt(2, 50)))
    scheduler.add(make("short", prompt(3, 20)))
    assert step(scheduler, 64) == [("long", 64, 96), ("short", 0, 20)]
    assert step(scheduler, 64) == [("long", 96, 128), ("middle", 0, 32)]
    assert step(scheduler, 64) == [("long", 128, 160), ("middle", 32, 50)]
    assert step(scheduler, 64) == [("long", 160, 224)]


def test_waiting_holds_nothing_and_order_is_kept() -> None:
    pool = BlockPool(5, BLOCK)
    scheduler = Scheduler(pool, max_running=8)
    first, second, third = make("a", prompt(1, 48)), make("b", prompt(2, 32)), make("c", prompt(3, 5))
    for sequence in (first, second, third):
        scheduler.add(sequence)
    assert scheduler.admit() == [first]
    assert pool.num_used == 3 and not second.block_table and not third.block_table
    scheduler.complete(scheduler.schedule(512))
    scheduler.release(first)
    assert scheduler.admit() == [second, third]


def test_spare_blocks_are_left_for_others_but_an_idle_pool_admits_all() -> None:
    pool = BlockPool(5, BLOCK)
    scheduler = Scheduler(pool, max_running=8, num_spare_blocks=2)
    others = pool.allocate(1)
    scheduler.add(make("a", prompt(1, 64)))
    assert scheduler.admit() == []
    pool.release(others)
    assert len(scheduler.admit()) == 1


def test_a_cached_prefix_leaves_at_least_one_token() -> None:
    pool = BlockPool(20, BLOCK)
    scheduler = Scheduler(pool, max_running=4)
    first, again = make("a", prompt(1, 64)), make("b", prompt(1, 64))
    scheduler.add(first)
    step(scheduler, 512)
    scheduler.add(again)
    assert step(scheduler, 512) == [("b", 48, 64)]
    assert again.num_local_cached_tokens == 48 and again.block_table[:3] == first.block_table[:3]


def test_equal_prefixes_that_arrive_together_are_computed_once() -> None:
    scheduler = Scheduler(BlockPool(40, BLOCK), max_running=4)
    shared = prompt(1, 64)
    sequences = [make("a", shared + prompt(2, 20)), make("b", shared + prompt(3, 24))]
    for sequence in sequences:
        scheduler.add(sequence)
    assert step(scheduler, 512) == [("a", 0, 84)]
    assert step(scheduler, 512) == [("b", 64, 88)]
    for sequence in sequences:
        scheduler.release(sequence)
    assert scheduler.pool.num_used == 0
    scheduler.pool.check_integrity()


def test_pulled_blocks_count_as_computed_and_bad_ones_do_not() -> None:
    pool = BlockPool(20, BLOCK)
    scheduler = Scheduler(pool, max_running=4)
    sequence = make("a", prompt(1, 80), num_store_blocks=5)
    scheduler.add(sequence)
    assert scheduler.admit() == [sequence] and scheduler.schedule(512) == []
    scheduler.finish_pull(sequence, 2)
    assert step(scheduler, 512) == [("a", 32, 80)]
    assert sequence.num_store_cached_tokens == 32 and pool.num_cached == 5


def test_a_pull_that_ends_after_removal_publishes_nothing() -> None:
    pool = BlockPool(20, BLOCK)
    scheduler = Scheduler(pool, max_running=4)
    sequence = make("a", prompt(1, 80), num_store_blocks=4)
    scheduler.add(sequence)
    scheduler.admit()
    scheduler.remove(sequence)
    scheduler.finish_pull(sequence, 4)
    scheduler.release(sequence)
    assert (pool.num_used, pool.num_cached, scheduler.num_queued_tokens) == (0, 0, 0)


ARRIVAL = st.tuples(
    st.integers(0, 3),  # which prefix
    st.integers(1, 120),  # tokens
    st.integers(0, 6),  # hint
    st.integers(0, 5),  # step of arrival
    st.one_of(st.none(), st.integers(0, 8)),  # step of cancellation
)


@settings(max_examples=150, deadline=None)
@given(arrivals=st.lists(ARRIVAL, max_size=10), budget=st.integers(1, 100), num_blocks=st.integers(9, 24))
def test_every_token_is_computed_once_and_no_block_is_lost(
    arrivals: list[tuple[int, int, int, int, int | None]], budget: int, num_blocks: int
) -> None:
    pool = BlockPool(num_blocks, BLOCK)
    scheduler = Scheduler(pool, max_running=3)
    plan = [(make(str(i), prompt(p, n), hint), s, c) for i, (p, n, hint, s, c) in enumerate(arrivals)]
    ended: set[Sequence] = set()
    covered: dict[Sequence, int] = {}
    for now in range(400):
        for sequence, arrival, cancelled in plan:
            if arrival == now:
                scheduler.add(sequence)
            if cancelled is not None and arrival <= cancelled == now and sequence not in ended:
                scheduler.remove(sequence)
                scheduler.release(sequence)
                ended.add(sequence)
        scheduler.admit()
        for sequence in list(scheduler.pulling):
            scheduler.finish_pull(sequence, min(1, now % 3))
        chunks = scheduler.schedule(budget)
        assert sum(chunk.num_tokens for chunk in chunks) <= max(budget, BLOCK)
        for chunk in chunks:
            assert chunk.start == chunk.sequence.num_computed_tokens >= covered.get(chunk.sequence, 0)
            assert chunk.is_last or chunk.end % BLOCK == 0
            covered[chunk.sequence] = chunk.end
        scheduler.complete(chunks)
        for sequence in {chunk.sequence for chunk in chunks if chunk.is_last}:
            assert sequence.num_computed_tokens == sequence.num_tokens
            scheduler.release(sequence)
            ended.add(sequence)
        pool.check_integrity()
        if now > 8 and len(ended) == len(plan):
            break
    assert len(ended) == len(plan), "a prompt starved"
    assert pool.num_used == 0 and scheduler.num_queued_tokens == 0
