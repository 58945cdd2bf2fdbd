"""Plain torch twins of decode's kernels: the CPU serving path and the tests' yardstick."""

import torch
from torch import Tensor

from forebay.kernels.paged_reference import paged_attention


def paged_decode_attention(
    q: Tensor, kv_layer: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """Attend one query per sequence, q [S, Hq, D], to its whole paged context."""
    cu_query_lens = torch.arange(q.shape[0] + 1, dtype=torch.int32)
    return paged_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale)


def verify_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Attend each sequence's run of last positions causally to its paged context."""
    return paged_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale)
