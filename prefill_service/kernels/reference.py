"""Plain torch twins of prefill's kernels: the CPU serving path and the tests' yardstick."""

import torch
from torch import Tensor

from forebay.kernels.paged_reference import sequence_attention


def paged_prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Attend each sequence's query run causally to its paged context, one sequence at a time."""
    ends, lens = cu_query_lens.tolist(), context_lens.tolist()
    out = torch.empty_like(q)
    for s, context_len in enumerate(lens):
        run = slice(ends[s], ends[s + 1])
        out[run] = sequence_attention(q[run], kv_layer, block_tables[s], context_len, scale)
    return out
