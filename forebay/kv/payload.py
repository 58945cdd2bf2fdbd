"""The 128-byte header in front of every stored block: who it is, and a checksum over what follows.

    offset  bytes
         0      4  magic "FBKV"
         4      2  layout version
         6      2  header bytes (128)
         8      8  generation: the slot's use count, written by the store when it hands the slot out
        16     16  key                  } forebay.kv.hashing.BlockKey
        32     16  check                }
        48     32  model fingerprint
        80      8  payload bytes
        88      4  CRC32C of the payload
        92      4  CRC32C of bytes 0 to 91
        96     32  zero

Written by the writer, verified by the reader before first use; the store never interprets a payload.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import google_crc32c
import numpy as np

from forebay.kv.hashing import BlockKey
from forebay.kv.layout import LAYOUT_VERSION

HEADER_BYTES = 128
_MAGIC = b"FBKV"
_FIELDS = struct.Struct("<4sHHQ16s16s32sQI")
_CRC = struct.Struct("<I")
_GENERATION = struct.Struct("<Q")
_GENERATION_OFFSET = 8


class BadBlock(ValueError):
    """A stored block is not what its key says; the message names the first difference."""


@dataclass(frozen=True, slots=True)
class BlockIdentity:
    """What a reader expects of a block and a writer states about it."""

    key: BlockKey
    fingerprint: bytes
    payload_bytes: int


def crc32c(data: memoryview) -> int:
    """CRC32C of a buffer, without a copy."""
    return int(google_crc32c.value(np.frombuffer(data, np.uint8)))  # type: ignore[arg-type]


def write_header(block: memoryview, identity: BlockIdentity, generation: int) -> None:
    """Seal a block: header over the payload that is already in `block[128:]`."""
    end = HEADER_BYTES + identity.payload_bytes
    fields = _FIELDS.pack(
        _MAGIC,
        LAYOUT_VERSION,
        HEADER_BYTES,
        generation,
        identity.key.key,
        identity.key.check,
        identity.fingerprint,
        identity.payload_bytes,
        crc32c(block[HEADER_BYTES:end]),
    )
    sealed = fields + _CRC.pack(google_crc32c.value(fields))
    block[:HEADER_BYTES] = sealed.ljust(HEADER_BYTES, b"\0")


def verify_block(block: memoryview, identity: BlockIdentity, generation: int) -> memoryview:
    """The payload of a block that is what `identity` says; raises BadBlock otherwise."""
    fields = bytes(block[: _FIELDS.size])
    if google_crc32c.value(fields) != _CRC.unpack_from(block, _FIELDS.size)[0]:
        raise BadBlock("header checksum")
    magic, version, size, found_generation, key, check, fingerprint, num_bytes, crc = _FIELDS.unpack(fields)
    expected = {
        "magic": (magic, _MAGIC),
        "layout version": (version, LAYOUT_VERSION),
        "header size": (size, HEADER_BYTES),
        "generation": (found_generation, generation),
        "key": (key, identity.key.key),
        "check": (check, identity.key.check),
        "fingerprint": (fingerprint, identity.fingerprint),
        "payload size": (num_bytes, identity.payload_bytes),
    }
    for name, (found, wanted) in expected.items():
        if found != wanted:
            raise BadBlock(name)
    payload = block[HEADER_BYTES : HEADER_BYTES + identity.payload_bytes]
    if crc32c(payload) != crc:
        raise BadBlock("payload checksum")
    return payload


def is_intact(block: memoryview, key: bytes, generation: int) -> bool:
    """True if both checksums hold and the header names `key` and `generation`; never raises."""
    fields = bytes(block[: _FIELDS.size])
    if google_crc32c.value(fields) != _CRC.unpack_from(block, _FIELDS.size)[0]:
        return False
    _, _, _, found_generation, found_key, _, _, num_bytes, crc = _FIELDS.unpack(fields)
    if (found_key, found_generation) != (key, generation):
        return False
    return (
        HEADER_BYTES + num_bytes <= len(block)
        and crc32c(block[HEADER_BYTES : HEADER_BYTES + num_bytes]) == crc
    )


def stamp_generation(block: memoryview, generation: int) -> None:
    """Invalidate what is in a slot: its header no longer matches any older grant."""
    _GENERATION.pack_into(block, _GENERATION_OFFSET, generation)


def read_generation(block: memoryview) -> int:
    """The generation now in a slot's header."""
    return int(_GENERATION.unpack_from(block, _GENERATION_OFFSET)[0])
