"""Gather and scatter of whole KV blocks between the pool and contiguous payloads."""

from torch import Tensor

from . import reference


def pack_blocks(kv: Tensor, block_ids: Tensor, out: Tensor) -> None:
    """Copy blocks `block_ids` [n] of kv [L, blocks, 2, Hkv, bs, D] into out [n, L, 2, Hkv, bs, D]."""
    reference.pack_blocks(kv, block_ids, out)


def unpack_blocks(payload: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Copy payload [n, L, 2, Hkv, bs, D] into blocks `block_ids` [n] of kv [L, blocks, 2, Hkv, bs, D]."""
    reference.unpack_blocks(payload, kv, block_ids)
