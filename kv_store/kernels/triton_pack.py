# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""Triton gather and scatter of whole KV blocks: a block of one layer is one contiguous run in pool and
payload.

Names: p_ pointer, i_ program index, o_ offsets, m_ mask.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 2048  # 8-byte words of one program


@triton.jit
def move_kernel(
    p_pool, p_payload, p_ids, num_layers, num_blocks, num_words, TO_POOL: tl.constexpr, BLOCK: tl.constexpr
):
    """Copy words of block p_ids[i], layer l between pool [L, blocks, words] and payload [n, L, words]."""
    i_payload, i_layer = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_word = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    m_word = o_word < num_words
    p_block = p_pool + (i_layer * num_blocks + tl.load(p_ids + i_payload)) * num_words + o_word
    p_copy = p_payload + (i_payload * num_layers + i_layer) * num_words + o_word
    if TO_POOL:
        tl.store(p_block, tl.load(p_copy, mask=m_word), mask=m_word)
    else:
        tl.store(p_copy, tl.load(p_block, mask=m_word), mask=m_word)


def pack_blocks(kv: Tensor, block_ids: Tensor, out: Tensor) -> None:
    """Launch: blocks of kv [L, blocks, ...] into out [n, L, ...], both contiguous."""
    _move(kv, out, block_ids, to_pool=False)


def unpack_blocks(payload: Tensor, kv: Tensor, block_ids: Tensor) -> None:
    """Launch: payload [n, L, ...] into blocks of kv [L, blocks, ...], both contiguous."""
    _move(kv, payload, block_ids, to_pool=True)


def _move(pool: Tensor, payload: Tensor, block_ids: Tensor, to_pool: bool) -> None:
    if not len(block_ids):
        return
    num_layers, num_blocks = pool.shape[:2]
    pool_words = pool.view(num_layers, num_blocks, -1).view(torch.int64)
    payload_words = payload.view(len(block_ids), num_layers, -1).view(torch.int64)
    num_words = pool_words.shape[2]
    move_kernel[(len(block_ids), num_layers, triton.cdiv(num_words, _BLOCK))](
        pool_words, payload_words, block_ids, num_layers, num_blocks, num_words, to_pool, _BLOCK, num_warps=8
    )
