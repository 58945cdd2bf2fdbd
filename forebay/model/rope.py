"""Rotary embedding tables in the half-rotation (NeoX) layout, including the Llama 3 frequency scaling."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from forebay.model.config import ModelConfig, RopeConfig


@dataclass(frozen=True)
class RopeTable:
    """cos and sin of every position: float32 [max_positions, head_dim / 2] each."""

    cos: Tensor
    sin: Tensor

    @classmethod
    def build(cls, config: ModelConfig, device: str = "cpu") -> "RopeTable":
        """Angles are computed in float32 on the CPU, so each device gets the same bits."""
        frequencies = inverse_frequencies(config.rope, config.head_dim)
        angles = torch.arange(config.max_positions, dtype=torch.float32)[:, None] * frequencies[None, :]
        return cls(angles.cos().to(device), angles.sin().to(device))


def inverse_frequencies(rope: RopeConfig, head_dim: int) -> Tensor:
    """Radians per position of each pair of channels: float32 [head_dim / 2]."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.int64).float() / head_dim
    frequencies = 1.0 / (rope.theta**exponents)
    if rope.kind == "linear":
        return frequencies / rope.factor
    return _llama3(frequencies, rope) if rope.kind == "llama3" else frequencies


def _llama3(frequencies: Tensor, rope: RopeConfig) -> Tensor:
    """Slow channels are divided by the factor, fast ones kept, those between blended (as in Llama 3.1)."""
    wavelengths = 2 * math.pi / frequencies
    low_wavelength = rope.original_max_positions / rope.low_freq_factor
    high_wavelength = rope.original_max_positions / rope.high_freq_factor
    smooth = rope.original_max_positions / wavelengths - rope.low_freq_factor
    smooth = smooth / (rope.high_freq_factor - rope.low_freq_factor)
    blended = (1 - smooth) * (frequencies / rope.factor) + smooth * frequencies
    scaled = torch.where(wavelengths > low_wavelength, frequencies / rope.factor, blended)
    return torch.where(wavelengths < high_wavelength, frequencies, scaled)
