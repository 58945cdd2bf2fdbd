"""Prefill and decode in one process: tokens equal plain computing, blocks change hands, nothing is left."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import torch

from decode_service.config import DecodeConfig
from forebay.aggregated import config_class, make_parts, part_of
from forebay.config import load
from forebay.errors import ConfigError
from forebay.kv.hashing import block_keys
from forebay.kv.pool import BlockPool
from forebay.rpc.client import connect
from forebay.rpc.server import Server
from forebay.types import SamplingParams
from forebay.v1 import admin_pb2, admin_pb2_grpc, decode_pb2, decode_pb2_grpc, prefill_pb2, prefill_pb2_grpc
from forebay.worker import Worker
from forebay.worker_app import WorkerApp
from prefill_service.config import PrefillConfig
from prefill_service.runner import Runner
from prefill_service.scheduler import Scheduler
from prefill_service.sequence import Sequence

Config = config_class(PrefillConfig, DecodeConfig)


def prompt(seed: int, num_tokens: int) -> list[int]:
    return torch.randint(2, 97, (num_tokens,), generator=torch.Generator().manual_seed(seed)).tolist()


def greedy(worker: Worker, token_ids: list[int], num_tokens: int) -> list[int]:
    """Each token from the whole prefix computed anew."""
    runner, output = Runner(worker.model, torch.zeros_like(worker.kv)), list[int]()
    for _ in range(num_tokens):
        known = token_ids + output
        params = SamplingParams(temperature=0.0)
        sequence = Sequence("x", known, params, b"", block_keys(b"", known, 16), 16)
        scheduler = Scheduler(BlockPool(worker.pool.num_blocks, 16), 1)
        scheduler.add(sequence)
        scheduler.admit()
        output += runner.run(scheduler.schedule(len(known)))[0].token_ids
    return output


class Gateway:
    """What a gateway does with one aggregated worker, for one request at a time and slot."""

    def __init__(self, app: WorkerApp, channel: grpc.aio.Channel) -> None:
        self.app = app
        self.prefill = prefill_pb2_grpc.PrefillServiceStub(channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(channel)
        self.mux = decode_pb2_grpc.DecodeServiceStub(channel).Mux()
        self.tokens: dict[tuple[int, int], list[int]] = {}
        self.started: dict[int, decode_pb2.Started] = {}
        self.ends: dict[tuple[int, int], asyncio.Future[int]] = {}
        self._writing = asyncio.Lock()
        self._reader = asyncio.create_task(self._read())

    @property
    def worker(self) -> Worker:
        return self.app._worker

    async def generate(
        self, slot: int, token_ids: list[int], num_tokens: int, with_prefill: bool = True, **fields: Any
    ) -> list[list[int]]:
        """All choices' tokens, as client would see them."""
        params = SamplingParams(temperature=0.0, max_tokens=num_tokens, ignore_eos=True, **fields)
        await self.attach(slot, token_ids, params)
        first_ids = list[int]()
        if with_prefill:
            first_ids = list((await self.first(slot, token_ids, params)).token_ids)
        start = decode_pb2.Start(first_token_ids=first_ids)
        await self.send(decode_pb2.MuxRequest(slot=slot, start=start))
        choices = range(params.n)
        await asyncio.wait_for(asyncio.gather(*(self.ends[slot, choice] for choice in choices)), 20)
        return [[*first_ids[choice : choice + 1], *self.tokens[slot, choice]] for choice in choices]

    async def send(self, request: decode_pb2.MuxRequest) -> None:
        async with self._writing:
            await self.mux.write(request)

    async def attach(self, slot: int, token_ids: list[int], params: SamplingParams) -> None:
        for choice in range(params.n):
            self.tokens[slot, choice] = []
            self.ends[slot, choice] = asyncio.get_running_loop().create_future()
        attach = decode_pb2.Attach(
            request_id=f"r{slot}",
            token_ids=token_ids,
            num_prompt_tokens=len(token_ids),
            sampling=params.to_pb(),
            fingerprint=self.worker.fingerprint,
        )
        await self.send(decode_pb2.MuxRequest(slot=slot, attach=attach))

    async def first(self, slot: int, token_ids: list[int], params: SamplingParams) -> prefill_pb2.FirstToken:
        request = prefill_pb2.PrefillRequest(
            request_id=f"r{slot}",
            token_ids=token_ids,
            sampling=params.to_pb(),
            fingerprint=self.worker.fingerprint,
        )
        events = [event async for event in self.prefill.Prefill(request)]
        return next(event.first_token for event in events if event.HasField("first_token"))

    async def until_idle(self, within_s: float = 3.0) -> None:
        give_up = time.monotonic() + within_s
        while True:
            try:
                await self.admin.CheckIntegrity(admin_pb2.CheckIntegrityRequest(idle=True))
                return
            except grpc.aio.AioRpcError:
                if time.monotonic() > give_up:
                    raise
                await asyncio.sleep(0.02)

    async def close(self) -> None:
        await self.mux.done_writing()
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)
        self.mux.cancel()

    async def _read(self) -> None:
        async for frame in self.mux:
            for slot, choice, token_id in zip(frame.slots, frame.choices, frame.token_ids, strict=True):
                self.tokens[slot, choice].append(token_id)
            for spill in frame.spills:
                if spill.HasField("started"):
                    self.started[spill.slot] = spill.started
                if spill.HasField("finished"):
                    self.ends[spill.slot, spill.choice].set_result(spill.finished.reason)


Serve = Callable[..., Any]


@pytest.fixture
async def serve(model_folder: Path) -> AsyncIterator[Serve]:
    """`await serve(option=...)`: a gateway's view of one aggregated worker."""
    closers: list[Callable[[], Any]] = []

    async def run(**options: Any) -> Gateway:
        options = {"pool_bytes": 2 * (1 << 18), "dtype": "float32", "device": "cpu", **options}
        config = Config(model=str(model_folder), **options)
        app, server = WorkerApp("aggregated", config, lambda w: make_parts(config, w)), Server("127.0.0.1:0")
        await server.start()
        service = await app.build()
        await server.add(service)
        channel = connect(f"127.0.0.1:{server.port}")
        gateway = Gateway(app, channel)
        closers.extend([service.close, lambda: server.stop(0), channel.close, gateway.close])
        closers.append(gateway.until_idle)
        return gateway

    yield run
    for close in reversed(closers):
        await close()


@pytest.mark.parametrize("with_prefill", [True, False])
async def test_tokens_equal_plain_computing(serve: Serve, with_prefill: bool) -> None:
    gateway = await serve(prefill_max_batch_tokens=32, mixed_batch_tokens=16)
    for slot, size in enumerate([5, 16, 33, 100]):
        token_ids = prompt(size, size)
        output = await gateway.generate(slot, token_ids, 12, with_prefill)
        assert output == [greedy(gateway.worker, token_ids, 12)]
        if with_prefill:
            assert gateway.started[slot].num_computed_tokens == 0, "blocks changed hands"
    info = await gateway.admin.GetInfo(admin_pb2.GetInfoRequest())
    load = await gateway.admin.GetLoad(admin_pb2.GetLoadRequest())
    assert info.role == "aggregated" and load.num_steps > 0 and load.num_running == 0
    assert (load.prefill_tokens_per_s > 0) == with_prefill


async def test_many_at_once(serve: Serve) -> None:
    gateway = await serve(prefill_max_batch_tokens=64, mixed_batch_tokens=16)
    prompts = [prompt(1, 40) + prompt(i, 7 * i + 1) for i in range(10)]
    outputs = await asyncio.gather(*(gateway.generate(i, ids, 10) for i, ids in enumerate(prompts)))
    for token_ids, output in zip(prompts, outputs, strict=True):
        assert output == [greedy(gateway.worker, token_ids, 10)]


async def test_choices_share_the_prompt(serve: Serve) -> None:
    gateway = await serve()
    token_ids = prompt(2, 50)
    assert await gateway.generate(1, token_ids, 8, n=3) == [greedy(gateway.worker, token_ids, 8)] * 3


async def test_a_small_pool_finishes_all(serve: Serve) -> None:
    gateway = await serve(pool_bytes=24 * 8192, prefill_max_batch_tokens=32)
    prompts = [prompt(i, 60) for i in range(8)]
    outputs = await asyncio.gather(*(gateway.generate(i, ids, 40) for i, ids in enumerate(prompts)))
    for token_ids, output in zip(prompts, outputs, strict=True):
        assert output == [greedy(gateway.worker, token_ids, 40)]


async def test_a_prompt_that_decode_never_takes_is_given_up(serve: Serve) -> None:
    gateway = await serve(handoff_ttl_s=0.1)
    await gateway.first(1, prompt(1, 40), SamplingParams(temperature=0.0))
    assert gateway.worker.pool.num_used == 3
    await gateway.until_idle()


async def test_a_cancelled_slot_leaves_nothing(serve: Serve) -> None:
    gateway = await serve()
    params = SamplingParams(temperature=0.0, max_tokens=1000, ignore_eos=True)
    for slot, cancel_first in enumerate([True, False]):
        await gateway.attach(slot, prompt(1, 60), params)
        cancel = decode_pb2.MuxRequest(slot=slot, cancel=decode_pb2.Cancel())
        if cancel_first:
            await gateway.send(cancel)
        await gateway.first(slot, prompt(1, 60), params)
        if not cancel_first:
            await gateway.send(cancel)
        await gateway.until_idle()


async def test_with_a_store_full_blocks_are_pushed_too(serve: Serve, store: Any) -> None:
    gateway = await serve(kv_stores=(f"127.0.0.1:{store[1].port}",))
    token_ids = prompt(3, 100)
    assert await gateway.generate(1, token_ids, 5) == [greedy(gateway.worker, token_ids, 5)]
    assert store[0].engine.store.num_blocks >= 6
    await gateway.until_idle()


def test_options_of_both_services_are_one_configuration() -> None:
    argv = ["--prefill-max-batch-tokens=64", "--decode-max-batch-tokens=300", "--speculate=ngram"]
    config: Any = load(Config, "aggregated", argv, {})
    prefill, decode = (
        part_of(config, PrefillConfig, DecodeConfig),
        part_of(config, DecodeConfig, PrefillConfig),
    )
    assert (prefill.max_batch_tokens, decode.max_batch_tokens, decode.speculate) == (64, 300, "ngram")
    assert {f.name for f in dataclasses.fields(Config)} >= {"listen", "max_running", "mixed_batch_tokens"}
    with pytest.raises(ConfigError, match="max_batch_tokens"):
        load(Config, "aggregated", ["--decode-max-batch-tokens=-1"], {})
