"""Gather and scatter of whole KV blocks between the pool and contiguous payloads."""

from torch import Tensor

from . import reference


def pack_blocks(kv: Tensor, block_ids: Tensor, out: Tensor) -> None:
    """Copy blocks `block_ids` [n] of kv [L, blocks, 2, Hkv, bs, D] into out [n, L, 2, Hkv, bs, D]."""
    if kv.is_cuda and out.is_cuda:
        from . import triton_pack  # importing Triton costs 0.5 s: only where it runs

        triton_pack.pack_blocks(kv, block_ids, out)
    else:
        reference.pack_blocks(kv, block_ids, out)


def unpack_blocks(payload: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Copy payload [n, L, 2, Hkv, bs, D] into blocks `block_ids` [n] of kv [L, blocks, 2, Hkv, bs, D]."""
    if kv.is_cuda and payload.is_cuda:
        from . import triton_pack

        triton_pack.unpack_blocks(payload, kv, block_ids)
    else:
        reference.unpack_blocks(payload, kv, block_ids)
