"""Paged attention of short query runs on a GPU: decode, draft verification, prompt tails."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:  # importing Triton costs 0.5 s: only where it runs
    from forebay.kernels.triton_split_items import SplitItems


def plan_items(
    kv_layer: Tensor,
    num_heads: int,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    num_queries: int,
) -> SplitItems:
    """Build the work list that all layers of a step share."""
    from forebay.kernels.triton_split_items import SPLIT, build_items

    max_splits = -(-block_tables.shape[1] * kv_layer.shape[3] // SPLIT)
    group = num_heads // kv_layer.shape[2]
    return build_items(cu_query_lens, context_lens, num_queries, group, max_splits)


def split_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    ancestors: Tensor | None = None,
    items: SplitItems | None = None,
) -> Tensor:
    """Return [T, Hq, D] for q [T, Hq, D] over kv_layer [blocks, 2, Hkv, bs, D], all on CUDA.

    A sequence's queries (int32 cu_query_lens [S + 1]) are its last positions, seen causally; context 0 is
    padding. ancestors int64 [T] makes runs of up to 64 queries trees: bit i of a query's entry is set if
    it sees query i of its run (its own bit too). items come from `plan_items`; without them each call
    plans anew.
    """
    from forebay.kernels import gluon_split_attention as gluon

    arguments = (q, kv_layer, block_tables, cu_query_lens, context_lens, scale, ancestors)
    if gluon.supports(q, kv_layer):
        return gluon.split_attention(*arguments, items)
    from forebay.kernels import triton_split_attention as triton

    return triton.split_attention(*arguments)
