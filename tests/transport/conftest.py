"""A running store on a loopback port, and one transport of each kind connected to it."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from forebay.kv.layout import BlockLayout
from forebay.kv.session import StoreSession, open_session
from forebay.rpc.server import Server
from forebay.transport.base import Transport
from forebay.transport.fake import FakeTransport
from kv_store.config import KvStoreConfig
from kv_store.engine import StoreEngine
from kv_store.server import KvStoreApp

LAYOUT = BlockLayout(2, 16, 2, 8, "float32")


@pytest.fixture
async def running() -> AsyncIterator[tuple[str, StoreEngine]]:
    """(address, engine) of a store with an 8 MiB arena."""
    app = KvStoreApp(KvStoreConfig(arena_bytes=8 << 20, slab_bytes=4 << 20, prefault=False))
    server = Server("127.0.0.1:0")
    await server.start()
    service = await app.build()
    await server.add(service)
    assert app.engine is not None
    yield f"127.0.0.1:{server.port}", app.engine
    await server.server.stop(0.1)
    await service.close()


@pytest.fixture(params=["shm", "grpc", "fake"])
async def transport(
    request: pytest.FixtureRequest, running: tuple[str, StoreEngine]
) -> AsyncIterator[Transport]:
    """One connected transport of each kind."""
    address, engine = running
    if request.param == "fake":
        yield FakeTransport(engine.arena.num_bytes)
        return
    session: StoreSession = await open_session(address, LAYOUT, request.param, 5.0)
    yield session.transport
    await session.close()
