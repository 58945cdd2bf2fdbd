"""Decode over real gRPC: frames, errors of one slot, gateways that go away, blocks from a real store."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Any

import grpc
import pytest

from decode_service.config import DecodeConfig
from decode_service.outputs import StepOutput
from decode_service.server import DecodeParts
from decode_service.servicer import Outbox
from forebay.engine_loop import EngineLoop
from forebay.errors import FailedPrecondition, ResourceExhausted
from forebay.kv.connector import KvConnector
from forebay.rpc.client import connect
from forebay.rpc.server import Server, Service
from forebay.types import SamplingParams
from forebay.v1 import common_pb2, decode_pb2_grpc
from forebay.v1 import decode_pb2 as pb
from forebay.worker import Worker
from kv_store.config import KvStoreConfig
from kv_store.server import KvStoreApp

VOCAB = 97
Naive = Callable[..., Any]


def prompt_of(num_tokens: int, seed: int = 0) -> list[int]:
    return random.Random(seed).choices(range(2, VOCAB), k=num_tokens)


class Gateway:
    """The other end of one stream."""

    def __init__(self, call: Any, fingerprint: bytes) -> None:
        self.call, self.fingerprint = call, fingerprint
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, pb.Finished] = {}
        self.started: dict[int, pb.Started] = {}
        self.num_frames = 0

    async def attach(self, slot: int, prompt: list[int], params: SamplingParams, **fields: Any) -> None:
        attach = pb.Attach(
            request_id=f"r{slot}",
            token_ids=prompt,
            num_prompt_tokens=len(prompt),
            sampling=params.to_pb(),
            fingerprint=fields.get("fingerprint", self.fingerprint),
        )
        await self.call.write(pb.MuxRequest(slot=slot, attach=attach))

    async def start(self, slot: int, first: list[int] | None = None, num_blocks: int = 0) -> None:
        start = pb.Start(first_token_ids=first or [], num_blocks=num_blocks)
        await self.call.write(pb.MuxRequest(slot=slot, start=start))

    async def read(self) -> pb.StepFrame:
        frame = await asyncio.wait_for(self.call.read(), 20)
        assert frame is not grpc.aio.EOF
        self.num_frames += 1
        assert len(frame.slots) == len(frame.choices) == len(frame.token_ids)
        for slot, token_id in zip(frame.slots, frame.token_ids, strict=True):
            self.tokens.setdefault(slot, []).append(token_id)
        for spill in frame.spills:
            if spill.WhichOneof("event") == "finished":
                self.finished[spill.slot] = spill.finished
            elif spill.WhichOneof("event") == "started":
                self.started[spill.slot] = spill.started
        return frame

    async def read_until_finished(self, *slots: int) -> None:
        while not self.finished.keys() >= set(slots):
            await self.read()


class Rig:
    """A served decode worker."""

    def __init__(self, worker: Worker, config: DecodeConfig) -> None:
        self.worker, self.config = worker, config

    async def __aenter__(self) -> Rig:
        self.parts = DecodeParts(self.config, self.worker)
        self.engine_loop = EngineLoop([self.parts.engine])
        worker = self.worker
        self.connector = KvConnector(self.config.kv_stores, worker.kv, worker.layout, worker.fingerprint)
        await self.connector.start()
        self.parts.bind(self.engine_loop, self.connector)
        self.engine_loop.start()
        self.server = Server("127.0.0.1:0")
        await self.server.start()
        await self.server.add(Service(self.parts.add, self.parts.names, self.parts.close))
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.until_idle()
        await self.server.stop(0.1)
        await self.parts.close()
        await asyncio.to_thread(self.engine_loop.stop)
        await self.connector.close()

    async def until_idle(self, timeout_s: float = 5.0) -> None:
        deadline = asyncio.get_running_loop().time() + timeout_s
        while True:
            try:
                return await self.parts.check_integrity(True)
            except FailedPrecondition:
                if asyncio.get_running_loop().time() > deadline:
                    raise
                await asyncio.sleep(0.01)

    @asynccontextmanager
    async def gateway(self) -> AsyncIterator[Gateway]:
        async with connect(f"127.0.0.1:{self.server.port}") as channel:
            call = decode_pb2_grpc.DecodeServiceStub(channel).Mux()
            yield Gateway(call, self.worker.fingerprint)
            call.cancel()


MakeRig = Callable[..., Rig]


@pytest.fixture
def serve(make_worker: Callable[[int], Worker]) -> MakeRig:
    def make(num_blocks: int = 256, worker: Worker | None = None, **options: Any) -> Rig:
        config = DecodeConfig(**{"max_batch_size": 32, "max_batch_tokens": 128, **options})
        return Rig(worker or make_worker(num_blocks), config)

    return make


async def test_many_requests_on_one_stream(serve: MakeRig, naive: Naive) -> None:
    async with serve() as rig, rig.gateway() as gateway:
        params = [
            SamplingParams(temperature=0.7, seed=s, max_tokens=1 + s, ignore_eos=True) for s in range(20)
        ]
        for slot in range(20):
            await gateway.attach(slot, prompt_of(3 + slot, slot), params[slot])
            await gateway.start(slot)
        await gateway.read_until_finished(*range(20))
        for slot in range(20):
            assert gateway.tokens[slot] == naive(prompt_of(3 + slot, slot), params[slot]).token_ids
            assert gateway.finished[slot].reason == common_pb2.FINISH_REASON_LENGTH
        assert gateway.num_frames < 60


async def test_errors_belong_to_their_slot(serve: MakeRig, naive: Naive) -> None:
    params = SamplingParams(temperature=0, max_tokens=30, ignore_eos=True)
    async with serve(num_blocks=10) as rig, rig.gateway() as gateway:
        await gateway.attach(1, prompt_of(10), params)
        await gateway.start(1)
        await gateway.attach(2, [VOCAB], params)
        await gateway.attach(3, [5], params, fingerprint=b"other")
        await gateway.attach(4, [5] * 600, params)
        await gateway.attach(5, [5] * 200, params)
        await gateway.attach(6, [5], replace(params, n=17))
        for slot in range(2, 7):
            await gateway.start(slot)
        await gateway.call.write(pb.MuxRequest(slot=99, cancel=pb.Cancel()))
        await gateway.call.write(pb.MuxRequest(slot=98, ready=pb.Ready(num_blocks=1)))
        await gateway.call.write(pb.MuxRequest(slot=97))
        await gateway.read_until_finished(*range(1, 7))
        assert gateway.tokens[1] == naive(prompt_of(10), params).token_ids
        reasons = {slot: gateway.finished[slot].error_reason for slot in range(2, 7)}
        assert reasons == {
            2: "INVALID_ARGUMENT",
            3: "FINGERPRINT_MISMATCH",
            4: "INVALID_ARGUMENT",
            5: "REQUEST_TOO_LARGE",
            6: "INVALID_ARGUMENT",
        }
        assert "vocab" not in gateway.finished[3].error_message
        assert 98 not in gateway.finished and 99 not in gateway.finished


async def test_a_slot_that_is_in_use_is_refused_and_freed(serve: MakeRig) -> None:
    async with serve() as rig, rig.gateway() as gateway:
        for _ in range(2):
            await gateway.attach(1, prompt_of(10), SamplingParams())
        await gateway.read_until_finished(1)
        assert gateway.finished[1].error_reason == "ALREADY_EXISTS"


async def test_cancel_is_acknowledged(serve: MakeRig) -> None:
    async with serve() as rig, rig.gateway() as gateway:
        await gateway.attach(1, prompt_of(10), SamplingParams(ignore_eos=True))
        await gateway.start(1)
        await gateway.read()
        await gateway.call.write(pb.MuxRequest(slot=1, cancel=pb.Cancel()))
        await gateway.read_until_finished(1)
        assert gateway.finished[1].reason == common_pb2.FINISH_REASON_CANCELLED


async def test_drain_ends_the_stream_with_its_last_request(serve: MakeRig) -> None:
    async with serve() as rig, rig.gateway() as gateway:
        await gateway.attach(1, prompt_of(10), SamplingParams(max_tokens=20, ignore_eos=True))
        await gateway.start(1)
        await gateway.read()
        draining = asyncio.create_task(rig.parts.drain())
        await asyncio.sleep(0)
        await gateway.attach(2, prompt_of(10), SamplingParams(max_tokens=20))
        await gateway.read_until_finished(1, 2)
        assert gateway.finished[1].reason == common_pb2.FINISH_REASON_LENGTH
        assert gateway.finished[2].error_reason == "DRAINING"
        await asyncio.wait_for(draining, 5)
        assert await asyncio.wait_for(gateway.call.read(), 5) is grpc.aio.EOF


@pytest.mark.parametrize("end", ["cancel", "close", "half-close"])
async def test_a_gateway_that_goes_away_frees_all_it_had(serve: MakeRig, naive: Naive, end: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    async with serve() as rig, rig.gateway() as stays:
        await stays.attach(1, prompt_of(20), params)
        await stays.start(1)
        async with connect(f"127.0.0.1:{rig.server.port}") as channel:
            leaves = Gateway(decode_pb2_grpc.DecodeServiceStub(channel).Mux(), rig.worker.fingerprint)
            for slot in range(8):
                await leaves.attach(slot, prompt_of(20, slot), SamplingParams(ignore_eos=True, n=2))
                if slot % 2:
                    await leaves.start(slot)
            while len(leaves.tokens) < 4:
                await leaves.read()
            if end == "cancel":
                leaves.call.cancel()
            elif end == "half-close":
                await leaves.call.done_writing()
                while await leaves.call.read() is not grpc.aio.EOF:
                    pass
        await asyncio.sleep(0.2)
        assert all(owner.stream == 1 for owner in rig.parts.engine._slots)
        await stays.read_until_finished(1)
        assert stays.tokens[1] == naive(prompt_of(20), params).token_ids


async def test_an_outbox_joins_steps_and_ends_when_too_much_is_unread() -> None:
    outbox = Outbox(max_tokens=3)
    for step in range(3):
        outbox.put(StepOutput(step, [7], bytearray([step]), [40 + step], [], num_running=step))
    outputs = outbox.outputs()
    joined = await anext(outputs)
    assert (joined.step, joined.slots, joined.token_ids, joined.num_running) == (2, [7] * 3, [40, 41, 42], 2)
    assert bytes(joined.choices) == bytes([0, 1, 2])
    for step in range(4):
        outbox.put(StepOutput(step, [7], bytearray(1), [1]))
    with pytest.raises(ResourceExhausted):
        await anext(outputs)


async def test_a_failed_engine_ends_the_streams(serve: MakeRig) -> None:
    async with serve() as rig, rig.gateway() as gateway:
        await gateway.attach(1, prompt_of(10), SamplingParams(ignore_eos=True))
        await gateway.start(1)
        await gateway.read()
        rig.parts.fail()
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            while True:
                await gateway.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


async def test_garbage_bytes_end_the_stream_with_their_own_status(serve: MakeRig) -> None:
    async with serve() as rig, connect(f"127.0.0.1:{rig.server.port}") as channel:
        call = channel.stream_stream("/forebay.v1.DecodeService/Mux")()
        await call.write(b"\xff\xff\xff")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.fixture
async def store() -> AsyncIterator[tuple[KvStoreApp, str]]:
    """A real store and its address."""
    app, server = KvStoreApp(KvStoreConfig(arena_bytes=4 << 20, prefault=False)), Server("127.0.0.1:0")
    await server.start()
    service = await app.build()
    await server.add(service)
    yield app, f"127.0.0.1:{server.port}"
    await server.stop(0)
    await service.close()


async def test_blocks_travel_through_the_store(
    serve: MakeRig, naive: Naive, store: tuple[KvStoreApp, str]
) -> None:
    params, prompt = SamplingParams(temperature=0.6, seed=4, max_tokens=70, ignore_eos=True), prompt_of(40)
    want, stores = naive(prompt, params).token_ids, (store[1],)
    async with serve(kv_stores=stores) as first, first.gateway() as gateway:
        await gateway.attach(1, prompt, params)
        await gateway.start(1)
        await gateway.read_until_finished(1)
        assert gateway.tokens[1] == want
        await first.until_idle()
    assert store[0].engine is not None and store[0].engine.store.num_blocks == (40 + 69) // 16
    async with serve(kv_stores=stores) as second, second.gateway() as gateway:
        await gateway.attach(1, prompt, params)
        await gateway.call.write(pb.MuxRequest(slot=1, ready=pb.Ready(num_blocks=1)))
        await gateway.start(1, want[:1], num_blocks=2)
        await gateway.read_until_finished(1)
        assert gateway.tokens[1] == want[1:]
        started = gateway.started[1]
        assert (started.num_pulled_tokens, started.num_computed_tokens) == (32, 8)


@pytest.mark.parametrize("num_blocks", [1, 3, 50])
async def test_blocks_that_the_store_lacks_are_computed(
    serve: MakeRig, naive: Naive, store: tuple[KvStoreApp, str], num_blocks: int
) -> None:
    params, prompt = SamplingParams(temperature=0, max_tokens=20), prompt_of(50)
    async with serve(kv_stores=(store[1],)) as rig, rig.gateway() as gateway:
        await gateway.attach(1, prompt, params)
        await gateway.call.write(pb.MuxRequest(slot=1, ready=pb.Ready(num_blocks=num_blocks)))
        await gateway.start(1, num_blocks=num_blocks)
        await gateway.read_until_finished(1)
        assert gateway.tokens[1] == naive(prompt, params).token_ids
        assert gateway.started[1].num_computed_tokens == 50


async def test_preempted_sequences_come_back_through_the_store(
    serve: MakeRig, naive: Naive, store: tuple[KvStoreApp, str]
) -> None:
    params = [SamplingParams(temperature=0.8, seed=s, max_tokens=60, ignore_eos=True) for s in range(6)]
    options = {"num_blocks": 16, "kv_stores": (store[1],), "push_batch_blocks": 1}
    async with serve(**options) as rig, rig.gateway() as gateway:
        for slot in range(6):
            await gateway.attach(slot, prompt_of(20, slot), params[slot])
            await gateway.start(slot)
        await gateway.read_until_finished(*range(6))
        for slot in range(6):
            assert gateway.tokens[slot] == naive(prompt_of(20, slot), params[slot]).token_ids
        assert sum(finished.num_preemptions for finished in gateway.finished.values()) > 0
