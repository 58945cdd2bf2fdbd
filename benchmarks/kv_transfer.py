"""Block movement and index lookup beside what bounds them, in one run: memcpy, and one Redis PING.

    python benchmarks/kv_transfer.py --out benchmarks/results/kv_transfer.json

A store runs as a process of its own. Rows are medians of --repeats interleaved rounds.
"""

from __future__ import annotations

import argparse
import asyncio
import hashlib
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import numpy as np
import redis.asyncio as redis
import torch
import uvloop

from forebay.kv.connector import ConnectorOptions, KvConnector
from forebay.kv.hashing import BlockKey, prefix_root
from forebay.kv.index import PrefixIndex
from forebay.kv.layout import BlockLayout
from forebay.kv.membership import Membership
from forebay.kv.payload import HEADER_BYTES
from forebay.kv.session import StoreSession, open_session
from forebay.redis_server import RedisServer

LAYOUT = BlockLayout(32, 64, 8, 32, "bfloat16")  # 2 MiB of payload
FINGERPRINT = hashlib.sha256(b"benchmark").digest()
ROOT = prefix_root(FINGERPRINT)
TIMEOUT_S, LEASE_S = 10.0, 600.0
# What the launcher sets for services: without it gRPC's buffers are faulted in anew, message by message.
MALLOC_ENV = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(256 << 20),
}
Row = Callable[[], Awaitable[None]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mib", type=int, default=256, help="MiB moved per row and round")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if any(os.environ.get(name) != value for name, value in MALLOC_ENV.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC_ENV})
    with RedisServer() as server:
        result = uvloop.run(measure(server, args.mib << 20, args.repeats))
    text = json.dumps(result, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


async def measure(server: RedisServer, num_bytes: int, repeats: int) -> dict[str, object]:
    flags = [
        f"--arena-bytes={7 * num_bytes}",
        f"--max-lease-s={LEASE_S}",
        f"--redis-url={server.url}",
        "--log-level=error",
    ]
    process = subprocess.Popen([sys.executable, "-m", "kv_store", *flags])
    try:
        address = await wait_for_store(server.url)
        moves = await measure_moves(address, num_bytes // LAYOUT.block_bytes, repeats)
    finally:
        process.terminate()
        process.wait()
    lookups = await measure_lookups(server.url, repeats)
    host = {
        "cpu": platform.processor() or platform.machine(),
        "cpus": os.cpu_count(),
        "load_1m": os.getloadavg()[0],
    }
    return {"host": host, "block_bytes": LAYOUT.block_bytes, "repeats": repeats, **moves, **lookups}


async def wait_for_store(url: str) -> str:
    members = Membership(url)
    while not (found := await members.list("kv_store")):
        await asyncio.sleep(0.05)
    await members.close()
    return found[0].address


async def measure_moves(address: str, num_blocks: int, repeats: int) -> dict[str, object]:
    rows: dict[str, Row] = {"memcpy": memcpy_row(num_blocks)}
    sessions = []
    for scheme in ("shm", "grpc"):
        session = await open_session(address, LAYOUT, scheme, TIMEOUT_S)
        sessions.append(session)
        rows |= await transport_rows(session, scheme, num_blocks)
    kv = torch.ones((LAYOUT.num_layers, num_blocks + 1, *LAYOUT.shape[1:]), dtype=torch.bfloat16)
    connector = KvConnector([address], kv, LAYOUT, FINGERPRINT, "shm", ConnectorOptions(timeout_s=TIMEOUT_S))
    await connector.start(TIMEOUT_S)
    rows |= connector_rows(connector, num_blocks)
    seconds = await interleave(rows, repeats)
    await connector.close()
    for session in sessions:
        await session.close()
    speed = {name: num_blocks * LAYOUT.block_bytes / s / 1e9 for name, s in seconds.items()}
    ratio = {f"{name}_per_memcpy": speed[name] / speed["memcpy"] for name in speed if name != "memcpy"}
    return {"gb_per_s": rounded(speed), "ratios": rounded(ratio)}


def memcpy_row(num_blocks: int) -> Row:
    source, target = (np.ones((num_blocks, LAYOUT.block_bytes), np.uint8) for _ in range(2))

    async def copy() -> None:
        await asyncio.to_thread(lambda: [np.copyto(t, s) for t, s in zip(target, source, strict=True)])

    return copy


async def transport_rows(session: StoreSession, scheme: str, num_blocks: int) -> dict[str, Row]:
    """Raw put and get of whole blocks; the leases outlast the run."""
    size = HEADER_BYTES + LAYOUT.block_bytes
    buffers = [memoryview(bytearray(size)) for _ in range(num_blocks)]
    keys = unique_keys(num_blocks)
    written = await session.reserve(ROOT, b"", keys, size, LEASE_S)
    await session.transport.put(list(zip(written.grants, buffers, strict=True)))
    await session.commit(written.lease_id, written.grants)
    readable = (await session.acquire(keys, LEASE_S)).grants
    writable = (await session.reserve(ROOT, b"", unique_keys(num_blocks), size, LEASE_S)).grants

    async def put() -> None:
        await session.transport.put(list(zip(writable, buffers, strict=True)))

    async def get() -> None:
        await session.transport.get(list(zip(readable, buffers, strict=True)))

    return {f"{scheme}_put": put, f"{scheme}_get": get}


def connector_rows(connector: KvConnector, num_blocks: int) -> dict[str, Row]:
    """What a worker sees: control calls, checksum, gather or scatter, all included."""
    last: list[list[BlockKey]] = []
    blocks = list(range(1, num_blocks + 1))

    async def push() -> None:
        last[:] = [unique_keys(num_blocks)]
        assert await connector.push(ROOT, last[0], blocks) == num_blocks

    async def pull() -> None:
        assert await connector.pull(last[0], blocks) == num_blocks

    return {"connector_push": push, "connector_pull": pull}


def unique_keys(num: int) -> list[BlockKey]:
    return [BlockKey(os.urandom(16), os.urandom(16)) for _ in range(num)]


async def measure_lookups(url: str, repeats: int) -> dict[str, object]:
    index = PrefixIndex(url, budget_s=1.0, node_ttl_s=600.0)
    await index.wait_ready()
    keys = [os.urandom(16) for _ in range(1024)]
    for node in range(8):
        await index.announce(ROOT, f"n:{node}", 1)
        await index.register(ROOT, f"n:{node}", 1, keys[: 512 + 64 * node])
    await index.announce(b"1" * 32, "n:0", 1)
    await index.register(b"1" * 32, "n:0", 1, keys)
    client = redis.from_url(url)

    def match(root: bytes, num: int) -> Row:
        async def run() -> None:
            for _ in range(50):
                assert await index.match(root, keys[:num])

        return run

    async def ping() -> None:
        for _ in range(50):
            await client.ping()

    rows = {"ping": ping}
    rows |= {f"match_{n}_1_node": match(b"1" * 32, n) for n in (64, 1024)}
    rows |= {f"match_{n}_8_nodes": match(ROOT, n) for n in (64, 1024)}
    seconds = await interleave(rows, repeats)
    await client.aclose()
    await index.close()
    micros = {name: s / 50 * 1e6 for name, s in seconds.items()}
    ratio = {f"{name}_per_ping": micros[name] / micros["ping"] for name in micros if name != "ping"}
    return {"lookup_us": rounded(micros), "lookup_ratios": rounded(ratio)}


async def interleave(rows: dict[str, Row], repeats: int) -> dict[str, float]:
    """Median seconds of each row over `repeats` rounds, after one round to warm up."""
    seconds: dict[str, list[float]] = {name: [] for name in rows}
    for round_index in range(repeats + 1):
        for name, row in rows.items():
            started = time.perf_counter()
            await row()
            if round_index:
                seconds[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def rounded(values: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in values.items()}


if __name__ == "__main__":
    main()
