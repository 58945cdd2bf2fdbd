# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Gluon reads parameter annotations as its own types, so kernels carry only gl.constexpr.)
"""Paged attention of short query runs on Hopper in Gluon: one warp a program, KV through a small TMA ring.

Reading KV is all that costs, so a program is a single warp that needs no barrier but those of its own loads;
several share a multiprocessor. Programs are persistent and take items (SPLIT context tokens of one query tile
and KV head) from a list built once a step, so one CUDA graph serves every mix of lengths. Items of a query
are merged in index order, and neither their size nor their tiling depends on the batch: a query's result has
the same bits alone, in any batch, and as one of a run.

Shapes: T queries, S sequences, Hq/Hkv query/KV heads, G = Hq / Hkv, D head_dim (64 or 128),
bs block_size = 64, P splits of the longest context the block table holds, CHUNK tokens of one load. A load is
one TMA box [2 (K, V), D / 64, CHUNK, 64], the order of swizzled operands.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from forebay.kernels.triton_split_attention import combine_parts
from forebay.kernels.triton_split_items import SPLIT, SplitItems, build_items

_CHUNK = 32
_SLOTS = 3
_PROGRAMS_PER_SM = 4
_BOX_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=4)
_TILE_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
_LOG2_E = 1.4426950408889634


@gluon.jit
def _item_tokens(p_items, p_tables, unit, num_units, table_stride, KV_HEADS: gl.constexpr):
    """Read a unit's (first token, end token, block table); a unit past the end gets the last item's."""
    p_item = p_items + gl.maximum(gl.minimum(unit, num_units - 1), 0) // KV_HEADS * 8
    p_table = p_tables + gl.load(p_item).to(gl.int64) * table_stride
    return gl.load(p_item + 4), gl.load(p_item + 5), p_table


@gluon.jit
def _fill(
    kv_desc, p_tables, p_items, bufs, bars, ahead, token, end, p_table, block, issued, limit, num_units,
    table_stride,
    KV_HEADS: gl.constexpr,
):  # fmt: skip
    """Issue the loads of chunks until `limit` have been issued in all or none is left.

    `block` holds the next chunk's tokens: it is read a chunk ahead, so that no load waits for it.
    """
    SLOTS: gl.constexpr = bufs.type.shape[0]
    CHUNK: gl.constexpr = bufs.type.shape[3]
    while (issued < limit) & (ahead < num_units):
        bar = bars.index(issued % SLOTS)
        row = (block * 2 * KV_HEADS + ahead % KV_HEADS) * 64 + token % 64
        mbarrier.expect(bar, kv_desc.block_type.nbytes)
        tma.async_copy_global_to_shared(kv_desc, [0, 0, row, 0], bar, bufs.index(issued % SLOTS))
        issued += 1
        token += CHUNK
        if token >= end:
            ahead += gl.num_programs(0)
            token, end, p_table = _item_tokens(p_items, p_tables, ahead, num_units, table_stride, KV_HEADS)
        block = gl.load(p_table + token // 64)
    return ahead, token, end, p_table, block, issued


@gluon.jit
def _attend_chunk(
    q, k_buf, v_buf, acc, top, total, position, ancestors, run_start, token, end, scale_log2, masked,
    S_LAYOUT: gl.constexpr, TREE: gl.constexpr,
):  # fmt: skip
    """One online softmax step of q [ROWS, D] over CHUNK tokens from `token`."""
    ROWS: gl.constexpr = q.type.shape[0]
    CHUNK: gl.constexpr = k_buf.type.shape[0]
    K_LAYOUT: gl.constexpr = gl.DotOperandLayout(1, S_LAYOUT, 2)
    P_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, S_LAYOUT, 2)
    k = k_buf.permute((1, 0)).load(K_LAYOUT)
    s = mma_v2(q, k, gl.zeros([ROWS, CHUNK], gl.float32, S_LAYOUT)) * scale_log2
    if masked:
        column = token + gl.arange(0, CHUNK, layout=gl.SliceLayout(0, S_LAYOUT))
        seen = (column[None, :] <= position[:, None]) & (column < end)[None, :]
        if TREE:
            bit = (ancestors[:, None] >> gl.maximum(column - run_start, 0)[None, :].to(gl.int64)) & 1
            seen = seen & ((column < run_start)[None, :] | (bit == 1))
        s = gl.where(seen, s, float("-inf"))
    new_top = gl.maximum(top, gl.max(s, 1))
    p = gl.exp2(s - new_top[:, None])
    decay = gl.exp2(top - new_top)
    total = total * decay + gl.sum(p, 1)
    v = v_buf.load(K_LAYOUT)
    if masked:
        # Memory after the context is unwritten, maybe NaN, which a weight of zero would not hide.
        row = token + gl.arange(0, CHUNK, layout=gl.SliceLayout(1, K_LAYOUT))
        v = gl.where((row < end)[:, None], v, 0.0)
    acc = mma_v2(gl.convert_layout(p.to(gl.bfloat16), P_LAYOUT), v, acc * decay[:, None])
    return acc, new_top, total


@gluon.jit(do_not_specialize=["table_stride", "num_parts"])
def split_kernel(  # noqa: PLR0915
    p_q, kv_desc, p_tables, p_items, p_num_items, p_ancestors, p_acc, p_top, p_total, scale_log2,
    table_stride,
    num_parts, KV_HEADS: gl.constexpr, GROUP: gl.constexpr, D: gl.constexpr, CHUNK: gl.constexpr,
    ROWS: gl.constexpr, SLOTS: gl.constexpr, TILE: gl.constexpr, TREE: gl.constexpr,
):  # fmt: skip
    """Write acc [T, Hq, P, D], top and total [T, Hq, P], float32, of every (query, split) with tokens to see.

    Items are those of `triton_split_items`.
    """
    gdc_launch_dependents()
    S_LAYOUT: gl.constexpr = gl.NVMMADistributedLayout([2, 0], [ROWS // 16, 1], [16, 8])
    Q_LAYOUT: gl.constexpr = gl.DotOperandLayout(0, S_LAYOUT, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, S_LAYOUT)
    bufs = gl.allocate_shared_memory(gl.bfloat16, [SLOTS, 2, D // 64, CHUNK, 64], kv_desc.layout)
    bars = gl.allocate_shared_memory(gl.int64, [SLOTS, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(SLOTS):
        mbarrier.init(bars.index(i), count=1)
    gdc_wait()
    num_units = gl.load(p_num_items) * KV_HEADS
    unit = gl.program_id(0)
    # Loads run ahead of the arithmetic: `token` of item `ahead` is the next to load, `issued` counts
    # chunks loaded.
    ahead = unit
    token, end, p_table = _item_tokens(p_items, p_tables, ahead, num_units, table_stride, KV_HEADS)
    block = 0
    if unit < num_units:
        block = gl.load(p_table + token // 64)
    issued = 0
    used = 0
    ahead, token, end, p_table, block, issued = _fill(
        kv_desc, p_tables, p_items, bufs, bars, ahead, token, end, p_table, block, issued, SLOTS, num_units,
        table_stride, KV_HEADS,
    )  # fmt: skip
    while unit < num_units:
        p_mine = p_items + unit // KV_HEADS * 8
        head = unit % KV_HEADS
        query = gl.load(p_mine + 1)
        query_end = gl.load(p_mine + 2)
        split = gl.load(p_mine + 3)
        my_token = gl.load(p_mine + 4)
        my_end = gl.load(p_mine + 5)
        shift = gl.load(p_mine + 6)
        run_start = gl.load(p_mine + 7)
        r = gl.arange(0, ROWS, layout=ROW)
        c = gl.arange(0, D, layout=gl.SliceLayout(0, S_LAYOUT))
        row_query = query + r // GROUP
        is_row = row_query < query_end
        row_head = row_query.to(gl.int64) * (KV_HEADS * GROUP) + head * GROUP + r % GROUP
        q = gl.load(p_q + row_head[:, None] * D + c[None, :], mask=is_row[:, None], other=0.0)
        q = gl.convert_layout(q, Q_LAYOUT)
        position = shift + row_query
        ancestors = gl.zeros([ROWS], gl.int64, ROW)
        if TREE:
            ancestors = gl.load(p_ancestors + row_query, mask=is_row, other=0)
        acc = gl.zeros([ROWS, D], gl.float32, S_LAYOUT)
        top = gl.full([ROWS], -1e30, gl.float32, ROW)
        total = gl.zeros([ROWS], gl.float32, ROW)
        first_seen = shift + query  # every row sees tokens up to here (in a tree: up to the run)
        if TREE:
            first_seen = run_start - 1
        while my_token < my_end:
            ahead, token, end, p_table, block, issued = _fill(
                kv_desc, p_tables, p_items, bufs, bars, ahead, token, end, p_table, block, issued,
                used + SLOTS,
                num_units, table_stride, KV_HEADS,
            )  # fmt: skip
            slot = used % SLOTS
            mbarrier.wait(bars.index(slot), used // SLOTS & 1)
            pair = bufs.index(slot)._reinterpret(gl.bfloat16, [2, CHUNK, D], TILE)
            masked = my_token + CHUNK > gl.minimum(my_end, first_seen + 1)
            acc, top, total = _attend_chunk(
                q, pair.index(0), pair.index(1), acc, top, total, position, ancestors, run_start, my_token,
                my_end, scale_log2, masked, S_LAYOUT, TREE,
            )  # fmt: skip
            fence_async_shared()
            gl.thread_barrier()
            used += 1
            my_token += CHUNK
        part = row_head * num_parts + split
        gl.store(p_acc + part[:, None] * D + c[None, :], acc, mask=is_row[:, None])
        gl.store(p_top + part, top, mask=is_row)
        gl.store(p_total + part, total, mask=is_row)
        unit += gl.num_programs(0)


def supports(q: Tensor, kv_layer: Tensor) -> bool:
    """True for what the kernel takes: bf16 on Hopper, head_dim 64 or 128, blocks of 64 tokens, G <= 16."""
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    is_hopper = q.is_cuda and torch.cuda.get_device_capability(q.device)[0] == 9
    is_shape = head_dim in (64, 128) and block_size == 64 and q.shape[1] <= 16 * num_kv_heads
    return is_hopper and q.dtype == torch.bfloat16 and is_shape


def split_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    ancestors: Tensor | None = None,
    items: SplitItems | None = None,
    num_programs: int | None = None,
) -> Tensor:
    """Return [T, Hq, D]; arguments as `triton_split_attention.split_attention`, and the step's items."""
    q, block_tables = q.contiguous(), block_tables.contiguous()
    num_queries, num_heads, head_dim = q.shape
    num_kv_heads = kv_layer.shape[2]
    num_parts = triton.cdiv(block_tables.shape[1] * 64, SPLIT)
    if items is None:
        items = build_items(cu_query_lens, context_lens, num_queries, num_heads // num_kv_heads, num_parts)
    top, total = torch.empty(2, num_queries, num_heads, num_parts, dtype=torch.float32, device=q.device)
    acc = torch.empty(*top.shape, head_dim, dtype=torch.float32, device=q.device)
    num_sms = torch.cuda.get_device_properties(q.device).multi_processor_count
    split_kernel[(num_programs or _PROGRAMS_PER_SM * num_sms,)](
        q, _boxes(kv_layer), block_tables, items.table, items.count, q if ancestors is None else ancestors,
        acc, top, total,
        scale * _LOG2_E, block_tables.stride(0), num_parts, num_kv_heads, num_heads // num_kv_heads,
        head_dim, _CHUNK,
        items.num_rows, _SLOTS, _TILE_LAYOUT, ancestors is not None, num_warps=items.num_rows // 16,
        launch_pdl=True,
    )  # fmt: skip
    return combine_parts(acc, top, total, cu_query_lens, context_lens, SPLIT, q.dtype)


def _boxes(kv_layer: Tensor) -> Any:
    """Describe kv_layer as [2, D / 64, rows, 64] with row = (block * 2 Hkv + head) * bs + offset."""
    num_blocks, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    plane = num_kv_heads * block_size  # rows from a block's keys to its values
    shape = [2, head_dim // 64, (2 * num_blocks - 1) * plane, 64]
    strides = [plane * head_dim, 64, head_dim, 1]
    return TensorDescriptor(kv_layer, shape, strides, [2, head_dim // 64, _CHUNK, 64], _BOX_LAYOUT)
