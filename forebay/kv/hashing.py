"""Block keys: a running digest over (root ‖ token ids so far), read at each block end.

Two independent digests of the same bytes: SHA-256 cut to 128 bits is the key, BLAKE2b-128 is the check
that travels in the payload header and that a reader compares before it uses a block. The root covers the
model fingerprint and the tenant's salt, so blocks of another model, dtype, layout or tenant never match.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Sequence
from typing import NamedTuple

KEY_BYTES = 16


class BlockKey(NamedTuple):
    """`key` names a block in pool, store and index; `check` is verified by the reader."""

    key: bytes
    check: bytes


def prefix_root(fingerprint: bytes, salt: bytes = b"") -> bytes:
    """SHA-256 over the length-prefixed fingerprint and salt (32 bytes)."""
    prefixed = len(fingerprint).to_bytes(4, "little") + fingerprint + salt
    return hashlib.sha256(b"forebay.prefix.v1" + prefixed).digest()


def token_bytes(token_ids: Sequence[int]) -> bytes:
    """uint32 little-endian encoding of token ids."""
    encoded = array("I", token_ids)
    if sys.byteorder == "big":
        encoded.byteswap()
    return encoded.tobytes()


class BlockHasher:
    """Keys of a growing sequence: feed token ids, get the key of each block that became full."""

    def __init__(self, root: bytes, block_size: int) -> None:
        self.block_size = block_size
        self._key, self._check = hashlib.sha256(root), hashlib.blake2b(root, digest_size=KEY_BYTES)
        self._pending = array("I")

    def extend(self, token_ids: Sequence[int]) -> list[BlockKey]:
        """Append `token_ids`; returns the keys of the blocks completed by them, in order."""
        self._pending.extend(token_ids)
        keys, start = [], 0
        while len(self._pending) - start >= self.block_size:
            block = token_bytes(self._pending[start : start + self.block_size])
            self._key.update(block)
            self._check.update(block)
            keys.append(BlockKey(self._key.digest()[:KEY_BYTES], self._check.digest()))
            start += self.block_size
        del self._pending[:start]
        return keys


def block_keys(root: bytes, token_ids: Sequence[int], block_size: int) -> list[BlockKey]:
    """Keys of all full blocks of `token_ids`."""
    return BlockHasher(root, block_size).extend(token_ids)
