"""Wiring of the draft service."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import grpc

from forebay.config import load_or_exit
from forebay.engine_loop import EngineLoop
from forebay.errors import Unavailable
from forebay.rpc.admin import SERVICE_NAME as ADMIN_SERVICE
from forebay.rpc.admin import AdminServicer, new_epoch
from forebay.rpc.server import Service, serve
from forebay.v1 import admin_pb2_grpc, draft_pb2, draft_pb2_grpc
from forebay.v1.admin_pb2 import GetLoadResponse
from forebay.v1.common_pb2 import ModelInfo
from forebay.worker import Worker, build_worker

from .config import DraftConfig
from .drafter import Drafter, NgramDrafter
from .engine import DraftEngine
from .model_drafter import ModelDrafter
from .servicer import DraftServicer

ROLE = "draft"
SERVICE_NAME = draft_pb2.DESCRIPTOR.services_by_name["DraftService"].full_name


class DraftApp:
    """One drafter behind one servicer; `worker` is the draft model where the method has one."""

    def __init__(self, config: DraftConfig, worker: Worker | None = None) -> None:
        self._config, self._worker = config, worker
        self._failed = asyncio.Event()

    async def build(self) -> Service:
        """Load the draft model, if there is one, and start the engine."""
        drafter = await asyncio.to_thread(self._make_drafter)
        config, event_loop = self._config, asyncio.get_running_loop()
        self._engine = engine = DraftEngine(drafter, config.max_slots, config.max_draft_tokens)
        self._engine_loop = EngineLoop([engine], on_failure=lambda: _call_soon(event_loop, self._fail))
        self._servicer = DraftServicer(engine, self._engine_loop)
        engine.publish = lambda proposals: _call_soon(event_loop, lambda: self._servicer.publish(proposals))
        self._engine_loop.start()
        return Service(self._add, [SERVICE_NAME, ADMIN_SERVICE], self._close, failed=self._failed)

    def _make_drafter(self) -> Drafter:
        if self._config.method == "ngram":
            return NgramDrafter(self._config.max_ngram, self._config.min_ngram)
        self._worker = self._worker or build_worker(self._config)
        drafter = ModelDrafter(self._worker, self._config.max_batch_tokens)
        drafter.warm_up()
        return drafter

    def _add(self, server: grpc.aio.Server) -> None:
        draft_pb2_grpc.add_DraftServiceServicer_to_server(self._servicer, server)
        info: ModelInfo | None = self._worker.info if self._worker else None
        admin = AdminServicer(ROLE, new_epoch(), info, self._load, self._check_integrity)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)

    def _load(self) -> GetLoadResponse:
        pool = self._worker.pool if self._worker else None
        return GetLoadResponse(
            num_running=self._engine.num_histories,
            num_waiting=self._engine.num_waiting,
            num_used_blocks=pool.num_used if pool else 0,
            num_blocks=pool.num_blocks - 1 if pool else 0,
            num_steps=self._engine.num_steps,
        )

    async def _check_integrity(self, is_idle: bool) -> None:
        await self._engine_loop.call(self._engine.check_integrity, is_idle)

    def _fail(self) -> None:
        self._servicer.fail(Unavailable("the draft engine has failed", reason="ENGINE_FAILED"))
        self._failed.set()

    async def _close(self) -> None:
        self._servicer.fail(Unavailable("the draft worker stops", reason="STOPPING"))
        await asyncio.to_thread(self._engine_loop.stop)


def _call_soon(event_loop: asyncio.AbstractEventLoop, fn: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop has closed: nobody listens any more
        event_loop.call_soon_threadsafe(fn)


def main() -> None:
    """Serve until told to stop."""
    config = load_or_exit(DraftConfig, ROLE)
    serve(
        ROLE,
        DraftApp(config).build,
        listen=config.listen,
        metrics_port=config.metrics_port,
        log_level=config.log_level,
        grace_s=config.grace_s,
    )
