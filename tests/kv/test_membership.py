"""Membership: announce, expire, withdraw, last view while Redis is gone."""

from __future__ import annotations

import asyncio
import contextlib

from forebay.kv.membership import Member, Membership
from forebay.redis_server import RedisServer


async def test_members_come_expire_and_leave() -> None:
    with RedisServer() as server:
        members = Membership(server.url, ttl_s=0.4)
        first, second = Member("decode", "h:1", 7, "f" * 64, 100), Member("decode", "h:2", 8)
        assert await members.announce(first) and await members.announce(second)
        assert await members.announce(Member("prefill", "h:3", 9))
        assert await members.list("decode") == [first, second]
        await members.withdraw(second)
        assert await members.list("decode") == [first]
        await asyncio.sleep(0.5)
        assert await members.list("decode") == []
        await members.close()


async def test_the_last_view_outlives_redis() -> None:
    with RedisServer() as server:
        members = Membership(server.url)
        member = Member("kv_store", "h:1", 7)
        await members.announce(member)
        assert await members.list("kv_store") == [member]
        server.kill()
        assert await members.list("kv_store") == [member]
        assert not await members.announce(member)
        await members.close()


async def test_keep_announces_and_withdraws() -> None:
    with RedisServer() as server:
        members = Membership(server.url, ttl_s=0.3)
        member = Member("draft", "h:1", 7)
        keeping = asyncio.create_task(members.keep(lambda: member))
        await asyncio.sleep(0.6)
        assert await members.list("draft") == [member]
        keeping.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await keeping
        assert await members.list("draft") == []
        await members.close()


async def test_garbage_is_not_a_member() -> None:
    with RedisServer() as server:
        members = Membership(server.url)
        link = members._link
        for address, body in (("a", "not json"), ("b", '{"role": 1}'), ("c", "[]")):
            await link.run("members", ["fb:members:{draft}"], [address, body, 1000])
        assert await members.list("draft") == []
        await members.close()
