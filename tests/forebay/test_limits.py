"""The limits table: every boundary, one below and one above."""

import math

import pytest

from forebay import limits
from forebay.errors import InvalidArgument
from forebay.types import SamplingParams
from forebay.v1 import common_pb2 as pb

VOCAB, CONTEXT = 100, 64
EPSILON = 1e-6

ACCEPTED = [
    {"temperature": 0.0},
    {"temperature": 2.0},
    {"top_p": EPSILON},
    {"top_p": 1.0},
    {"min_p": 0.0},
    {"min_p": 1.0},
    {"top_k": 0},
    {"top_k": 2**31 - 1},
    {"repetition_penalty": EPSILON},
    {"repetition_penalty": 10.0},
    {"presence_penalty": -2.0},
    {"presence_penalty": 2.0},
    {"frequency_penalty": -2.0},
    {"frequency_penalty": 2.0},
    {"n": 1},
    {"n": 16},
    {"logprobs": 0},
    {"logprobs": 20},
    {"max_tokens": 1},
    {"seed": 0},
    {"seed": 2**64 - 1},
    {"logit_bias": dict.fromkeys(range(100), 1.0)},
    {"logit_bias": {0: -100.0, 99: 100.0}},
    {"stop_token_ids": [0, 99]},
    {"stop_token_ids": [1] * 64},
]
REFUSED = [
    {"temperature": -EPSILON},
    {"temperature": 2.01},
    {"top_p": 0.0},
    {"top_p": 1.001},
    {"min_p": -EPSILON},
    {"min_p": 1.001},
    {"top_k": 2**31},
    {"repetition_penalty": 0.0},
    {"repetition_penalty": 10.01},
    {"presence_penalty": -2.01},
    {"presence_penalty": 2.01},
    {"frequency_penalty": 2.01},
    {"n": 0},
    {"n": 17},
    {"n": 10**9},
    {"logprobs": 21},
    {"max_tokens": 0},
    {"logit_bias": {100: 1.0}},
    {"logit_bias": {1: 100.5}},
    {"logit_bias": {1: math.nan}},
    {"logit_bias": {1: -math.inf}},
    {"logit_bias": dict.fromkeys(range(301), 1.0)},
    {"stop_token_ids": [100]},
    {"stop_token_ids": [1] * 65},
    *(
        {name: value}
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty")
        for value in (math.nan, math.inf, -math.inf)
    ),
]


@pytest.mark.parametrize("fields", ACCEPTED, ids=str)
def test_accepted(fields):
    limits.sampling_from_pb(pb.SamplingParams(**fields), VOCAB)


@pytest.mark.parametrize("fields", REFUSED, ids=lambda f: str(f)[:40])
def test_refused(fields):
    with pytest.raises(InvalidArgument) as caught:
        limits.sampling_from_pb(pb.SamplingParams(**fields), VOCAB)
    assert caught.value.metadata["field"] == f"sampling.{next(iter(fields))}"
    assert caught.value.metadata["limit"] and caught.value.metadata["got"]


@pytest.mark.parametrize(
    "num_prompt, max_tokens, expected", [(1, 0, 63), (63, 0, 1), (60, 4, 4), (1, 63, 63)]
)
def test_context_fits(num_prompt, max_tokens, expected):
    params = limits.fit_context(num_prompt, SamplingParams(max_tokens=max_tokens), CONTEXT)
    assert params.max_tokens == expected


@pytest.mark.parametrize("num_prompt, max_tokens", [(64, 0), (65, 0), (60, 5), (1, 64), (1, 2**32 - 1)])
def test_context_exceeded(num_prompt, max_tokens):
    with pytest.raises(InvalidArgument):
        limits.fit_context(num_prompt, SamplingParams(max_tokens=max_tokens), CONTEXT)


def test_min_tokens_within_max_tokens():
    limits.fit_context(1, SamplingParams(max_tokens=4, min_tokens=4), CONTEXT)
    with pytest.raises(InvalidArgument, match="min_tokens"):
        limits.fit_context(1, SamplingParams(max_tokens=4, min_tokens=5), CONTEXT)


@pytest.mark.parametrize("token_ids", [[], [VOCAB], [-1], [0] * CONTEXT])
def test_token_ids_refused(token_ids):
    with pytest.raises(InvalidArgument):
        limits.check_token_ids(token_ids, VOCAB, CONTEXT)


def test_token_ids_accepted():
    limits.check_token_ids([0, VOCAB - 1] + [1] * (CONTEXT - 3), VOCAB, CONTEXT)


@pytest.mark.parametrize("stop", [["x" * 256] * 16, ["é" * 128], [], ["\0"]])
def test_stop_accepted(stop):
    assert limits.check_stop(stop) == tuple(stop)


@pytest.mark.parametrize("stop", [["x"] * 17, ["x" * 257], ["é" * 129], [""], ["x" * (1 << 20)]])
def test_stop_refused(stop):
    with pytest.raises(InvalidArgument):
        limits.check_stop(stop)


@pytest.mark.parametrize("name", ["a", "x" * 128, "!~-_./:"])
def test_request_id_accepted(name):
    limits.check_request_id(name)


@pytest.mark.parametrize("name", ["", "x" * 129, "a b", "a\n", "\x7f", "é"])
def test_request_id_refused(name):
    with pytest.raises(InvalidArgument):
        limits.check_request_id(name)


def test_text():
    limits.check_text("é" * 5, 10)
    for text, max_bytes in (("", 10), ("é" * 5, 9)):
        with pytest.raises(InvalidArgument):
            limits.check_text(text, max_bytes)
    assert limits.max_prompt_bytes(1) == 64 * 1024 and limits.max_prompt_bytes(1 << 17) == 1 << 22


@pytest.mark.parametrize("roles", [[], ["wizard"], ["user", ""], ["user"] * 4097])
def test_messages_refused(roles):
    with pytest.raises(InvalidArgument):
        limits.check_messages(roles)
