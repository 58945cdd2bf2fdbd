# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""Triton ends of a decode step; one warp handles all rows.

Names: p_ pointer, b_ values in registers, o_ offsets, m_ mask. Fields are those of `step`.
"""

import triton
import triton.language as tl
from torch import Tensor

from .step import NUM_RESULTS, HostRows, StepRows


@triton.jit
def begin_kernel(
    p_generation, p_token, p_position, p_limit, p_written_from, p_grown_at, p_grown_block, p_num_bias,
    p_num_edits,
    p_free_from, p_tokens, p_positions, p_generations, p_tables, p_token_ids, p_query_positions, p_slots,
    p_sampled_positions, p_contexts, p_edits, width, num_rows, BLOCK_SIZE: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Take up new rows and new blocks; write the step's inputs."""
    o_row = tl.arange(0, ROWS)
    m_row = o_row < num_rows
    b_generation = tl.load(p_generation + o_row, mask=m_row, other=0)
    m_new = b_generation != tl.load(p_generations + o_row, mask=m_row, other=0)
    b_token = tl.load(p_tokens + o_row, mask=m_row, other=0)
    b_token = tl.where(m_new, tl.load(p_token + o_row, mask=m_row, other=0).to(tl.int64), b_token)
    b_position = tl.load(p_positions + o_row, mask=m_row, other=0)
    b_position = tl.where(m_new, tl.load(p_position + o_row, mask=m_row, other=0).to(tl.int64), b_position)
    tl.store(p_generations + o_row, b_generation, mask=m_row)
    tl.store(p_tokens + o_row, b_token, mask=m_row)
    tl.store(p_positions + o_row, b_position, mask=m_row)
    m_live = m_row & (b_position < tl.load(p_limit + o_row, mask=m_row, other=0))
    p_table = p_tables + o_row.to(tl.int64) * width
    b_grown_at = tl.load(p_grown_at + o_row, mask=m_row, other=-1)
    b_grown_block = tl.load(p_grown_block + o_row, mask=m_row, other=0)
    tl.store(p_table + b_grown_at, b_grown_block, mask=b_grown_at >= 0)
    b_index = b_position // BLOCK_SIZE
    b_block = tl.load(p_table + b_index, mask=m_live & (b_index != b_grown_at), other=0)
    b_block = tl.where(b_index == b_grown_at, b_grown_block, b_block).to(tl.int64)
    m_write = m_live & (b_position >= tl.load(p_written_from + o_row, mask=m_row, other=0))
    b_slot = tl.where(m_write, b_block * BLOCK_SIZE + b_position % BLOCK_SIZE, -1)
    tl.store(p_slots + o_row, b_slot, mask=m_row)
    tl.store(p_token_ids + o_row, tl.where(m_live, b_token, 0), mask=m_row)
    tl.store(p_query_positions + o_row, tl.where(m_live, b_position, 0), mask=m_row)
    tl.store(p_sampled_positions + o_row, b_position + 1, mask=m_row)
    tl.store(p_contexts + o_row, tl.where(m_live, b_position + 1, 0).to(tl.int32), mask=m_row)
    m_free = b_position + 1 >= tl.load(p_free_from + o_row, mask=m_row, other=0)
    b_bias = tl.load(p_num_bias + o_row, mask=m_row, other=0)
    b_all = tl.load(p_num_edits + o_row, mask=m_row, other=0)
    tl.store(p_edits + o_row, tl.where(m_free, b_bias, b_all), mask=m_row)


@triton.jit
def end_kernel(
    p_sampled, p_logprobs, p_tokens, p_positions, p_contexts, p_clock, p_results, max_rows, num_rows,
    RESULTS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Store results at the clock's place, move live rows on by a token, advance the clock."""
    o_row = tl.arange(0, ROWS)
    m_row = o_row < num_rows
    clock = tl.load(p_clock)
    b_token = tl.load(p_sampled + o_row, mask=m_row, other=0)
    b_bits = tl.load(p_logprobs + o_row, mask=m_row, other=0.0).to(tl.int32, bitcast=True)
    p_result = p_results + clock % RESULTS * 2 * max_rows + o_row
    tl.store(p_result, b_token, mask=m_row)
    tl.store(p_result + max_rows, b_bits.to(tl.int64), mask=m_row)
    m_live = m_row & (tl.load(p_contexts + o_row, mask=m_row, other=0) > 0)
    tl.store(p_tokens + o_row, b_token, mask=m_live)
    b_position = tl.load(p_positions + o_row, mask=m_live, other=0)
    tl.store(p_positions + o_row, b_position + 1, mask=m_live)
    tl.store(p_clock, clock + 1)


def begin_step(host: HostRows, rows: StepRows, num_rows: int, block_size: int) -> None:
    """Launch; arguments as the wrapper's."""
    h, r = host, rows
    begin_kernel[(1,)](
        h.generation, h.token, h.position, h.limit, h.written_from, h.grown_at, h.grown_block, h.num_bias,
        h.num_edits, h.free_from, r.tokens, r.positions, r.generations, r.tables, r.token_ids,
        r.query_positions, r.slots, r.sampled_positions, r.contexts, r.num_edits, r.tables.shape[1], num_rows,
        block_size, triton.next_power_of_2(num_rows), num_warps=1,
    )  # fmt: skip


def end_step(rows: StepRows, token_ids: Tensor, logprobs: Tensor, num_rows: int) -> None:
    """Launch; arguments as the wrapper's."""
    end_kernel[(1,)](
        token_ids, logprobs, rows.tokens, rows.positions, rows.contexts, rows.clock, rows.results,
        rows.results.shape[2], num_rows, NUM_RESULTS, triton.next_power_of_2(num_rows), num_warps=1,
    )  # fmt: skip
