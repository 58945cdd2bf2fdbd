"""The raw-bytes payload plane: frames in, frames out, straight from and to the arena."""

from __future__ import annotations

from collections.abc import AsyncIterator

import grpc

from forebay.errors import InvalidArgument
from forebay.transport import frames

from .lease import HANDLE_BYTES, Purpose
from .store import BlockStore

_REF_BYTES = HANDLE_BYTES + 8


class PayloadServicer:
    """Push writes reserved blocks, Pull reads acquired ones; each frame names its capability."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def handlers(self) -> grpc.GenericRpcHandler:
        """Generic handlers without any serializer."""
        methods = {
            "Push": grpc.stream_unary_rpc_method_handler(self.push),
            "Pull": grpc.unary_stream_rpc_method_handler(self.pull),
        }
        return grpc.method_handlers_generic_handler(frames.PAYLOAD_SERVICE, methods)

    async def push(self, stream: AsyncIterator[bytes], context: grpc.aio.ServicerContext) -> bytes:
        """Frames to slots; answers the number of payload bytes, 8 bytes little-endian."""
        num_bytes = 0
        async for frame in stream:
            num_bytes += self._write(frame)
        return num_bytes.to_bytes(8, "little")

    async def pull(self, request: bytes, context: grpc.aio.ServicerContext) -> AsyncIterator[bytes]:
        """Slots to frames; the request is (handle, number of bytes as 8 bytes little-endian) per block."""
        if len(request) % _REF_BYTES:
            raise InvalidArgument(
                "not a list of handles", field="request", limit=_REF_BYTES, got=len(request)
            )
        for at in range(0, len(request), _REF_BYTES):
            handle = request[at : at + HANDLE_BYTES]
            num_bytes = int.from_bytes(request[at + HANDLE_BYTES : at + _REF_BYTES], "little")
            for start in range(0, num_bytes, frames.FRAME_BYTES):
                yield self._read(handle, start, min(num_bytes - start, frames.FRAME_BYTES))

    def _write(self, frame: bytes) -> int:
        try:
            handle, offset, payload = frames.parse(frame)
            frames.place(self._store.resolve(handle, Purpose.WRITE), offset, payload)
        except ValueError as error:
            raise InvalidArgument(str(error), field="frame") from error
        return payload.nbytes

    def _read(self, handle: bytes, offset: int, num_bytes: int) -> bytes:
        memory = self._store.resolve(handle, Purpose.READ)
        if offset + num_bytes > memory.nbytes:
            raise InvalidArgument("outside of the block", field="num_bytes", limit=memory.nbytes, got=offset)
        return frames.make(handle, offset, memory[offset : offset + num_bytes])
