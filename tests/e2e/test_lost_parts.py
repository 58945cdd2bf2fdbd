"""What costs only reuse or speed when it is gone: Redis, the KV store, the draft service, prefill."""

import pytest
from e2e_prompts import PROMPTS

OPTIONS = {"max_tokens": 24, "ignore_eos": True}


@pytest.fixture
def own_rig(rigs):
    """A platform that the test may break: its configuration is unique, so nobody else gets it."""
    return rigs(speculate="ngram", extra={"gateway": {"log_level": "warning"}})


def test_everything_optional_may_die(own_rig):
    client = own_rig.client
    expected = client.generate(PROMPTS["chat_list"], **OPTIONS).token_ids
    for role in ("redis", "draft", "kv_store", "prefill"):
        own_rig.kill(role)
        assert client.generate(PROMPTS["chat_list"], **OPTIONS).token_ids == expected, role
        fresh = client.generate(f"After {role}: " + PROMPTS["story_300"], **OPTIONS)
        assert len(fresh.token_ids) == 24, role
