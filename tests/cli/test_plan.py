"""From options to processes."""

from __future__ import annotations

import itertools

import pytest

from forebay.cli.plan import LaunchOptions, plan
from forebay.errors import ConfigError


def children(**options):
    ports = itertools.count(1)
    options = {"listen": "host:9"} | options
    return plan(LaunchOptions(**options), "unix:///r", lambda: f"host:{next(ports)}")


def test_the_default_is_one_of_each_tier():
    assert [child.name for child in children()] == ["kv_store-0", "prefill-0", "decode-0", "gateway-0"]


def test_addresses_are_wired():
    found = {child.name: child for child in children(num_prefill=2, num_decode=2, num_stores=2)}
    stores = [found["kv_store-0"].address, found["kv_store-1"].address]
    assert found["decode-1"].flags["kv_stores"] == stores == found["prefill-0"].flags["kv_stores"]
    gateway = found["gateway-0"].flags
    assert gateway["prefill"] == [found["prefill-0"].address, found["prefill-1"].address]
    assert gateway["decode"] == [found["decode-0"].address, found["decode-1"].address]
    assert found["gateway-0"].address == "host:9"
    assert len({child.address for child in found.values()}) == len(found)


def test_aggregated_workers_are_in_both_lists():
    found = {child.name: child for child in children(mode="aggregated", num_decode=2)}
    assert list(found) == ["kv_store-0", "aggregated-0", "aggregated-1", "gateway-0"]
    gateway = found["gateway-0"].flags
    assert gateway["prefill"] == gateway["decode"] == ["host:2", "host:3"]


def test_speculation_by_model_starts_a_draft_service():
    found = {child.name: child for child in children(speculate="model", draft_model="small")}
    assert found["draft-0"].flags["model"] == "small"
    assert found["decode-0"].flags["draft_address"] == found["draft-0"].address


def test_arguments():
    (store, *_) = children(kv_arena_bytes=5, kv_transport="grpc", extra={"kv_store": {"max_lease_s": 2.0}})
    assert store.arguments[:2] == ["-m", "kv_store"]
    expected = {"--listen=host:1", "--arena-bytes=5", "--shared-memory=False", "--max-lease-s=2.0"}
    assert expected <= set(store.arguments)
    gateway = children(num_decode=2)[-1]
    assert "--decode=host:3,host:4" in gateway.arguments


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_decode": 0}, "num_decode: at least 1, got 0"),
        ({"speculate": "model"}, "draft_model"),
        ({"extra": {"prefil": {}}}, "did you mean 'prefill'"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ConfigError, match=message):
        LaunchOptions(**options)
