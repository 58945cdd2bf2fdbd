"""One HTTP request and its response over ASGI, without a framework between them."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from uvicorn._types import ASGIReceiveCallable, ASGISendCallable, HTTPScope

from forebay.errors import InvalidArgument, NotFound

JSON_HEADER = (b"content-type", b"application/json")
STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    # Proxies such as nginx would collect the events otherwise.
    (b"x-accel-buffering", b"no"),
]


DONE = b"data: [DONE]\n\n"


def sse(body: Any) -> bytes:
    """A server-sent event."""
    return f"data: {json.dumps(body, separators=(',', ':'))}\n\n".encode()


class Exchange:
    """Reads a bounded body, answers once."""

    def __init__(self, scope: HTTPScope, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        self.method, self.path = scope["method"], scope["path"]
        self.is_answered = self._is_complete = self._is_writing = False
        self._num_writes = self._num_seen = 0
        self._headers = dict(scope["headers"])
        self._receive, self._send = receive, send

    async def read(self, max_bytes: int, timeout_s: float) -> bytes:
        """The whole JSON body; raises InvalidArgument where it is too large, too slow or not JSON."""
        kind = self._headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if kind != b"application/json":
            raise InvalidArgument(
                "must be application/json",
                field="content-type",
                got=kind.decode("latin-1")[:64] or "none",
                reason="UNSUPPORTED_MEDIA_TYPE",
            )
        try:
            async with asyncio.timeout(timeout_s):
                return await self._read(max_bytes)
        except TimeoutError as error:
            raise InvalidArgument("came too slowly", field="body", reason="BODY_TIMEOUT") from error

    async def gone(self) -> None:
        """Returns when the client has left or has its whole answer; call after the body was read."""
        while (await self._receive())["type"] != "http.disconnect":
            pass

    def is_stalled(self) -> bool:
        """Whether the client has taken nothing since the last call: one write has waited all the while."""
        num_seen, self._num_seen = self._num_seen, self._num_writes
        return self._is_writing and num_seen == self._num_writes

    async def answer(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        """A whole JSON response."""
        content = json.dumps(body, separators=(",", ":")).encode()
        length = (b"content-length", str(len(content)).encode())
        await self._start(status, [JSON_HEADER, length], headers or {})
        await self.write(content, is_last=True)

    async def start_stream(self, headers: Mapping[str, str]) -> None:
        """The head of a stream of events."""
        await self._start(200, STREAM_HEADERS, headers)

    async def fail(self, status: int, body: Any, headers: Mapping[str, str]) -> None:
        """An error: as the response, or as the last event of a stream that has begun."""
        if not self.is_answered:
            await self.answer(status, body, headers)
        elif not self._is_complete:
            await self.event(body)
            await self.write(DONE, is_last=True)

    async def event(self, body: Any) -> None:
        """One event of a stream."""
        await self.write(sse(body))

    async def write(self, content: bytes, is_last: bool = False) -> None:
        """Part of the body; waits while the client is slow, does nothing when it is gone."""
        self._is_complete = is_last
        self._num_writes += 1
        self._is_writing = True
        await self._send({"type": "http.response.body", "body": content, "more_body": not is_last})
        self._is_writing = False

    async def _start(self, status: int, own: list[tuple[bytes, bytes]], more: Mapping[str, str]) -> None:
        headers = [*own, *((name.encode(), value.encode()) for name, value in more.items())]
        self.is_answered = True
        await self._send(
            {"type": "http.response.start", "status": status, "headers": headers, "trailers": False}
        )

    async def _read(self, max_bytes: int) -> bytes:
        parts, size, is_whole = [], 0, False
        while not is_whole:
            message = await self._receive()
            if message["type"] != "http.request":
                raise NotFound("the client left", reason="CANCELLED")
            parts.append(message["body"])
            size += len(parts[-1])
            if size > max_bytes:
                raise InvalidArgument("is too large", field="body", limit=max_bytes, reason="BODY_TOO_LARGE")
            is_whole = not message["more_body"]
        return b"".join(parts)
