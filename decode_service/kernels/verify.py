"""Attention of a run of query tokens per sequence: speculative chains, prompt tails, recomputed blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

from forebay.kernels import native
from forebay.kernels.paged_reference import MAX_SPLIT_RUN, RunPlan
from forebay.kernels.split_attention import split_attention

from . import reference

if TYPE_CHECKING:
    from forebay.kernels.triton_split_items import SplitItems


def verify_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    plan: RunPlan | SplitItems | None = None,
) -> Tensor:
    """Return [T, Hq, D]; a sequence's queries (cu_query_lens [S + 1], one or more) are its last positions.

    `plan` saves planning again for every layer of a step: SplitItems on CUDA, RunPlan elsewhere.
    """
    if plan is None and native.handles_heads(q, q.shape[2]):
        return native.paged_attention(
            q, kv_layer, block_tables, cu_query_lens, context_lens, scale, MAX_SPLIT_RUN
        )
    if isinstance(plan, RunPlan) or not q.is_cuda:
        run_plan = plan if isinstance(plan, RunPlan) else None
        return reference.verify_attention(
            q, kv_layer, block_tables, cu_query_lens, context_lens, scale, run_plan
        )
    return split_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale, items=plan)
