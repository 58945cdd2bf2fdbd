"""A gateway in this process over real gRPC, with fake workers behind it."""

import asyncio
import socket
import sys
from pathlib import Path

import grpc
import pytest

sys.path.insert(0, str(Path(__file__).parent))

from gateway_fakes import FakeDecode, FakePrefill, make_folder, model_info

from forebay.rpc.channel import PUBLIC_SERVER_ARGS
from forebay.rpc.server import Server
from forebay.v1 import admin_pb2, admin_pb2_grpc, inference_pb2_grpc
from gateway.config import GatewayConfig
from gateway.server import build


@pytest.fixture(scope="session")
def folder(tmp_path_factory) -> Path:
    return make_folder(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def info(folder):
    return model_info(folder)


class Rig:
    """A running gateway and its fakes."""

    def __init__(self, prefill: FakePrefill, decode: FakeDecode) -> None:
        self.prefill, self.decode = prefill, decode

    async def start(self, options: dict) -> None:
        await self.prefill.start()
        await self.decode.start()
        values = {"prefill": (self.prefill.address,), "decode": (self.decode.address,), "poll_s": 0.05}
        values |= {"local_prefill_max_tokens": 0, "listen": "127.0.0.1:0"}
        config = GatewayConfig(**(values | options))
        self.server = Server(config.listen, tuple(PUBLIC_SERVER_ARGS))
        await self.server.start()
        self.service = await build(config)
        await self.server.add(self.service)
        self.address = f"127.0.0.1:{self.server.port}"
        self.channel = grpc.aio.insecure_channel(self.address)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.admin = admin_pb2_grpc.AdminServiceStub(self.channel)
        if values["prefill"] and config.prefill:
            await asyncio.sleep(0.15)

    async def stop(self) -> None:
        await self.channel.close()
        await self.server.stop(0)
        await self.service.close()
        await self.prefill.stop()
        await self.decode.stop()

    async def check_idle(self, within_s: float = 2.0) -> None:
        deadline = asyncio.get_running_loop().time() + within_s
        while True:
            late = asyncio.get_running_loop().time() > deadline
            try:
                await self.admin.CheckIntegrity(admin_pb2.CheckIntegrityRequest(idle=True))
                if not self.decode.slots and not self.prefill.num_live:
                    return
                assert not late, (self.decode.slots, self.prefill.num_live)
            except grpc.aio.AioRpcError as error:
                assert not late, error.details()
            await asyncio.sleep(0.01)


@pytest.fixture
async def make_rig(info):
    """`await make_rig(**gateway options)`; every rig is idle at the end of the test."""
    rigs = []

    async def make(**options) -> Rig:
        rig = Rig(FakePrefill(info), FakeDecode(info))
        await rig.start(options)
        rigs.append(rig)
        return rig

    yield make
    for rig in rigs:
        await rig.check_idle()
        await rig.stop()


@pytest.fixture
async def rig(make_rig):
    return await make_rig()


@pytest.fixture
async def make_http_rig(make_rig):
    """`make_rig` for a gateway that also speaks HTTP, at `http_address`."""

    async def make(**options) -> Rig:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{probe.getsockname()[1]}"
        rig = await make_rig(http_listen=address, **options)
        rig.http_address = address
        return rig

    return make


@pytest.fixture
async def http_rig(make_http_rig):
    return await make_http_rig()
