"""Decode with a draft service over real gRPC: the same tokens, whatever the drafter does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest

from decode_service.admission import AttachRequest
from decode_service.config import DecodeConfig
from decode_service.draft_client import DraftClient
from decode_service.outputs import Finished, StepOutput
from decode_service.sequence import Owner
from decode_service.server import DecodeParts
from draft_service.config import DraftConfig
from draft_service.server import DraftApp
from forebay.engine_loop import EngineLoop
from forebay.kv.connector import KvConnector
from forebay.rpc.client import connect
from forebay.rpc.server import Server, Service
from forebay.types import SamplingParams
from forebay.v1 import admin_pb2, admin_pb2_grpc, draft_pb2_grpc
from forebay.v1 import draft_pb2 as pb
from forebay.worker import Worker

MakeWorker = Callable[[int], Worker]


def params_of(seed: int, **fields: Any) -> SamplingParams:
    draw = random.Random(seed)
    return SamplingParams(
        temperature=draw.choice([0.0, 0.4, 1.0]),
        top_p=draw.choice([1.0, 0.9]),
        repetition_penalty=draw.choice([1.0, 1.1]),
        seed=draw.getrandbits(64),
        **{"max_tokens": 40, "ignore_eos": True, **fields},
    )


def prompt_of(slot: int) -> list[int]:
    return random.Random(slot).choices(range(2, 97), k=5 + 3 * slot) * 2


class DecodeRig:
    """Decode on its own engine thread, spoken to without gRPC."""

    def __init__(self, worker: Worker, **options: Any) -> None:
        self.worker = worker
        self.parts = DecodeParts(DecodeConfig(max_batch_size=32, **options), worker)
        self.tokens: dict[int, list[int]] = {}
        self.finished: dict[int, Finished] = {}
        self.num_steps_with_tokens = 0

    async def __aenter__(self) -> DecodeRig:
        self.engine_loop = EngineLoop([self.parts.engine])
        self.parts.bind(self.engine_loop, KvConnector((), self.worker.kv, self.worker.layout, b""))
        loop = asyncio.get_running_loop()
        self.parts.engine.publish = lambda outputs: loop.call_soon_threadsafe(self._take, outputs[1])
        self.engine_loop.start()
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.engine_loop.post(self.parts.engine.close_stream, 1)
        await self.parts.check_integrity(True)
        await self.parts.close()
        await asyncio.to_thread(self.engine_loop.stop)

    @property
    def drafts(self) -> DraftClient:
        client = self.parts._drafts
        assert isinstance(client, DraftClient)
        return client

    async def until_connected(self) -> None:
        while self.drafts.epoch < 0:
            await asyncio.sleep(0.01)

    async def generate(self, params: list[SamplingParams]) -> list[list[int]]:
        """Outputs for prompts 0, 1, 2..."""
        self.tokens, self.finished = {}, {}
        for slot, each in enumerate(params):
            request = AttachRequest(
                f"r{slot}", prompt_of(slot), len(prompt_of(slot)), each, b"", self.worker.fingerprint
            )
            lead = self.parts._admission.build(Owner(1, slot), request)
            self.engine_loop.post(self.parts.engine.attach, request.request_id, lead)
            self.engine_loop.post(self.parts.engine.start, Owner(1, slot), [], 0)
        async with asyncio.timeout(60):
            while len(self.finished) < len(params):
                await asyncio.sleep(0.01)
        return [self.tokens[slot] for slot in range(len(params))]

    def _take(self, output: StepOutput) -> None:
        self.num_steps_with_tokens += bool(output.slots)
        for slot, token_id in zip(output.slots, output.token_ids, strict=True):
            self.tokens.setdefault(slot, []).append(token_id)
        for slot, _, event in output.events:
            if isinstance(event, Finished):
                self.finished[slot] = event

    @property
    def acceptance(self) -> float:
        finished = self.finished.values()
        return sum(f.num_accepted_tokens for f in finished) / max(
            1, sum(f.num_draft_tokens for f in finished)
        )


@asynccontextmanager
async def serving(service: Service) -> AsyncIterator[str]:
    server = Server("127.0.0.1:0")
    await server.start()
    await server.add(service)
    yield f"127.0.0.1:{server.port}"
    await server.stop(0)
    await service.close()


async def check_idle(address: str, timeout_s: float = 5.0) -> None:
    async with connect(address) as channel:
        admin, start = admin_pb2_grpc.AdminServiceStub(channel), asyncio.get_running_loop().time()
        info = await admin.GetInfo(admin_pb2.GetInfoRequest())
        assert info.role == "draft"
        while True:
            load = await admin.GetLoad(admin_pb2.GetLoadRequest())
            if load.num_running == 0:
                break
            assert asyncio.get_running_loop().time() < start + timeout_s, "histories are left"
            await asyncio.sleep(0.02)
        await admin.CheckIntegrity(admin_pb2.CheckIntegrityRequest(idle=True))


async def undrafted(worker: Worker, params: list[SamplingParams]) -> list[list[int]]:
    async with DecodeRig(worker) as rig:
        return await rig.generate(params)


def options_for(address: str, method: str) -> dict[str, Any]:
    return {"speculate": method, "draft_address": address, "draft_timeout_ms": 2000.0}


async def test_the_target_as_its_own_drafter(make_worker: MakeWorker) -> None:
    params = [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)] * 3
    params += [
        SamplingParams(temperature=0.9, top_p=0.9, seed=s, max_tokens=40, ignore_eos=True) for s in range(3)
    ]
    want = await undrafted(make_worker(128), params)
    service = await DraftApp(DraftConfig(method="model"), make_worker(128)).build()
    async with serving(service) as address:
        async with DecodeRig(make_worker(128), **options_for(address, "model")) as rig:
            await rig.until_connected()
            assert await rig.generate(params) == want
            assert rig.acceptance > 0.95
            assert rig.num_steps_with_tokens < 20
        await check_idle(address)


@pytest.mark.parametrize("method", ["ngram", "model"])
async def test_any_sampling_is_the_same_with_drafts(make_worker: MakeWorker, method: str) -> None:
    params = [params_of(seed, logprobs=1, min_tokens=5, stop_token_ids=(7, 8)) for seed in range(8)]
    want = await undrafted(make_worker(128), params)
    service = await DraftApp(DraftConfig(method=method), make_worker(128)).build()
    async with serving(service) as address:
        async with DecodeRig(make_worker(128), **options_for(address, method)) as rig:
            await rig.until_connected()
            assert await rig.generate(params) == want
            assert sum(f.num_draft_tokens for f in rig.finished.values()) > 0
        await check_idle(address)


async def test_a_missing_draft_service_costs_nothing(make_worker: MakeWorker) -> None:
    params = [params_of(seed) for seed in range(3)]
    want = await undrafted(make_worker(128), params)
    async with DecodeRig(make_worker(128), **options_for("127.0.0.1:1", "model")) as rig:
        assert await rig.generate(params) == want
        assert sum(f.num_draft_tokens for f in rig.finished.values()) == 0


async def test_a_draft_service_that_dies_and_returns(make_worker: MakeWorker) -> None:
    params = [SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)] * 3
    want = await undrafted(make_worker(128), params)
    server = Server("127.0.0.1:0")
    await server.start()
    service = await DraftApp(DraftConfig(method="model"), make_worker(128)).build()
    await server.add(service)
    address = f"127.0.0.1:{server.port}"
    async with DecodeRig(make_worker(128), **options_for(address, "model")) as rig:
        await rig.until_connected()
        generating = asyncio.create_task(rig.generate(params))
        await asyncio.sleep(0.02)
        await server.stop(0)
        await service.close()
        assert await generating == want
        assert await rig.generate(params) == want
        again = await DraftApp(DraftConfig(method="model", listen=address), make_worker(128)).build()
        server = Server(address)
        await server.start()
        await server.add(again)
        await rig.until_connected()
        assert await rig.generate(params) == want
        assert rig.acceptance > 0.95
    await check_idle(address)
    await server.stop(0)
    await again.close()


class GarbageServicer(draft_pb2_grpc.DraftServiceServicer):
    """Answers every request with a frame of its kind of nonsense."""

    def __init__(self, kind: str) -> None:
        self.kind, self.draw, self.num_frames = kind, random.Random(3), 0

    async def Mux(
        self, requests: AsyncIterator[pb.DraftRequest], context: Any
    ) -> AsyncIterator[pb.DraftFrame]:
        await context.send_initial_metadata(())
        positions: dict[int, int] = {}
        async for request in requests:
            for begun in request.opens:
                positions[begun.slot] = len(begun.token_ids)
            for slot, num_tokens in zip(request.slots, request.num_tokens, strict=True):
                positions[slot] += num_tokens
            self.num_frames += 1
            yield self._frame(request, positions)

    def _frame(self, request: pb.DraftRequest, positions: dict[int, int]) -> pb.DraftFrame:
        slots = list(positions)
        tails = [begun.token_ids[-1] for begun in request.opens] or [request.token_ids[-1]] * len(slots)
        tails = (tails * len(slots))[: len(slots)]
        if self.kind == "columns":
            return pb.DraftFrame(slots=slots, positions=[1], num_tokens=[3], token_ids=[1])
        if self.kind == "counts":
            return pb.DraftFrame(
                slots=slots, positions=[1] * len(slots), num_tokens=[9] * len(slots), tails=tails
            )
        high = 2**32 - 1 if self.kind == "ids" else 96
        ids = [self.draw.randint(0, high) for _ in range(50 * len(slots))]
        num_tokens = [50] * len(slots)
        if self.kind == "slots":
            slots = [slot + 1000 for slot in slots]
        return pb.DraftFrame(
            slots=slots, positions=positions.values(), num_tokens=num_tokens, token_ids=ids, tails=tails
        )


@pytest.mark.parametrize("kind", ["ids", "random", "slots", "columns", "counts"])
async def test_garbage_costs_speed_only(make_worker: MakeWorker, kind: str) -> None:
    params = [params_of(seed) for seed in range(3)]
    want = await undrafted(make_worker(128), params)
    servicer = GarbageServicer(kind)

    async def close() -> None:
        pass

    def add(server: Any) -> None:
        draft_pb2_grpc.add_DraftServiceServicer_to_server(servicer, server)

    async with serving(Service(add, ["forebay.v1.DraftService"], close)) as address:
        options = options_for(address, "model") | {"draft_timeout_ms": 5.0}
        async with DecodeRig(make_worker(128), **options) as rig:
            await rig.until_connected()
            assert await rig.generate(params) == want
    assert servicer.num_frames > 0


async def test_a_silent_draft_service_is_waited_for_no_longer_than_told(make_worker: MakeWorker) -> None:
    params = [params_of(seed) for seed in range(2)]
    want = await undrafted(make_worker(128), params)

    class Silent(draft_pb2_grpc.DraftServiceServicer):
        async def Mux(self, requests: Any, context: Any) -> AsyncIterator[pb.DraftFrame]:
            await context.send_initial_metadata(())
            async for _ in requests:
                pass
            return
            yield

    async def close() -> None:
        pass

    def add(server: Any) -> None:
        draft_pb2_grpc.add_DraftServiceServicer_to_server(Silent(), server)

    async with serving(Service(add, ["forebay.v1.DraftService"], close)) as address:
        options = options_for(address, "model") | {"draft_timeout_ms": 5.0}
        async with DecodeRig(make_worker(128), **options) as rig:
            await rig.until_connected()
            assert await rig.generate(params) == want


async def test_a_bad_request_ends_its_stream_only(make_worker: MakeWorker) -> None:
    service = await DraftApp(DraftConfig()).build()
    async with serving(service) as address, connect(address) as channel:
        stub = draft_pb2_grpc.DraftServiceStub(channel)
        good, bad = stub.Mux(), stub.Mux()
        await bad.write(pb.DraftRequest(slots=[1]))
        assert await bad.code() is not None
        opens = [pb.DraftOpen(slot=1, token_ids=[1, 2, 3, 1, 2])]
        await good.write(pb.DraftRequest(opens=opens, num_draft_tokens=1))
        frame = await good.read()
        assert (list(frame.slots), list(frame.token_ids), list(frame.tails)) == ([1], [3], [2])
        admin = admin_pb2_grpc.AdminServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError, match="histories are left"):
            await admin.CheckIntegrity(admin_pb2.CheckIntegrityRequest(idle=True))
        await good.done_writing()
        good.cancel()
        await check_idle(address)
