"""Plain torch twins of prefill's kernels: the CPU serving path and the tests' yardstick."""

from torch import Tensor

from forebay.kernels.paged_reference import paged_attention


def paged_prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Attend each sequence's query run causally to its paged context, one sequence at a time."""
    return paged_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale)
