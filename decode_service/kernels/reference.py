"""Plain torch twins of decode's kernels: the CPU serving path and the tests' yardstick."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from forebay.kernels.paged_reference import RunPlan, SplitPlan, run_attention, split_attention

if TYPE_CHECKING:
    from .step import HostRows, StepRows


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


def begin_step(host: HostRows, rows: StepRows, num_rows: int, block_size: int) -> None:
    """Take up new rows and new blocks; write the step's inputs."""
    r, order = slice(num_rows), torch.arange(num_rows)
    is_new = host.generation[r] != rows.generations[r]
    rows.tokens[r] = torch.where(is_new, host.token[r].long(), rows.tokens[r])
    rows.positions[r] = position = torch.where(is_new, host.position[r].long(), rows.positions[r])
    rows.generations[r] = host.generation[r]
    grown = order[host.grown_at[r] >= 0]
    rows.tables[grown, host.grown_at[grown].long()] = host.grown_block[grown]
    is_live = position < host.limit[r]
    blocks = rows.tables[order, torch.where(is_live, position // block_size, 0)].long()
    is_written = is_live & (position >= host.written_from[r])
    rows.slots[r] = torch.where(is_written, blocks * block_size + position % block_size, -1)
    rows.token_ids[r] = torch.where(is_live, rows.tokens[r], 0)
    rows.query_positions[r] = torch.where(is_live, position, 0)
    rows.sampled_positions[r] = position + 1
    rows.contexts[r] = torch.where(is_live, position + 1, 0).int()
    is_free = position + 1 >= host.free_from[r]
    rows.num_edits[r] = torch.where(is_free, host.num_bias[r], host.num_edits[r])


def end_step(rows: StepRows, token_ids: Tensor, logprobs: Tensor, num_rows: int) -> None:
    """Store results at the clock's place, move live rows on by a token, advance the clock."""
    result = rows.results[int(rows.clock) % len(rows.results), :, :num_rows]
    result[0], result[1] = token_ids, logprobs.view(torch.int32)
    is_live = rows.contexts[:num_rows] > 0
    rows.tokens[:num_rows] = torch.where(is_live, token_ids, rows.tokens[:num_rows])
    rows.positions[:num_rows] += is_live
    rows.clock.add_(1)
