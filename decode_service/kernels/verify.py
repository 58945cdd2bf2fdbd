"""Attention of a run of query tokens per sequence: speculative chains, prompt tails, recomputed blocks."""

from torch import Tensor

from . import reference


def verify_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Return [T, Hq, D]; a sequence's queries (cu_query_lens [S + 1]) are its last positions, causal."""
    return reference.verify_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale)
