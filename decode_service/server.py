"""Wiring of the decode service, alone in a process or beside prefill on one worker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import grpc

from forebay.config import load_or_exit
from forebay.engine_loop import EngineLoop
from forebay.errors import Unavailable
from forebay.kv.connector import KvConnector
from forebay.transport.local import LocalHandoff
from forebay.v1 import decode_pb2, decode_pb2_grpc
from forebay.v1.admin_pb2 import GetLoadResponse
from forebay.worker import Worker
from forebay.worker_app import WorkerApp, serve_worker

from .admission import Admission
from .config import DecodeConfig
from .draft_client import DraftClient
from .drafting import Speculator
from .engine import DecodeEngine
from .exchange import BlockExchange
from .graph_runner import GraphRunner
from .local_drafts import LocalDrafts
from .mover import BlockMover
from .runner import Runner
from .scheduler import Limits, Scheduler
from .servicer import DecodeServicer

ROLE = "decode"
SERVICE_NAME = decode_pb2.DESCRIPTOR.services_by_name["DecodeService"].full_name
DRAIN_S = 2.0


class DecodeParts:
    """Decode's objects over a worker: the engine at once, the servicer once `bind` gives it a loop.

    With a `handoff`, prompts that a prefill engine finished on the same pool are taken from there.
    """

    names = (SERVICE_NAME,)

    def __init__(self, config: DecodeConfig, worker: Worker, handoff: LocalHandoff | None = None) -> None:
        self._config, self._worker = config, worker
        limits = Limits(
            config.max_batch_size,
            config.batch_tokens(worker.device.type),
            config.chunk_tokens(worker.device.type),
            worker.info.max_context,
            reserve_early=handoff is None,
            num_ahead_tokens=int(worker.device.type == "cuda"),
        )
        scheduler = Scheduler(worker.pool, limits)
        self._mover, self._drafts = BlockMover(), _pick_drafts(config, worker)
        self._admission = Admission(worker.info, worker.pool.num_blocks - 1)
        exchange = BlockExchange(
            scheduler, self._mover, config.push_batch_blocks if config.push_generated else 0
        )
        runner = _pick_runner(config, worker)
        self.engine = DecodeEngine(scheduler, runner, exchange, self._admission, handoff)
        if self._drafts is not None:
            self.engine.speculator = Speculator(
                self._drafts,
                config.num_draft_tokens,
                config.speculate_max_batch,
                config.draft_timeout_ms / 1e3,
                worker.info.max_context,
            )

    def warm_up(self) -> None:
        """Forward passes over the padding block; on a GPU all graphs are captured."""
        self.engine.runner.warm_up()

    def bind(self, engine_loop: EngineLoop, connector: KvConnector) -> None:
        """Make the servicer; on the event loop, before `engine_loop` starts."""
        self._engine_loop = engine_loop
        self.servicer = DecodeServicer(
            self.engine, engine_loop, self._admission, self._config.max_pending_tokens
        )
        if self._config.kv_stores:
            self._mover.bind(connector, engine_loop)
        if isinstance(self._drafts, DraftClient):
            self._drafts.start()
        event_loop = asyncio.get_running_loop()
        self.engine.publish = lambda outputs: _call_soon(event_loop, lambda: self.servicer.publish(outputs))

    def add(self, server: grpc.aio.Server) -> None:
        """Register the servicer."""
        decode_pb2_grpc.add_DecodeServiceServicer_to_server(self.servicer, server)

    def load(self) -> GetLoadResponse:
        """Numbers of this moment; plain reads of what the engine thread writes."""
        scheduler = self.engine.scheduler
        return GetLoadResponse(
            num_running=len(scheduler.running),
            num_waiting=len(scheduler.waiting) + len(scheduler.reserved),
        )

    async def check_integrity(self, is_idle: bool) -> None:
        """Raise FailedPrecondition with what is wrong or, when idle, left; moves under way end first."""
        if is_idle:
            await self._mover.drain(DRAIN_S)
        await self._engine_loop.call(self.engine.check_integrity, is_idle)

    async def drain(self) -> None:
        """Requests at hand end; then the gateways' streams do."""
        await self.servicer.drain()

    def fail(self) -> None:
        """The engine has ended: end the streams."""
        self.servicer.fail(Unavailable("the decode engine has failed", reason="ENGINE_FAILED"))

    async def close(self) -> None:
        """End what is left; before the engine loop stops."""
        self.servicer.fail(Unavailable("the decode worker stops", reason="STOPPING"))
        if isinstance(self._drafts, DraftClient):
            await self._drafts.close()
        await self._mover.close()


def _pick_runner(config: DecodeConfig, worker: Worker) -> Runner:
    """On a GPU steps are graphs; they run ahead unless drafts decide what comes next."""
    if worker.device.type != "cuda":
        return Runner(worker.model, worker.kv)
    from forebay.kernels import triton_sample  # importing Triton costs 0.5 s: only where it runs

    runs_ahead = config.speculate == "off"
    return GraphRunner(
        worker.model,
        worker.kv,
        config.max_batch_size,
        worker.info.max_context,
        runs_ahead,
        triton_sample.sample,
    )


def _pick_drafts(config: DecodeConfig, worker: Worker) -> DraftClient | LocalDrafts | None:
    if config.speculate == "off":
        return None
    if config.draft_address:
        return DraftClient(config.draft_address, worker.info.vocab_size, config.num_draft_tokens)
    return LocalDrafts()


def _call_soon(event_loop: asyncio.AbstractEventLoop, fn: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop has closed: nobody listens any more
        event_loop.call_soon_threadsafe(fn)


def main() -> None:
    """Serve until told to stop."""
    config = load_or_exit(DecodeConfig, ROLE)
    serve_worker(WorkerApp(ROLE, config, lambda worker: [DecodeParts(config, worker)]), ROLE, config)
