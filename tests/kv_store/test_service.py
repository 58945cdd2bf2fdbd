"""The running service: publication to a real index, healing, metrics, start as a process."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable

import grpc
import pytest
import redis.asyncio as redis

from forebay.kv.index import PrefixIndex
from forebay.kv.membership import Membership
from forebay.redis_server import RedisServer
from forebay.rpc.client import connect
from forebay.v1 import admin_pb2, admin_pb2_grpc, kv_store_pb2_grpc
from forebay.v1 import kv_store_pb2 as pb
from kv_store.arena import Arena
from kv_store.metrics import StoreCollector
from kv_store.publisher import IndexPublisher
from kv_store.store import BlockStore

PAGE = 4096
ROOT = b"r" * 32


def chain(name: str, num: int) -> list[bytes]:
    return [f"{name}{i:03d}".encode().ljust(16, b".") for i in range(num)]


def put(store: BlockStore, keys: list[bytes], root: bytes = ROOT) -> None:
    reserved = store.reserve(root, None, keys, PAGE, 10.0)
    assert store.commit(reserved.lease_id, [g.handle for g in reserved.grants]) == len(reserved.grants)


async def eventually(check: Callable[[], Awaitable[bool]], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not await check():
        assert time.monotonic() < deadline, "did not happen in time"
        await asyncio.sleep(0.02)


class Rig:
    """A store that publishes into a server of its own."""

    def __init__(self, server: RedisServer) -> None:
        self.server = server
        self.index = PrefixIndex(server.url, budget_s=2.0)
        self.store = BlockStore(Arena(64 * PAGE, 4 * PAGE))
        self.publisher = IndexPublisher(
            PrefixIndex(server.url, budget_s=None), self.store.committed, beat_s=0.1
        )
        self.store.on_event = self.publisher

    async def shows(self, keys: list[bytes], depth: int, root: bytes = ROOT) -> None:
        async def check() -> bool:
            return await self.index.match(root, keys) == ([("s:1", depth)] if depth else [])

        await eventually(check)


@pytest.fixture
async def rig() -> AsyncIterator[Rig]:
    with RedisServer() as server:
        rig = Rig(server)
        task = asyncio.create_task(rig.publisher.run("s:1"))
        yield rig
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task
        await rig.index.close()
        await rig.publisher._index.close()
        rig.store.arena.close()


async def test_commits_and_evictions_reach_the_index(rig: Rig) -> None:
    put(rig.store, chain("a", 40))
    await rig.shows(chain("a", 40), 40)
    put(rig.store, chain("b", 50))
    await rig.shows(chain("b", 50), 50)
    await rig.shows(chain("a", 40), rig.store.lookup(chain("a", 40)))
    assert rig.store.lookup(chain("a", 40)) == 14


async def test_two_roots_are_kept_apart(rig: Rig) -> None:
    put(rig.store, chain("a", 3))
    put(rig.store, chain("b", 2), root=b"o" * 32)
    await rig.shows(chain("a", 3), 3)
    await rig.shows(chain("b", 2), 2, root=b"o" * 32)
    await rig.shows(chain("b", 2), 0)


async def test_a_flushed_index_heals(rig: Rig) -> None:
    put(rig.store, chain("a", 40))
    await rig.shows(chain("a", 40), 40)
    async with redis.from_url(rig.server.url) as client:
        await client.flushall()
    await rig.shows(chain("a", 40), 40)


async def test_an_outage_heals_and_leaves_no_stale_entry(rig: Rig) -> None:
    put(rig.store, chain("a", 40))
    await rig.shows(chain("a", 40), 40)
    os.kill(rig.server.pid, signal.SIGSTOP)
    put(rig.store, chain("b", 60))
    await asyncio.sleep(1.5)
    os.kill(rig.server.pid, signal.SIGCONT)
    await rig.shows(chain("b", 60), 60)
    await rig.shows(chain("a", 40), rig.store.lookup(chain("a", 40)))


def test_metrics_follow_the_store() -> None:
    store = BlockStore(Arena(4 * PAGE, PAGE))
    put(store, chain("a", 2))
    values = {s.name: s.value for family in StoreCollector(store).collect() for s in family.samples}
    assert values["forebay_kv_store_blocks"] == 2 and values["forebay_kv_store_commits_total"] == 2
    store.arena.close()


async def test_the_process_serves_publishes_and_drains() -> None:
    with RedisServer() as server:
        flags = ["--arena-bytes=1048576", f"--redis-url={server.url}", "--log-level=error"]
        process = subprocess.Popen([sys.executable, "-m", "kv_store", *flags])
        members = Membership(server.url)
        try:

            async def is_announced() -> bool:
                return bool(await members.list("kv_store"))

            await eventually(is_announced, 30.0)
            (member,) = await members.list("kv_store")
            await _exercise(member.address, member.epoch)
        finally:
            process.terminate()
            assert process.wait(20) == 0
        assert await members.list("kv_store") == []
        await members.close()


async def _exercise(address: str, epoch: int) -> None:
    async with connect(address) as channel:
        stub, admin = kv_store_pb2_grpc.KvStoreServiceStub(channel), admin_pb2_grpc.AdminServiceStub(channel)
        info = await admin.GetInfo(admin_pb2.GetInfoRequest(), wait_for_ready=True, timeout=30)
        assert (info.role, info.epoch) == ("kv_store", epoch)
        keys = b"".join(chain("a", 3))
        reserved = await stub.Reserve(
            pb.ReserveRequest(epoch=epoch, root=ROOT, keys=keys, block_bytes=PAGE, duration_ms=5000)
        )
        assert len(reserved.grants.offsets) == 3 and reserved.outcome == pb.RESERVE_OUTCOME_COMPLETE
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await admin.CheckIntegrity(admin_pb2.CheckIntegrityRequest(idle=True))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION
        await stub.Commit(
            pb.CommitRequest(epoch=epoch, lease_id=reserved.lease_id, handles=reserved.grants.handles)
        )
        assert (await stub.Lookup(pb.LookupRequest(epoch=epoch, keys=keys))).num_blocks == 3
        await admin.CheckIntegrity(admin_pb2.CheckIntegrityRequest(idle=True))
        assert (await stub.Stats(pb.StatsRequest())).num_commits == 3
        for request in (
            pb.LookupRequest(epoch=epoch + 1, keys=keys),
            pb.LookupRequest(epoch=epoch, keys=keys[:-1]),
        ):
            with pytest.raises(grpc.aio.AioRpcError):
                await stub.Lookup(request)
