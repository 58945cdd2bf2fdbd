"""Causal attention of a varlen batch of prompt chunks over paged KV with a cached prefix."""

from torch import Tensor

from forebay.kernels import native
from forebay.kernels.split_attention import split_attention

from . import reference

# A step of this few queries leaves most of a query tile empty; split over the context it fills the GPU.
MAX_SPLIT_QUERIES = 16


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
    arguments = (q, kv_layer, block_tables, cu_query_lens, context_lens, scale)
    if q.is_cuda:
        return _on_gpu(*arguments)
    if native.handles_heads(q, q.shape[2]):
        return native.paged_attention(*arguments, max_short_run=0)
    return reference.paged_prefill_attention(*arguments)


def _on_gpu(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    from . import (
        gluon_paged_prefill,
        triton_paged_prefill,
    )  # importing Triton costs 0.5 s: only where it runs

    arguments = (q, kv_layer, block_tables, cu_query_lens, context_lens, scale)
    if len(q) <= MAX_SPLIT_QUERIES:
        return split_attention(*arguments)
    if gluon_paged_prefill.supports(q, kv_layer):
        return gluon_paged_prefill.paged_prefill_attention(*arguments)
    return triton_paged_prefill.paged_prefill_attention(*arguments)
