"""Rope tables against transformers."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from forebay.model.config import ModelConfig
from forebay.model.rope import RopeTable

SCALINGS: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 100000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 500000.0,
        "factor": 32.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 256,
    },
}


@pytest.mark.parametrize("kind", SCALINGS)
def test_tables_equal_transformers(kind: str) -> None:
    theirs = LlamaConfig(
        architectures=["LlamaForCausalLM"],
        hidden_size=256,
        num_attention_heads=4,
        intermediate_size=64,
        num_hidden_layers=1,
        vocab_size=64,
        max_position_embeddings=1024,
        rope_parameters=SCALINGS[kind],
    )
    table = RopeTable.build(ModelConfig.from_json(theirs.to_dict()))
    positions = torch.arange(1024)[None]
    cos, sin = LlamaRotaryEmbedding(theirs)(torch.zeros(1), positions)
    assert table.cos.shape == (1024, 32)
    torch.testing.assert_close(table.cos, cos[0, :, :32], rtol=0, atol=1e-6)
    torch.testing.assert_close(table.sin, sin[0, :, :32], rtol=0, atol=1e-6)
