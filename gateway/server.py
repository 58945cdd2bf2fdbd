"""Wires the gateway and serves it."""

from __future__ import annotations

import asyncio
import time

import grpc
import structlog

from forebay.config import load_or_exit
from forebay.kserve import grpc_predict_v2_pb2
from forebay.kserve.grpc_predict_v2_pb2_grpc import add_GRPCInferenceServiceServicer_to_server
from forebay.kv.index import PrefixIndex
from forebay.kv.membership import Membership
from forebay.rpc.admin import SERVICE_NAME as ADMIN_SERVICE
from forebay.rpc.admin import AdminServicer, new_epoch
from forebay.rpc.channel import PUBLIC_SERVER_ARGS
from forebay.rpc.server import Service, serve
from forebay.v1.admin_pb2_grpc import add_AdminServiceServicer_to_server
from forebay.v1.inference_pb2 import DESCRIPTOR
from forebay.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server

from .config import GatewayConfig
from .engine import Engine
from .intake import Intake
from .kserve.servicer import KServeServicer
from .models import Models
from .openai.app import App
from .openai.server import HttpServer
from .servicer import InferenceServicer
from .workers import DECODE, PREFILL, Workers

log = structlog.get_logger(__name__)
KSERVE_NAME = grpc_predict_v2_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"].full_name
SERVICE_NAME = DESCRIPTOR.services_by_name["InferenceService"].full_name


async def build(config: GatewayConfig) -> Service:
    """Start to watch the workers and wait a while for the first; serves without one, too."""
    index = PrefixIndex(config.redis_url, budget_s=config.index_budget_s) if config.redis_url else None
    membership = Membership(config.redis_url) if config.redis_url else None
    models = Models(config.model_folder)
    workers = Workers(config.poll_s, models.learn)
    _watch(config, workers, membership)
    if index is not None:
        await index.wait_ready()
    if not await workers.wait_for_decode(config.startup_wait_s):
        log.warning("no_decode_worker", waited_s=config.startup_wait_s)
    engine = Engine(config, models, workers, index)
    http = await _listen_http(config, engine)

    async def close() -> None:
        if http is not None:
            await http.close()
        await workers.close()
        for link in (index, membership):
            if link is not None:
                await link.close()

    async def drain() -> None:
        await asyncio.gather(engine.drain(), *([http.drain()] if http is not None else []))

    return Service(
        add=lambda server: _register(server, engine),
        names=[SERVICE_NAME, KSERVE_NAME, ADMIN_SERVICE],
        close=close,
        drain=drain,
    )


def main() -> None:
    """Entry point of the process."""
    config = load_or_exit(GatewayConfig, "gateway")
    serve(
        "gateway",
        lambda: build(config),
        listen=config.listen,
        metrics_port=config.metrics_port,
        log_level=config.log_level,
        args=tuple(PUBLIC_SERVER_ARGS),
        grace_s=config.grace_s,
    )


def _watch(config: GatewayConfig, workers: Workers, membership: Membership | None) -> None:
    static = [(PREFILL, a) for a in config.prefill] + [(DECODE, a) for a in config.decode]
    for role, address in static:
        workers.add(role, address)
    if membership is not None:
        workers.follow(membership, static)


async def _listen_http(config: GatewayConfig, engine: Engine) -> HttpServer | None:
    """The HTTP port; none where no address is given."""
    if not config.http_listen:
        return None
    intake = Intake(engine.models, engine.workers.is_served)
    http = HttpServer(App(engine, intake, started=int(time.time())), config.http_listen)
    await http.start()
    return http


def _register(server: grpc.aio.Server, engine: Engine) -> None:
    add_InferenceServiceServicer_to_server(InferenceServicer(engine), server)
    add_GRPCInferenceServiceServicer_to_server(KServeServicer(engine), server)
    admin = AdminServicer(
        "gateway", new_epoch(), None, engine.load, engine.check_integrity, engine.list_workers
    )
    add_AdminServiceServicer_to_server(admin, server)
