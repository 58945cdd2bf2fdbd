"""The engine against the naive loop: alone, batched, preempted, forked, cancelled, handed over."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
import torch

from decode_service.sequence import Owner
from forebay.errors import FailedPrecondition, ForebayError, InvalidArgument, ResourceExhausted
from forebay.transport.local import LocalHandoff
from forebay.types import FinishReason, SamplingParams

VOCAB = 97
MakeRig = Callable[..., Any]
Naive = Callable[..., Any]


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(2, VOCAB), k=num_tokens)


def params_of(seed: int) -> SamplingParams:
    """A different mix of options for each seed."""
    draw = random.Random(seed)
    return SamplingParams(
        temperature=draw.choice([0.0, 0.0, 0.7, 1.3]),
        top_k=draw.choice([0, 5]),
        top_p=draw.choice([1.0, 0.9]),
        repetition_penalty=draw.choice([1.0, 1.3]),
        presence_penalty=draw.choice([0.0, 0.5]),
        seed=draw.getrandbits(64),
        max_tokens=draw.randint(1, 30),
        min_tokens=draw.choice([0, 4]),
        stop_token_ids=tuple(draw.sample(range(VOCAB), 3)),
        logprobs=draw.choice([None, None, 2]),
    )


def same(got: Any, want: Any) -> None:
    assert got.token_ids == want.token_ids
    assert got.reason == want.reason
    assert [entry.token_id for entry in got.logprobs] == [entry.token_id for entry in want.logprobs]
    for mine, other in zip(got.logprobs, want.logprobs, strict=True):
        assert mine.logprob == pytest.approx(other.logprob, abs=1e-3)


@pytest.mark.parametrize("num_tokens", [1, 15, 16, 17, 32, 100])
def test_greedy_equals_naive(make_rig: MakeRig, naive: Naive, num_tokens: int) -> None:
    rig, params = make_rig(), SamplingParams(temperature=0, max_tokens=40)
    rig.submit(1, prompt_of(num_tokens), params)
    rig.run()
    same(rig.choice(1), naive(prompt_of(num_tokens), params))


def test_first_token_from_prefill_is_not_repeated(make_rig: MakeRig, naive: Naive) -> None:
    rig, params, prompt = make_rig(), SamplingParams(temperature=0, max_tokens=20), prompt_of(32)
    want = naive(prompt, params).token_ids
    rig.attach(1, prompt, params)
    rig.run()
    assert rig.choices == {}
    rig.start(1, want[:1])
    rig.run()
    assert rig.choice(1).token_ids == want[1:]
    assert rig.choice(1).started.num_computed_tokens == 32


def test_a_first_token_that_ends_the_choice_ends_it(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.attach(1, prompt_of(20), SamplingParams(max_tokens=10))
    rig.start(1, [1])
    rig.run()
    assert rig.choice(1).reason is FinishReason.STOP
    assert rig.choice(1).finished.stop_token_id == 1
    assert rig.choice(1).token_ids == []


def test_mixed_batch_of_32_equals_alone(make_rig: MakeRig, naive: Naive) -> None:
    rig = make_rig()
    for slot in range(32):
        rig.submit(slot, prompt_of(1 + 7 * slot % 90, slot), params_of(slot))
    rig.run()
    for slot in range(32):
        same(rig.choice(slot), naive(prompt_of(1 + 7 * slot % 90, slot), params_of(slot)))


def test_running_sequences_get_their_token_beside_long_prompts(make_rig: MakeRig) -> None:
    rig = make_rig(max_batch_size=8, max_batch_tokens=16)
    rig.submit(1, prompt_of(8), SamplingParams(temperature=0, max_tokens=40, ignore_eos=True))
    rig.engine.step()
    rig.submit(2, prompt_of(300, 2), SamplingParams(temperature=0, max_tokens=2))
    for _ in range(15):
        before = len(rig.choice(1).token_ids)
        rig.engine.step()
        assert len(rig.choice(1).token_ids) == before + 1
    rig.run()
    assert len(rig.choice(2).token_ids) == 2


def test_preempted_equals_undisturbed(make_rig: MakeRig, naive: Naive) -> None:
    rig = make_rig(num_blocks=14)
    params = [SamplingParams(temperature=0.8, seed=s, max_tokens=60, ignore_eos=True) for s in range(6)]
    for slot in range(6):
        rig.submit(slot, prompt_of(20, slot), params[slot])
    rig.run()
    assert rig.scheduler.num_preemptions > 0
    for slot in range(6):
        same(rig.choice(slot), naive(prompt_of(20, slot), params[slot]))
    assert sum(rig.choice(s).finished.num_preemptions for s in range(6)) == rig.scheduler.num_preemptions
    assert rig.choice(0).finished.num_preemptions == 0


def test_a_cached_prompt_is_not_computed_again(make_rig: MakeRig, naive: Naive) -> None:
    rig, params, prompt = make_rig(), SamplingParams(temperature=0, max_tokens=8), prompt_of(64)
    for slot in range(2):
        rig.submit(slot, prompt, params)
        rig.run()
        same(rig.choice(slot), naive(prompt, params))
    assert rig.choice(1).started.num_local_tokens == 64
    assert rig.choice(1).started.num_computed_tokens == 0


def test_generated_blocks_are_reused_by_a_request_that_moves_here(make_rig: MakeRig, naive: Naive) -> None:
    rig, params, prompt = make_rig(), SamplingParams(temperature=0.9, seed=5, max_tokens=60), prompt_of(10)
    want = naive(prompt, params)
    rig.submit(0, prompt, params)
    rig.run()
    half = want.token_ids[:30]
    rig.submit(1, prompt + half, params, num_prompt_tokens=10)
    rig.run()
    assert rig.choice(1).token_ids == want.token_ids[30:]
    assert rig.choice(1).started.num_local_tokens == 10


@pytest.mark.parametrize("num_tokens", [16, 20, 33])
@pytest.mark.parametrize("has_first_tokens", [False, True])
def test_n_choices_share_the_prompt(
    make_rig: MakeRig, naive: Naive, num_tokens: int, has_first_tokens: bool
) -> None:
    rig, prompt = make_rig(), prompt_of(num_tokens)
    params = SamplingParams(temperature=1.0, seed=3, max_tokens=24, n=5)
    want = [naive(prompt, params, choice).token_ids for choice in range(5)]
    rig.attach(1, prompt, params)
    rig.start(1, [token_ids[0] for token_ids in want] if has_first_tokens else None)
    rig.engine.step()
    rig.engine.step()
    assert rig.scheduler.pool.num_used <= num_tokens // 16 + 5
    rig.run()
    assert [rig.choice(1, c).token_ids for c in range(5)] == [ids[has_first_tokens:] for ids in want]


def test_one_choice_of_several_moves_here(make_rig: MakeRig, naive: Naive) -> None:
    rig, prompt, params = make_rig(), prompt_of(20), SamplingParams(seed=3, max_tokens=24, n=5)
    want = naive(prompt, params, 3).token_ids
    rig.submit(1, prompt + want[:7], params, num_prompt_tokens=20, choice=3)
    rig.run()
    assert rig.choice(1, 3).token_ids == want[7:]


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 0, 1], [1, 2, 0]])
@pytest.mark.parametrize("is_started", [False, True])
def test_choices_cancelled_one_by_one_before_they_part(
    make_rig: MakeRig, naive: Naive, order: list[int], is_started: bool
) -> None:
    rig, prompt, params = make_rig(), prompt_of(20), SamplingParams(seed=3, max_tokens=10, n=4)
    want = [naive(prompt, params, choice).token_ids for choice in range(4)]
    rig.attach(1, prompt, params)
    rig.engine.step()
    if is_started:
        rig.start(1, [ids[0] for ids in want])
    for choice in order:
        rig.engine.cancel(Owner(1, 1), choice)
    if not is_started:
        rig.start(1, [ids[0] for ids in want])
    rig.run()
    assert rig.choice(1, 3).token_ids == want[3][1:]
    assert [rig.choice(1, c).reason for c in order] == [FinishReason.CANCELLED] * 3


def test_handoff_is_taken_without_a_copy(make_rig: MakeRig, naive: Naive) -> None:
    handoff = LocalHandoff()
    rig, prompt, params = make_rig(handoff=handoff), prompt_of(40), SamplingParams(seed=9, max_tokens=20, n=2)
    want = [naive(prompt, params, choice).token_ids for choice in range(2)]
    donor = make_rig()
    donor.submit(1, prompt, SamplingParams(max_tokens=1))
    donor.engine.step()
    blocks = rig.scheduler.pool.allocate(3)
    keys = [key.key for key in _keys(rig, prompt)]
    source = donor.scheduler.pool.match(keys)
    rig.worker.kv[:, blocks[:2]] = donor.worker.kv[:, source]
    rig.worker.kv[:, blocks[2]] = donor.worker.kv[:, source[1] + 1]
    donor.scheduler.pool.release(source)
    rig.attach(1, prompt, params)
    rig.run()
    assert rig.scheduler.pool.num_used == 3
    handoff.offer("request-1", blocks, 40)
    rig.start(1, [ids[0] for ids in want])
    assert len(handoff) == 0
    rig.run()
    assert [rig.choice(1, c).token_ids for c in range(2)] == [ids[1:] for ids in want]
    assert rig.choice(1).started.num_computed_tokens == 0


def test_handoff_that_nobody_starts_is_freed(make_rig: MakeRig) -> None:
    handoff = LocalHandoff()
    rig = make_rig(handoff=handoff)
    rig.attach(1, prompt_of(40), SamplingParams())
    handoff.offer("request-1", rig.scheduler.pool.allocate(3), 40)
    rig.engine.close_stream(1)
    rig.run()
    assert len(handoff) == 0


def _keys(rig: Any, prompt: list[int]) -> Any:
    from forebay.kv.hashing import block_keys, prefix_root

    return block_keys(prefix_root(rig.worker.fingerprint, b""), prompt, 16)


@pytest.mark.parametrize("seed", range(6))
def test_cancel_at_random_points_leaks_nothing(make_rig: MakeRig, seed: int) -> None:
    draw, rig = random.Random(seed), make_rig(num_blocks=24)
    live: set[int] = set()
    for slot in range(40):
        rig.attach(slot, prompt_of(draw.randint(1, 60), slot), params_of(slot + 100 * seed))
        live.add(slot)
        if draw.random() < 0.8:
            rig.start(slot)
        for _ in range(draw.randint(0, 4)):
            rig.engine.step()
        if draw.random() < 0.5:
            rig.engine.cancel(Owner(1, draw.choice(sorted(live))))
        rig.scheduler.pool.check_integrity()
    rig.engine.close_stream(1)
    rig.run()


def test_wrong_requests_are_refused(make_rig: MakeRig) -> None:
    rig = make_rig(num_blocks=9)
    greedy = SamplingParams(temperature=0)
    cases: list[tuple[type[ForebayError], list[int], SamplingParams, dict[str, Any]]] = [
        (InvalidArgument, [], greedy, {}),
        (InvalidArgument, [VOCAB], greedy, {}),
        (InvalidArgument, [5] * 600, greedy, {}),
        (InvalidArgument, [5], SamplingParams(n=17), {}),
        (InvalidArgument, [5], SamplingParams(temperature=float("nan")), {}),
        (InvalidArgument, [5], SamplingParams(logit_bias={VOCAB: 1.0}), {}),
        (InvalidArgument, [5], SamplingParams(stop_token_ids=(VOCAB,)), {}),
        (InvalidArgument, [5, 6], SamplingParams(n=2), {"num_prompt_tokens": 1}),
        (InvalidArgument, [5, 6], SamplingParams(n=2), {"choice": 2}),
        (InvalidArgument, [5, 6], greedy, {"num_prompt_tokens": 3}),
        (ResourceExhausted, [5] * 140, greedy, {}),
    ]
    for error, prompt, params, fields in cases:
        with pytest.raises(error):
            rig.attach(1, prompt, params, **fields)


def test_wrong_first_tokens_end_the_slot(make_rig: MakeRig) -> None:
    rig = make_rig()
    for slot, first in enumerate([[VOCAB], [3, 4]]):
        rig.attach(slot, prompt_of(20), SamplingParams())
        rig.start(slot, first)
    rig.run()
    for slot in range(2):
        assert rig.choice(slot).reason is FinishReason.ERROR
        assert rig.choice(slot).finished.error.reason == "INVALID_ARGUMENT"


def test_commands_for_unknown_slots_are_ignored(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.start(7)
    rig.engine.ready(Owner(1, 7), 3)
    rig.engine.cancel(Owner(1, 7))
    rig.engine.cancel(Owner(1, 7), 2)
    assert not rig.engine.step()


def test_the_context_ends_a_choice(make_rig: MakeRig, naive: Naive) -> None:
    rig, params = make_rig(), SamplingParams(temperature=0, ignore_eos=True)
    rig.submit(1, prompt_of(500), params)
    rig.run()
    assert len(rig.choice(1).token_ids) == 12
    same(rig.choice(1), naive(prompt_of(500), params))


def test_idle_check_names_what_is_left(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.attach(1, prompt_of(20), SamplingParams())
    rig.engine.step()
    with pytest.raises(FailedPrecondition, match="slots are left"):
        rig.engine.check_integrity(True)
    rig.engine.check_integrity(False)
    rig.engine.cancel(Owner(1, 1))


def test_64_sequences_run_at_once(make_rig: MakeRig) -> None:
    rig = make_rig()
    for slot in range(64):
        rig.submit(slot, prompt_of(2, slot), SamplingParams(seed=slot, max_tokens=5, ignore_eos=True))
    rig.engine.step()
    assert len(rig.scheduler.running) == 64
    rig.run()
    assert rig.num_frames == 5


def test_warm_up_touches_the_padding_block_only(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.parts.warm_up()
    assert torch.isnan(rig.worker.kv[:, 1:]).all()
