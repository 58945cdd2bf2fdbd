"""Plain torch twins of decode's kernels: the CPU serving path and the tests' yardstick."""

from torch import Tensor

from forebay.kernels.paged_reference import RunPlan, SplitPlan, run_attention, split_attention


def paged_decode_attention(
    q: Tensor, kv_layer: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """Attend one query per sequence, q [S, Hq, D], to its whole paged context."""
    plan = SplitPlan.build(block_tables, context_lens, kv_layer.shape[2], kv_layer.shape[3])
    return split_attention(q, kv_layer, plan, scale)


def verify_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    plan: RunPlan | None = None,
) -> Tensor:
    """Attend each sequence's run of last positions; a run of up to 16 gets the bits of one-by-one decode."""
    plan = plan or RunPlan.build(block_tables, cu_query_lens, context_lens, *kv_layer.shape[2:4])
    return run_attention(q, kv_layer, block_tables, plan, scale)
