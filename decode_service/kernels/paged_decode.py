"""Attention of one query per sequence over paged KV."""

import torch
from torch import Tensor

from forebay.kernels import native

from . import reference


def paged_decode_attention(
    q: Tensor, kv_layer: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """Return [S, Hq, D] for q [S, Hq, D] over kv_layer [blocks, 2, Hkv, bs, D]; tables, lengths int32."""
    if q.is_cuda:
        from . import triton_paged_decode  # importing Triton costs 0.5 s: only where it runs

        return triton_paged_decode.paged_decode_attention(q, kv_layer, block_tables, context_lens, scale)
    if native.handles_heads(q, q.shape[2]):
        ends = torch.arange(len(q) + 1, dtype=torch.int32)
        return native.paged_attention(q, kv_layer, block_tables, ends, context_lens, scale, max_short_run=1)
    return reference.paged_decode_attention(q, kv_layer, block_tables, context_lens, scale)
