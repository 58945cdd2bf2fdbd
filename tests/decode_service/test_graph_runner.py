"""The resident rows against the plain runner: same tokens for any requests, joins, ends, preemption.

On a CPU a graph is a call of the function that it would hold.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from decode_service.graph_runner import GraphRunner
from decode_service.kernels.reference import verify_attention
from forebay.kernels import sample_reference as reference
from forebay.kernels.sampling_state import SamplingState
from forebay.kv.paged_batch import BatchBuilder
from forebay.types import SamplingParams

VOCAB = 97
MakeRig = Callable[..., Any]
Naive = Callable[..., Any]


def draw(logits: Tensor, state: SamplingState) -> tuple[Tensor, Tensor]:
    """`triton_sample.sample` in torch."""
    rows, raw, x = torch.arange(len(logits)), logits.log_softmax(-1), logits.clone()
    for row in rows.tolist():
        for i in range(int(state.num_edits[row])):
            x[row, state.edit_ids[row, i]] += state.edit_values[row, i]
        if state.count_rows[row] >= 0:
            counts = state.counts[state.count_rows[row]]
            ids = counts.nonzero()[:, 0]
            limits = (v[row] for v in (state.repetition, state.presence, state.frequency))
            reference.apply_penalties(x, torch.full_like(ids, row), ids, counts[ids] // 2, *limits)
    n = slice(len(logits))
    temperature = state.temperature[n].where(state.temperature[n] > 0, torch.tensor(1.0))
    scaled = x / temperature[:, None]
    limits = state.top_k[n].long(), state.top_p[n].double(), state.min_p[n].double()
    threshold = reference.truncation_threshold(scaled, *limits)
    drawn = reference.gumbel_argmax(scaled, threshold, state.seeds[n], state.positions[n])
    tokens = drawn.where(state.temperature[n] > 0, x.argmax(-1))
    for row in rows[state.count_rows[n] >= 0].tolist():
        counts = state.counts[state.count_rows[row]]
        counts[tokens[row]] = (counts[tokens[row]] | 1) + 2
    return tokens, raw.gather(1, tokens[:, None])[:, 0]


class Watched(GraphRunner):
    """Compares the inputs of each step with those that the plain runner's batch builder makes."""

    num_ahead = 0

    def _run_on(self, *arguments: Any) -> Any:
        result = super()._run_on(*arguments)
        self.num_ahead += self._flight is not None
        return result

    def _launch(self, wanted: Any) -> Any:
        flight = super()._launch(wanted)
        sequences = sorted(wanted, key=lambda s: flight.rows[s].index)
        tables, positions = [s.block_table for s in sequences], [wanted[s] for s in sequences]
        builder = BatchBuilder(self.kv.shape[4], self.kv.device)
        num_computed = [min(s.num_computed, p) for s, p in zip(sequences, positions, strict=True)]
        batch = builder.build([0] * len(wanted), positions, [1] * len(wanted), num_computed, tables)
        steps, rows = self.state.steps, torch.tensor([flight.rows[s].index for s in sequences])
        assert steps.query_positions[rows].tolist() == positions
        assert steps.slots[rows].tolist() == batch.slots.tolist()
        assert steps.contexts[rows].tolist() == batch.context_lens.tolist()
        for row, table in zip(rows.tolist(), tables, strict=True):
            num_used = wanted[sequences[rows.tolist().index(row)]] // 16 + 1
            assert steps.tables[row, :num_used].tolist() == table[:num_used]
        bucket = self._bucket(self.state.num_used)
        others = [row for row in range(bucket) if row not in rows.tolist()]
        assert (steps.slots[others] == -1).all() and (steps.contexts[others] == 0).all()
        return flight


def graphed(rig: Any, max_batch_size: int = 64, runs_ahead: bool = True) -> Watched:
    """Put resident rows into a rig."""
    worker = rig.worker
    runner = Watched(worker.model, worker.kv, max_batch_size, worker.info.max_context, runs_ahead, draw)
    rig.engine.runner = runner
    if runs_ahead:
        rig.scheduler.limits = replace(rig.scheduler.limits, num_ahead_tokens=1)
    return runner


def prompt_of(num_tokens: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(2, VOCAB), k=num_tokens)


def params_of(seed: int) -> SamplingParams:
    """A different mix of options for each seed."""
    pick = random.Random(seed)
    return SamplingParams(
        temperature=pick.choice([0.0, 0.0, 0.7, 1.3]),
        top_k=pick.choice([0, 5]),
        top_p=pick.choice([1.0, 0.9]),
        min_p=pick.choice([0.0, 0.02]),
        repetition_penalty=pick.choice([1.0, 1.3]),
        presence_penalty=pick.choice([0.0, 0.5]),
        frequency_penalty=pick.choice([0.0, 0.2]),
        logit_bias=pick.choice([{}, {5: 2.0, 7: -3.0}]),
        seed=pick.getrandbits(64),
        max_tokens=pick.randint(1, 40),
        min_tokens=pick.choice([0, 4]),
        stop_token_ids=tuple(pick.sample(range(VOCAB), 3)),
        logprobs=pick.choice([None, None, 0, 2]),
        n=pick.choice([1, 1, 1, 2]),
    )


@pytest.mark.parametrize("runs_ahead", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_those_of_the_plain_runner(make_rig: MakeRig, seed: int, runs_ahead: bool) -> None:
    """Requests come and are cancelled at random; a small pool preempts."""
    rigs = [make_rig(24 if seed % 2 else 256) for _ in range(2)]
    runner = graphed(rigs[1], runs_ahead=runs_ahead)
    for rig in rigs:
        pick = random.Random(seed)
        for slot in range(30):
            rig.submit(slot, prompt_of(pick.randint(1, 60), slot), params_of(100 * seed + slot))
            for _ in range(pick.choice([0, 0, 1, 3, 9])):
                rig.engine.step()
        rig.run()
    for key, want in rigs[0].choices.items():
        got = rigs[1].choices[key]
        assert got.token_ids == want.token_ids and got.reason == want.reason, key
        for mine, other in zip(got.logprobs, want.logprobs, strict=True):
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert mine.top_token_ids == other.top_token_ids
    assert (runner.num_ahead > 0) == runs_ahead


def test_a_cancelled_sequence_leaves_its_row(make_rig: MakeRig, naive: Naive) -> None:
    rig, params = make_rig(), SamplingParams(temperature=0, max_tokens=60)
    runner = graphed(rig)
    for slot in range(5):
        rig.submit(slot, prompt_of(10, slot), params)
    for _ in range(6):
        rig.engine.step()
    assert runner.state.num_used == 5
    for _ in range(3):
        rig.engine.cancel(rig.scheduler.running[0].owner)
    rig.run()
    assert runner.state.num_used <= 2
    for slot in (3, 4):
        assert rig.choice(slot).token_ids == naive(prompt_of(10, slot), params).token_ids


def test_steps_run_ahead_when_nothing_changes(make_rig: MakeRig) -> None:
    rig = make_rig()
    runner = graphed(rig)
    rig.submit(1, prompt_of(10, 1), SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    rig.run()
    assert runner.num_ahead >= 95


def test_more_sequences_than_rows_run_plainly(make_rig: MakeRig, naive: Naive) -> None:
    rig, params = make_rig(), SamplingParams(temperature=0, max_tokens=20)
    graphed(rig, max_batch_size=2)
    for slot in range(5):
        rig.submit(slot, prompt_of(10, slot), params)
    rig.run()
    for slot in range(5):
        assert rig.choice(slot).token_ids == naive(prompt_of(10, slot), params).token_ids


def test_runs_of_drafts_are_computed_by_the_plain_runner(make_rig: MakeRig, naive: Naive) -> None:
    rig, params = make_rig(speculate="ngram"), SamplingParams(temperature=0, max_tokens=60, ignore_eos=True)
    graphed(rig, runs_ahead=False)
    prompt = prompt_of(6, 1) * 5
    rig.submit(1, prompt, params)
    rig.run()
    assert rig.choice(1).token_ids == naive(prompt, params).token_ids


def test_warming_up_leaves_nothing_behind(make_rig: MakeRig, naive: Naive) -> None:
    rig, params = make_rig(), SamplingParams(temperature=0.8, seed=3, max_tokens=30)
    runner = graphed(rig)
    GraphRunner.warm_up(runner)
    rig.submit(1, prompt_of(20, 1), params)
    rig.run()
    assert rig.choice(1).token_ids == naive(prompt_of(20, 1), params).token_ids


def test_contexts_beyond_the_rows_run_plainly(make_rig: MakeRig, naive: Naive) -> None:
    """A sequence that outgrows its row goes on without it."""
    rig, params = make_rig(), SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    runner = graphed(rig)
    runner.state.max_context = 48
    rig.submit(1, prompt_of(30, 1), params)
    rig.run()
    assert rig.choice(1).token_ids == naive(prompt_of(30, 1), params).token_ids
    assert 0 < runner.num_ahead < 20


@pytest.mark.parametrize("lengths", [[300, 0, 200, 70], [0, 300, 20, 0], [0, 600, 0, 0]])
def test_rows_that_are_off_do_not_disturb_others(lengths: list[int]) -> None:
    """In the reference attention, a row without context beside one of several splits."""
    kv, tables = torch.randn(64, 2, 2, 16, 16), torch.randint(1, 64, (4, 40), dtype=torch.int32)
    q, ends = torch.randn(4, 4, 16), torch.arange(5, dtype=torch.int32)
    contexts = torch.tensor(lengths, dtype=torch.int32)
    out = verify_attention(q, kv, tables, ends, contexts, 0.25)
    for row in contexts.nonzero()[:, 0].tolist():
        r = slice(row, row + 1)
        alone = verify_attention(q[r], kv, tables[r], ends[:2], contexts[r], 0.25)
        torch.testing.assert_close(out[r], alone)
