"""The same tokens whichever way a request travels.

One baseline per prompt and sampling: the default platform (disaggregated, shm, whole prompt, no speculation),
cold and alone. Each other configuration must give its tokens, eight requests at a time.
"""

from concurrent.futures import ThreadPoolExecutor

import pytest
from e2e_prompts import PROMPTS

NAMES = [
    "two_tokens",
    "chat_list",
    "code_python",
    "unicode_emoji",
    "exact_block",
    "block_plus_one",
    "repeat_short",
    "story_300",
]
SAMPLINGS = {
    "greedy": {"temperature": 0},
    "seeded": {"temperature": 0.8, "top_p": 0.95, "seed": 7},
    "penalised": {
        "temperature": 0.6,
        "top_k": 40,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.3,
        "seed": 11,
    },
}
CONFIGURATIONS = {
    "aggregated": {"mode": "aggregated"},
    "grpc": {"kv_transport": "grpc"},
    "chunked": {"extra": {"prefill": {"max_batch_tokens": 32}, "decode": {"max_batch_tokens": 32}}},
    "chunked_odd": {"extra": {"prefill": {"max_batch_tokens": 48}}},
    "two_and_two": {"num_prefill": 2, "num_decode": 2},
    "ngram": {"speculate": "ngram"},
    "draft_model": {"speculate": "model", "draft_model": "demo"},
    "small_pool": {"extra": {"decode": {"pool_bytes": 96 << 20}, "prefill": {"pool_bytes": 96 << 20}}},
    "decode_prefills": {"num_prefill": 0},
}
NUM_TOKENS = 32


def outputs(client, sampling: str, num_at_once: int = 8) -> dict[str, list[int]]:
    options = {**SAMPLINGS[sampling], "max_tokens": NUM_TOKENS, "ignore_eos": True}
    with ThreadPoolExecutor(num_at_once) as threads:
        results = threads.map(lambda name: client.generate(PROMPTS[name], **options).token_ids, NAMES)
        return dict(zip(NAMES, results, strict=True))


@pytest.fixture(scope="module")
def baseline(rigs):
    client = rigs().client
    return {sampling: outputs(client, sampling, num_at_once=1) for sampling in SAMPLINGS}


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_with_its_prefix_cached(baseline, rig, sampling):
    assert outputs(rig.client, sampling, num_at_once=1) == baseline[sampling]


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_in_a_batch_of_32(baseline, rig, sampling):
    options = {**SAMPLINGS[sampling], "max_tokens": NUM_TOKENS, "ignore_eos": True}
    jobs = NAMES * 4
    with ThreadPoolExecutor(len(jobs)) as threads:
        results = list(
            threads.map(lambda name: rig.client.generate(PROMPTS[name], **options).token_ids, jobs)
        )
    for name, token_ids in zip(jobs, results, strict=True):
        assert token_ids == baseline[sampling][name], name


@pytest.mark.parametrize("name", CONFIGURATIONS)
def test_configuration(baseline, rigs, name):
    platform = rigs(**CONFIGURATIONS[name])
    for sampling in SAMPLINGS:
        assert outputs(platform.client, sampling) == baseline[sampling], sampling
    platform.check_idle()


def test_prefix_comes_from_the_store(rigs):
    """Two prefill and two decode workers: what one computed, another reuses through the store."""
    platform = rigs(num_prefill=2, num_decode=2)
    prompt = PROMPTS["story_300"] + "Now a different end."
    first = platform.client.generate(prompt)
    again = platform.client.generate(prompt)
    assert again.token_ids == first.token_ids
    assert first.receipt.actual_cached_tokens < again.receipt.actual_cached_tokens
    assert again.receipt.predicted_cached_tokens > 0
    platform.check_idle()


def test_after_eviction(rigs):
    """A pool and an arena that hold a few prompts: the first is evicted, computed again, and equal."""
    small = {"pool_bytes": 96 << 20}
    platform = rigs(kv_arena_bytes=64 << 20, extra={"prefill": small, "decode": small})
    first = platform.client.generate(PROMPTS["story_300"])
    for i in range(12):
        platform.client.generate(f"{i} " + PROMPTS["story_700"], max_tokens=2)
    assert platform.client.generate(PROMPTS["story_300"]).token_ids == first.token_ids
    platform.check_idle()


def test_choices_of_n(rig):
    """Each of n choices is the choice that its own seed gives; choice 0 equals n=1."""
    options = {"temperature": 0.9, "seed": 5, "max_tokens": 24, "ignore_eos": True}
    many = rig.client.generate(PROMPTS["chat_list"], n=4, **options)
    alone = rig.client.generate(PROMPTS["chat_list"], **options)
    assert sorted(many.choices) == [0, 1, 2, 3]
    assert many.choices[0].token_ids == alone.token_ids
    assert len({tuple(choice.token_ids) for choice in many.choices.values()}) > 1
    assert many.usage.completion_tokens == 4 * 24
