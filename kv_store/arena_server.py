"""Hands the arena's file descriptor to same-host peers over a Unix socket, one token each."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import shutil
import socket
import tempfile
import time
from collections.abc import Coroutine
from typing import Any

import structlog

log = structlog.get_logger(__name__)

TOKEN_BYTES = 32
_TOKEN_TTL_S = 10.0
_MAX_TOKENS = 1024


class ArenaServer:
    """`path` is the socket, in a folder that only this user can enter."""

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._folder = tempfile.mkdtemp(prefix="forebay-kv-")
        self.path = f"{self._folder}/arena.sock"
        self._tokens: dict[bytes, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)

    def start(self) -> None:
        """Listen; needs a running event loop."""
        self._listener.bind(self.path)
        self._listener.listen(64)
        self._listener.setblocking(False)
        self._spawn(self._accept())

    def issue_token(self) -> bytes:
        """Random bytes that admit one connection within the next seconds."""
        now = time.monotonic()
        self._tokens = {t: ends for t, ends in self._tokens.items() if ends > now}
        while len(self._tokens) >= _MAX_TOKENS:
            del self._tokens[next(iter(self._tokens))]
        token = secrets.token_bytes(TOKEN_BYTES)
        self._tokens[token] = now + _TOKEN_TTL_S
        return token

    async def close(self) -> None:
        """Stop listening and remove the socket."""
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._listener.close()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _accept(self) -> None:
        while True:
            client, _ = await asyncio.get_running_loop().sock_accept(self._listener)
            self._spawn(self._serve(client))

    async def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError, TimeoutError):
            client.setblocking(False)
            async with asyncio.timeout(1.0):
                token = await asyncio.get_running_loop().sock_recv(client, TOKEN_BYTES)
            if self._tokens.pop(token, 0.0) > time.monotonic():
                socket.send_fds(client, [b"arena"], [self._fd])
            else:
                log.warning("arena_token_refused")
