"""Plain torch twins of the block movement kernels: the CPU path and the tests' yardstick."""

import torch
from torch import Tensor


def pack_blocks(kv: Tensor, block_ids: Tensor, out: Tensor) -> None:
    """Copy blocks of kv [L, blocks, 2, Hkv, bs, D] into out [n, L, 2, Hkv, bs, D], one payload each."""
    for layer, kv_layer in enumerate(kv):
        out[:, layer] = kv_layer.index_select(0, block_ids)


def unpack_blocks(payload: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Copy payload [n, L, 2, Hkv, bs, D] into the given blocks of kv [L, blocks, 2, Hkv, bs, D]."""
    for layer, kv_layer in enumerate(kv):
        kv_layer.index_copy_(0, block_ids.to(torch.int64), payload[:, layer])
