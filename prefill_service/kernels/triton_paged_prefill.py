# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""Triton causal attention of prompt chunks over paged KV, for every dtype, head size and block size.

`gluon_paged_prefill` is the fast path; this one serves float32, other GPUs and other layouts. A tile packs
the query heads of one KV head as rows (row = token * G + head), so a short chunk still fills it.

Names: p_ pointer, b_ block in registers, i_ index, o_ offsets, m_ mask. Shapes: T queries, S sequences,
Hq/Hkv query/KV heads, G = Hq / Hkv, D head_dim, bs block_size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_LOG2_E = 1.4426950408889634


@triton.jit
def _find_sequence(i_tile, p_cu, num_seqs, QUERIES: tl.constexpr):
    """Sequence s owns tiles cu[s] // QUERIES + s and up: enough for its queries without a prefix sum."""
    low, high = 0, num_seqs
    while high - low > 1:
        middle = (low + high) // 2
        if tl.load(p_cu + middle) // QUERIES + middle <= i_tile:
            low = middle
        else:
            high = middle
    return low


@triton.jit(do_not_specialize=["table_stride", "num_seqs"])
def prefill_kernel(
    p_q, p_kv, p_tables, p_cu, p_lens, p_out, scale_log2, table_stride, num_seqs, NUM_KV_HEADS: tl.constexpr,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    QUERIES: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Attend a tile of QUERIES tokens times G heads; writes out [T, Hq, D]."""
    i_tile, i_head = tl.program_id(0), tl.program_id(1)
    i_seq = _find_sequence(i_tile, p_cu, num_seqs, QUERIES)
    i_start, i_stop = tl.load(p_cu + i_seq), tl.load(p_cu + i_seq + 1)
    i_first = i_start + (i_tile - (i_start // QUERIES + i_seq)) * QUERIES
    if i_first >= i_stop:
        return
    shift = tl.load(p_lens + i_seq) - i_stop  # position minus query index
    end = tl.minimum(i_first + QUERIES, i_stop) + shift  # tokens the last row sees
    o_row, o_dim = tl.arange(0, ROWS), tl.arange(0, BLOCK_DIM)
    o_token = i_first + o_row // GROUP
    m_row = (o_row < QUERIES * GROUP) & (o_token < i_stop)
    m_dim = o_dim < HEAD_DIM
    o_query = o_token.to(tl.int64) * (NUM_KV_HEADS * GROUP) + i_head * GROUP + o_row % GROUP
    m_query = m_row[:, None] & m_dim[None, :]
    b_q = tl.load(p_q + o_query[:, None] * HEAD_DIM + o_dim[None, :], mask=m_query, other=0.0)
    b_top = tl.full((ROWS,), -1e30, tl.float32)
    b_total = tl.zeros((ROWS,), tl.float32)
    b_acc = tl.zeros((ROWS, BLOCK_DIM), tl.float32)
    p_table = p_tables + i_seq.to(tl.int64) * table_stride
    for i_key in range(0, end, TILE):
        o_key = i_key + tl.arange(0, TILE)
        m_key = o_key < end
        b_block = tl.load(p_table + o_key // BLOCK_SIZE, mask=m_key, other=0)
        o_page = (b_block.to(tl.int64) * (2 * NUM_KV_HEADS) + i_head) * BLOCK_SIZE + o_key % BLOCK_SIZE
        m_page = m_dim[:, None] & m_key[None, :]
        b_key = tl.load(p_kv + o_page[None, :] * HEAD_DIM + o_dim[:, None], mask=m_page, other=0.0)
        o_page += NUM_KV_HEADS * BLOCK_SIZE
        m_page = m_key[:, None] & m_dim[None, :]
        b_value = tl.load(p_kv + o_page[:, None] * HEAD_DIM + o_dim[None, :], mask=m_page, other=0.0)
        b_score = tl.dot(b_q, b_key, input_precision="ieee") * scale_log2
        b_score = tl.where(o_key[None, :] <= (o_token + shift)[:, None], b_score, float("-inf"))
        b_new_top = tl.maximum(b_top, tl.max(b_score, axis=1))
        b_weight = tl.exp2(b_score - b_new_top[:, None])
        b_decay = tl.exp2(b_top - b_new_top)
        b_total = b_total * b_decay + tl.sum(b_weight, axis=1)
        b_acc = tl.dot(b_weight.to(b_value.dtype), b_value, b_acc * b_decay[:, None], input_precision="ieee")
        b_top = b_new_top
    b_out = (b_acc / b_total[:, None]).to(p_out.dtype.element_ty)
    tl.store(p_out + o_query[:, None] * HEAD_DIM + o_dim[None, :], b_out, mask=m_query)


def paged_prefill_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Launch; arguments as the wrapper's. At most 32 query heads share a KV head."""
    q, block_tables, out = q.contiguous(), block_tables.contiguous(), torch.empty_like(q)
    num_queries, num_heads, head_dim = q.shape
    _, _, num_kv_heads, block_size, _ = kv_layer.shape
    group, num_seqs = num_heads // num_kv_heads, len(context_lens)
    # float32 products run on the plain cores, their operands in registers: larger tiles spill (sm_90).
    rows, tile, num_warps, num_stages = (64, 64, 4, 3) if q.element_size() == 2 else (32, 16, 8, 2)
    prefill_kernel[(num_queries // (rows // group) + num_seqs, num_kv_heads)](
        q, kv_layer, block_tables, cu_query_lens, context_lens, out, scale * _LOG2_E, block_tables.stride(0),
        num_seqs,
        num_kv_heads, group, head_dim, triton.next_power_of_2(head_dim), block_size, rows // group, rows,
        tile,
        num_warps=num_warps, num_stages=num_stages,
    )  # fmt: skip
    return out
