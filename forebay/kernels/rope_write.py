"""Rotary embedding of q and k fused with the write of k and v into the paged pool."""

from torch import Tensor

from forebay.kernels import native, reference


def rope_write_kv(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, kv_layer: Tensor, num_heads: int
) -> Tensor:
    """Rotate q and k of qkv [T, (Hq + 2 Hkv) D], write k, v to `slots` [T] of kv_layer; return q.

    q [T, Hq, D] may be a view of qkv, which is consumed; kv_layer [blocks, 2, Hkv, bs, D];
    cos, sin: [max_positions, D/2] float32; positions [T] int64; slot -1 is padding and touches no real block.
    """
    if qkv.is_cuda:
        from forebay.kernels import triton_rope_write  # importing Triton costs 0.5 s: only where it runs

        return triton_rope_write.rope_write_kv(qkv, cos, sin, positions, slots, kv_layer, num_heads)
    if native.handles_heads(qkv, kv_layer.shape[4]):
        return native.rope_write_kv(qkv, cos, sin, positions, slots, kv_layer, num_heads)
    return reference.rope_write_kv(qkv, cos, sin, positions, slots, kv_layer, num_heads)
