"""Speculation changes the speed and nothing else, whoever drafts."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from decode_service.drafting import Proposal, ProposalBox, Speculator, Update, matching
from decode_service.speculative import DraftState, num_accepted
from forebay.types import SamplingParams

VOCAB = 97
MakeRig = Callable[..., Any]
Naive = Callable[..., Any]
REPETITIVE = [5, 6, 7, 8, 9] * 6


def params_of(seed: int) -> SamplingParams:
    draw = random.Random(seed)
    return SamplingParams(
        temperature=draw.choice([0.0, 0.3, 1.0]),
        top_p=draw.choice([1.0, 0.8]),
        repetition_penalty=draw.choice([1.0, 1.2]),
        frequency_penalty=draw.choice([0.0, 0.4]),
        presence_penalty=draw.choice([0.0, 0.4]),
        seed=draw.getrandbits(64),
        max_tokens=draw.randint(1, 40),
        min_tokens=draw.choice([0, 10]),
        stop_token_ids=tuple(draw.sample(range(VOCAB), 6)),
        logprobs=draw.choice([None, 3]),
    )


class OracleDrafts:
    """Knows what the target will say, and is wrong, absurd or silent as often as told."""

    epoch = 0

    def __init__(self, answers: dict[tuple[int, ...], list[int]], error_rate: float, seed: int = 0) -> None:
        self.answers, self.error_rate, self.draw = answers, error_rate, random.Random(seed)
        self.updates: list[Update] = []

    def send(self, update: Update) -> None:
        self.updates.append(update)

    def take(self, histories: Mapping[int, list[int]], timeout_s: float) -> dict[int, list[int]]:
        return {slot: self._continue(ids) for slot, ids in histories.items() if self.draw.random() < 0.9}

    def _continue(self, ids: list[int]) -> list[int]:
        for prompt, output in self.answers.items():
            if tuple(ids[: len(prompt)]) == prompt:
                right = output[len(ids) - len(prompt) :]
                return [
                    self.draw.randrange(VOCAB) if self.draw.random() < self.error_rate else t for t in right
                ]
        return []


def use(rig: Any, drafts: Any, max_batch: int = 64) -> None:
    rig.engine.speculator = Speculator(drafts, 4, max_batch, 0.0, 512)


@pytest.mark.parametrize("error_rate", [0.0, 0.2, 0.7, 1.0])
def test_tokens_logprobs_and_ends_are_the_same(make_rig: MakeRig, naive: Naive, error_rate: float) -> None:
    prompts = [random.Random(slot).choices(range(2, VOCAB), k=1 + 5 * slot) for slot in range(12)]
    wants = [naive(prompt, params_of(slot)) for slot, prompt in enumerate(prompts)]
    answers = {tuple(p): w.token_ids for p, w in zip(prompts, wants, strict=True)}
    rig = make_rig()
    use(rig, OracleDrafts(answers, error_rate))
    for slot, prompt in enumerate(prompts):
        rig.submit(slot, prompt, params_of(slot))
    rig.run()
    for slot, want in enumerate(wants):
        got = rig.choice(slot)
        assert (got.token_ids, got.reason) == (want.token_ids, want.reason)
        assert [e.token_id for e in got.logprobs] == [e.token_id for e in want.logprobs]
        for mine, other in zip(got.logprobs, want.logprobs, strict=True):
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)
            assert mine.top_token_ids == other.top_token_ids
    if error_rate == 0.0:
        num_tokens = sum(len(want.token_ids) for want in wants)
        assert sum(rig.choice(s).finished.num_accepted_tokens for s in range(12)) > 0.5 * num_tokens


def test_speculation_under_preemption(make_rig: MakeRig, naive: Naive) -> None:
    params = [SamplingParams(temperature=0.8, seed=s, max_tokens=60, ignore_eos=True) for s in range(6)]
    prompts = [random.Random(slot).choices(range(2, VOCAB), k=20) for slot in range(6)]
    wants = [naive(prompt, p).token_ids for prompt, p in zip(prompts, params, strict=True)]
    rig = make_rig(num_blocks=14)
    use(rig, OracleDrafts({tuple(p): w for p, w in zip(prompts, wants, strict=True)}, 0.3))
    for slot in range(6):
        rig.submit(slot, prompts[slot], params[slot])
    rig.run()
    assert rig.scheduler.num_preemptions > 0
    assert [rig.choice(slot).token_ids for slot in range(6)] == wants


def test_several_choices_speculate(make_rig: MakeRig, naive: Naive) -> None:
    params = SamplingParams(temperature=0.2, seed=1, max_tokens=30, n=3, ignore_eos=True)
    rig = make_rig(speculate="ngram")
    rig.submit(1, REPETITIVE, params)
    rig.run()
    for choice in range(3):
        assert rig.choice(1, choice).token_ids == naive(REPETITIVE, params, choice).token_ids


def test_ngram_in_process_drafts_and_is_exact(make_rig: MakeRig, naive: Naive) -> None:
    params = SamplingParams(temperature=0, max_tokens=120, ignore_eos=True)
    rig = make_rig(speculate="ngram")
    for slot in range(4):
        rig.submit(slot, [slot + 3, *REPETITIVE], params)
    rig.run()
    for slot in range(4):
        assert rig.choice(slot).token_ids == naive([slot + 3, *REPETITIVE], params).token_ids
    finished = [rig.choice(slot).finished for slot in range(4)]
    assert sum(f.num_draft_tokens for f in finished) >= sum(f.num_accepted_tokens for f in finished) > 0


def test_nothing_is_drafted_in_a_large_batch(make_rig: MakeRig) -> None:
    rig, drafts = make_rig(), OracleDrafts({}, 0.0)
    use(rig, drafts, max_batch=3)
    for slot in range(4):
        rig.submit(slot, [slot + 2], SamplingParams(max_tokens=5 + 5 * slot, ignore_eos=True))
    rig.engine.step()
    rig.engine.step()
    assert drafts.updates == []
    rig.run()
    assert sum(len(update.opens) for update in drafts.updates) == 3
    assert sorted(slot for u in drafts.updates for slot in u.closes) == [1, 2, 3]


def test_a_drafter_is_told_every_token_once(make_rig: MakeRig) -> None:
    rig, drafts = make_rig(), OracleDrafts({}, 0.0)
    use(rig, drafts)
    rig.submit(1, [4, 5, 6], SamplingParams(max_tokens=20, ignore_eos=True, temperature=0.5, seed=77))
    rig.run()
    [begun] = [begun for update in drafts.updates for begun in update.opens]
    assert (begun.temperature, begun.seed) == (0.5, 77)
    told = list(begun.token_ids)
    for extend in (extend for update in drafts.updates for extend in update.extends):
        told += extend.token_ids
        assert extend.num_tokens == len(told)
    assert told == ([4, 5, 6] + rig.choice(1).token_ids)[: len(told)]
    assert len(told) >= 3 + 18


@given(st.lists(st.integers(0, 3), max_size=6), st.lists(st.integers(0, 3), min_size=7, max_size=7))
def test_num_accepted_is_the_common_prefix(drafts: list[int], sampled: list[int]) -> None:
    num = num_accepted(drafts, sampled)
    assert drafts[:num] == sampled[:num]
    assert num == len(drafts) or drafts[num] != sampled[num]


@given(st.lists(st.integers(0, 2), min_size=1, max_size=8), st.integers(0, 8), st.lists(st.integers(0, 2)))
def test_matching_uses_what_is_left_of_an_overtaken_proposal(
    ids: list[int], position: int, drafts: list[int]
) -> None:
    found = matching(Proposal(position, 1, drafts), ids)
    if 1 <= position <= len(ids) and ids[position - 1] == 1 and (ids[:position] + drafts)[: len(ids)] == ids:
        assert ids[:position] + drafts == ids + found
    else:
        assert found == []


def test_a_box_keeps_only_what_was_asked_for() -> None:
    box = ProposalBox()
    box.put([(1, Proposal(1, 5, [6]))])
    assert box.take({1: [5]}) == {}
    box.expect(1, 2)
    assert not box.wait([1], 0.0)
    box.put([(1, Proposal(1, 5, [6]))])
    assert not box.wait([1], 0.0)
    box.put([(1, Proposal(2, 6, [7]))])
    assert box.wait([1], 0.0)
    assert box.take({1: [5, 6]}) == {1: [7]}
    box.forget([1])
    assert box.take({1: [5, 6]}) == {}


def test_rejections_lower_the_number_of_drafts_and_probes_raise_it_again() -> None:
    state = DraftState()
    assert state.num_drafts(4) == 4
    for _ in range(40):
        state.observe(4, 0)
    nums = [state.num_drafts(4) for _ in range(40)]
    assert nums.count(1) == 2 and nums.count(0) == 38
    for _ in range(20):
        state.observe(1, 1)
    assert state.num_drafts(4) == 4
    assert state.num_drafts(0) == 0


def test_a_drafter_that_is_always_late_is_not_waited_for() -> None:
    class Late(OracleDrafts):
        num_waits = 0

        def take(self, histories: Mapping[int, list[int]], timeout_s: float) -> dict[int, list[int]]:
            self.num_waits += timeout_s > 0
            if timeout_s:
                ProposalBoxWithWork.wait([1], timeout_s)
            return {}

    ProposalBoxWithWork = ProposalBox()
    ProposalBoxWithWork.expect(1, 1)
    drafts = Late({}, 0.0)
    speculator = Speculator(drafts, 4, 8, 0.001, 512)

    class Sequence:
        def __init__(self) -> None:
            self.draft, self.token_ids, self.num_unwritten = DraftState(slot=1, epoch=0), [1], 1

    speculator._wanted = {Sequence(): 4}  # type: ignore[dict-item]
    for _ in range(60):
        assert speculator.propose() == {}
    assert drafts.num_waits == 8
