"""RedisLink: the breaker's rhythm, and cancellation that a client library loses."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from forebay.kv.redis_link import Breaker, RedisLink


async def test_a_cancellation_lost_below_is_raised_again(
    redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    link = RedisLink(redis_url, budget_s=5.0)

    async def deaf(**_: object) -> int:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(30)
        return 1

    monkeypatch.setattr(link, "_script", lambda _: deaf)
    call = asyncio.create_task(link.run("match", [], []))
    await asyncio.sleep(0.01)
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await link.close()


async def test_a_budget_that_ends_is_no_cancellation(redis_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    link = RedisLink(redis_url, budget_s=0.01)

    async def slow(**_: object) -> None:
        await asyncio.sleep(30)

    monkeypatch.setattr(link, "_script", lambda _: slow)
    assert await link.run("match", [], []) is None
    assert link.stats.num_failures == 1
    await link.close()


def test_the_breaker_opens_after_failures_in_a_row_and_pauses_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr("forebay.kv.redis_link.time.monotonic", lambda: now)
    breaker = Breaker(threshold=2, pause_s=1.0, max_pause_s=3.0)
    breaker.fail()
    assert not breaker.is_open
    for pause in (1.0, 2.0, 3.0, 3.0):
        breaker.fail()
        assert breaker.is_open
        now += pause
        assert not breaker.is_open
    breaker.succeed()
    breaker.fail()
    assert not breaker.is_open
