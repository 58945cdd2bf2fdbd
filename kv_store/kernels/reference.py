"""Plain torch twins of the block movement kernels: the CPU path and the tests' yardstick."""

from torch import Tensor


def pack_blocks(kv: Tensor, block_ids: Tensor, out: Tensor) -> None:
    """Copy blocks of kv [L, blocks, 2, Hkv, bs, D] into out [n, L, 2, Hkv, bs, D], one payload each."""
    for payload, block in zip(out, block_ids.tolist(), strict=True):
        payload.copy_(kv[:, block])


def unpack_blocks(payload: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Copy payload [n, L, 2, Hkv, bs, D] into the given blocks of kv [L, blocks, 2, Hkv, bs, D]."""
    for block_payload, block in zip(payload, block_ids.tolist(), strict=True):
        kv[:, block].copy_(block_payload)
