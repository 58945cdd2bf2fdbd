"""Decisions over the pool alone: order, budget, all-or-nothing, preemption, conservation of blocks."""

from __future__ import annotations

import random

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from decode_service.scheduler import Limits, Run, Scheduler
from decode_service.sequence import Owner, Sequence, Stats, Status
from forebay.kv.hashing import BlockHasher
from forebay.kv.pool import BlockPool
from forebay.sampling import RowState
from forebay.types import SamplingParams

SIZE = 16


def make(num_blocks: int = 16, batch_size: int = 8, batch_tokens: int = 64, **fields: int) -> Scheduler:
    return Scheduler(BlockPool(num_blocks, SIZE), Limits(batch_size, batch_tokens, 64, 512, **fields))


def sequence_of(num_tokens: int, slot: int = 0, num_choices: int = 1) -> Sequence:
    ids = random.Random(slot).choices(range(1000), k=num_tokens)
    rows = [RowState(SamplingParams(), choice, ids) for choice in range(num_choices)]
    group = [
        Sequence(Owner(1, slot), c, list(ids), num_tokens, row, b"", BlockHasher(b"", SIZE), Stats(0.0))
        for c, row in enumerate(rows)
    ]
    group[0].followers = group[1:]
    return group[0]


def complete(scheduler: Scheduler, run: Run) -> None:
    """What the engine does with a run, with token 7 sampled and no draft accepted."""
    sequence = run.sequence
    sequence.num_computed = max(sequence.num_computed, run.start + run.num_tokens)
    scheduler.publish(sequence)
    if run.is_sampling:
        group = [sequence, *sequence.followers]
        scheduler.part(sequence)
        for each in group:
            each.append(7)


def start(scheduler: Scheduler, *sequences: Sequence) -> None:
    for sequence in sequences:
        sequence.is_started = True
        scheduler.add(sequence)
    scheduler.admit()
    scheduler.join()


def test_waiting_sequences_hold_nothing_and_keep_their_order() -> None:
    scheduler = make(num_blocks=6)
    big, small = sequence_of(70, 1), sequence_of(10, 2)
    first = sequence_of(20, 0)
    start(scheduler, first, big, small)
    assert scheduler.waiting == [big, small]
    assert big.block_table == [] and small.block_table == []
    scheduler.remove(first)
    assert scheduler.admit() == [big]


def test_late_reservation_waits_for_start() -> None:
    scheduler = make(reserve_early=False)
    idle, started = sequence_of(20, 1), sequence_of(20, 2)
    scheduler.add(idle)
    start(scheduler, started)
    assert idle.status is Status.WAITING and started.status is Status.RUNNING


def test_caught_up_sequences_come_before_chunks_and_share_the_budget() -> None:
    scheduler = make(batch_tokens=20)
    short, long = sequence_of(1, 1), sequence_of(100, 2)
    start(scheduler, long, short)
    runs = scheduler.plan({short: [1, 2, 3]})
    assert [(run.sequence, run.num_tokens, run.drafts) for run in runs] == [
        (long, 17, ()),
        (short, 1, (1, 2, 3)),
    ]


def test_the_youngest_gives_way_and_returns_to_its_place() -> None:
    scheduler = make(num_blocks=4)
    old, young = sequence_of(16, 1), sequence_of(15, 2)
    start(scheduler, old)
    start(scheduler, young)
    assert scheduler.running == [old, young]
    for _ in range(17):
        for run in scheduler.plan():
            complete(scheduler, run)
    assert scheduler.running == [old] and scheduler.waiting == [young]
    assert young.num_computed == 0 and young.block_table == [] and young.stats.num_preemptions == 1
    later = sequence_of(1, 3)
    scheduler.add(later)
    assert scheduler.waiting == [young, later]


def test_reserved_blocks_are_taken_before_running_ones_but_never_while_they_are_filled() -> None:
    scheduler = make(num_blocks=5)
    running, filling, reserved = sequence_of(16, 1), sequence_of(5, 2), sequence_of(5, 3)
    scheduler.add(running)
    scheduler.add(filling)
    scheduler.add(reserved)
    scheduler.admit()
    filling.is_pulling = running.is_started = True
    scheduler.join()
    for _ in range(40):
        for run in scheduler.plan():
            complete(scheduler, run)
    assert reserved.status is Status.WAITING and filling.status is Status.RESERVED
    assert scheduler.num_preemptions == 1 and running.status is Status.WAITING


def test_drafts_never_cost_anybody_blocks() -> None:
    scheduler = make(num_blocks=3)
    first, second = sequence_of(16, 1), sequence_of(10, 2)
    start(scheduler, first)
    start(scheduler, second)
    for run in scheduler.plan():
        complete(scheduler, run)
    scheduler.remove(second)
    start(scheduler, third := sequence_of(10, 3))
    assert third.status is Status.WAITING
    first.num_computed = 15
    del first.token_ids[16:]
    [run] = scheduler.plan({first: [1] * 40})
    assert run.drafts == () and run.num_tokens == 1


def test_choices_share_full_blocks_and_copy_the_partial_one() -> None:
    scheduler = make()
    lead = sequence_of(40, 1, num_choices=3)
    group = [lead, *lead.followers]
    start(scheduler, lead)
    assert scheduler.pool.num_used == 3 + 2
    [run] = scheduler.plan()
    lead.num_computed = 40
    copies = scheduler.part(lead)
    tables = [sequence.block_table for sequence in group]
    assert [source for source, _ in copies] == [tables[0][2]] * 2
    assert {destination for _, destination in copies} == {tables[1][2], tables[2][2]}
    assert tables[0][:2] == tables[1][:2] == tables[2][:2]
    assert scheduler.running == group
    for sequence in group:
        scheduler.remove(sequence)
    assert scheduler.pool.num_used == 0 and run.num_tokens == 40


def test_chunks_are_whole_only_while_nobody_decodes() -> None:
    scheduler = make(num_blocks=32, batch_tokens=100)
    long = sequence_of(200, 1)
    start(scheduler, long)
    [run] = scheduler.plan()
    assert run.num_tokens == 100
    start(scheduler, short := sequence_of(1, 2))
    assert {run.sequence: run.num_tokens for run in scheduler.plan()} == {long: 64, short: 1}
    runs = scheduler.plan({short: [1] * 100})
    assert {run.sequence: run.num_queries for run in runs} == {long: 16, short: 101}


class SchedulerMachine(RuleBasedStateMachine):
    """Random lives of sequences over a small pool."""

    @initialize(num_blocks=st.integers(8, 20), batch_size=st.integers(1, 6), reserve_early=st.booleans())
    def begin(self, num_blocks: int, batch_size: int, reserve_early: bool) -> None:
        self.scheduler = make(num_blocks, batch_size, 32, reserve_early=reserve_early)
        self.sequences: list[Sequence] = []
        self.num_slots = 0

    @rule(num_tokens=st.integers(1, 60), num_choices=st.integers(1, 3), is_started=st.booleans())
    def add(self, num_tokens: int, num_choices: int, is_started: bool) -> None:
        self.num_slots += 1
        sequence = sequence_of(num_tokens, self.num_slots % 5, num_choices)
        sequence.is_started = is_started
        self.scheduler.add(sequence)
        self.sequences.append(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        sequence = data.draw(st.sampled_from(self.sequences))
        self.sequences.remove(sequence)
        self.scheduler.remove(sequence)
        self.scheduler.remove(sequence)

    @precondition(lambda self: self.sequences)
    @rule(data=st.data())
    def begin_one(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from(self.sequences)).is_started = True

    @rule(num_drafts=st.integers(0, 4))
    def step(self, num_drafts: int) -> None:
        scheduler = self.scheduler
        waiting = [s for s in scheduler.waiting if s.is_started or scheduler.limits.reserve_early]
        admitted = scheduler.admit()
        assert admitted == waiting[: len(admitted)]
        scheduler.join()
        before = list(scheduler.running)
        runs = scheduler.plan({s: [1] * num_drafts for s in scheduler.running if not s.followers})
        assert sum(run.num_queries for run in runs) <= 32 + len(before) + 16
        left = [s for s in before if s.status is Status.RUNNING]
        assert left == before[: len(left)], "the youngest go first"
        for run in runs:
            assert len(run.sequence.block_table) * SIZE >= run.start + run.num_queries
            followers = list(run.sequence.followers) if run.is_sampling else []
            complete(scheduler, run)
            self.sequences += followers

    @rule()
    def drop_long_ones(self) -> None:
        for sequence in [s for s in self.sequences if len(s.token_ids) > 90]:
            self.sequences.remove(sequence)
            self.scheduler.remove(sequence)

    @invariant()
    def blocks_are_conserved(self) -> None:
        if hasattr(self, "scheduler"):
            self.scheduler.pool.check_integrity()
            assert self.scheduler.num_sequences == len(self.sequences)
            queues = [self.scheduler.waiting, self.scheduler.reserved, self.scheduler.running]
            for queue in queues:
                keys = [(s.arrival, s.choice) for s in queue]
                assert keys == sorted(keys)
            assert all(not s.block_table and not s.spare_blocks for s in self.scheduler.waiting)
            held = {b for q in queues for s in q for b in [*s.block_table, *s.spare_blocks]}
            assert len(held) == self.scheduler.pool.num_used

    def teardown(self) -> None:
        if hasattr(self, "scheduler"):
            for sequence in self.sequences:
                self.scheduler.remove(sequence)
            assert self.scheduler.pool.num_used == 0


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def test_blocks_ahead_are_taken_only_from_what_is_free() -> None:
    """The next step's token gets its block early; nobody loses one for it."""
    scheduler = make(num_blocks=4, num_ahead_tokens=1)
    first, second = sequence_of(SIZE, 1), sequence_of(SIZE, 2)
    for sequence in (first, second):
        sequence.is_started = True
        scheduler.add(sequence)
    scheduler.admit()
    scheduler.join()
    assert [run.num_tokens for run in scheduler.plan()] == [SIZE, SIZE]
    assert [len(s.block_table) for s in (first, second)] == [2, 1]
    assert scheduler.pool.num_free == 0 and scheduler.num_preemptions == 0
    for sequence in (first, second):
        scheduler.remove(sequence)
