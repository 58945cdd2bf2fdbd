"""Attention of a run of query tokens per sequence: speculative chains, prompt tails, recomputed blocks."""

import torch
from torch import Tensor

from forebay.kernels.paged_reference import RunPlan

from . import reference
from .paged_decode import paged_decode_attention


def verify_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    plan: RunPlan | None = None,
) -> Tensor:
    """Return [T, Hq, D]; a sequence's queries (cu_query_lens [S + 1], one or more) are its last positions.

    `plan` saves the reference from planning again for every layer of a step; CUDA needs none.
    """
    if not q.is_cuda:
        return reference.verify_attention(q, kv_layer, block_tables, cu_query_lens, context_lens, scale, plan)
    if len(q) > len(context_lens):  # one row per query: its sequence's table, the context up to itself
        query_lens, rows = cu_query_lens.diff(), torch.arange(len(q), device=q.device)
        sequences = torch.repeat_interleave(query_lens, output_size=len(q))
        context_lens = (context_lens - cu_query_lens[1:] + 1)[sequences] + rows
        block_tables = block_tables[sequences]
    return paged_decode_attention(q, kv_layer, block_tables, context_lens.to(torch.int32), scale)
