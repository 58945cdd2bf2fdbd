"""The seam between the model, which knows no positions, and the services, which own the KV pool."""

from typing import Protocol

from torch import Tensor


class Attention(Protocol):
    """One step's attention: knows positions, slots, block tables, the KV tensor and the rope table."""

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Rotate q and k, write k and v to the pool, attend causally: [T, (Hq + 2 Hkv) D] before rope -> [T, Hq D]."""
        ...
