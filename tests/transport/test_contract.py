"""What every transport promises, over the same real store."""

from __future__ import annotations

import dataclasses
import os

import pytest

from forebay.transport.base import Grant, Transport, TransportError
from kv_store.engine import StoreEngine

Running = tuple[str, StoreEngine]


def keys_of(num: int) -> list[bytes]:
    return [bytes([i + 1]) * 16 for i in range(num)]


def wire(grant: object) -> Grant:
    return Grant(grant.handle, grant.offset, grant.num_bytes, grant.generation)  # type: ignore[attr-defined]


def reserve(engine: StoreEngine, num: int, num_bytes: int) -> tuple[bytes, list[Grant]]:
    reserved = engine.store.reserve(b"r" * 32, None, keys_of(num), num_bytes, 30.0)
    return reserved.lease_id, [wire(grant) for grant in reserved.grants]


def reopen(transport: Transport, engine: StoreEngine, lease: bytes, grants: list[Grant]) -> list[Grant]:
    """Read grants of the blocks written under `lease`; the fake has no leases, its handles stay."""
    if transport.scheme == "fake":
        return grants
    engine.store.commit(lease, [grant.handle for grant in grants])
    return [wire(grant) for grant in engine.store.acquire(keys_of(len(grants)), 30.0).grants]


def payload(grant: Grant, num_bytes: int) -> bytearray:
    """Random bytes that carry the slot's generation where a block's header has it."""
    data = bytearray(os.urandom(num_bytes))
    data[8:16] = grant.generation.to_bytes(8, "little")
    return data


@pytest.mark.parametrize("num_bytes", [128, 4096, 100_001, (1 << 20) + 5])
async def test_what_is_put_is_got(transport: Transport, running: Running, num_bytes: int) -> None:
    engine = running[1]
    lease, grants = reserve(engine, 3, num_bytes)
    data = [payload(grant, num_bytes) for grant in grants]
    await transport.put([(g, memoryview(d)) for g, d in zip(grants, data, strict=True)])
    read = reopen(transport, engine, lease, grants)
    found = [bytearray(num_bytes) for _ in read]
    await transport.get([(g, memoryview(d)) for g, d in zip(read, found, strict=True)])
    assert found == data


async def test_the_front_of_a_block_can_be_got(transport: Transport, running: Running) -> None:
    lease, grants = reserve(running[1], 1, 5000)
    data = payload(grants[0], 5000)
    await transport.put([(grants[0], memoryview(data))])
    found = bytearray(700)
    await transport.get([(reopen(transport, running[1], lease, grants)[0], memoryview(found))])
    assert found == data[:700]


async def test_nothing_to_move_is_no_error(transport: Transport) -> None:
    await transport.put([])
    await transport.get([])


async def test_a_buffer_larger_than_its_slot_is_refused(transport: Transport, running: Running) -> None:
    _, grants = reserve(running[1], 1, 4096)
    for move in (transport.put, transport.get):
        with pytest.raises(TransportError, match="does not fit"):
            await move([(grants[0], memoryview(bytearray(4097)))])


async def test_a_slot_outside_of_the_arena_is_refused(transport: Transport, running: Running) -> None:
    _, grants = reserve(running[1], 1, 4096)
    for offset in (-4096, running[1].arena.num_bytes - 4095):
        outside = dataclasses.replace(grants[0], offset=offset)
        with pytest.raises(TransportError, match="outside"):
            await transport.put([(outside, memoryview(bytearray(4096)))])


async def test_only_shm_maps_the_arena(transport: Transport, running: Running) -> None:
    if transport.scheme != "shm":
        assert transport.arena is None
        return
    arena = transport.arena
    assert arena is not None and arena.nbytes == running[1].arena.num_bytes
    arena[5] = 77
    assert running[1].arena.view(5, 1)[0] == 77
    del arena
    await transport.close()
    with pytest.raises(TransportError):
        await transport.get([(Grant(b"", 0, 1, 0), memoryview(bytearray(1)))])
