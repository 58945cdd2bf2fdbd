"""Qwen3: the Llama layer with an RMS norm over each query and key head (Qwen2 is Llama with a bias)."""

import torch
from torch import Tensor

from forebay.kernels.rms_norm import rms_norm
from forebay.model.llama import Layer, Llama


class Qwen3(Llama):
    """Normalises q and k per head before rope, so the attention sees the same seam as for Llama."""

    def _qkv(self, layer: Layer, x: Tensor) -> Tensor:
        assert layer.q_norm is not None and layer.k_norm is not None
        config = self.config
        heads = layer.qkv(x).view(-1, config.num_heads + 2 * config.num_kv_heads, config.head_dim)
        q, k, v = torch.split(heads, [config.num_heads, config.num_kv_heads, config.num_kv_heads], dim=1)
        q = _norm_heads(q, layer.q_norm, config.rms_norm_eps)
        k = _norm_heads(k, layer.k_norm, config.rms_norm_eps)
        return torch.cat((q, k, v), dim=1).flatten(1)


def _norm_heads(heads: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[T, H, D] -> [T, H, D], each head normalised alone."""
    return rms_norm(heads.reshape(-1, heads.shape[-1]), weight, eps).view(heads.shape)
