"""Payloads as raw bytes on gRPC: works between any two hosts."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import grpc

from forebay.transport import frames
from forebay.transport.base import Grant, Transport, TransportError, check_fits

_BASE_TIMEOUT_S = 1.0
_LEAST_BYTES_PER_S = 50e6


class GrpcTransport(Transport):
    """Streams frames over `channel`, which the caller owns; best one of its own, apart from control calls."""

    scheme = "grpc"

    def __init__(self, channel: grpc.aio.Channel, arena_bytes: int) -> None:
        self._push = channel.stream_unary(frames.PUSH_METHOD)
        self._pull = channel.unary_stream(frames.PULL_METHOD)
        self._arena_bytes = arena_bytes

    async def put(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        """One client stream for all blocks."""
        self._check(blocks)
        try:
            await self._push(_frames(blocks), timeout=_timeout_s(blocks))
        except grpc.aio.AioRpcError as error:
            raise TransportError(f"push: {error.code().name}") from error

    async def get(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        """One server stream for all blocks."""
        self._check(blocks)
        buffers = {grant.handle: buffer for grant, buffer in blocks}
        missing = sum(buffer.nbytes for _, buffer in blocks)
        request = b"".join(grant.handle + buffer.nbytes.to_bytes(8, "little") for grant, buffer in blocks)
        try:
            async for frame in self._pull(request, timeout=_timeout_s(blocks)):
                handle, offset, payload = frames.parse(frame)
                frames.place(buffers[handle], offset, payload)
                missing -= payload.nbytes
        except grpc.aio.AioRpcError as error:
            raise TransportError(f"pull: {error.code().name}") from error
        except (ValueError, KeyError) as error:
            raise TransportError(f"pull: malformed frame: {error}") from error
        if missing:
            raise TransportError(f"pull: {missing} bytes are missing")

    async def close(self) -> None:
        """The channel is the caller's."""

    def _check(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        for grant, buffer in blocks:
            check_fits(grant, buffer, self._arena_bytes)


async def _frames(blocks: Sequence[tuple[Grant, memoryview]]) -> AsyncIterator[bytes]:
    for grant, buffer in blocks:
        for frame in frames.split(grant.handle, buffer):
            yield frame


def _timeout_s(blocks: Sequence[tuple[Grant, memoryview]]) -> float:
    return _BASE_TIMEOUT_S + sum(buffer.nbytes for _, buffer in blocks) / _LEAST_BYTES_PER_S
