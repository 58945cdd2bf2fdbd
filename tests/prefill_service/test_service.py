"""Prefill over real gRPC, with and without a real store; after every test nothing is held."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc
import pytest
import torch
from prometheus_client import generate_latest

from forebay.kv.hashing import block_keys, prefix_root
from forebay.types import SamplingParams
from forebay.v1 import admin_pb2, common_pb2
from forebay.v1 import prefill_pb2 as pb
from prefill_service.config import PrefillConfig

GREEDY = SamplingParams(temperature=0.0)
FREED_WITHIN_S = 1.0  # a step and 100 ms, with room for a loaded machine


def prompt(seed: int, num_tokens: int) -> list[int]:
    return torch.randint(2, 97, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def request_for(rig: Any, token_ids: list[int], request_id: str = "r", **fields: Any) -> pb.PrefillRequest:
    fields = {"fingerprint": rig.worker.fingerprint, "sampling": GREEDY.to_pb(), **fields}
    return pb.PrefillRequest(request_id=request_id, token_ids=token_ids, **fields)


async def collect(
    rig: Any, token_ids: list[int], request_id: str = "r", **fields: Any
) -> list[pb.PrefillEvent]:
    return [event async for event in rig.stub.Prefill(request_for(rig, token_ids, request_id, **fields))]


def first_of(events: list[pb.PrefillEvent]) -> pb.FirstToken:
    firsts = [event.first_token for event in events if event.HasField("first_token")]
    assert len(firsts) == 1
    return firsts[0]


def ready_of(events: list[pb.PrefillEvent]) -> list[int]:
    return [event.blocks_ready.num_blocks for event in events if event.HasField("blocks_ready")]


def slow_down(rig: Any) -> None:
    """Each step takes 20 ms more."""
    runner = rig.parts[0].engine.runner
    run = runner.run
    runner.run = lambda chunks: time.sleep(0.02) or run(chunks)


async def until_idle(rig: Any) -> None:
    """The idle check passes soon after the last stream ended."""
    give_up = time.monotonic() + FREED_WITHIN_S
    while True:
        try:
            return await rig.check_idle()
        except grpc.aio.AioRpcError:
            if time.monotonic() > give_up:
                raise
            await asyncio.sleep(0.01)


async def forget(rig: Any) -> None:
    """Empty the local prefix cache, once the last request has given its blocks back."""
    await until_idle(rig)
    await rig.app._engine_loop.call(rig.worker.pool.evict_all)
    assert rig.worker.pool.num_cached == 0


@pytest.fixture
async def rig(serve: Callable, config: PrefillConfig) -> AsyncIterator[Any]:
    async with serve(dataclasses.replace(config, max_batch_tokens=32)) as rig:
        yield rig
        await until_idle(rig)


@pytest.fixture
async def stored(serve: Callable, config: PrefillConfig, store: Any) -> AsyncIterator[Any]:
    """Prefill with a store."""
    changed = dataclasses.replace(config, max_batch_tokens=32, kv_stores=(f"127.0.0.1:{store[1].port}",))
    async with serve(changed) as rig:
        rig.store, rig.store_server = store
        yield rig
        await until_idle(rig)
        await asyncio.sleep(0.05)
        await store[0].engine.check_integrity(True)


async def test_first_tokens_without_a_store(rig: Any) -> None:
    events = await collect(rig, prompt(1, 100))
    first = first_of(events)
    assert ready_of(events) == [] and len(first.token_ids) == 1 and first.num_blocks_ready == 0
    assert first.compute_ms > 0 and first.queue_ms >= 0 and first.prefill_tokens_per_s > 0
    again = first_of(await collect(rig, prompt(1, 100), "again"))
    assert (again.token_ids, again.num_local_cached_tokens) == (first.token_ids, 96)
    load = await rig.admin.GetLoad(admin_pb2.GetLoadRequest())
    assert (load.num_running, load.num_queued_tokens, load.num_cached_blocks) == (0, 0, 6)
    metrics = generate_latest().decode()
    assert (
        "forebay_prefill_prompts_total 2.0" in metrics
        and "forebay_prefill_computed_tokens_total 104.0" in metrics
    )
    assert 'forebay_worker_cached_blocks{role="prefill"} 6.0' in metrics
    info = await rig.admin.GetInfo(admin_pb2.GetInfoRequest())
    assert info.role == "prefill" and info.model.fingerprint == rig.worker.fingerprint


async def test_choices_and_logprobs(rig: Any) -> None:
    params = SamplingParams(temperature=1.0, seed=3, n=3, logprobs=2)
    first = first_of(await collect(rig, prompt(1, 40), sampling=params.to_pb()))
    assert len(first.token_ids) == 3
    assert [entry.token_id for entry in first.logprobs] == list(first.token_ids)
    assert all(len(entry.top_token_ids) == 2 for entry in first.logprobs)


async def test_many_at_once_equal_one_at_a_time(rig: Any) -> None:
    prompts = [prompt(1, 30) + prompt(i, 5 + 13 * i) for i in range(10)]
    together = await asyncio.gather(*(collect(rig, ids, str(i)) for i, ids in enumerate(prompts)))
    await forget(rig)
    for token_ids, events in zip(prompts, together, strict=True):
        assert first_of(events).token_ids == first_of(await collect(rig, token_ids)).token_ids


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"fingerprint": b"other"}, grpc.StatusCode.FAILED_PRECONDITION, "serves another model"),
        ({"token_ids": []}, grpc.StatusCode.INVALID_ARGUMENT, "token_ids"),
        ({"token_ids": [1, 97]}, grpc.StatusCode.INVALID_ARGUMENT, "token_ids"),
        ({"token_ids": [1] * 4097}, grpc.StatusCode.INVALID_ARGUMENT, "context"),
        ({"sampling": common_pb2.SamplingParams(n=17)}, grpc.StatusCode.INVALID_ARGUMENT, "sampling.n"),
        ({"request_id": "a b"}, grpc.StatusCode.INVALID_ARGUMENT, "request_id"),
    ],
)
async def test_bad_requests_are_refused(rig: Any, changes: dict, code: grpc.StatusCode, reason: str) -> None:
    fields = {"token_ids": [1, 2, 3], **changes}
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(rig, fields.pop("token_ids"), fields.pop("request_id", "r"), **fields)
    assert caught.value.code() == code and reason in caught.value.details()


async def test_a_request_id_is_used_once_at_a_time(rig: Any) -> None:
    slow_down(rig)
    running = rig.stub.Prefill(request_for(rig, prompt(1, 900)))
    await asyncio.sleep(0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(rig, prompt(2, 10))
    assert caught.value.code() == grpc.StatusCode.ALREADY_EXISTS
    running.cancel()


async def test_pushed_blocks_are_pulled_after_the_pool_forgot_them(stored: Any) -> None:
    cold = await collect(stored, prompt(1, 100))
    assert ready_of(cold) == sorted(set(ready_of(cold))) and ready_of(cold)[-1] == 6
    await forget(stored)
    stored.worker.kv.zero_()
    events = await collect(stored, prompt(1, 100), num_store_blocks=6)
    warm = first_of(events)
    assert warm.token_ids == first_of(cold).token_ids and ready_of(events)[-1] == 6
    assert (warm.num_store_cached_tokens, warm.num_local_cached_tokens) == (96, 0)
    assert warm.pull_ms > 0


async def test_a_wrong_hint_costs_nothing_but_computing(stored: Any) -> None:
    first = first_of(await collect(stored, prompt(1, 100), num_store_blocks=1000))
    assert first.num_store_cached_tokens == 0
    await forget(stored)
    assert first_of(await collect(stored, prompt(1, 100))).token_ids == first.token_ids


async def test_locally_cached_blocks_that_the_store_lost_are_pushed_again(stored: Any) -> None:
    await collect(stored, prompt(1, 100))
    blocks = stored.store.engine.store
    root = prefix_root(stored.worker.fingerprint)
    keys = [key.key for key in block_keys(root, prompt(1, 100), 16)]
    for entry in list(blocks._entries.values()):
        blocks.arena.view(entry.offset, 4096)[200] ^= 1
    connector = stored.parts[0]._connector
    scratch = [1, 2]
    assert await connector.pull(block_keys(root, prompt(1, 100), 16)[:2], scratch) == 0
    await asyncio.sleep(0.05)
    assert blocks.lookup(keys) == 0
    events = await collect(stored, prompt(1, 100))
    assert ready_of(events)[-1] == 6 and blocks.lookup(keys) == 6


async def test_a_store_that_dies_costs_reuse_only(stored: Any) -> None:
    first = first_of(await collect(stored, prompt(1, 100)))
    await stored.store_server.server.stop(0)
    await forget(stored)
    events = await collect(stored, prompt(1, 100), num_store_blocks=6)
    assert first_of(events).token_ids == first.token_ids and ready_of(events) == []


async def test_an_error_in_moving_blocks_ends_the_stream_and_frees_them(rig: Any) -> None:
    rig.parts[0]._connector.push = None
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await collect(rig, prompt(1, 100))
    assert caught.value.code() == grpc.StatusCode.INTERNAL


@pytest.mark.parametrize("after_s", [0.0, 0.005, 0.02, 0.05, 0.1])
async def test_cancelled_streams_leave_nothing(stored: Any, after_s: float) -> None:
    calls = [
        stored.stub.Prefill(request_for(stored, prompt(i % 3, 200 + 90 * i), str(i), num_store_blocks=i))
        for i in range(8)
    ]
    await asyncio.sleep(after_s)
    for call in calls:
        call.cancel()
    await until_idle(stored)


async def test_a_cancel_at_each_event_leaves_nothing(stored: Any) -> None:
    for num_events in range(1, 8):
        call = stored.stub.Prefill(request_for(stored, prompt(num_events, 200), num_store_blocks=3))
        for _ in range(num_events):
            if await call.read() is grpc.aio.EOF:
                break
        call.cancel()
        await until_idle(stored)


async def test_a_deadline_frees_everything(stored: Any) -> None:
    slow_down(stored)
    call = stored.stub.Prefill(request_for(stored, prompt(1, 1000)), timeout=0.1)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in call:
            pass
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    await until_idle(stored)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_failed_engine_ends_its_streams(serve: Callable, config: PrefillConfig) -> None:
    async with serve(config) as rig:
        rig.parts[0].engine.runner.run = None
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await collect(rig, prompt(1, 100))
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await asyncio.wait_for(rig.app._failed.wait(), 1)


async def test_close_ends_running_streams(serve: Callable, config: PrefillConfig) -> None:
    async with serve(dataclasses.replace(config, max_batch_tokens=16)) as rig:
        slow_down(rig)
        call = rig.stub.Prefill(request_for(rig, prompt(1, 900)))
        await asyncio.sleep(0.1)
        await rig.parts[0].servicer.close()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in call:
                pass
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        await until_idle(rig)
