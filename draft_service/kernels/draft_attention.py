"""Paged attention of the draft model: short query runs, one or more tokens per sequence."""

from torch import Tensor

from forebay.kernels import native
from forebay.kernels.paged_reference import MAX_SPLIT_RUN, RunPlan
from forebay.kernels.split_attention import split_attention

from . import reference


def draft_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    plan: RunPlan | None = None,
) -> Tensor:
    """Return [T, Hq, D]; a sequence's queries (cu_query_lens [S + 1]) are its last positions, causal.

    `plan` saves the reference from planning again for every layer of a step.
    """
    if q.is_cuda:
        return split_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale)
    if plan is None and native.handles_heads(q, q.shape[2]):
        return native.paged_attention(
            q, kv_layer, block_tables, cu_query_lens, context_lens, scale, MAX_SPLIT_RUN
        )
    return reference.draft_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale, plan)
