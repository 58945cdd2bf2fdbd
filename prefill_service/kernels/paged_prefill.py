"""Causal attention of a varlen batch of prompt chunks over paged KV with a cached prefix."""

from torch import Tensor

from . import reference


def paged_prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Return [T, Hq, D] for q [T, Hq, D] over kv_layer [blocks, 2, Hkv, bs, D].

    block_tables [S, max_blocks] and cu_query_lens [S + 1] are int32; context_lens [S] int32
    counts the KV after this chunk.
    """
    return reference.paged_prefill_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale)
