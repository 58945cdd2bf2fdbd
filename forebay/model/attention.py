"""The seam between the model, which knows no positions, and the services, which own the KV pool."""

from typing import Protocol

from torch import Tensor

from forebay.model.config import ModelConfig
from forebay.model.rope import RopeTable


class Attention(Protocol):
    """One step's attention: knows positions, slots, block tables, the KV tensor and the rope table."""

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Rotate q and k, write k and v to the pool, attend causally: [T, (Hq + 2 Hkv) D] -> [T, Hq D]."""
        ...


class Model(Protocol):
    """What a runner needs of a model; tests put fakes with known logits here."""

    config: ModelConfig
    rope: RopeTable

    def forward(self, token_ids: Tensor, attention: Attention) -> Tensor:
        """Hidden states after the final norm: int64 [T] -> [T, hidden_size]."""
        ...

    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every vocabulary entry: [R, hidden_size] -> float32 [R, vocab_size]."""
        ...
