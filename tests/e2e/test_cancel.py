"""A client that goes away, or a deadline that passes, frees everything in every service."""

import random
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from e2e_client import check_idle
from e2e_prompts import PROMPTS

MODES = [{}, {"mode": "aggregated"}]


@pytest.mark.parametrize("rig", MODES, indirect=True, ids=["disaggregated", "aggregated"])
@pytest.mark.parametrize("num_pieces", [0, 1, 2, 5])
def test_cancel_after_pieces(rig, num_pieces):
    stream = rig.client.stream(PROMPTS["story_700"], max_tokens=400, ignore_eos=True)
    for _ in range(num_pieces):
        next(stream)
    stream.cancel()
    check_idle(rig.addresses, within_s=3)


@pytest.mark.parametrize("rig", MODES, indirect=True, ids=["disaggregated", "aggregated"])
def test_cancel_at_random_times(rig):
    rng = random.Random(1)

    def one(i: int) -> None:
        stream = rig.client.stream(
            f"{i} " + PROMPTS["story_300"], max_tokens=200, ignore_eos=True, n=1 + i % 3
        )
        time.sleep(rng.uniform(0, 1.5))
        stream.cancel()

    with ThreadPoolExecutor(8) as threads:
        list(threads.map(one, range(24)))
    check_idle(rig.addresses, within_s=5)
    assert rig.client.generate("The capital of France is", max_tokens=2).token_ids


@pytest.mark.parametrize("timeout_s", [0.02, 0.3, 1.0])
def test_deadline(rig, timeout_s):
    with pytest.raises(grpc.RpcError) as caught:
        list(
            rig.client.stream(
                PROMPTS["story_700"] + str(timeout_s), timeout=timeout_s, max_tokens=1000, ignore_eos=True
            )
        )
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    check_idle(rig.addresses, within_s=3)


def test_disconnect(rig):
    """The channel goes away without a cancel."""
    from e2e_client import Client

    client = Client(rig.launcher.gateway_address)
    stream = client.stream(PROMPTS["story_300"], max_tokens=1000, ignore_eos=True)
    next(stream)
    client.close()
    check_idle(rig.addresses, within_s=3)
