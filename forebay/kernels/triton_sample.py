# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""Triton sampling without a sort: four kernels in one CUDA graph serve any mix of rows and parameters.

    score   edits, penalties, temperature; each block's best (noisy) entry; scaled logits of truncated rows
    mass    of truncated rows: entries and mass within 0.25, 0.375, ... 32 of the top
    gather  those that top-k and top-p can keep, usually a few hundred
    pick    thresholds by bisection over them, then the draw; logprob; the token counted for its penalties

A row that keeps more than CANDIDATES entries is bisected where it lies instead: slower, the same result.
Noise is `sample_reference.philox_uniform`'s; a draw is Gumbel-max, decided in float32.

Names: p_ pointer, b_ block in registers, i_ index, o_ offsets, m_ mask. Shapes: R rows, V vocabulary,
NB blocks of it, E edits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from forebay.kernels.sampling_state import SamplingState as SamplingState

BLOCK = 2048
CANDIDATES = 4096
_SIZE = tl.constexpr(2048)  # entries a pick looks at together
_LEVELS = tl.constexpr(16)  # level i < 15 reaches 0.25, 0.375, 0.5, 0.75, ... 32 below the top, 15 everything
_PIVOTS = tl.constexpr(8)  # values a bisection step tries at once
_MIN_UNIFORM = tl.constexpr(2.0**-33)


@triton.jit
def _gumbel(b_words):
    """Gumbel noise of 32-bit words, float32."""
    b_uniform = tl.maximum(tl.random.uint_to_uniform_float(b_words), _MIN_UNIFORM)
    return -tl.log(-tl.log(b_uniform))


@triton.jit
def _block_noise(seed, position, i_block, BLOCK: tl.constexpr):
    """Noise of the ids of a block: one Philox call serves four."""
    o_counter = i_block * (BLOCK // 4) + tl.arange(0, BLOCK // 4)
    zero = o_counter * 0
    w0, w1, w2, w3 = tl.philox(seed, o_counter, zero + position.to(tl.int32), zero, zero)
    return _gumbel(tl.interleave(tl.interleave(w0, w2), tl.interleave(w1, w3)))


@triton.jit
def _id_noise(seed, position, b_ids):
    """Noise of scattered ids."""
    zero = b_ids * 0
    w0, w1, w2, w3 = tl.philox(seed, b_ids // 4, zero + position.to(tl.int32), zero, zero)
    b_lane = b_ids % 4
    return _gumbel(tl.where(b_lane < 2, tl.where(b_lane == 0, w0, w1), tl.where(b_lane == 2, w2, w3)))


@triton.jit
def _is_cut(p_temperature, p_top_k, p_top_p, p_min_p, i_row):
    is_drawn = tl.load(p_temperature + i_row) > 0
    return is_drawn & (
        (tl.load(p_top_k + i_row) > 0) | (tl.load(p_top_p + i_row) < 1) | (tl.load(p_min_p + i_row) > 0)
    )


@triton.jit
def score_kernel(
    p_logits, p_temperature, p_top_k, p_top_p, p_min_p, p_repetition, p_presence, p_frequency, p_seeds,
    p_positions,
    p_num_edits, p_edit_ids, p_edit_values, p_count_rows, p_counts, p_scaled, p_values, p_ids, p_tops,
    p_raw_tops,
    p_raw_totals, V, num_edits_max, num_blocks, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of one row: raw log-sum-exp parts, edited and scaled logits, their best entry."""
    i_row, i_block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    o_id = i_block * BLOCK + tl.arange(0, BLOCK)
    m_id = o_id < V
    o_part = i_row * num_blocks + i_block
    b_x = tl.load(p_logits + i_row * V + o_id, mask=m_id, other=float("-inf")).to(tl.float32)
    raw_top = tl.max(b_x, 0)
    tl.store(p_raw_tops + o_part, raw_top)
    tl.store(p_raw_totals + o_part, tl.sum(tl.where(m_id, tl.exp(b_x - raw_top), 0.0), 0))
    for i_edit in range(tl.load(p_num_edits + i_row)):
        o_edit = i_row * num_edits_max + i_edit
        b_x = tl.where(o_id == tl.load(p_edit_ids + o_edit), b_x + tl.load(p_edit_values + o_edit), b_x)
    i_count = tl.load(p_count_rows + i_row).to(tl.int64)
    if i_count >= 0:
        b_count = tl.load(p_counts + i_count * V + o_id, mask=m_id, other=0)
        repetition, b_output = tl.load(p_repetition + i_row), b_count >> 1
        b_x = tl.where(b_count > 0, tl.where(b_x > 0, b_x / repetition, b_x * repetition), b_x)
        b_x -= tl.load(p_frequency + i_row) * b_output + tl.where(
            b_output > 0, tl.load(p_presence + i_row), 0.0
        )
    temperature = tl.load(p_temperature + i_row)
    if temperature > 0:
        b_x = b_x / temperature
        if _is_cut(p_temperature, p_top_k, p_top_p, p_min_p, i_row):
            tl.store(p_scaled + i_row * V + o_id, b_x, mask=m_id)
        else:
            b_noise = _block_noise(tl.load(p_seeds + i_row), tl.load(p_positions + i_row), i_block, BLOCK)
            b_x = tl.where(m_id, b_x + b_noise, float("-inf"))
    tl.store(p_tops + o_part, tl.max(b_x, 0))
    value, index = tl.max(b_x, 0, return_indices=True)
    tl.store(p_values + o_part, value)
    tl.store(p_ids + o_part, i_block * BLOCK + index)


@triton.jit
def _row_top(p_tops, i_row, num_blocks, BLOCKS: tl.constexpr):
    o_block = tl.arange(0, BLOCKS)
    return tl.max(
        tl.load(p_tops + i_row * num_blocks + o_block, mask=o_block < num_blocks, other=float("-inf")), 0
    )


@triton.jit
def mass_kernel(
    p_scaled, p_temperature, p_top_k, p_top_p, p_min_p, p_tops, p_entries, p_mass, V, num_blocks,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
):  # fmt: skip
    """Entries and mass [R, levels, NB] of a block that min-p keeps, by distance from the row's top."""
    i_row, i_block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if _is_cut(p_temperature, p_top_k, p_top_p, p_min_p, i_row):
        o_id = i_block * BLOCK + tl.arange(0, BLOCK)
        top = _row_top(p_tops, i_row, num_blocks, BLOCKS)
        b_x = tl.load(p_scaled + i_row * V + o_id, mask=o_id < V, other=float("-inf"))
        b_x = tl.where(b_x >= top + tl.log(tl.load(p_min_p + i_row)), b_x, float("-inf"))
        b_weight = tl.exp(b_x - top)
        for level in tl.static_range(_LEVELS):
            reach = ((2 + level % 2) << (level // 2)) * 0.125
            m_level = (b_x > float("-inf")) if level == _LEVELS - 1 else (b_x >= top - reach)
            o_part = (i_row * _LEVELS + level) * num_blocks + i_block
            tl.store(p_entries + o_part, tl.sum(m_level.to(tl.int32), 0))
            tl.store(p_mass + o_part, tl.sum(tl.where(m_level, b_weight, 0.0), 0))


@triton.jit
def _choose_level(p_entries, p_mass, top_k, top_p, i_row, num_blocks, BLOCKS: tl.constexpr):
    """The narrowest level that holds what top-k and top-p can keep: (level, its entries, mass of the row)."""
    o_level, o_block = tl.arange(0, _LEVELS), tl.arange(0, BLOCKS)
    o_part = (i_row * _LEVELS + o_level)[:, None] * num_blocks + o_block[None, :]
    m_part = (o_block < num_blocks)[None, :] & (o_level >= 0)[:, None]
    b_entries = tl.sum(tl.load(p_entries + o_part, mask=m_part, other=0), 1)
    b_mass = tl.sum(tl.load(p_mass + o_part, mask=m_part, other=0.0), 1)
    mass = tl.max(b_mass, 0)
    need_entries = tl.where(top_k > 0, top_k, 0)
    # Top-p takes a share of what top-k keeps, so it never reaches further.
    need_mass = tl.where((top_p < 1) & (top_k <= 0), top_p * mass, 0.0)
    if (top_k <= 0) & (top_p >= 1):
        need_entries = tl.max(b_entries, 0)  # min-p alone: all that it keeps
    m_enough = (b_entries >= need_entries) & (b_mass >= need_mass)
    level = tl.min(tl.where(m_enough, o_level, _LEVELS - 1), 0)
    return level, tl.sum(tl.where(o_level == level, b_entries, 0), 0), mass


@triton.jit
def _level_bottom(level, top, min_p):
    """Lowest scaled logit of a level."""
    reach = ((2 + level % 2) << (level // 2)).to(tl.float32) * 0.125
    return tl.maximum(tl.where(level == _LEVELS - 1, float("-inf"), top - reach), top + tl.log(min_p))


@triton.jit
def gather_kernel(
    p_scaled, p_temperature, p_top_k, p_top_p, p_min_p, p_tops, p_entries, p_mass, p_candidates,
    p_candidate_ids, V,
    num_blocks, BLOCK: tl.constexpr, BLOCKS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """Write a block's candidates, in the order of their ids, to its place in candidates [R, CANDIDATES]."""
    i_row, i_block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    if _is_cut(p_temperature, p_top_k, p_top_p, p_min_p, i_row):
        top_k, top_p = tl.load(p_top_k + i_row), tl.load(p_top_p + i_row)
        level, num_entries, _ = _choose_level(p_entries, p_mass, top_k, top_p, i_row, num_blocks, BLOCKS)
        o_block = tl.arange(0, BLOCKS)
        p_counts = p_entries + (i_row * _LEVELS + level) * num_blocks + o_block
        start = tl.sum(tl.load(p_counts, mask=o_block < i_block, other=0), 0)
        mine = tl.sum(tl.load(p_counts, mask=o_block == i_block, other=0), 0)
        if (num_entries <= CANDIDATES) & (mine > 0):
            bottom = _level_bottom(
                level, _row_top(p_tops, i_row, num_blocks, BLOCKS), tl.load(p_min_p + i_row)
            )
            o_id = i_block * BLOCK + tl.arange(0, BLOCK)
            b_x = tl.load(p_scaled + i_row * V + o_id, mask=o_id < V, other=float("-inf"))
            m_keep = (b_x >= bottom) & (b_x > float("-inf"))
            o_place = i_row * CANDIDATES + start + tl.cumsum(m_keep.to(tl.int32), 0) - 1
            tl.store(p_candidates + o_place, b_x, mask=m_keep)
            tl.store(p_candidate_ids + o_place, o_id, mask=m_keep)


@triton.jit
def _order(b_x):
    """Map float32 to int32 of the same order."""
    b_bits = b_x.to(tl.int32, bitcast=True)
    return b_bits ^ ((b_bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _bisect(p_x, num_entries, bottom, top, need, by_mass: tl.constexpr, SIZE: tl.constexpr):
    """Highest value, as an ordered int, such that the entries of x from it up number (or weigh) at least
    `need`.

    x [num_entries] is read in blocks of SIZE; entries below bottom do not count. If all fall short: bottom.
    """
    low = _order(bottom).to(tl.int64)
    high = _order(top).to(tl.int64) + 1
    o_entry, o_pivot = tl.arange(0, SIZE), tl.arange(0, _PIVOTS)
    while high - low > 1:
        step = tl.maximum((high - low) // _PIVOTS, 1)
        b_pivot = (low + (o_pivot + 1) * step).to(tl.int32)
        b_held = tl.zeros((_PIVOTS,), tl.float32)
        for i_first in tl.range(0, num_entries, SIZE, num_stages=3):
            b_x = tl.load(p_x + i_first + o_entry, mask=i_first + o_entry < num_entries, other=float("-inf"))
            b_share = tl.where(b_x >= bottom, tl.exp(b_x - top) if by_mass else 1.0, 0.0)
            m_held = _order(b_x)[None, :] >= b_pivot[:, None]
            b_held += tl.sum(tl.where(m_held, b_share[None, :], 0.0), 1)
        passed = tl.sum((b_held >= need).to(tl.int32), 0)
        if passed < _PIVOTS:
            high = tl.minimum(high, low + (passed + 1) * step)
        low += passed * step
    return low


@triton.jit
def _mass_from(p_x, num_entries, low, bottom, top, SIZE: tl.constexpr):
    """Mass of the entries of x from `low` (an ordered int) and bottom up."""
    mass = 0.0
    o_entry = tl.arange(0, SIZE)
    for i_first in range(0, num_entries, SIZE):
        b_x = tl.load(p_x + i_first + o_entry, mask=i_first + o_entry < num_entries, other=float("-inf"))
        m_held = (_order(b_x) >= low) & (b_x >= bottom)
        mass += tl.sum(tl.where(m_held, tl.exp(b_x - top), 0.0), 0)
    return mass


@triton.jit
def _draw(p_x, p_ids, num_entries, low, bottom, seed, position, HAS_IDS: tl.constexpr, SIZE: tl.constexpr):
    """Gumbel-max over the entries of x from `low` and bottom up; the lowest id wins ties."""
    best, token = float("-inf"), 0
    o_entry = tl.arange(0, SIZE)
    for i_first in range(0, num_entries, SIZE):
        m_entry = i_first + o_entry < num_entries
        b_x = tl.load(p_x + i_first + o_entry, mask=m_entry, other=float("-inf"))
        b_ids = i_first + o_entry
        if HAS_IDS:
            b_ids = tl.load(p_ids + b_ids, mask=m_entry, other=0)
        m_held = (_order(b_x) >= low) & (b_x >= bottom) & m_entry
        b_value = tl.where(m_held, b_x + _id_noise(seed, position, b_ids), float("-inf"))
        value = tl.max(b_value, 0)
        if value > best:
            best = value
            token = tl.min(tl.where(b_value == value, b_ids, 2147483647), 0)
    return token


@triton.jit
def _truncate_and_draw(
    p_x,
    p_ids,
    num_entries,
    bottom,
    top,
    mass,
    top_k,
    top_p,
    seed,
    position,
    HAS_IDS: tl.constexpr,
    SIZE: tl.constexpr,
):
    low = _order(bottom).to(tl.int64)
    if top_k > 0:
        low = _bisect(p_x, num_entries, bottom, top, top_k.to(tl.float32), False, SIZE)
        mass = _mass_from(p_x, num_entries, low, bottom, top, SIZE)
    if top_p < 1:
        low = tl.maximum(low, _bisect(p_x, num_entries, bottom, top, top_p * mass, True, SIZE))
    return _draw(p_x, p_ids, num_entries, low, bottom, seed, position, HAS_IDS, SIZE)


@triton.jit
def pick_kernel(
    p_logits, p_scaled, p_temperature, p_top_k, p_top_p, p_min_p, p_seeds, p_positions, p_count_rows,
    p_counts, p_values,
    p_ids, p_tops, p_raw_tops, p_raw_totals, p_entries, p_mass, p_candidates, p_candidate_ids, p_tokens,
    p_logprobs, V,
    num_blocks, BLOCKS: tl.constexpr, CANDIDATES: tl.constexpr,
):  # fmt: skip
    """One row: its token, that token's raw log-probability, and the token's count."""
    i_row = tl.program_id(0).to(tl.int64)
    o_block = tl.arange(0, BLOCKS)
    o_part, m_part = i_row * num_blocks + o_block, o_block < num_blocks
    if _is_cut(p_temperature, p_top_k, p_top_p, p_min_p, i_row):
        top_k, top_p = tl.load(p_top_k + i_row), tl.load(p_top_p + i_row)
        level, num_entries, mass = _choose_level(p_entries, p_mass, top_k, top_p, i_row, num_blocks, BLOCKS)
        top = _row_top(p_tops, i_row, num_blocks, BLOCKS)
        bottom = tl.maximum(_level_bottom(level, top, tl.load(p_min_p + i_row)), -3.4e38)
        seed, position = tl.load(p_seeds + i_row), tl.load(p_positions + i_row)
        if num_entries <= CANDIDATES:
            token = _truncate_and_draw(
                p_candidates + i_row * CANDIDATES, p_candidate_ids + i_row * CANDIDATES, num_entries, bottom,
                top, mass,
                top_k, top_p, seed, position, True, _SIZE,
            )  # fmt: skip
        else:
            token = _truncate_and_draw(
                p_scaled + i_row * V,
                p_ids,
                V,
                bottom,
                top,
                mass,
                top_k,
                top_p,
                seed,
                position,
                False,
                2 * _SIZE,
            )
    else:
        b_value = tl.load(p_values + o_part, mask=m_part, other=float("-inf"))
        token = tl.load(p_ids + i_row * num_blocks + tl.argmax(b_value, 0))
    b_raw_top = tl.load(p_raw_tops + o_part, mask=m_part, other=float("-inf"))
    raw_top = tl.max(b_raw_top, 0)
    raw_total = tl.sum(
        tl.load(p_raw_totals + o_part, mask=m_part, other=0.0) * tl.exp(b_raw_top - raw_top), 0
    )
    tl.store(p_tokens + i_row, token.to(tl.int64))
    raw = tl.load(p_logits + i_row * V + token).to(tl.float32)
    tl.store(p_logprobs + i_row, raw - raw_top - tl.log(raw_total))
    i_count = tl.load(p_count_rows + i_row).to(tl.int64)
    if i_count >= 0:
        p_count = p_counts + i_count * V + token
        count = tl.load(p_count)
        tl.store(p_count, (count | 1) + 2)


def sample(logits: Tensor, state: SamplingState) -> tuple[Tensor, Tensor]:
    """Draw one token per row of logits [R, V] (read only): (token_ids int64 [R], raw logprobs float32 [R]).

    state.counts takes up each drawn token. Launches have no data-dependent shape, so they can be captured.
    """
    num_rows, num_ids = logits.shape
    device, num_blocks = logits.device, triton.cdiv(num_ids, BLOCK)
    blocks = triton.next_power_of_2(num_blocks)
    parts = torch.empty(4, num_rows, num_blocks, dtype=torch.float32, device=device)
    ids = torch.empty(num_rows, num_blocks, dtype=torch.int32, device=device)
    scaled = torch.empty(num_rows, num_ids, dtype=torch.float32, device=device)
    entries = torch.empty(num_rows, _LEVELS.value, num_blocks, dtype=torch.int32, device=device)
    mass = torch.empty(num_rows, _LEVELS.value, num_blocks, dtype=torch.float32, device=device)
    candidates = torch.empty(num_rows, CANDIDATES, dtype=torch.float32, device=device)
    candidate_ids = torch.empty(num_rows, CANDIDATES, dtype=torch.int32, device=device)
    tokens = torch.empty(num_rows, dtype=torch.int64, device=device)
    logprobs = torch.empty(num_rows, dtype=torch.float32, device=device)
    values, tops, raw_tops, raw_totals = parts
    s, grid = state, (num_rows, num_blocks)
    cut = (s.temperature, s.top_k, s.top_p, s.min_p)
    score_kernel[grid](
        logits, *cut, s.repetition, s.presence, s.frequency, s.seeds, s.positions, s.num_edits, s.edit_ids,
        s.edit_values, s.count_rows, s.counts, scaled, values, ids, tops, raw_tops, raw_totals, num_ids,
        s.edit_ids.shape[1], num_blocks, BLOCK, num_warps=4,
    )  # fmt: skip
    mass_kernel[grid](scaled, *cut, tops, entries, mass, num_ids, num_blocks, BLOCK, blocks, num_warps=4)
    gather_kernel[grid](
        scaled, *cut, tops, entries, mass, candidates, candidate_ids, num_ids, num_blocks, BLOCK, blocks,
        CANDIDATES,
        num_warps=8,
    )  # fmt: skip
    pick_kernel[(num_rows,)](
        logits, scaled, *cut, s.seeds, s.positions, s.count_rows, s.counts, values, ids, tops, raw_tops,
        raw_totals,
        entries, mass, candidates, candidate_ids, tokens, logprobs, num_ids, num_blocks, blocks, CANDIDATES,
        num_warps=16,
    )  # fmt: skip
    return tokens, logprobs
