"""Torch attention over paged KV, shared by the services' reference kernels and served from on the CPU.

Long query runs go one sequence at a time through SDPA. Short runs are cut into items of one query and
SPLIT_SIZE context tokens; every item has the same shape whatever else is in the batch, and a query's items
are combined in index order: a token's result has the same bits alone, in any batch and in a verified draft.

Shapes: T query tokens, S sequences, Hq/Hkv query/KV heads, G = Hq / Hkv, D head_dim, bs block_size,
C one context length, W items, K SPLIT_SIZE.
"""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

# 128, 256 and 512 cost the same within 10 % at 512 tokens (SmolLM2, 2 cores); shorter contexts pad to it.
SPLIT_SIZE = 256
# A run of at most this many queries is split: draft chains stay exact, longer tails use the faster GEMM path.
MAX_SPLIT_RUN = 16


@dataclass(frozen=True)
class SplitPlan:
    """Index tensors of one step, the same for every layer; build it once a step."""

    item_queries: Tensor  # [W] which query row an item belongs to, ascending
    key_rows: Tensor  # [W * Hkv * K / bs] rows of kv_layer.view(-1, bs * D) in the order (item, head, block)
    value_rows: Tensor  # the same for values
    unused_rows: Tensor  # rows of the gathered (item, head, token) past the context: scratch, maybe NaN
    bias: Tensor  # [W * Hkv, 1, K] float32: 0 inside the context, -inf past it
    is_single: bool  # every query has exactly one item

    @classmethod
    def build(
        cls, block_tables: Tensor, context_lens: Tensor, num_kv_heads: int, block_size: int
    ) -> "SplitPlan":
        """Plan queries with one block table [T, max_blocks] and one context length [T] each."""
        if SPLIT_SIZE % block_size:
            raise ValueError(f"block_size {block_size} does not divide {SPLIT_SIZE}")
        device = block_tables.device
        num_items = (context_lens + SPLIT_SIZE - 1) // SPLIT_SIZE
        queries = torch.arange(len(num_items), device=device).repeat_interleave(num_items)
        starts = (
            torch.arange(len(queries), device=device) - (num_items.cumsum(0) - num_items)[queries]
        ) * SPLIT_SIZE
        used = (context_lens[queries] - starts).clamp_max(SPLIT_SIZE)
        blocks = _item_blocks(block_tables, queries, starts, used, block_size)[:, None]
        key_rows = (blocks * (2 * num_kv_heads) + torch.arange(num_kv_heads, device=device)[:, None]).reshape(
            -1
        )
        is_unused = (
            torch.arange(SPLIT_SIZE, device=device) >= used.repeat_interleave(num_kv_heads)[:, None]
        )  # [W * Hkv, K]
        return cls(
            item_queries=queries,
            key_rows=key_rows,
            value_rows=key_rows + num_kv_heads,
            unused_rows=is_unused.view(-1).nonzero()[:, 0],
            bias=torch.zeros(is_unused.shape, device=device).masked_fill_(is_unused, -torch.inf)[:, None],
            is_single=bool((num_items == 1).all()),
        )


def _item_blocks(
    block_tables: Tensor, queries: Tensor, starts: Tensor, used: Tensor, block_size: int
) -> Tensor:
    """Return the block ids of each item, [W, K / bs]; places past the context repeat the last one."""
    places = torch.arange(SPLIT_SIZE // block_size, device=used.device).expand(len(queries), -1)
    places = places.minimum((used[:, None] - 1) // block_size) + starts[:, None] // block_size
    return block_tables[queries[:, None], places].to(torch.int64)


def split_attention(q: Tensor, kv_layer: Tensor, plan: SplitPlan, scale: float) -> Tensor:
    """Attend each query of q [T, Hq, D] to its whole planned context."""
    num_items, (_, _, num_kv_heads, _, head_dim) = len(plan.item_queries), kv_layer.shape
    keys = _gather_items(kv_layer, plan.key_rows, plan.unused_rows).float()
    grouped = q.reshape(len(q), num_kv_heads, -1, head_dim).index_select(0, plan.item_queries)
    grouped = grouped.float().view(len(keys), -1, head_dim)  # [W * Hkv, G, D]
    # Scores stay float32; weights take the cache's type for the second product, as flash kernels do.
    scores = torch.baddbmm(plan.bias, grouped, keys.transpose(1, 2), alpha=scale).view(
        num_items, -1, SPLIT_SIZE
    )
    top = scores.amax(-1, keepdim=True)  # [W, Hq, 1]
    weights = scores.sub_(top).exp_()
    total = weights.sum(-1, keepdim=True)
    values = _gather_items(kv_layer, plan.value_rows, plan.unused_rows)
    acc = torch.bmm(weights.to(values.dtype).view(len(keys), -1, SPLIT_SIZE), values).float()
    acc = acc.view(num_items, -1, head_dim)
    if not plan.is_single:
        acc, total = _combine(acc, total, top, plan.item_queries, len(q))
    return (acc / total).to(q.dtype)


def _gather_items(kv_layer: Tensor, rows: Tensor, unused_rows: Tensor) -> Tensor:
    """Collect keys or values as [W * Hkv, K, D] with zeros past the context."""
    block_size, head_dim = kv_layer.shape[3:]
    tokens = kv_layer.view(-1, block_size * head_dim).index_select(0, rows).view(-1, head_dim)
    return tokens.index_fill_(0, unused_rows, 0.0).view(-1, SPLIT_SIZE, head_dim)


def _combine(
    acc: Tensor, total: Tensor, top: Tensor, queries: Tensor, num_queries: int
) -> tuple[Tensor, Tensor]:
    """Merge a query's items (acc [W, Hq, D], total, top [W, Hq, 1]) in index order: index_add_ is serial."""
    query_top = top.new_full((num_queries, *top.shape[1:]), -torch.inf)
    query_top.scatter_reduce_(0, queries[:, None, None].expand_as(top), top, "amax")
    weights = (top - query_top[queries]).exp_()
    merged_acc = acc.new_zeros(num_queries, *acc.shape[1:]).index_add_(0, queries, acc * weights)
    return merged_acc, torch.zeros_like(query_top).index_add_(0, queries, total * weights)


@dataclass(frozen=True)
class RunPlan:
    """Which query runs of a varlen batch go through SDPA, and the split plan of all others."""

    long_runs: list[tuple[int, int, int, int]]  # (sequence, first query, end query, context length)
    split_queries: Tensor | None  # [T'] query rows of the short runs; None if these are all rows
    split: SplitPlan | None

    @classmethod
    def build(
        cls,
        block_tables: Tensor,
        cu_query_lens: Tensor,
        context_lens: Tensor,
        num_kv_heads: int,
        block_size: int,
    ) -> "RunPlan":
        """Give every query of a short run its own row: context up to and including itself."""
        ends, lens = cu_query_lens.tolist(), context_lens.tolist()
        runs = [(s, ends[s], ends[s + 1], lens[s]) for s in range(len(lens))]
        short = [run for run in runs if run[2] - run[1] <= MAX_SPLIT_RUN]
        rows = [(s, t, length - end + t + 1) for s, first, end, length in short for t in range(first, end)]
        if not rows:
            return cls([run for run in runs if run not in short], None, None)
        sequences, queries, contexts = torch.tensor(rows, device=block_tables.device).unbind(1)
        split = SplitPlan.build(block_tables[sequences], contexts, num_kv_heads, block_size)
        is_all = len(short) == len(runs)
        return cls([run for run in runs if run not in short], None if is_all else queries, split)


def run_attention(q: Tensor, kv_layer: Tensor, block_tables: Tensor, plan: RunPlan, scale: float) -> Tensor:
    """Causal attention of q [T, Hq, D] over the planned runs."""
    if plan.split is not None and plan.split_queries is None:
        return split_attention(q, kv_layer, plan.split, scale)
    out = torch.empty_like(q)
    if plan.split is not None and plan.split_queries is not None:
        out[plan.split_queries] = split_attention(q[plan.split_queries], kv_layer, plan.split, scale)
    for sequence, first, end, context_len in plan.long_runs:
        out[first:end] = sequence_attention(
            q[first:end], kv_layer, block_tables[sequence], context_len, scale
        )
    return out


def sequence_attention(
    q: Tensor, kv_layer: Tensor, block_table: Tensor, context_len: int, scale: float
) -> Tensor:
    """Attend one sequence's last queries q [Q, Hq, D] causally to its context: gather, then SDPA."""
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    num_blocks = -(-context_len // block_size)
    pages = kv_layer.index_select(0, block_table[:num_blocks]).permute(1, 2, 0, 3, 4)
    keys, values = pages.reshape(2, num_kv_heads, num_blocks * block_size, head_dim)[:, :, :context_len]
    mask = None
    if 1 < len(q) < context_len:
        positions = torch.arange(context_len, device=q.device)
        mask = positions <= positions[context_len - len(q) :, None]
    out = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None],
        keys[None],
        values[None],
        attn_mask=mask,
        is_causal=1 < len(q) == context_len,
        scale=scale,
        enable_gqa=True,
    )
    return out[0].transpose(0, 1)
