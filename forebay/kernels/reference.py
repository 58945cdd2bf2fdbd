"""Plain torch twins of the shared kernels: same signatures, the CPU serving path and the tests' yardstick.

Shapes: T tokens, N hidden size, F intermediate size, Hq/Hkv query/KV heads, D head_dim, bs block_size.
"""

import torch
from torch import Tensor
from torch.nn import functional


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last axis, computed in float32, in x's dtype."""
    x_f32 = x.float()
    scale = torch.rsqrt(x_f32.square().mean(-1, keepdim=True) + eps)
    return (x_f32 * scale * weight).to(x.dtype)


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
    """Rotate q and k (half-rotation), write k and v to `slots` of kv_layer; return q [T, Hq, D].

    kv_layer is [blocks, 2, Hkv, bs, D]. Slot -1 marks a padding row: its k and v go to the null block, which
    is scratch.
    """
    _, _, num_kv_heads, block_size, head_dim = kv_layer.shape
    heads = qkv.view(qkv.shape[0], num_heads + 2 * num_kv_heads, head_dim)
    rotated = _rotate(heads[:, : num_heads + num_kv_heads], cos[positions], sin[positions])
    slots = slots.clamp_min(0)
    blocks, offsets = slots // block_size, slots % block_size
    kv_layer[blocks, 0, :, offsets] = rotated[:, num_heads:]
    kv_layer[blocks, 1, :, offsets] = heads[:, num_heads + num_kv_heads :]
    return rotated[:, :num_heads]


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the two halves of x [T, H, D] by the angles of cos, sin [T, D/2] in float32."""
    first, second = x.float().chunk(2, dim=-1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1).to(x.dtype)
