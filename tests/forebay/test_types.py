"""Domain nouns: round trips, defaults, choice seeds, when a choice ends."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from forebay.types import FinishReason, SamplingParams, TokenLogprobs, choice_seed, finish_of
from forebay.v1 import common_pb2 as pb

floats32 = st.floats(-100, 100, width=32)
uints32 = st.integers(0, 2**32 - 1)
params = st.builds(
    SamplingParams,
    temperature=floats32,
    top_k=uints32,
    top_p=floats32,
    min_p=floats32,
    repetition_penalty=floats32,
    presence_penalty=floats32,
    frequency_penalty=floats32,
    logit_bias=st.dictionaries(uints32, floats32, max_size=4),
    seed=st.integers(0, 2**64 - 1),
    max_tokens=uints32,
    min_tokens=uints32,
    stop_token_ids=st.lists(uints32, max_size=4).map(tuple),
    ignore_eos=st.booleans(),
    n=st.integers(1, 16),
    logprobs=st.none() | st.integers(0, 20),
)


@given(params)
def test_sampling_params_survive_the_wire(sampling):
    wire = sampling.to_pb().SerializeToString()
    assert SamplingParams.from_pb(pb.SamplingParams.FromString(wire)) == sampling


def test_unset_fields_take_their_defaults():
    assert SamplingParams.from_pb(pb.SamplingParams()) == SamplingParams()


def test_zero_is_not_unset():
    sampling = SamplingParams.from_pb(pb.SamplingParams(temperature=0, top_p=0, logprobs=0))
    assert sampling.is_greedy and sampling.top_p == 0.0 and sampling.logprobs == 0


def test_every_wire_field_has_an_attribute():
    names = {field.name for field in pb.SamplingParams.DESCRIPTOR.fields}
    assert names == set(SamplingParams.__dataclass_fields__)


def test_finish_reasons_equal_the_wire_values():
    wire = {name.removeprefix("FINISH_REASON_"): value for name, value in pb.FinishReason.items()}
    assert wire == {reason.name: reason.value for reason in FinishReason}


@given(uints32, floats32, st.lists(st.tuples(uints32, floats32), max_size=3))
def test_token_logprobs_survive_the_wire(token_id, logprob, top):
    logprobs = TokenLogprobs(token_id, logprob, tuple(t for t, _ in top), tuple(p for _, p in top))
    wire = logprobs.to_pb().SerializeToString()
    assert TokenLogprobs.from_pb(pb.TokenLogprobs.FromString(wire)) == logprobs
    assert struct.unpack("<f", struct.pack("<f", logprob))[0] == logprob


def test_choice_seeds_are_distinct_and_stable():
    assert choice_seed(7, 0) == 7
    assert len({choice_seed(7, i) for i in range(16)} | {choice_seed(8, i) for i in range(16)}) == 32
    # The first output of splitmix64 seeded with 0, as published with the generator.
    assert choice_seed(0, 1) == 0xE220A8397B1DCDAF
    assert all(0 <= choice_seed(2**64 - 1, i) < 2**64 for i in range(16))


EOS, STOP, OTHER = 2, 5, 9


@pytest.mark.parametrize(
    ("token_id", "num_output", "sampling", "num_left", "expected"),
    [
        (OTHER, 1, SamplingParams(), 10, FinishReason.UNSPECIFIED),
        (EOS, 1, SamplingParams(), 10, FinishReason.STOP),
        (EOS, 1, SamplingParams(ignore_eos=True), 10, FinishReason.UNSPECIFIED),
        (STOP, 1, SamplingParams(stop_token_ids=(STOP,)), 10, FinishReason.STOP),
        (STOP, 1, SamplingParams(stop_token_ids=(STOP,), ignore_eos=True), 10, FinishReason.STOP),
        (EOS, 3, SamplingParams(min_tokens=3), 10, FinishReason.UNSPECIFIED),
        (EOS, 4, SamplingParams(min_tokens=3), 10, FinishReason.STOP),
        (OTHER, 4, SamplingParams(max_tokens=4), 10, FinishReason.LENGTH),
        (EOS, 4, SamplingParams(max_tokens=4), 10, FinishReason.STOP),
        (OTHER, 1, SamplingParams(), 0, FinishReason.LENGTH),
    ],
)
def test_when_a_choice_ends(token_id, num_output, sampling, num_left, expected):
    assert finish_of(token_id, num_output, sampling, (EOS,), num_left) is expected
