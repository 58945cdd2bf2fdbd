"""Rules of single planes: capabilities on gRPC, tokens on the socket, negotiation, local hand-over."""

from __future__ import annotations

import os

import grpc
import pytest

from forebay.kv.layout import BlockLayout
from forebay.kv.session import open_session
from forebay.rpc.client import connect
from forebay.transport import frames, shm
from forebay.transport.base import Grant, TransportError
from forebay.transport.fake import FakeTransport
from forebay.transport.grpc import GrpcTransport
from forebay.transport.local import LocalHandoff
from forebay.v1 import kv_store_pb2 as pb
from forebay.v1 import kv_store_pb2_grpc
from kv_store.engine import StoreEngine

LAYOUT = BlockLayout(2, 16, 2, 8, "float32")
Running = tuple[str, StoreEngine]


async def test_grpc_refuses_unknown_ended_and_misused_handles(running: Running) -> None:
    address, engine = running
    reserved = engine.store.reserve(b"r" * 32, None, [b"k" * 16], 4096, 30.0)
    handle = reserved.grants[0].handle
    async with connect(address) as channel:
        transport = GrpcTransport(channel, engine.arena.num_bytes)
        buffer = memoryview(bytearray(4096))
        with pytest.raises(TransportError, match="NOT_FOUND"):
            await transport.get([(Grant(handle, 0, 4096, 1), buffer)])
        with pytest.raises(TransportError, match="NOT_FOUND"):
            await transport.put([(Grant(os.urandom(16), 0, 4096, 1), buffer)])
        engine.store.release(reserved.lease_id)
        with pytest.raises(TransportError, match="NOT_FOUND"):
            await transport.put([(Grant(handle, 0, 4096, 1), buffer)])


@pytest.mark.parametrize("frame", [b"", b"x" * 31, frames.HEADER.pack(b"h" * 16, 0, 5, 0) + b"four"])
async def test_malformed_frames_are_refused(running: Running, frame: bytes) -> None:
    async with connect(running[0]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_unary(frames.PUSH_METHOD)(iter([frame]))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_frame_outside_of_its_block_is_refused(running: Running) -> None:
    reserved = running[1].store.reserve(b"r" * 32, None, [b"k" * 16], 4096, 30.0)
    frame = frames.make(reserved.grants[0].handle, 4090, memoryview(b"0123456789"))
    async with connect(running[0]) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_unary(frames.PUSH_METHOD)(iter([frame]))
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_a_token_opens_the_arena_once(running: Running) -> None:
    engine = running[1]
    assert engine.sockets is not None
    token = engine.sockets.issue_token()
    transport = await shm.attach(engine.sockets.path, token, engine.arena.num_bytes)
    await transport.close()
    for refused in (token, os.urandom(32)):
        with pytest.raises(TransportError):
            await shm.attach(engine.sockets.path, refused, engine.arena.num_bytes)


@pytest.mark.parametrize(
    ("preference", "host", "scheme"),
    [("auto", None, "shm"), ("auto", "elsewhere", "grpc"), ("grpc", None, "grpc"), ("shm", None, "shm")],
)
async def test_negotiation(
    running: Running, monkeypatch: pytest.MonkeyPatch, preference: str, host: str | None, scheme: str
) -> None:
    if host is not None:
        monkeypatch.setattr("forebay.kv.session.host_id", lambda: host)
    session = await open_session(running[0], LAYOUT, preference, 5.0)
    assert session.transport.scheme == scheme
    await session.close()


async def test_shm_is_not_replaced_where_it_was_asked_for(
    running: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("forebay.kv.session.host_id", lambda: "elsewhere")
    with pytest.raises(TransportError):
        await open_session(running[0], LAYOUT, "shm", 5.0)


async def test_an_unreachable_socket_falls_back_to_grpc(running: Running) -> None:
    assert running[1].sockets is not None
    os.unlink(running[1].sockets.path)
    session = await open_session(running[0], LAYOUT, "auto", 5.0)
    assert session.transport.scheme == "grpc"
    await session.close()


@pytest.mark.parametrize(("protocol", "layout"), [(2, "v1:float32:1"), (1, "v9:float32:1"), (1, "")])
async def test_an_incompatible_peer_is_refused(running: Running, protocol: int, layout: str) -> None:
    async with connect(running[0]) as channel:
        stub = kv_store_pb2_grpc.KvStoreServiceStub(channel)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Hello(pb.HelloRequest(protocol_version=protocol, layout_id=layout))
        assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


async def test_a_broken_fake_breaks() -> None:
    fake = FakeTransport(4096)
    fake.is_broken = True
    with pytest.raises(TransportError):
        await fake.put([(Grant(b"h", 0, 1, 0), memoryview(b"x"))])


def test_local_handoff_moves_ownership_once() -> None:
    handoff = LocalHandoff()
    handoff.offer("a", [3, 4], 20)
    with pytest.raises(ValueError, match="already"):
        handoff.offer("a", [5], 1)
    assert handoff.take("a") == ([3, 4], 20)
    assert handoff.take("a") is None
    handoff.offer("b", [7], 3)
    assert handoff.drop("b") == [7] and handoff.drop("b") == [] and len(handoff) == 0
