"""Attention of one query per sequence over paged KV."""

from torch import Tensor

from . import reference


def paged_decode_attention(
    q: Tensor, kv_layer: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """Return [S, Hq, D] for q [S, Hq, D] over kv_layer [blocks, 2, Hkv, bs, D]; tables, lengths int32."""
    return reference.paged_decode_attention(q, kv_layer, block_tables, context_lens, scale)
