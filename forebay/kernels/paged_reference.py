"""Torch attention over paged KV, shared by the services' reference kernels.

Shapes: T query tokens, S sequences, Hq/Hkv query/KV heads, D head_dim, bs block_size, C one context length.
"""

import torch
from torch import Tensor
from torch.nn import functional


def paged_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
) -> Tensor:
    """Causal attention of q [T, Hq, D]; each sequence asks with its last query-run positions."""
    starts, lens = cu_query_lens.tolist(), context_lens.tolist()
    out = torch.empty_like(q)
    for s, context_len in enumerate(lens):
        rows = slice(starts[s], starts[s + 1])
        if rows.stop > rows.start:
            keys, values = _gather(kv_layer, block_tables[s], context_len)
            out[rows] = _causal(q[rows], keys, values, scale)
    return out


def _gather(kv_layer: Tensor, block_table: Tensor, context_len: int) -> tuple[Tensor, Tensor]:
    """Collect one sequence's keys and values, each [Hkv, C, D]."""
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    num_blocks = -(-context_len // block_size)
    pages = kv_layer.index_select(0, block_table[:num_blocks]).permute(1, 2, 0, 3, 4)
    keys, values = pages.reshape(2, num_kv_heads, num_blocks * block_size, head_dim)[:, :, :context_len]
    return keys, values


def _causal(q: Tensor, keys: Tensor, values: Tensor, scale: float) -> Tensor:
    """Attend q [Q, Hq, D] to keys, values [Hkv, C, D]; the last query sees the last key."""
    query_len, context_len = q.shape[0], keys.shape[1]
    mask = None
    if 1 < query_len < context_len:
        positions = torch.arange(context_len, device=q.device)
        mask = positions <= positions[context_len - query_len :, None]
    out = functional.scaled_dot_product_attention(
        q.transpose(0, 1)[None], keys[None], values[None], attn_mask=mask,
        is_causal=1 < query_len == context_len, scale=scale, enable_gqa=True,
    )  # fmt: skip
    return out[0].transpose(0, 1)
