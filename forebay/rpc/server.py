"""The one server shell: uvloop, health, reflection, interceptor, metrics, SIGTERM drain.

Order at the end of a service's life: NOT_SERVING on every health name → no new RPC → streams finish
within the grace → the service's own `close` → exit. A second signal ends the grace at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc
import structlog
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2_grpc

from forebay.errors import ForebayError
from forebay.memory import keep_freed_memory
from forebay.rpc.channel import INTERNAL_SERVER_ARGS
from forebay.rpc.health import HealthServicer
from forebay.rpc.interceptor import ErrorInterceptor
from forebay.rpc.methods import LateMethods
from forebay.telemetry import configure_logs, serve_metrics

HEALTH_NAME = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
# Set by the launcher in its children's environment.
LAUNCHER_PID = "FOREBAY_LAUNCHER_PID"
log = structlog.get_logger(__name__)


@dataclass
class Service:
    """What a service gives to the shell.

    `add` registers servicers on the server or what stands for it; `names` are the full gRPC service names
    (health, reflection); `close` releases everything and runs after the last stream ended.
    """

    add: Callable[[grpc.aio.Server], None]
    names: Sequence[str]
    close: Callable[[], Awaitable[None]]
    drain: Callable[[], Awaitable[None]] | None = None
    failed: asyncio.Event = field(default_factory=asyncio.Event)


class Server:
    """A listening gRPC server with health and reflection; `serve` and the tests both use it."""

    def __init__(self, listen: str, args: Sequence[tuple[str, Any]] = tuple(INTERNAL_SERVER_ARGS)) -> None:
        self.server = grpc.aio.server(interceptors=[ErrorInterceptor()], options=list(args))
        self.health = HealthServicer()
        self.methods = LateMethods()
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self.methods)
        self.server.add_generic_rpc_handlers((self.methods,))
        self.listen = listen
        self.port = 0

    async def start(self) -> None:
        """Bind and answer health checks with NOT_SERVING until `add`; raises OSError if taken."""
        await self.health.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        try:
            self.port = self.server.add_insecure_port(self.listen)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {self.listen}: {error}") from error
        await self.server.start()

    async def add(self, service: Service) -> None:
        """Register a built service, reflection included, and say SERVING for it and for the process."""
        service.add(self.methods)
        names = [*service.names, HEALTH_NAME, reflection.SERVICE_NAME]
        servicer = reflection.aio.ReflectionServicer(names)
        reflection_pb2_grpc.add_ServerReflectionServicer_to_server(servicer, self.methods)
        self.methods.is_ready = True
        for name in ("", *service.names):
            await self.health.set(name, health_pb2.HealthCheckResponse.SERVING)

    async def stop(self, grace_s: float) -> None:
        """NOT_SERVING at once, then wait up to `grace_s` for streams to end."""
        await self.health.enter_graceful_shutdown()
        await self.server.stop(grace_s)


async def run(
    build: Callable[[], Awaitable[Service]],
    listen: str,
    *,
    args: Sequence[tuple[str, Any]] = tuple(INTERNAL_SERVER_ARGS),
    grace_s: float = 10.0,
    on_serving: Callable[[int], Awaitable[None]] | None = None,
) -> None:
    """Build the service, serve until a signal or its failure, drain, close."""
    stopping, hurry = _on_signals()
    server = Server(listen, args)
    await server.start()
    try:
        service = await _build_unless(stopping, build())
        if service is None:
            return
        await server.add(service)
        log.info("serving", listen=listen, port=server.port)
        if on_serving is not None:
            await on_serving(server.port)
        await _first(stopping.wait(), service.failed.wait())
        log.info("draining", grace_s=grace_s)
        await _drain(server, service, grace_s, hurry)
    finally:
        await server.server.stop(None)
    await service.close()
    log.info("stopped")
    if service.failed.is_set():
        raise SystemExit(1)


async def _build_unless(stopping: asyncio.Event, building: Awaitable[Service]) -> Service | None:
    """The built service; None when a signal came first: a build may wait for others for minutes."""
    task = asyncio.ensure_future(building)
    await _first(task, stopping.wait())
    return None if stopping.is_set() else task.result()


async def _drain(server: Server, service: Service, grace_s: float, hurry: asyncio.Event) -> None:
    await server.health.enter_graceful_shutdown()
    ends_s = time.monotonic() + grace_s
    if service.drain is not None:
        await _first(service.drain(), asyncio.sleep(grace_s), hurry.wait())
    await _first(server.stop(max(0.0, ends_s - time.monotonic())), hurry.wait())


def serve(
    name: str,
    build: Callable[[], Awaitable[Service]],
    *,
    listen: str,
    metrics_port: int,
    log_level: str,
    log_json: bool = True,
    args: Sequence[tuple[str, Any]] = tuple(INTERNAL_SERVER_ARGS),
    grace_s: float = 10.0,
    on_serving: Callable[[int], Awaitable[None]] | None = None,
) -> None:
    """Blocking entry point of a service process; what prevents its start is one line and exit code 2."""
    configure_logs(name, log_level, as_json=log_json)
    keep_freed_memory()
    if launcher := os.environ.get(LAUNCHER_PID):
        threading.Thread(target=_follow_launcher, args=(int(launcher), grace_s + 5.0), daemon=True).start()
    try:
        serve_metrics(metrics_port)
        uvloop.run(run(build, listen, args=args, grace_s=grace_s, on_serving=on_serving))
    except (ForebayError, OSError) as error:
        log.error("cannot_start", error=str(error))
        raise SystemExit(2) from error


def _follow_launcher(pid: int, grace_s: float) -> None:
    """Runs on its own thread: ends this process, loading or serving, when its launcher was killed."""
    while os.getppid() == pid:
        time.sleep(1.0)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(grace_s)
    os._exit(1)


def _on_signals() -> tuple[asyncio.Event, asyncio.Event]:
    """(first signal seen, second signal seen)."""
    stopping, hurry = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, lambda: hurry.set() if stopping.is_set() else stopping.set())
    return stopping, hurry


async def _first(*waits: Awaitable[Any]) -> None:
    """Wait until one of the awaitables ends; cancel the others."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    for task in tasks:
        task.cancel()
