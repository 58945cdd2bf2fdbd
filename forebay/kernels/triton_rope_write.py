# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""Triton rotary embedding fused with the paged write of k and v: one program per token and group of heads.

Names: p_ pointer, b_ block in registers, i_ program index, o_ offsets, m_ mask. Shapes: T tokens, Hq/Hkv
query/KV heads, D head_dim, bs block_size.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_HEADS = 16  # heads of one program


@triton.jit
def rope_write_kernel(
    p_qkv, p_cos, p_sin, p_positions, p_slots, p_q, p_kv, NUM_HEADS: tl.constexpr, NUM_KV_HEADS: tl.constexpr,
    HALF: tl.constexpr, BLOCK_HALF: tl.constexpr, BLOCK_SIZE: tl.constexpr, HEADS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """Rotate q heads into q [T, Hq, D] and k heads into the pool, copy v heads into the pool."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    i_token = tl.program_id(0).to(tl.int64)
    o_head, o_dim = tl.program_id(1) * HEADS + tl.arange(0, HEADS), tl.arange(0, BLOCK_HALF)
    m_dim = o_dim < HALF
    m_head = (o_head < NUM_HEADS + 2 * NUM_KV_HEADS)[:, None] & m_dim[None, :]
    p_in = p_qkv + (i_token * (NUM_HEADS + 2 * NUM_KV_HEADS) + o_head)[:, None] * (2 * HALF) + o_dim[None, :]
    b_first = tl.load(p_in, mask=m_head, other=0.0).to(tl.float32)
    b_second = tl.load(p_in + HALF, mask=m_head, other=0.0).to(tl.float32)
    o_angle = tl.load(p_positions + i_token) * HALF + o_dim
    b_cos = tl.load(p_cos + o_angle, mask=m_dim, other=0.0)[None, :]
    b_sin = tl.load(p_sin + o_angle, mask=m_dim, other=0.0)[None, :]
    m_turn = (o_head < NUM_HEADS + NUM_KV_HEADS)[:, None]
    b_out_first = tl.where(m_turn, b_first * b_cos - b_second * b_sin, b_first).to(p_q.dtype.element_ty)
    b_out_second = tl.where(m_turn, b_second * b_cos + b_first * b_sin, b_second).to(p_q.dtype.element_ty)
    p_out = p_q + (i_token * NUM_HEADS + o_head)[:, None] * (2 * HALF) + o_dim[None, :]
    m_query = m_head & (o_head < NUM_HEADS)[:, None]
    tl.store(p_out, b_out_first, mask=m_query)
    tl.store(p_out + HALF, b_out_second, mask=m_query)
    slot = tl.load(p_slots + i_token)
    # Heads after the queries are k then v, as the two planes of a block: [block, 2 Hkv, bs, D].
    o_row = (slot // BLOCK_SIZE * (2 * NUM_KV_HEADS) + o_head - NUM_HEADS) * BLOCK_SIZE + slot % BLOCK_SIZE
    p_page = p_kv + o_row[:, None] * (2 * HALF) + o_dim[None, :]
    m_page = m_head & (o_head >= NUM_HEADS)[:, None] & (slot >= 0)
    tl.store(p_page, b_out_first, mask=m_page)
    tl.store(p_page + HALF, b_out_second, mask=m_page)


def rope_write_kv(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, kv_layer: Tensor, num_heads: int
) -> Tensor:
    """Launch; arguments as the wrapper's. Returns a new q [T, Hq, D]; rows of slot -1 write no k and v."""
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    q = torch.empty(len(qkv), num_heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    if not len(qkv):
        return q
    grid = (len(qkv), triton.cdiv(num_heads + 2 * num_kv_heads, _HEADS))
    half = head_dim // 2
    rope_write_kernel[grid](
        qkv, cos, sin, positions, slots, q, kv_layer, num_heads, num_kv_heads, half,
        triton.next_power_of_2(half),
        block_size, _HEADS, qkv.is_cuda, num_warps=4, launch_pdl=qkv.is_cuda,
    )  # fmt: skip
    return q
