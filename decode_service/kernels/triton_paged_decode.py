# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""Triton attention of one query per sequence over paged KV: fixed-size splits, combined in order.

The split size never depends on the batch and splits are merged in index order, so a sequence's result has the
same bits in every batch. Names: p_ pointer, b_ block in registers, i_ program index, o_ offsets, m_ mask.
Shapes: S sequences, Hq/Hkv query/KV heads, G = Hq / Hkv, D head_dim, bs block_size, P splits.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT_SIZE = 256  # context tokens of one program
_LOG2_E = 1.4426950408889634


@triton.jit(do_not_specialize=["table_stride", "num_splits"])
def split_kernel(
    p_q,
    p_kv,
    p_tables,
    p_lens,
    p_acc,
    p_top,
    p_total,
    scale_log2,
    table_stride,
    num_splits,
    NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SPLIT: tl.constexpr,
    ROWS: tl.constexpr,
    TILE: tl.constexpr,
):
    """Attend one KV head's query group to one split; write acc [S, Hq, P, D], top and total [S, Hq, P]."""
    i_sequence, i_head, i_split = tl.program_id(0).to(tl.int64), tl.program_id(1), tl.program_id(2)
    context_len = tl.load(p_lens + i_sequence)
    start = i_split * SPLIT
    if start >= context_len:
        return
    end = min(start + SPLIT, context_len)
    o_row, o_dim = tl.arange(0, ROWS), tl.arange(0, HEAD_DIM)
    m_row = o_row < GROUP
    o_query = i_sequence * (NUM_KV_HEADS * GROUP) + i_head * GROUP + o_row  # [ROWS]
    b_q = tl.load(p_q + o_query[:, None] * HEAD_DIM + o_dim[None, :], mask=m_row[:, None], other=0.0)
    b_top = tl.full((ROWS,), float("-inf"), tl.float32)
    b_total = tl.zeros((ROWS,), tl.float32)
    b_acc = tl.zeros((ROWS, HEAD_DIM), tl.float32)
    for tile in range(start, end, TILE):
        o_token = tile + tl.arange(0, TILE)
        m_token = o_token < end
        b_block = tl.load(p_tables + i_sequence * table_stride + o_token // BLOCK_SIZE, mask=m_token, other=0)
        o_key = (b_block.to(tl.int64) * (2 * NUM_KV_HEADS) + i_head) * (BLOCK_SIZE * HEAD_DIM)
        o_key += (o_token % BLOCK_SIZE) * HEAD_DIM  # [TILE]
        b_key = tl.load(p_kv + o_key[None, :] + o_dim[:, None], mask=m_token[None, :], other=0.0)  # [D, TILE]
        b_score = tl.dot(b_q, b_key, input_precision="ieee") * scale_log2
        b_score = tl.where(m_token[None, :], b_score, float("-inf"))
        b_new_top = tl.maximum(b_top, tl.max(b_score, axis=1))
        b_weight = tl.exp2(b_score - b_new_top[:, None])
        b_decay = tl.exp2(b_top - b_new_top)
        b_total = b_total * b_decay + tl.sum(b_weight, axis=1)
        o_value = o_key + NUM_KV_HEADS * BLOCK_SIZE * HEAD_DIM
        b_value = tl.load(p_kv + o_value[:, None] + o_dim[None, :], mask=m_token[:, None], other=0.0)
        b_acc = b_acc * b_decay[:, None]
        b_acc = tl.dot(b_weight.to(b_value.dtype), b_value, b_acc, input_precision="ieee")
        b_top = b_new_top
    o_out = o_query * num_splits + i_split
    tl.store(p_acc + o_out[:, None] * HEAD_DIM + o_dim[None, :], b_acc, mask=m_row[:, None])
    tl.store(p_top + o_out, b_top, mask=m_row)
    tl.store(p_total + o_out, b_total, mask=m_row)


@triton.jit(do_not_specialize=["num_splits"])
def combine_kernel(
    p_acc,
    p_top,
    p_total,
    p_lens,
    p_out,
    num_splits,
    NUM_HEADS: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Merge the splits of one query head in index order."""
    i_sequence, i_head = tl.program_id(0).to(tl.int64), tl.program_id(1)
    num_used = tl.cdiv(tl.load(p_lens + i_sequence), SPLIT)
    o_dim, i_query = tl.arange(0, HEAD_DIM), i_sequence * NUM_HEADS + i_head
    b_acc = tl.zeros((HEAD_DIM,), tl.float32)
    top, total = float("-inf"), 0.0
    for i_split in range(num_used):
        i_part = i_query * num_splits + i_split
        part_top = tl.load(p_top + i_part)
        new_top = tl.maximum(top, part_top)
        decay, weight = tl.exp2(top - new_top), tl.exp2(part_top - new_top)
        b_acc = b_acc * decay + tl.load(p_acc + i_part * HEAD_DIM + o_dim) * weight
        total = total * decay + tl.load(p_total + i_part) * weight
        top = new_top
    b_out = tl.where(num_used > 0, b_acc / total, 0.0)  # a padding row has no context
    tl.store(p_out + i_query * HEAD_DIM + o_dim, b_out.to(p_out.dtype.element_ty))


def paged_decode_attention(
    q: Tensor, kv_layer: Tensor, block_tables: Tensor, context_lens: Tensor, scale: float
) -> Tensor:
    """Launch both kernels; head_dim is a power of two >= 16 and a query group holds at most 16 heads."""
    q, block_tables = q.contiguous(), block_tables.contiguous()
    num_sequences, num_heads, head_dim = q.shape
    _, _, num_kv_heads, block_size, _ = kv_layer.shape
    num_splits = triton.cdiv(block_tables.shape[1] * block_size, SPLIT_SIZE)
    top = torch.empty(2, num_sequences, num_heads, num_splits, dtype=torch.float32, device=q.device)
    acc = torch.empty(*top.shape[1:], head_dim, dtype=torch.float32, device=q.device)
    split_kernel[(num_sequences, num_kv_heads, num_splits)](
        q,
        kv_layer,
        block_tables,
        context_lens,
        acc,
        top[0],
        top[1],
        scale * _LOG2_E,
        block_tables.stride(0),
        num_splits,
        NUM_KV_HEADS=num_kv_heads,
        GROUP=num_heads // num_kv_heads,
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        SPLIT=SPLIT_SIZE,
        ROWS=16,
        TILE=64,
        num_warps=4,
        num_stages=3,  # with 2 the block-table loads stay synchronous in the loop (sm_90, Triton 3.6)
    )
    out = torch.empty_like(q)
    combine_kernel[(num_sequences, num_heads)](
        acc,
        top[0],
        top[1],
        context_lens,
        out,
        num_splits,
        NUM_HEADS=num_heads,
        HEAD_DIM=head_dim,
        SPLIT=SPLIT_SIZE,
        num_warps=1,
    )
    return out
