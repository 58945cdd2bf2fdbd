"""Frames of the gRPC payload plane: 32 bytes of header, up to 1 MiB of payload, no protobuf.

    offset  bytes
         0     16  handle of the block
        16      8  byte offset inside the block
        24      4  payload bytes
        28      4  sequence number in the stream

Between 256 KiB and 4 MiB a frame's size makes no difference to throughput; 64 KiB halves it. Integrity is
end to end: the CRC32C in the block's own header.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

HEADER = struct.Struct("<16sQII")
FRAME_BYTES = 1 << 20
PUSH_METHOD = "/forebay.v1.KvStorePayload/Push"
PULL_METHOD = "/forebay.v1.KvStorePayload/Pull"
PAYLOAD_SERVICE = "forebay.v1.KvStorePayload"


def make(handle: bytes, offset: int, payload: memoryview, sequence: int = 0) -> bytes:
    """One frame; one copy."""
    return b"".join((HEADER.pack(handle, offset, payload.nbytes, sequence), payload))


def split(handle: bytes, block: memoryview) -> Iterator[bytes]:
    """The frames of one block."""
    for sequence, offset in enumerate(range(0, block.nbytes, FRAME_BYTES)):
        yield make(handle, offset, block[offset : offset + FRAME_BYTES], sequence)


def parse(frame: bytes) -> tuple[bytes, int, memoryview]:
    """(handle, offset, payload) of a frame; raises ValueError if it is malformed."""
    if len(frame) < HEADER.size:
        raise ValueError(f"a frame of {len(frame)} bytes has no header")
    handle, offset, num_bytes, _ = HEADER.unpack_from(frame)
    payload = memoryview(frame)[HEADER.size :]
    if payload.nbytes != num_bytes or num_bytes > FRAME_BYTES:
        raise ValueError(f"a frame states {num_bytes} bytes and holds {payload.nbytes}")
    return handle, offset, payload


def place(block: memoryview, offset: int, payload: memoryview) -> None:
    """Copy a frame's payload to its place; raises ValueError outside of the block."""
    if offset + payload.nbytes > block.nbytes:
        raise ValueError(f"bytes {offset} to {offset + payload.nbytes} are outside a block of {block.nbytes}")
    block[offset : offset + payload.nbytes] = payload
