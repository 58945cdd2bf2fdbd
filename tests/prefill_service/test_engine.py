"""The engine on a tiny random Llama: chunked, cached, batched and alone give the same tokens and logits."""

from __future__ import annotations

import pytest
import torch

from forebay.errors import FailedPrecondition
from forebay.kv.hashing import block_keys
from forebay.kv.pool import BlockPool
from forebay.transport.local import LocalHandoff
from forebay.types import SamplingParams
from forebay.worker import Worker
from prefill_service.engine import Engine
from prefill_service.runner import Runner
from prefill_service.scheduler import Scheduler
from prefill_service.sequence import Admitted, BlocksComputed, Event, FirstTokens, Sequence

GREEDY = SamplingParams(temperature=0.0, logprobs=3)
SIZES = [1, 15, 16, 17, 64, 95, 130]


def prompt(seed: int, num_tokens: int) -> list[int]:
    return torch.randint(2, 97, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def make(name: str, token_ids: list[int], params: SamplingParams = GREEDY, hint: int = 0) -> Sequence:
    return Sequence(name, token_ids, params, b"root", block_keys(b"root", token_ids, 16), 16, hint)


class Bench:
    """An engine over a fresh pool; collects events."""

    def __init__(self, worker: Worker, budget: int = 512, handoff: LocalHandoff | None = None) -> None:
        self.pool, self.events = BlockPool(worker.pool.num_blocks, 16), list[Event]()
        scheduler = Scheduler(self.pool, max_running=8)
        self.engine = Engine(scheduler, Runner(worker.model, worker.kv), lambda: budget, handoff)
        self.engine.publish = self.events.extend

    def run(self, *sequences: Sequence) -> list[FirstTokens]:
        for sequence in sequences:
            self.engine.add(sequence)
        while self.engine.step():
            pass
        firsts = {e.sequence: e for e in self.events if isinstance(e, FirstTokens)}
        return [firsts[sequence] for sequence in sequences]

    def finish(self, *sequences: Sequence) -> None:
        for sequence in sequences:
            self.engine.release(sequence)
        self.engine.check_integrity(is_idle=True)


def assert_equal(first: FirstTokens, second: FirstTokens) -> None:
    assert first.token_ids == second.token_ids
    for one, two in zip(first.logprobs, second.logprobs, strict=True):
        assert one.top_token_ids == two.top_token_ids
        assert one.top_logprobs == pytest.approx(two.top_logprobs, abs=1e-4)


@pytest.mark.parametrize("budget", [16, 32, 48])
def test_chunked_equals_whole(worker: Worker, budget: int) -> None:
    for size in SIZES:
        whole, chunked = make("whole", prompt(size, size)), make("chunked", prompt(size, size))
        one, two = Bench(worker), Bench(worker, budget)
        first = one.run(whole)[0]
        assert_equal(first, two.run(chunked)[0])
        one.finish(whole)
        two.finish(chunked)


def test_cached_equals_cold(worker: Worker) -> None:
    bench = Bench(worker)
    for size in SIZES:
        cold, cached = make("cold", prompt(size, size)), make("cached", prompt(size, size))
        first = bench.run(cold)[0]
        second = bench.run(cached)[0]
        assert_equal(first, second)
        assert cached.num_local_cached_tokens == (size - 1) // 16 * 16
        bench.finish(cold, cached)


def test_batched_equals_alone_with_shared_prefixes(worker: Worker) -> None:
    prompts = [prompt(1, 40) + prompt(10 + size, size) for size in SIZES]
    alone = []
    for token_ids in prompts:
        bench, sequence = Bench(worker), make("alone", token_ids)
        alone += bench.run(sequence)
        bench.finish(sequence)
    bench, sequences = Bench(worker, budget=64), [make(str(i), ids) for i, ids in enumerate(prompts)]
    for first, second in zip(alone, bench.run(*sequences), strict=True):
        assert_equal(first, second)
    assert sum(sequence.num_local_cached_tokens for sequence in sequences) == 32 * (len(prompts) - 1)
    bench.finish(*sequences)


def test_n_first_tokens_depend_on_seed_and_choice_only(worker: Worker) -> None:
    params = SamplingParams(temperature=1.5, seed=5, n=4)
    sequences = [make("a", prompt(3, 50), params), make("b", prompt(3, 50), params)]
    single = make("c", prompt(3, 50), SamplingParams(temperature=1.5, seed=5))
    bench = Bench(worker, budget=32)
    one, two, three = bench.run(*sequences, single)
    assert one.token_ids == two.token_ids and len(one.token_ids) == 4 and len(set(one.token_ids)) > 1
    assert three.token_ids == one.token_ids[:1] and not one.logprobs
    bench.finish(*sequences, single)


def test_events_tell_what_is_final(worker: Worker) -> None:
    bench, sequence = Bench(worker, budget=32), make("a", prompt(1, 70))
    bench.run(sequence)
    assert isinstance(bench.events[0], Admitted)
    assert [e.num_blocks for e in bench.events if isinstance(e, BlocksComputed)] == [2, 4]
    assert bench.engine.tokens_per_s > 0
    bench.finish(sequence)


def test_a_pull_holds_its_sequence_only(worker: Worker) -> None:
    bench = Bench(worker)
    source = make("source", prompt(1, 64))
    first = bench.run(source)[0]
    kept = worker.kv[:, source.block_table].clone()
    bench.finish(source)
    bench.pool.evict_all()
    pulled, other = make("pulled", prompt(1, 64), hint=4), make("other", prompt(2, 20))
    bench.run(other)
    bench.engine.add(pulled)
    assert not bench.engine.step() and pulled.num_computed_tokens == 0
    admitted = bench.events[-1]
    assert isinstance(admitted, Admitted) and (admitted.num_cached, admitted.num_to_pull) == (0, 3)
    worker.kv[:, pulled.block_table[:2]] = kept[:, :2]
    bench.engine.finish_pull(pulled, 2, 0.25)
    bench.run()
    assert_equal(first, _first(bench, pulled))
    assert pulled.num_store_cached_tokens == 32 and pulled.times.pull_s == 0.25
    bench.finish(pulled, other)


def _first(bench: Bench, sequence: Sequence) -> FirstTokens:
    return next(e for e in bench.events if isinstance(e, FirstTokens) and e.sequence is sequence)


def test_handoff_gives_the_whole_table_and_withdraws_it(worker: Worker) -> None:
    handoff = LocalHandoff()
    bench = Bench(worker, handoff=handoff)
    taken, dropped = make("taken", prompt(1, 40)), make("dropped", prompt(2, 40))
    bench.run(taken, dropped)
    tables = list(taken.block_table)
    assert handoff.take("taken") == (tables, 40)
    for sequence in (taken, dropped):
        bench.engine.release(sequence)
        bench.engine.withdraw(sequence)
    assert bench.pool.num_used == 3
    bench.pool.release(tables)
    bench.finish()


def test_an_unreleased_sequence_fails_the_idle_check(worker: Worker) -> None:
    bench, sequence = Bench(worker), make("a", prompt(1, 40))
    bench.run(sequence)
    bench.engine.check_integrity(is_idle=False)
    with pytest.raises(FailedPrecondition, match="sequences are left"):
        bench.engine.check_integrity(is_idle=True)
    bench.finish(sequence)
