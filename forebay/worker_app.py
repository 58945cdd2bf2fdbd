"""A process that runs engines over one worker: builds, serves, answers for, publishes and closes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol, TypeVar

import grpc
import torch
from prometheus_client import REGISTRY

from forebay.engine_loop import Engine, EngineLoop
from forebay.kv.connector import KvConnector
from forebay.kv.membership import Member, Membership
from forebay.rpc.admin import SERVICE_NAME as ADMIN_SERVICE
from forebay.rpc.admin import AdminServicer, new_epoch
from forebay.rpc.server import Service, serve
from forebay.v1 import admin_pb2_grpc
from forebay.v1.admin_pb2 import GetLoadResponse
from forebay.worker import Worker, WorkerConfig, build_worker
from forebay.worker_metrics import LoadCollector

T = TypeVar("T")


class Parts(Protocol):
    """One service's share of the process."""

    @property
    def engine(self) -> Engine:
        """Stepped by the process's engine loop."""
        ...

    @property
    def names(self) -> Sequence[str]:
        """Full gRPC service names."""
        ...

    def warm_up(self) -> None:
        """A forward pass; blocking, before `bind`."""
        ...

    def bind(self, engine_loop: EngineLoop, connector: KvConnector) -> None:
        """Make the servicer; on the event loop, before the engine loop starts."""
        ...

    def add(self, server: grpc.aio.Server) -> None:
        """Register the servicer."""
        ...

    def load(self) -> GetLoadResponse:
        """Live load of the service alone; what the process shares is filled in by the process."""
        ...

    async def check_integrity(self, is_idle: bool) -> None:
        """Raise FailedPrecondition with what is wrong or, when idle, left."""
        ...

    async def drain(self) -> None:
        """No new request is coming: end streams that would stay open without one."""
        ...

    def fail(self) -> None:
        """The engine loop has failed: end all streams."""
        ...

    async def close(self) -> None:
        """End what is left; the engine loop still runs."""
        ...


class WorkerApp:
    """`make_parts(worker)` gives the services that run in this process, in the order of their steps."""

    def __init__(self, role: str, config: WorkerConfig, make_parts: Callable[[Worker], list[Parts]]) -> None:
        self._role, self._config, self._make_parts = role, config, make_parts
        self._epoch, self._failed = new_epoch(), asyncio.Event()
        self._announcing: asyncio.Task[None] | None = None
        self._membership: Membership | None = None
        self._collector = LoadCollector(role, self.load)

    async def build(self) -> Service:
        """Load the model, prove that it runs, connect to the store, start the engines."""
        self._worker = worker = await _on_own_thread(lambda: build_worker(self._config))
        self._parts = self._make_parts(worker)
        for parts in self._parts:
            await _on_own_thread(parts.warm_up)
        event_loop, config = asyncio.get_running_loop(), self._config
        self._engine_loop = EngineLoop(
            [parts.engine for parts in self._parts],
            on_failure=lambda: _call_soon(event_loop, self._fail),
        )
        self._connector = KvConnector(
            config.kv_stores, worker.kv, worker.layout, worker.fingerprint, config.kv_transport
        )
        await self._connector.start()
        for parts in self._parts:
            parts.bind(self._engine_loop, self._connector)
        # Its own count of threads: the connector's threads lower the default that new threads begin with.
        self._engine_loop.post(torch.set_num_threads, torch.get_num_threads())
        self._engine_loop.start()
        REGISTRY.register(self._collector)
        names = [name for parts in self._parts for name in parts.names]
        return Service(self._add, [*names, ADMIN_SERVICE], self._close, self._drain, self._failed)

    async def publish(self, port: int) -> None:
        """Announce the process in Redis, if there is one."""
        if not self._config.redis_url:
            return
        address = f"{self._config.listen.rpartition(':')[0]}:{port}"
        worker, num_blocks = self._worker, self._worker.pool.num_blocks - 1
        member = Member(self._role, address, self._epoch, worker.fingerprint.hex(), num_blocks)
        self._membership = Membership(self._config.redis_url)
        self._announcing = asyncio.create_task(self._membership.keep(lambda: member))

    def load(self) -> GetLoadResponse:
        """The services' load, summed, and the process's own."""
        loads, pool = [parts.load() for parts in self._parts], self._worker.pool
        return GetLoadResponse(
            num_running=sum(load.num_running for load in loads),
            num_waiting=sum(load.num_waiting for load in loads),
            num_queued_tokens=sum(load.num_queued_tokens for load in loads),
            prefill_tokens_per_s=max(load.prefill_tokens_per_s for load in loads),
            num_used_blocks=pool.num_used,
            num_blocks=pool.num_blocks - 1,
            num_cached_blocks=pool.num_cached,
            link_bytes_per_s=self._connector.stats.bytes_per_s,
            num_steps=self._engine_loop.num_steps,
        )

    async def check_integrity(self, is_idle: bool) -> None:
        """Raise FailedPrecondition with what is wrong or, when idle, left in any of the services."""
        for parts in self._parts:
            await parts.check_integrity(is_idle)

    def _add(self, server: grpc.aio.Server) -> None:
        for parts in self._parts:
            parts.add(server)
        admin = AdminServicer(self._role, self._epoch, self._worker.info, self.load, self.check_integrity)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)

    def _fail(self) -> None:
        for parts in self._parts:
            parts.fail()
        self._failed.set()

    async def _drain(self) -> None:
        await asyncio.gather(*(parts.drain() for parts in self._parts))

    async def _close(self) -> None:
        if self._announcing is not None and self._membership is not None:
            self._announcing.cancel()
            await asyncio.gather(self._announcing, return_exceptions=True)
            await self._membership.close()
        REGISTRY.unregister(self._collector)
        for parts in self._parts:
            await parts.close()
        await asyncio.to_thread(self._engine_loop.stop)
        await self._connector.close()


def serve_worker(app: WorkerApp, role: str, config: WorkerConfig) -> None:
    """Blocking entry point of a worker process."""
    serve(
        role,
        app.build,
        listen=config.listen,
        metrics_port=config.metrics_port,
        log_level=config.log_level,
        grace_s=config.grace_s,
        on_serving=app.publish,
    )


async def _on_own_thread(fn: Callable[[], T]) -> T:
    """Run blocking torch work on a thread that ends with it.

    Each thread that ran a parallel region keeps OpenMP threads of its own, and once they outnumber the cores
    OpenMP lets all of them sleep between regions, the engine's too: a decode step then takes twice as long.
    """
    with ThreadPoolExecutor(1, "build") as threads:
        return await asyncio.get_running_loop().run_in_executor(threads, fn)


def _call_soon(event_loop: asyncio.AbstractEventLoop, fn: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop has closed: nobody is left to tell
        event_loop.call_soon_threadsafe(fn)
