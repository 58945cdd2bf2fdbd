# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""Paged attention of short query runs in Triton: decode, draft verification (chain or tree) and prompt tails.

Work is cut into items of one query tile, one KV head and SPLIT context tokens. A fixed number of persistent
programs takes them in turn, finding each item in the lengths on the GPU, so one CUDA graph serves every mix
of lengths. Items of a query are merged in index order; neither their size nor their inner tiling depends on
the batch, so a query's result has the same bits alone, in any batch, and as one of a run.

Names: p_ pointer, b_ block in registers, i_ index, o_ offsets, m_ mask. Shapes: T queries, S sequences,
Hq/Hkv query/KV heads, G = Hq / Hkv, D head_dim, bs block_size, P splits of the longest context the block
table holds.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

SPLIT = 512  # context tokens of one item
STAGES = 3
_COMBINE_WARPS = 1  # of 4, 2, 1 for 128 queries at 1,100 tokens: 170, 163, 159 us with the split (H200)
_LOG2_E = 1.4426950408889634


@triton.jit
def _find_item(
    i_item, p_cu, p_lens, num_seqs, SPLIT: tl.constexpr, QUERIES: tl.constexpr, SEQS: tl.constexpr
):
    """Map an item number (heads aside) to (sequence, query tile, split); sequence = num_seqs past the end."""
    o_seq = tl.arange(0, SEQS)
    m_seq = o_seq < num_seqs
    b_start = tl.load(p_cu + o_seq, mask=m_seq, other=0)
    b_end = tl.load(p_cu + o_seq + 1, mask=m_seq, other=0)
    b_splits = tl.cdiv(tl.load(p_lens + o_seq, mask=m_seq, other=0), SPLIT)
    b_last = tl.cumsum(tl.cdiv(b_end - b_start, QUERIES) * b_splits, 0)
    m_before = m_seq & (b_last <= i_item)
    i_seq = tl.sum(m_before.to(tl.int32), 0)
    i_local = i_item - tl.max(tl.where(m_before, b_last, 0), 0)
    num_splits = tl.sum(tl.where(o_seq == i_seq, b_splits, 0), 0)
    num_splits = tl.maximum(num_splits, 1)
    return i_seq, i_local // num_splits, i_local % num_splits


@triton.jit
def _attend_tile(
    b_q, b_acc, b_top, b_total, b_position, b_ancestors, i_first, p_kv, p_table, i_start, i_end, i_head,
    scale_log2,
    NUM_KV_HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr,
    MASKED: tl.constexpr, TREE: tl.constexpr,
):  # fmt: skip
    """One online softmax step over TILE tokens from i_start; those from i_end or after a query are hidden."""
    o_token, o_dim = i_start + tl.arange(0, TILE), tl.arange(0, HEAD_DIM)
    m_token = o_token < i_end
    if BLOCK_SIZE >= TILE:
        b_block = tl.load(p_table + i_start // BLOCK_SIZE)
    else:
        b_block = tl.load(p_table + o_token // BLOCK_SIZE, mask=m_token, other=0)
    o_key = (b_block.to(tl.int64) * (2 * NUM_KV_HEADS) + i_head) * (BLOCK_SIZE * HEAD_DIM)
    o_key = o_key + o_token % BLOCK_SIZE * HEAD_DIM
    o_value = o_key + NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
    if MASKED:
        b_key = tl.load(p_kv + o_key[None, :] + o_dim[:, None], mask=m_token[None, :], other=0.0)
        b_value = tl.load(p_kv + o_value[:, None] + o_dim[None, :], mask=m_token[:, None], other=0.0)
    else:
        b_key = tl.load(p_kv + o_key[None, :] + o_dim[:, None])
        b_value = tl.load(p_kv + o_value[:, None] + o_dim[None, :])
    b_score = tl.dot(b_q, b_key, input_precision="ieee") * scale_log2
    if MASKED:
        m_seen = o_token[None, :] <= b_position[:, None]
        if TREE:
            b_bit = (b_ancestors[:, None] >> tl.maximum(o_token - i_first, 0)[None, :].to(tl.int64)) & 1
            m_seen = m_seen & ((o_token < i_first)[None, :] | (b_bit == 1))
        b_score = tl.where(m_seen & m_token[None, :], b_score, float("-inf"))
    b_new_top = tl.maximum(b_top, tl.max(b_score, axis=1))
    b_weight = tl.exp2(b_score - b_new_top[:, None])
    b_decay = tl.exp2(b_top - b_new_top)
    b_total = b_total * b_decay + tl.sum(b_weight, axis=1)
    b_acc = tl.dot(b_weight.to(b_value.dtype), b_value, b_acc * b_decay[:, None], input_precision="ieee")
    return b_acc, b_new_top, b_total


@triton.jit(do_not_specialize=["table_stride", "num_seqs", "num_parts"])
def split_kernel(
    p_q, p_kv, p_tables, p_cu, p_lens, p_ancestors, p_acc, p_top, p_total, scale_log2, table_stride,
    num_seqs, num_parts,
    NUM_KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr, QUERIES: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, SEQS: tl.constexpr,
    TREE: tl.constexpr, PDL: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """Write acc [T, Hq, P, D], top and total [T, Hq, P], float32, of each (query, split) that sees any."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    i_item = tl.program_id(0)
    i_seq, i_tile, i_split = _find_item(i_item // NUM_KV_HEADS, p_cu, p_lens, num_seqs, SPLIT, QUERIES, SEQS)
    while i_seq < num_seqs:
        i_head = i_item % NUM_KV_HEADS
        i_start, i_stop = tl.load(p_cu + i_seq), tl.load(p_cu + i_seq + 1)
        context_len = tl.load(p_lens + i_seq)
        i_first = context_len - (i_stop - i_start)  # position of the run's first query
        o_row, o_dim = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
        o_token = i_start + i_tile * QUERIES + o_row // GROUP
        m_row = (o_row < QUERIES * GROUP) & (o_token < i_stop)
        b_position = i_first + o_token - i_start
        o_query = o_token.to(tl.int64) * (NUM_KV_HEADS * GROUP) + i_head * GROUP + o_row % GROUP
        b_q = tl.load(p_q + o_query[:, None] * HEAD_DIM + o_dim[None, :], mask=m_row[:, None], other=0.0)
        b_ancestors = tl.zeros((ROWS,), tl.int64)
        if TREE:
            b_ancestors = tl.load(p_ancestors + o_token, mask=m_row, other=0)
        b_top = tl.full((ROWS,), -1e30, tl.float32)  # finite: a row may see nothing of a tile
        b_total = tl.zeros((ROWS,), tl.float32)
        b_acc = tl.zeros((ROWS, HEAD_DIM), tl.float32)
        p_table = p_tables + i_seq.to(tl.int64) * table_stride
        i_from = i_split * SPLIT
        i_end = tl.minimum(i_from + SPLIT, context_len)
        # Tokens before the tile's first query are seen by all its rows.
        i_open = tl.minimum(i_end, i_first if TREE else i_first + i_tile * QUERIES + 1)
        i_open = i_from + tl.maximum(i_open - i_from, 0) // TILE * TILE
        for i_token in tl.range(i_from, i_open, TILE, num_stages=STAGES):
            b_acc, b_top, b_total = _attend_tile(
                b_q, b_acc, b_top, b_total, b_position, b_ancestors, i_first, p_kv, p_table, i_token, i_end,
                i_head,
                scale_log2, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE, False, TREE,
            )  # fmt: skip
        for i_token in tl.range(i_open, i_end, TILE, num_stages=1):
            b_acc, b_top, b_total = _attend_tile(
                b_q, b_acc, b_top, b_total, b_position, b_ancestors, i_first, p_kv, p_table, i_token, i_end,
                i_head,
                scale_log2, NUM_KV_HEADS, HEAD_DIM, BLOCK_SIZE, TILE, True, TREE,
            )  # fmt: skip
        o_part = o_query * num_parts + i_split
        tl.store(p_acc + o_part[:, None] * HEAD_DIM + o_dim[None, :], b_acc, mask=m_row[:, None])
        tl.store(p_top + o_part, b_top, mask=m_row)
        tl.store(p_total + o_part, b_total, mask=m_row)
        i_item += tl.num_programs(0)
        i_seq, i_tile, i_split = _find_item(
            i_item // NUM_KV_HEADS, p_cu, p_lens, num_seqs, SPLIT, QUERIES, SEQS
        )


@triton.jit(do_not_specialize=["num_seqs", "num_parts"])
def combine_kernel(
    p_acc, p_top, p_total, p_cu, p_lens, p_out, num_seqs, num_parts, NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr, PARTS: tl.constexpr, SEQS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """Merge the parts of one query and head, PARTS at a time in index order, into out [T, Hq, D]."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    i_query = tl.program_id(0).to(tl.int64)
    o_seq = tl.arange(0, SEQS)
    b_start = tl.load(p_cu + o_seq, mask=o_seq < num_seqs, other=2147483647)
    i_seq = tl.sum((b_start <= i_query).to(tl.int32), 0) - 1
    num_splits = tl.cdiv(tl.load(p_lens + i_seq), SPLIT)
    o_dim = tl.arange(0, HEAD_DIM)
    o_head = i_query * NUM_HEADS + tl.program_id(1)
    o_part = o_head * num_parts
    b_acc = tl.zeros((HEAD_DIM,), tl.float32)
    b_top, b_total = -1e30, 0.0
    for i_first in range(0, num_splits, PARTS):
        o_split = i_first + tl.arange(0, PARTS)
        m_split = o_split < num_splits
        b_tops = tl.load(p_top + o_part + o_split, mask=m_split, other=float("-inf"))
        b_totals = tl.load(p_total + o_part + o_split, mask=m_split, other=0.0)
        o_acc = (o_part + o_split)[:, None] * HEAD_DIM + o_dim[None, :]
        b_accs = tl.load(p_acc + o_acc, mask=m_split[:, None], other=0.0)
        b_new_top = tl.maximum(b_top, tl.max(b_tops, 0))
        b_decay, b_gains = tl.exp2(b_top - b_new_top), tl.exp2(b_tops - b_new_top)
        b_total = b_total * b_decay + tl.sum(b_totals * b_gains, 0)
        b_acc = b_acc * b_decay + tl.sum(b_accs * b_gains[:, None], 0)
        b_top = b_new_top
    b_acc = tl.where(num_splits > 0, b_acc / b_total, 0.0)  # a padding row has no context
    tl.store(p_out + o_head * HEAD_DIM + o_dim, b_acc.to(p_out.dtype.element_ty))


def split_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    ancestors: Tensor | None = None,
    num_programs: int | None = None,
) -> Tensor:
    """Return [T, Hq, D]: each sequence's queries are its last positions, seen causally.

    Arguments as `verify_attention`; a sequence with context 0 is padding. ancestors int64 [T] makes the
    runs trees: bit i of a query's entry is set if it sees query i of its run (set its own bit).
    num_programs bounds the persistent programs, by default two a multiprocessor.
    """
    q, block_tables = q.contiguous(), block_tables.contiguous()
    num_queries, num_heads, head_dim = q.shape
    _, _, num_kv_heads, block_size, _ = kv_layer.shape
    num_seqs, group = len(context_lens), num_heads // num_kv_heads
    num_parts = triton.cdiv(block_tables.shape[1] * block_size, SPLIT)
    top, total = torch.empty(2, num_queries, num_heads, num_parts, dtype=torch.float32, device=q.device)
    acc = torch.empty(*top.shape, head_dim, dtype=torch.float32, device=q.device)
    tile = 64 if head_dim * q.element_size() <= 128 else 32  # more would spill registers (sm_90)
    rows = _num_rows(num_queries, num_seqs, group)
    seqs, pdl = triton.next_power_of_2(num_seqs), q.is_cuda
    split_kernel[(num_programs or _num_programs(q.device),)](
        q, kv_layer, block_tables, cu_query_lens, context_lens, ancestors, acc, top, total, scale * _LOG2_E,
        block_tables.stride(0), num_seqs, num_parts, num_kv_heads, group, head_dim, block_size, SPLIT,
        rows // group,
        rows, tile, seqs, ancestors is not None, pdl, STAGES, num_warps=4, launch_pdl=pdl,
    )  # fmt: skip
    return combine_parts(acc, top, total, cu_query_lens, context_lens, SPLIT, q.dtype)


def combine_parts(
    acc: Tensor,
    top: Tensor,
    total: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    split: int,
    dtype: torch.dtype,
) -> Tensor:
    """Merge parts acc [T, Hq, P, D], top and total [T, Hq, P] of `split` tokens each into [T, Hq, D]."""
    num_queries, num_heads, num_parts, head_dim = acc.shape
    out = torch.empty(num_queries, num_heads, head_dim, dtype=dtype, device=acc.device)
    seqs = triton.next_power_of_2(len(context_lens))
    combine_kernel[(num_queries, num_heads)](
        acc, top, total, cu_query_lens, context_lens, out, len(context_lens), num_parts, num_heads, head_dim,
        split,
        16, seqs, acc.is_cuda, num_warps=_COMBINE_WARPS, launch_pdl=acc.is_cuda,
    )  # fmt: skip
    return out


def _num_rows(num_queries: int, num_seqs: int, group: int) -> int:
    """Rows of a query tile: enough for the average run, so that its KV is read once."""
    return min(64, max(16, triton.next_power_of_2(triton.cdiv(num_queries, num_seqs) * group)))


def _num_programs(device: torch.device) -> int:
    return 2 * torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4
