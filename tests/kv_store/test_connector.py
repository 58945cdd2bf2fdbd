"""KvConnector against a real store over loopback: what is pulled is what was pushed, or nothing."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator

import pytest
import torch

from forebay.kv.connector import ConnectorOptions, KvConnector
from forebay.kv.hashing import BlockKey, block_keys, prefix_root
from forebay.kv.layout import BlockLayout
from forebay.kv.payload import HEADER_BYTES
from forebay.rpc.server import Server
from kv_store.config import KvStoreConfig
from kv_store.server import KvStoreApp

LAYOUT = BlockLayout(3, 16, 2, 8, "float32")
FINGERPRINT = hashlib.sha256(b"model").digest()
ROOT = prefix_root(FINGERPRINT)
NUM_BLOCKS = 24
PATIENT = ConnectorOptions(timeout_s=5.0, batch_bytes=5 * (LAYOUT.block_bytes + HEADER_BYTES))


class Store:
    """A store that tests stop, start again on the same port, and look into."""

    def __init__(self, arena_bytes: int = 1 << 20) -> None:
        self.config = KvStoreConfig(arena_bytes=arena_bytes, prefault=False)
        self.port = 0

    async def start(self) -> None:
        self.app = KvStoreApp(self.config)
        self.server = Server(f"127.0.0.1:{self.port}")
        await self.server.start()
        self.port = self.server.port
        self.service = await self.app.build()
        await self.server.add(self.service)

    async def stop(self) -> None:
        await self.server.server.stop(0)
        await self.service.close()

    @property
    def blocks(self) -> object:
        assert self.app.engine is not None
        return self.app.engine.store


@pytest.fixture
async def store() -> AsyncIterator[Store]:
    store = Store()
    await store.start()
    yield store
    await store.stop()


def make_kv(seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn((LAYOUT.num_layers, NUM_BLOCKS, *LAYOUT.shape[1:]), generator=generator)


def keys_of(num: int, first: int = 0) -> list[BlockKey]:
    return block_keys(ROOT, range(first, first + 16 * num), 16)


async def connect(store: Store, kv: torch.Tensor, transport: str, **changes: object) -> KvConnector:
    fingerprint = changes.get("fingerprint", FINGERPRINT)
    connector = KvConnector([f"127.0.0.1:{store.port}"], kv, LAYOUT, fingerprint, transport, PATIENT)  # type: ignore[arg-type]
    assert await connector.start(wait_s=10.0)
    return connector


@pytest.mark.parametrize("transport", ["shm", "grpc"])
async def test_pulled_blocks_equal_pushed_ones(store: Store, transport: str) -> None:
    mine, theirs = make_kv(1), make_kv(2)
    writer, reader = await connect(store, mine, transport), await connect(store, theirs, transport)
    keys, source = keys_of(12), [3, 9, 4, 1, 12, 11, 10, 23, 7, 8, 2, 5]
    target = list(range(12, 24))
    assert await writer.push(ROOT, keys, source) == 12
    assert await reader.lookup(keys_of(14)) == 12
    assert await reader.pull(keys_of(14), [*target, 1, 2]) == 12
    assert torch.equal(theirs[:, target], mine[:, source])
    assert await writer.push(ROOT, keys, source) == 12 and writer.stats.num_pushed == 12
    assert (writer.scheme, reader.stats.num_pulled, reader.stats.num_failures) == (transport, 12, 0)
    await writer.close()
    await reader.close()
    store.blocks.check_integrity()  # type: ignore[attr-defined]


async def test_a_chain_is_pushed_and_pulled_in_parts(store: Store) -> None:
    kv = make_kv(1)
    connector = await connect(store, kv, "shm")
    keys = keys_of(8)
    assert await connector.push(ROOT, keys[4:], [5, 6, 7, 8], parent=keys[3]) == 0
    assert await connector.push(ROOT, keys[:4], [1, 2, 3, 4]) == 4
    assert await connector.push(ROOT, keys[4:], [5, 6, 7, 8], parent=keys[3]) == 4
    assert await connector.pull(keys[6:], [20, 21]) == 2
    assert torch.equal(kv[:, [20, 21]], kv[:, [7, 8]])
    await connector.close()


@pytest.mark.parametrize("transport", ["shm", "grpc"])
@pytest.mark.parametrize("byte", [0, 5, 9, 20, 40, 60, 84, 90, HEADER_BYTES, HEADER_BYTES + 1000])
async def test_a_flipped_bit_costs_the_block_and_nothing_else(
    store: Store, transport: str, byte: int
) -> None:
    kv = make_kv(1)
    connector = await connect(store, kv, transport)
    keys = keys_of(4)
    await connector.push(ROOT, keys, [1, 2, 3, 4])
    entry = store.blocks._entries[keys[2].key]  # type: ignore[attr-defined]
    store.blocks.arena.view(entry.offset, 4096)[byte] ^= 4  # type: ignore[attr-defined]
    num_good = await connector.pull(keys, [11, 12, 13, 14])
    assert num_good <= 2
    assert torch.equal(kv[:, [11, 12][:num_good]], kv[:, [1, 2][:num_good]])
    await asyncio.sleep(0.05)
    assert await connector.lookup(keys) == 2, "the store dropped it and what hangs on it"
    assert await connector.push(ROOT, keys, [1, 2, 3, 4]) == 4
    assert await connector.pull(keys, [11, 12, 13, 14]) == 4
    assert torch.equal(kv[:, 11:15], kv[:, 1:5])
    await connector.close()
    store.blocks.check_integrity()  # type: ignore[attr-defined]


async def test_a_block_of_another_model_or_a_forged_key_is_never_used(store: Store) -> None:
    kv = make_kv(1)
    writer = await connect(store, kv, "shm")
    other = await connect(store, make_kv(2), "shm", fingerprint=hashlib.sha256(b"other").digest())
    keys = keys_of(2)
    await writer.push(ROOT, keys, [1, 2])
    assert await other.pull(keys, [1, 2]) == 0
    forged = [keys[0], BlockKey(keys[1].key, b"\0" * 16)]
    assert await writer.pull(forged, [5, 6]) == 1
    assert other.stats.num_corrupt == 1 and await writer.lookup(keys) == 2
    await writer.close()
    await other.close()


async def test_a_full_store_keeps_the_front_of_a_chain() -> None:
    store = Store(arena_bytes=4 * 16384)
    store.config = KvStoreConfig(arena_bytes=4 * 16384, slab_bytes=16384, prefault=False)
    await store.start()
    connector = await connect(store, make_kv(1), "shm")
    assert await connector.push(ROOT, keys_of(10), range(1, 11)) == 8
    assert await connector.lookup(keys_of(10)) == 8
    assert store.blocks.stats.num_refused > 0  # type: ignore[attr-defined]
    await connector.close()
    await store.stop()


async def test_two_writers_of_one_prefix_end_with_one_copy(store: Store) -> None:
    kv = make_kv(1)
    one, two = await connect(store, kv, "shm"), await connect(store, kv, "grpc")
    keys = keys_of(10)
    stored = await asyncio.gather(*(c.push(ROOT, keys, range(1, 11)) for c in (one, two, one, two)))
    assert stored == [10] * 4
    assert store.blocks.num_blocks == 10  # type: ignore[attr-defined]
    await one.close()
    await two.close()
    store.blocks.check_integrity()  # type: ignore[attr-defined]


async def test_a_restart_costs_misses_and_heals(store: Store) -> None:
    connector = await connect(store, make_kv(1), "auto")
    keys = keys_of(4)
    await connector.push(ROOT, keys, [1, 2, 3, 4])
    await store.stop()
    for _ in range(5):
        assert await connector.lookup(keys) == 0
        assert await connector.push(ROOT, keys, [1, 2, 3, 4]) == 0
        assert await connector.pull(keys, [1, 2, 3, 4]) == 0
    assert not connector.is_connected
    await store.start()
    deadline = time.monotonic() + 10
    while not connector.is_connected and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    assert await connector.pull(keys, [1, 2, 3, 4]) == 0
    assert await connector.push(ROOT, keys, [1, 2, 3, 4]) == 4
    assert connector.stats.num_connects == 2
    await connector.close()


async def test_an_unseen_restart_is_noticed_by_its_epoch(store: Store) -> None:
    connector = await connect(store, make_kv(1), "auto")
    keys = keys_of(2)
    await connector.push(ROOT, keys, [1, 2])
    assert store.app.engine is not None
    store.app.engine.epoch += 1
    assert await connector.pull(keys, [1, 2]) == 0
    for _ in range(200):
        if connector.is_connected:
            break
        await asyncio.sleep(0.02)
    assert await connector.pull(keys, [1, 2]) == 2
    await connector.close()


async def test_without_a_store_nothing_is_held() -> None:
    connector = KvConnector([], make_kv(1), LAYOUT, FINGERPRINT)
    assert not await connector.start()
    keys = keys_of(2)
    assert await connector.push(ROOT, keys, [1, 2]) == 0
    assert await connector.pull(keys, [1, 2]) == 0 and await connector.lookup(keys) == 0
    await connector.close()


async def test_a_cancelled_pull_leaves_no_thread_on_the_blocks(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    connector = await connect(store, make_kv(1), "shm")
    keys = keys_of(2)
    await connector.push(ROOT, keys, [1, 2])
    done: list[bool] = []
    opened = connector._codec.open

    def slow(*args: object) -> tuple[int, str]:
        time.sleep(0.2)
        done.append(True)
        return opened(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(connector._codec, "open", slow)
    pulling = asyncio.create_task(connector.pull(keys, [1, 2]))
    await asyncio.sleep(0.1)
    pulling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await pulling
    assert done == [True]
    await connector.close()
    assert store.blocks.num_leases == 0  # type: ignore[attr-defined]


async def test_a_frozen_store_costs_one_timeout_and_then_nothing() -> None:
    probe = socket.socket()
    probe.bind(("127.0.0.1", 0))
    port = probe.getsockname()[1]
    probe.close()
    flags = [f"--listen=127.0.0.1:{port}", "--arena-bytes=1048576", "--log-level=error"]
    process = subprocess.Popen([sys.executable, "-m", "kv_store", *flags])
    options = ConnectorOptions(timeout_s=0.3)
    connector = KvConnector([f"127.0.0.1:{port}"], make_kv(1), LAYOUT, FINGERPRINT, "auto", options)
    try:
        assert await connector.start(wait_s=30.0)
        keys = keys_of(4)
        while await connector.push(ROOT, keys, [1, 2, 3, 4]) < 4:
            await asyncio.sleep(0.1)
        os.kill(process.pid, signal.SIGSTOP)
        started = time.monotonic()
        for _ in range(20):
            assert await connector.pull(keys, [1, 2, 3, 4]) == 0
        assert time.monotonic() - started < 2 * options.timeout_s
        os.kill(process.pid, signal.SIGCONT)
        deadline = time.monotonic() + 20
        while await connector.pull(keys, [1, 2, 3, 4]) < 4:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.05)
    finally:
        os.kill(process.pid, signal.SIGCONT)
        process.terminate()
        assert process.wait(20) == 0
        await connector.close()
