"""All services of one machine as child processes: start, wait for SERVING, watch, drain in reverse."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.cli.lines import readable
from forebay.cli.plan import ENVIRONMENT, Child, LaunchOptions, plan
from forebay.errors import Unavailable
from forebay.redis_server import RedisServer
from forebay.rpc.channel import CLIENT_ARGS
from forebay.rpc.server import LAUNCHER_PID
from forebay.v1 import inference_pb2, inference_pb2_grpc

# Roles that end together, in the order of the drain: when the gateway has ended, no worker has any stream.
DRAIN_ORDER = (("gateway",), ("decode", "aggregated", "prefill", "draft"), ("kv_store",))
POLL_S = 0.03
KILL_AFTER_S = 20.0
NUM_KEPT_LINES = 20


class ChildFailed(Unavailable):
    """A service ended by itself; the message has its last log lines."""

    reason = "CHILD_FAILED"


@dataclass
class Process:
    """A running child with the pump that moves its output to a file and to `on_line`."""

    child: Child
    popen: subprocess.Popen[str]
    pump: threading.Thread
    lines: deque[str]
    is_ready: bool = False
    stage: str = "starting"

    @property
    def exit_code(self) -> int | None:
        """None while it runs."""
        return self.popen.poll()


class Launcher:
    """Context manager over a set of services, described by the keywords of `LaunchOptions`.

    `addresses[role]` lists the replicas' host:port. `on_line(name, line)` gets each line of output, on a
    thread of its own; `on_stage(name, stage, seconds since start)` the stages "starting", "loading",
    "serving" and "stopped". `log_dir` gets one file per process; `env` is added to the children's.
    """

    def __init__(
        self,
        *,
        log_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        on_line: Callable[[str, str], None] | None = None,
        on_stage: Callable[[str, str, float], None] | None = None,
        **options: Any,
    ) -> None:
        self.options = LaunchOptions(**options)
        self.processes: list[Process] = []
        self.redis: RedisServer | None = None
        self._log_dir, self._env = log_dir, dict(env or {})
        self._on_line, self._on_stage = on_line, on_stage
        self.is_stopping = False
        self._started = 0.0

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as undo:
            undo.callback(self.stop)
            self.start()
            self.wait_ready()
            undo.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def addresses(self) -> dict[str, list[str]]:
        """host:port of every process by role."""
        found: dict[str, list[str]] = {}
        for process in self.processes:
            found.setdefault(process.child.role, []).append(process.child.address)
        return found

    @property
    def gateway_address(self) -> str:
        """host:port of the public API."""
        return self.addresses["gateway"][0]

    @property
    def http_url(self) -> str:
        """Base URL of the OpenAI API; empty where the port is closed."""
        flags = self.find("gateway-0").child.flags
        return f"http://{flags['http_listen']}/v1" if "http_listen" in flags else ""

    @property
    def redis_url(self) -> str:
        """URL that the children use; empty without Redis."""
        if self.redis is not None:
            return self.redis.url
        return "" if self.options.redis_url == "off" else self.options.redis_url

    def start(self) -> None:
        """Start everything at once; services find each other when they are up."""
        self._started = time.monotonic()
        if self._log_dir is not None:
            self._log_dir.mkdir(parents=True, exist_ok=True)
        if not self.options.redis_url:
            self.redis = RedisServer()
            self._tell("redis", "serving")
        for child in self._plan():
            self.processes.append(self._spawn(child))
            self._tell(child.name, "starting")

    def wait_ready(self, timeout_s: float = 600.0) -> None:
        """Block until all services are SERVING and the gateway knows a model.

        Raises ChildFailed if one ends meanwhile, Unavailable after `timeout_s`.
        """
        deadline = time.monotonic() + timeout_s
        channels = {p.child.name: grpc.insecure_channel(p.child.address, CLIENT_ARGS) for p in self.processes}
        try:
            while waiting := [p for p in self.processes if not p.is_ready]:
                for process in waiting:
                    self._look(process, channels[process.child.name])
                self.check()
                if time.monotonic() > deadline:
                    names = ", ".join(p.child.name for p in waiting)
                    raise Unavailable(f"not SERVING after {timeout_s:g} s: {names}")
                time.sleep(POLL_S)
        finally:
            for channel in channels.values():
                channel.close()

    def check(self) -> None:
        """Raise ChildFailed if any process has ended."""
        for process in self.processes:
            if process.exit_code is not None:
                process.pump.join(1.0)
                tail = "\n".join(map(readable, process.lines))
                raise ChildFailed(f"{process.child.name} ended with code {process.exit_code}\n{tail}")
        if self.redis is not None and not self.redis.is_running:
            raise ChildFailed("the Redis server has ended")

    def watch(self) -> None:
        """Block until a process ends (ChildFailed) or the caller is interrupted."""
        while True:
            self.check()
            time.sleep(0.2)

    def stop(self) -> None:
        """Drain in reverse order, then end Redis; what does not end in time is killed. Idempotent."""
        for roles in DRAIN_ORDER:
            group = [p for role in roles for p in self.processes if p.child.role == role]
            self.signal(signal.SIGTERM, group)
            for process in group:
                self._reap(process)
        self.processes = []
        if self.redis is not None:
            self.redis.stop()
            self.redis = None
            self._tell("redis", "stopped")

    def signal(self, number: int, processes: Iterable[Process] | None = None) -> None:
        """Send a signal to some processes (default: all) that still run."""
        for process in self.processes if processes is None else processes:
            if process.exit_code is None:
                with contextlib.suppress(ProcessLookupError):
                    process.popen.send_signal(number)

    def _plan(self) -> list[Child]:
        """Addresses are held until all are chosen, so that they differ."""
        with contextlib.ExitStack() as held:

            def new_address() -> str:
                probe = held.enter_context(socket.socket())
                probe.bind(("127.0.0.1", 0))
                return f"127.0.0.1:{probe.getsockname()[1]}"

            options = self.options
            if options.listen.endswith(":0"):
                options = dataclasses.replace(options, listen=new_address())
            if options.http_listen.endswith(":0"):
                options = dataclasses.replace(options, http_listen=new_address())
            return plan(options, self.redis_url, new_address)

    def find(self, name: str) -> Process:
        """The process of this name, such as "decode-0"."""
        return next(process for process in self.processes if process.child.name == name)

    def _spawn(self, child: Child) -> Process:
        popen = subprocess.Popen(
            [sys.executable, *child.arguments],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=ENVIRONMENT | os.environ | self._env | {LAUNCHER_PID: str(os.getpid())},
            # Its own session: a terminal's Ctrl-C reaches the launcher only, which then chooses the order.
            start_new_session=True,
        )
        lines: deque[str] = deque(maxlen=NUM_KEPT_LINES)
        pump = threading.Thread(target=self._pump, args=(child.name, popen, lines), daemon=True)
        pump.start()
        return Process(child, popen, pump, lines)

    def _pump(self, name: str, popen: subprocess.Popen[str], lines: deque[str]) -> None:
        assert popen.stdout is not None
        path = self._log_dir / f"{name}.log" if self._log_dir else Path(os.devnull)
        with path.open("a", buffering=1) as file, popen.stdout as output:
            for line in output:
                file.write(line)
                lines.append(line.rstrip())
                if self._on_line is not None:
                    self._on_line(name, line.rstrip())

    def _look(self, process: Process, channel: grpc.Channel) -> None:
        name = process.child.name
        try:
            state = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=1.0)
            is_serving = state.status == health_pb2.HealthCheckResponse.SERVING
            process.is_ready = is_serving and (process.child.role != "gateway" or _has_model(channel))
        except grpc.RpcError as error:
            if error.code() not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise Unavailable(f"{name}: {error.details()}") from error
            return
        stage = "serving" if process.is_ready else "loading"
        if stage != process.stage:
            process.stage = stage
            self._tell(name, stage)

    def _reap(self, process: Process) -> None:
        try:
            process.popen.wait(KILL_AFTER_S if process.is_ready else 2.0)
        except subprocess.TimeoutExpired:
            process.popen.kill()
            process.popen.wait()
        process.pump.join(1.0)
        self._tell(process.child.name, "stopped")

    def _tell(self, name: str, stage: str) -> None:
        if self._on_stage is not None:
            self._on_stage(name, stage, time.monotonic() - self._started)


def _has_model(channel: grpc.Channel) -> bool:
    """The gateway serves before it has seen a worker; a set of services is ready when it has."""
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    return bool(stub.ListModels(inference_pb2.ListModelsRequest(), timeout=1.0).models)
