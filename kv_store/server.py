"""Wiring of the KV store service."""

from __future__ import annotations

import grpc
from prometheus_client import REGISTRY

from forebay.config import load
from forebay.rpc.admin import SERVICE_NAME as ADMIN_SERVICE
from forebay.rpc.admin import AdminServicer
from forebay.rpc.server import Service, serve
from forebay.v1 import admin_pb2, admin_pb2_grpc, kv_store_pb2, kv_store_pb2_grpc

from .config import KvStoreConfig
from .engine import ROLE, StoreEngine
from .metrics import StoreCollector
from .payload import PayloadServicer
from .servicer import KvStoreServicer

SERVICE_NAME = kv_store_pb2.DESCRIPTOR.services_by_name["KvStoreService"].full_name


class KvStoreApp:
    """Builds the service, and publishes it once its port is known."""

    def __init__(self, config: KvStoreConfig) -> None:
        self._config = config
        self.engine: StoreEngine | None = None

    async def build(self) -> Service:
        """Arena, store, servicers."""
        self.engine = engine = StoreEngine(self._config)
        engine.start()
        collector = StoreCollector(engine.store)
        REGISTRY.register(collector)

        def add(server: grpc.aio.Server) -> None:
            kv_store_pb2_grpc.add_KvStoreServiceServicer_to_server(KvStoreServicer(engine), server)
            admin = AdminServicer(ROLE, engine.epoch, None, lambda: _load(engine), engine.check_integrity)
            admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
            server.add_generic_rpc_handlers((PayloadServicer(engine.store).handlers(),))

        async def close() -> None:
            REGISTRY.unregister(collector)
            await engine.close()

        # Reflection describes protobuf services only, so the payload plane is not among the names.
        return Service(add, [SERVICE_NAME, ADMIN_SERVICE], close)

    async def publish(self, port: int) -> None:
        """Tell Redis where this store is."""
        host = self._config.listen.rpartition(":")[0]
        if self.engine is not None:
            self.engine.publish(self._config.advertise or f"{host}:{port}")


def _load(engine: StoreEngine) -> admin_pb2.GetLoadResponse:
    return admin_pb2.GetLoadResponse(
        num_running=engine.store.num_leases,
        num_used_blocks=engine.arena.num_used,
        num_blocks=engine.arena.num_carved,
        num_cached_blocks=engine.store.num_blocks,
        num_steps=engine.num_steps,
    )


def main() -> None:
    """Serve until told to stop."""
    config = load(KvStoreConfig, ROLE)
    app = KvStoreApp(config)
    serve(
        ROLE,
        app.build,
        listen=config.listen,
        metrics_port=config.metrics_port,
        log_level=config.log_level,
        grace_s=config.grace_s,
        on_serving=app.publish,
    )
