"""Plain torch twins of the shared kernels: same signatures, the CPU serving path and the tests' yardstick.

Shapes: T tokens, N hidden size, F intermediate size, Hq/Hkv query/KV heads, D head_dim, bs block_size.
"""

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last axis, computed in float32, in x's dtype."""
    return functional.rms_norm(x, weight.shape, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(x + residual), x + residual); the sum is rounded to x's dtype before it is normed."""
    new_residual = x + residual
    return rms_norm(new_residual, weight, eps), new_residual


def swiglu(gate_up: Tensor) -> Tensor:
    """Map [T, 2F] (gate, then up) to silu(gate) * up, [T, F]."""
    gate, up = gate_up.chunk(2, dim=-1)
    return functional.silu(gate) * up


def rope_write_kv(
    qkv: Tensor, cos: Tensor, sin: Tensor, positions: Tensor, slots: Tensor, kv_layer: Tensor, num_heads: int
) -> Tensor:
    """Rotate q and k in place (half-rotation), write k and v to `slots`; return q as a view of qkv.

    Slot -1 marks a padding row: its k and v go to slot 0 of the null block, which is scratch.
    """
    num_tokens, (_, _, num_kv_heads, block_size, head_dim) = len(qkv), kv_layer.shape
    heads = qkv.view(num_tokens, num_heads + 2 * num_kv_heads, head_dim)
    _rotate_(
        heads[:, : num_heads + num_kv_heads], cos.index_select(0, positions), sin.index_select(0, positions)
    )
    slots = slots.clamp_min(0)
    pairs = heads[:, num_heads:].view(num_tokens, 2, num_kv_heads, head_dim)
    kv_layer[slots // block_size, :, :, slots % block_size] = pairs
    return heads[:, :num_heads]


def _rotate_(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """Rotate the two halves of x [T, H, D] by the angles of cos, sin [T, D/2], in float32 and in place."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    x.copy_(torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1))
