"""Paged attention of the draft model: short query runs, one or more tokens per sequence."""

from torch import Tensor

from . import reference


def draft_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Return [T, Hq, D]; sequence s asks with its last cu_query_lens[s+1] - cu_query_lens[s] positions, causally."""
    return reference.draft_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale)
