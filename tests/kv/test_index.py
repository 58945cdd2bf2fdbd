"""The prefix index against a real server: dead nodes, epochs, loss, garbage, a linear-scan oracle."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
import redis.asyncio as redis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from forebay.kv.index import PrefixIndex
from forebay.redis_server import RedisServer

BUDGET_S = 2.0


def root_of(name: str) -> bytes:
    return name.encode().ljust(32, b".")


def keys_of(num: int, branch: int = 0) -> list[bytes]:
    return [bytes([branch, i // 256, i % 256, 7]) * 4 for i in range(num)]


@pytest.fixture
async def index(redis_url: str) -> AsyncIterator[PrefixIndex]:
    async with redis.from_url(redis_url) as client:
        await client.flushall()
    index = PrefixIndex(redis_url, budget_s=BUDGET_S, node_ttl_s=60.0)
    assert await index.wait_ready()
    yield index
    await index.close()


async def test_the_deepest_node_comes_first(index: PrefixIndex) -> None:
    root, keys = root_of("deep"), keys_of(600)
    for node, num in (("a:1", 300), ("b:1", 600), ("c:1", 0)):
        assert await index.announce(root, node, 1) is False
        assert await index.register(root, node, 1, keys[:num]) is True
    assert await index.match(root, keys) == [("b:1", 600), ("a:1", 300)]
    assert await index.match(root, keys[:2]) == [("a:1", 2), ("b:1", 2)]
    assert await index.match(root, []) == []
    assert await index.match(root_of("other"), keys) == []


async def test_unregister_from_the_leaf(index: PrefixIndex) -> None:
    root, keys = root_of("leaf"), keys_of(10)
    await index.announce(root, "a:1", 1)
    await index.register(root, "a:1", 1, keys)
    assert await index.unregister(root, "a:1", 1, keys[:3:-1]) is True
    assert await index.match(root, keys) == [("a:1", 4)]


async def test_a_dead_node_is_ignored(index: PrefixIndex, redis_url: str) -> None:
    index = PrefixIndex(redis_url, budget_s=BUDGET_S, node_ttl_s=0.5)
    root, keys = root_of("dead"), keys_of(4)
    await index.announce(root, "a:1", 1)
    await index.register(root, "a:1", 1, keys)
    await asyncio.sleep(0.6)
    assert await index.match(root, keys) == []
    assert await index.announce(root, "a:1", 1) is True
    assert await index.match(root, keys) == [("a:1", 4)]
    await index.close()


async def test_entries_of_an_old_epoch_are_ignored(index: PrefixIndex) -> None:
    root, keys = root_of("epoch"), keys_of(4)
    await index.announce(root, "a:1", 1)
    await index.register(root, "a:1", 1, keys)
    assert await index.announce(root, "a:1", 2) is False
    assert await index.match(root, keys) == []
    assert await index.register(root, "a:1", 1, keys) is False, "the old process is fenced"
    await index.register(root, "a:1", 2, keys[:3])
    assert await index.match(root, keys) == [("a:1", 3)]


async def test_a_flushed_index_asks_for_everything_again(index: PrefixIndex, redis_url: str) -> None:
    root, keys = root_of("flush"), keys_of(4)
    await index.announce(root, "a:1", 1)
    await index.register(root, "a:1", 1, keys)
    async with redis.from_url(redis_url) as client:
        await client.flushall()
    assert await index.register(root, "a:1", 1, keys) is False
    assert await index.match(root, keys) == []
    assert await index.announce(root, "a:1", 1) is False


async def test_a_wrong_type_is_a_miss(index: PrefixIndex, redis_url: str) -> None:
    root, keys = root_of("type"), keys_of(4)
    async with redis.from_url(redis_url) as client:
        await client.set(f"fb:{{{root[:16].hex()}}}:nodes", "garbage")
        assert await index.match(root, keys) == []
        assert await index.announce(root, "a:1", 1) is None
        await client.delete(f"fb:{{{root[:16].hex()}}}:nodes")
        await client.hset(f"fb:{{{root[:16].hex()}}}:nodes", "a:1", "garbage")
    assert await index.match(root, keys) == []
    assert index.stats.num_failures == 2


async def test_a_full_server_is_a_miss(index: PrefixIndex, redis_url: str) -> None:
    root, keys = root_of("full"), keys_of(256)
    await index.announce(root, "a:1", 1)
    async with redis.from_url(redis_url) as client:
        await client.config_set("maxmemory", "1")
        try:
            assert await index.register(root, "a:1", 1, keys) is None
            assert await index.match(root, keys) == []
        finally:
            await client.config_set("maxmemory", "0")
    assert await index.register(root, "a:1", 1, keys) is True


async def test_a_killed_server_costs_little_and_comes_back() -> None:
    with RedisServer() as server:
        index = PrefixIndex(server.url, budget_s=BUDGET_S)
        assert await index.wait_ready()
        server.kill()
        started = time.monotonic()
        for _ in range(50):
            assert await index.match(root_of("x"), keys_of(4)) == []
        assert time.monotonic() - started < 0.5
        assert index.stats.num_bypassed > 0 and not index.is_healthy
        assert not await index.wait_ready(timeout_s=0.1)
        await index.close()


async def test_a_frozen_server_costs_the_budget(redis_url: str) -> None:
    index = PrefixIndex(redis_url, budget_s=0.02)
    async with redis.from_url(redis_url) as client:
        await client.execute_command("CLIENT", "PAUSE", "500", "ALL")
        started = time.monotonic()
        for _ in range(20):
            assert await index.match(root_of("x"), keys_of(4)) == []
        assert time.monotonic() - started < 0.3
        assert index.stats.num_failures == 3
        await asyncio.sleep(0.5)
    await index.close()


def linear(held: set[bytes], keys: list[bytes]) -> int:
    return next((depth for depth, key in enumerate(keys) if key not in held), len(keys))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=4),
    evicted=st.integers(0, 40),
    asked=st.integers(0, 45),
)
async def test_match_equals_a_linear_scan(
    index: PrefixIndex, lengths: list[int], evicted: int, asked: int
) -> None:
    keys = keys_of(45)
    root = root_of(f"{lengths}{evicted}{asked}"[-16:])
    expected = []
    for number, length in enumerate(lengths):
        node = f"n:{number}"
        await index.announce(root, node, 9)
        await index.register(root, node, 9, keys[:length])
        gone = keys[max(0, length - evicted * (number % 2)) : length]
        await index.unregister(root, node, 9, gone[::-1])
        await index.announce(root, node, 9)
        expected.append((node, linear(set(keys[:length]) - set(gone), keys[:asked])))
    found = await index.match(root, keys[:asked])
    assert sorted(found) == sorted((node, depth) for node, depth in expected if depth)


@pytest.mark.parametrize("hole", [0, 1, 19, 38, 39])
async def test_a_broken_chain_falls_back_to_a_scan(index: PrefixIndex, hole: int) -> None:
    keys, root = keys_of(40), root_of(f"hole{hole}")
    await index.announce(root, "n:1", 1)
    await index.register(root, "n:1", 1, keys)
    await index.unregister(root, "n:1", 1, [keys[hole]])
    assert await index.match(root, keys) == ([("n:1", hole)] if hole else [])
