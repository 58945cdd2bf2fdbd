# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Gluon reads parameter annotations as its own types, so kernels carry only gl.constexpr.)
"""Causal attention of prompt chunks on Hopper: TMA loads, wgmma and warp specialization, written in Gluon.

One producer warp streams query tiles and KV blocks into shared memory; two or three consumer warpgroups hold
64 query rows each and keep the product P V of one KV tile in flight while they take the softmax of the next,
as FlashAttention-3 does (Shah et al., 2024). Programs are persistent and take tiles in turn.

Shapes: T query tokens, S sequences, Hq/Hkv query/KV heads, D head_dim (64 or 128), bs block_size, BM query
rows of one head, BN KV tokens. All TMA boxes are [bs = 64, 64]: half a row of D = 128 for the 64 tokens of a
block.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

BLOCK_SIZE = 64  # the only pool block size a TMA box fits
_BOX = [64, 64]
_BOX_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
_TILES = {64: (192, 128, 3), 128: (128, 128, 2)}  # head_dim -> BM, BN, KV tiles in flight
_LOG2_E = 1.4426950408889634


@gluon.jit
def _plan(cu_query_lens, num_seqs, num_heads, BM: gl.constexpr):
    """Return (slots that tiles are looked for in, tiles of the longest run if slots are sorted, else 0).

    Sorted slots hold all sequences' tiles from the last to the first, and blanks where a run is shorter. With
    many sequences or blanks, slots are packed: sequence s owns rows cu_query_lens[s] // BM + s and up, enough
    for its queries without a prefix sum.
    """
    most = 0
    for seq in range(gl.where(num_seqs <= 16, num_seqs, 0)):
        run = gl.load(cu_query_lens + seq + 1) - gl.load(cu_query_lens + seq)
        most = gl.maximum(most, (run + BM - 1) // BM)
    packed = gl.load(cu_query_lens + num_seqs) // BM + num_seqs
    most = gl.where(most * num_seqs <= 4 * packed, most, 0)
    return gl.where(most > 0, most * num_seqs, packed) * num_heads, most


@gluon.jit
def _slot(turn, most):
    """Slot of this program's turn; left to right, then right to left evens out costs that only fall."""
    program = gl.program_id(0)
    last = gl.num_programs(0) - 1
    return turn * (last + 1) + gl.where((most > 0) & (turn % 2 == 1), last - program, program)


@gluon.jit
def _find_sequence(row, cu_query_lens, num_seqs, BM: gl.constexpr):
    """Sequence of a packed row."""
    low = 0
    high = num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if gl.load(cu_query_lens + middle) // BM + middle <= row:
            low = middle
        else:
            high = middle
    return low


@gluon.jit
def _find_tile(slot, cu_query_lens, context_lens, num_seqs, num_heads, most, BM: gl.constexpr):
    """Map a slot to (sequence, head, first query row, rows, position of the first row, context length).

    A blank slot has 0 rows.
    """
    head = slot % num_heads
    row = slot // num_heads
    seq = row % num_seqs
    if most == 0:
        seq = _find_sequence(row, cu_query_lens, num_seqs, BM)
    start = gl.load(cu_query_lens + seq)
    end = gl.load(cu_query_lens + seq + 1)
    context = gl.load(context_lens + seq)
    tile = most - 1 - row // num_seqs
    if most == 0:
        tile = (end - start + BM - 1) // BM - 1 - (row - (start // BM + seq))
    first = start + tile * BM
    rows = gl.where(tile >= 0, gl.maximum(gl.minimum(end - first, BM), 0), 0)
    return seq, head, first, rows, context - end + first, context


@gluon.jit
def _num_kv_tiles(position, rows, BN: gl.constexpr):
    return (position + rows + BN - 1) // BN


@gluon.jit
def _load(loads, plan, bars, BM: gl.constexpr, BN: gl.constexpr, BOX: gl.constexpr):
    """Producer warp: fetch a query tile, then its KV tiles from the last one (the diagonal) to the first."""
    q_desc, kv_desc, block_tables, cu_query_lens, context_lens, q_bufs, k_bufs, v_bufs = loads[0]
    table_stride, num_seqs, num_heads, num_kv_heads = loads[1]
    num_slots, most = plan
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_bufs.type.shape[0]
    D: gl.constexpr = k_bufs.type.shape[2]
    HALVES: gl.constexpr = D // 64
    GROUPS: gl.constexpr = BM // 64
    PAGES: gl.constexpr = BN // 64
    tiles_done = 0
    kv_done = 0
    for turn in range((num_slots + gl.num_programs(0) - 1) // gl.num_programs(0)):
        seq, head, first, rows, position, context = _find_tile(
            _slot(turn, most), cu_query_lens, context_lens, num_seqs, num_heads, most, BM
        )
        if rows > 0:
            mbarrier.wait(q_empty, (tiles_done & 1) ^ 1)
            mbarrier.expect(q_full, BM * D * 2)
            for w in gl.static_range(GROUPS):
                q_boxes = q_bufs.index(w)._reinterpret(q_desc.dtype, [HALVES, 64, 64], BOX)
                for half in gl.static_range(HALVES):
                    tma.async_copy_global_to_shared(
                        q_desc, [first + w * 64, head * D + half * 64], q_full, q_boxes.index(half)
                    )
            tiles_done += 1
            kv_head = head // (num_heads // num_kv_heads)
            num_kv = _num_kv_tiles(position, rows, BN)
            num_blocks = (position + rows + 63) // 64
            table = block_tables + seq.to(gl.int64) * table_stride
            for j in range(num_kv - 1, -1, -1):
                stage = kv_done % STAGES
                free = ((kv_done // STAGES) & 1) ^ 1
                k_boxes = k_bufs.index(stage)._reinterpret(kv_desc.dtype, [HALVES * PAGES, 64, 64], BOX)
                v_boxes = v_bufs.index(stage)._reinterpret(kv_desc.dtype, [HALVES * PAGES, 64, 64], BOX)
                mbarrier.wait(k_empty.index(stage), free)
                mbarrier.expect(k_full.index(stage), BN * D * 2)
                for page in gl.static_range(PAGES):
                    # Places past the context repeat its last block; the causal mask hides them.
                    block = gl.load(table + gl.minimum(j * PAGES + page, num_blocks - 1))
                    row = (block * 2 * num_kv_heads + kv_head) * 64
                    for half in gl.static_range(HALVES):
                        tma.async_copy_global_to_shared(
                            kv_desc, [row, half * 64], k_full.index(stage), k_boxes.index(half * PAGES + page)
                        )
                mbarrier.wait(v_empty.index(stage), free)
                mbarrier.expect(v_full.index(stage), BN * D * 2)
                for page in gl.static_range(PAGES):
                    block = gl.load(table + gl.minimum(j * PAGES + page, num_blocks - 1))
                    row = (block * 2 * num_kv_heads + num_kv_heads + kv_head) * 64
                    for half in gl.static_range(HALVES):
                        tma.async_copy_global_to_shared(
                            kv_desc, [row, half * 64], v_full.index(stage), v_boxes.index(half * PAGES + page)
                        )
                kv_done += 1


@gluon.jit
def _softmax(s, top, total, scale_log2, P_LAYOUT: gl.constexpr):
    """One online softmax step over raw scores s [64, BN]: (P bf16, rescale factor, new maximum, new sum)."""
    new_top = gl.maximum(top, gl.max(s, 1) * scale_log2)
    p = gl.exp2(s * scale_log2 - new_top[:, None])
    alpha = gl.exp2(top - new_top)
    new_total = total * alpha + gl.sum(p, 1)
    return gl.convert_layout(p.to(gl.bfloat16), P_LAYOUT, assert_trivial=True), alpha, new_top, new_total


@gluon.jit
def _scores(q, k_buf, BN: gl.constexpr, S_LAYOUT: gl.constexpr):
    """Issue S = Q Kᵀ [64, BN]."""
    zero = gl.zeros([64, BN], gl.float32, S_LAYOUT)
    return warpgroup_mma(q, k_buf.permute((1, 0)), zero, use_acc=False, is_async=True)


@gluon.jit
def _mask(s, j, position, BN: gl.constexpr, S_LAYOUT: gl.constexpr):
    """Hide KV tokens after each row's own position; `position` is that of row 0."""
    row = gl.arange(0, 64, layout=gl.SliceLayout(1, S_LAYOUT))
    column = gl.arange(0, BN, layout=gl.SliceLayout(0, S_LAYOUT))
    return gl.where((j * BN + column)[None, :] <= (position + row)[:, None], s, float("-inf"))


@gluon.jit
def _clear_tail(v_buf, num_tokens):
    """Zero the values after num_tokens: unwritten memory, maybe NaN. Both warpgroups store the same bits."""
    BN: gl.constexpr = v_buf.shape[0]
    D: gl.constexpr = v_buf.shape[1]
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    row = gl.arange(0, BN, layout=gl.SliceLayout(1, LAYOUT))
    value = v_buf.load(LAYOUT)
    v_buf.store(gl.where((row < num_tokens)[:, None], value, 0.0))
    fence_async_shared()
    gl.thread_barrier()


@gluon.jit
def _attend(  # noqa: PLR0915
    shared, plan, bars, W: gl.constexpr, BM: gl.constexpr, BN: gl.constexpr
):
    """Consumer warpgroup W: rows 64 W to 64 W + 63 of every query tile."""
    out, cu_query_lens, context_lens, q_bufs, k_bufs, v_bufs = shared[0]
    num_seqs, num_heads, scale = shared[1]
    num_slots, most = plan
    q_full, q_empty, k_full, k_empty, v_full, v_empty = bars
    STAGES: gl.constexpr = k_bufs.type.shape[0]
    D: gl.constexpr = k_bufs.type.shape[2]
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BN, 16])
    O_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D, 16])
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, O_LAYOUT, 2)
    STORE: gl.constexpr = gl.BlockedLayout([1, 8], [256 // D, D // 8], [4, 1], [1, 0])
    tiles_done = 0
    kv_done = 0
    q = q_bufs.index(W)
    for turn in range((num_slots + gl.num_programs(0) - 1) // gl.num_programs(0)):
        seq, head, first, rows, position, context = _find_tile(
            _slot(turn, most), cu_query_lens, context_lens, num_seqs, num_heads, most, BM
        )
        if rows > 0:
            num_kv = _num_kv_tiles(position, rows, BN)
            position += W * 64
            first += W * 64
            rows -= W * 64
            num_open = gl.minimum((position + 1) // BN, num_kv - 1)  # KV tiles that no row masks
            mbarrier.wait(q_full, tiles_done & 1)
            tiles_done += 1
            stage = kv_done % STAGES
            phase = (kv_done // STAGES) & 1
            mbarrier.wait(k_full.index(stage), phase)
            if num_kv * BN > context:
                mbarrier.wait(v_full.index(stage), phase)
                _clear_tail(v_bufs.index(stage), context - (num_kv - 1) * BN)
            s = _scores(q, k_bufs.index(stage), BN, S_LAYOUT)
            s = warpgroup_mma_wait(0, deps=(s,))
            mbarrier.arrive(k_empty.index(stage))
            s = _mask(s, num_kv - 1, position, BN, S_LAYOUT)
            top = gl.full(
                [64], -1e30, gl.float32, gl.SliceLayout(1, S_LAYOUT)
            )  # finite: a row may be all masked
            total = gl.zeros([64], gl.float32, gl.SliceLayout(1, S_LAYOUT))
            acc = gl.zeros([64, D], gl.float32, O_LAYOUT)
            p, alpha, top, total = _softmax(s, top, total, scale, P_LAYOUT)
            coming = kv_done + 1
            mbarrier.wait(k_full.index(coming % STAGES), coming // STAGES & 1, pred=num_kv > 1)
            for j in range(num_kv - 2, -1, -1):
                v_stage = stage
                v_phase = phase
                kv_done += 1
                stage = kv_done % STAGES
                phase = (kv_done // STAGES) & 1
                s = _scores(q, k_bufs.index(stage), BN, S_LAYOUT)
                mbarrier.wait(v_full.index(v_stage), v_phase)
                acc = warpgroup_mma(p, v_bufs.index(v_stage), acc, is_async=True)
                s = warpgroup_mma_wait(1, deps=(s,))
                mbarrier.arrive(k_empty.index(stage))
                if j >= num_open:
                    s = _mask(s, j, position, BN, S_LAYOUT)
                next_p, alpha, top, total = _softmax(s, top, total, scale, P_LAYOUT)
                # Waiting for the next K here, in a loop of its own, keeps ptxas from moving
                # the wait for P V up.
                coming = kv_done + 1
                mbarrier.wait(k_full.index(coming % STAGES), coming // STAGES & 1, pred=j > 0)
                acc, p = warpgroup_mma_wait(0, deps=(acc, p))
                mbarrier.arrive(v_empty.index(v_stage))
                acc = acc * gl.convert_layout(alpha, gl.SliceLayout(1, O_LAYOUT))[:, None]
                p = next_p
            mbarrier.arrive(q_empty)
            mbarrier.wait(v_full.index(stage), phase)
            acc = warpgroup_mma(p, v_bufs.index(stage), acc, is_async=True)
            acc, p = warpgroup_mma_wait(0, deps=(acc, p))
            mbarrier.arrive(v_empty.index(stage))
            kv_done += 1
            acc = acc / gl.convert_layout(total, gl.SliceLayout(1, O_LAYOUT))[:, None]
            value = gl.convert_layout(acc.to(gl.bfloat16), STORE)
            row = gl.arange(0, 64, layout=gl.SliceLayout(1, STORE))
            column = gl.arange(0, D, layout=gl.SliceLayout(0, STORE))
            offsets = (first + row).to(gl.int64)[:, None] * (num_heads * D) + (head * D + column)[None, :]
            gl.store(out + offsets, value, mask=(row < rows)[:, None])


@gluon.jit
def _prefill_kernel(
    q_desc,
    kv_desc,
    out,
    block_tables,
    cu_query_lens,
    context_lens,
    table_stride,
    num_seqs,
    num_heads,
    num_kv_heads,
    scale_log2,
    D: gl.constexpr,
    BM: gl.constexpr,
    BN: gl.constexpr,
    STAGES: gl.constexpr,
    BOX: gl.constexpr,
):
    """q_desc over [T, Hq D], kv_desc over [blocks 2 Hkv bs, D], out [T, Hq, D]."""
    GROUPS: gl.constexpr = BM // 64
    q_bufs = gl.allocate_shared_memory(q_desc.dtype, [BM // 64, 64, D], BOX)
    k_bufs = gl.allocate_shared_memory(q_desc.dtype, [STAGES, BN, D], BOX)
    v_bufs = gl.allocate_shared_memory(q_desc.dtype, [STAGES, BN, D], BOX)
    BAR: gl.constexpr = mbarrier.MBarrierLayout()
    q_full = gl.allocate_shared_memory(gl.int64, [1], BAR)
    q_empty = gl.allocate_shared_memory(gl.int64, [1], BAR)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    k_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    v_empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], BAR)
    mbarrier.init(q_full, count=1)
    mbarrier.init(q_empty, count=GROUPS)
    for i in gl.static_range(STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=GROUPS)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=GROUPS)
    bars = (q_full, q_empty, k_full, k_empty, v_full, v_empty)
    plan = _plan(cu_query_lens, num_seqs, num_heads, BM)
    tensors = (q_desc, kv_desc, block_tables, cu_query_lens, context_lens, q_bufs, k_bufs, v_bufs)
    loads = (tensors, (table_stride, num_seqs, num_heads, num_kv_heads))
    buffers = (out, cu_query_lens, context_lens, q_bufs, k_bufs, v_bufs)
    shared = (buffers, (num_seqs, num_heads, scale_log2))
    if GROUPS == 2:
        gl.warp_specialize(
            [
                (_attend, (shared, plan, bars, 0, BM, BN)),
                (_attend, (shared, plan, bars, 1, BM, BN)),
                (_load, (loads, plan, bars, BM, BN, BOX)),
            ],
            [4, 1],
            [240, 24],
        )
    else:
        gl.warp_specialize(
            [
                (_attend, (shared, plan, bars, 0, BM, BN)),
                (_attend, (shared, plan, bars, 1, BM, BN)),
                (_attend, (shared, plan, bars, 2, BM, BN)),
                (_load, (loads, plan, bars, BM, BN, BOX)),
            ],
            [4, 4, 1],
            [160, 160, 24],
        )


def supports(q: Tensor, kv_layer: Tensor) -> bool:
    """True for what the kernel takes: bf16 on Hopper, head_dim 64 or 128, blocks of 64 tokens."""
    block_size, head_dim = kv_layer.shape[3:]
    is_hopper = q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9
    return is_hopper and q.dtype == torch.bfloat16 and head_dim in _TILES and block_size == BLOCK_SIZE


def paged_prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    num_programs: int | None = None,
) -> Tensor:
    """Launch; arguments as the wrapper's. num_programs bounds the persistent programs, by default one a
    multiprocessor.
    """
    num_queries, num_heads, head_dim = q.shape
    num_kv_heads, num_seqs = kv_layer.shape[2], len(context_lens)
    q, block_tables, out = q.contiguous(), block_tables.contiguous(), torch.empty_like(q)
    block_m, block_n, stages = _TILES[head_dim]
    num_tiles = (num_queries // block_m + num_seqs) * num_heads
    num_programs = num_programs or torch.cuda.get_device_properties(q.device).multi_processor_count
    _prefill_kernel[(min(num_tiles, num_programs),)](
        _boxes(q.view(num_queries, -1)), _boxes(kv_layer.view(-1, head_dim)), out, block_tables,
        cu_query_lens,
        context_lens, block_tables.stride(0), num_seqs, num_heads,
        num_kv_heads,
        scale * _LOG2_E, head_dim, block_m, block_n, stages, _BOX_LAYOUT, num_warps=4,
        maxnreg=168 if block_m == 128 else 128,
    )  # fmt: skip
    return out


def _boxes(matrix: Tensor) -> Any:
    return TensorDescriptor.from_tensor(matrix, _BOX, _BOX_LAYOUT)
