"""A one-sequence attention with contiguous keys and values, and tiny random models in every architecture."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from forebay.model.attention import Model
from forebay.model.config import ModelConfig
from forebay.model.rope import RopeTable


class ContiguousAttention:
    """Keeps one sequence's keys and values; each forward pass appends its tokens."""

    def __init__(self, config: ModelConfig, rope: RopeTable) -> None:
        self.config, self.rope = config, rope
        self.keys: dict[int, Tensor] = {}
        self.values: dict[int, Tensor] = {}

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        config, num_tokens = self.config, qkv.shape[0]
        sizes = [config.num_heads, config.num_kv_heads, config.num_kv_heads]
        q, k, v = qkv.view(num_tokens, sum(sizes), config.head_dim).split(sizes, dim=1)
        start = self.keys[layer].shape[0] if layer in self.keys else 0
        positions = torch.arange(start, start + num_tokens)
        k = torch.cat([self.keys[layer], self._rotate(k, positions)]) if start else self._rotate(k, positions)
        v = torch.cat([self.values[layer], v]) if start else v
        self.keys[layer], self.values[layer] = k, v
        mask = torch.arange(start + num_tokens)[None, :] <= positions[:, None]
        groups = config.num_heads // config.num_kv_heads
        attended = functional.scaled_dot_product_attention(
            self._rotate(q, positions).transpose(0, 1)[None],
            k.repeat_interleave(groups, dim=1).transpose(0, 1)[None],
            v.repeat_interleave(groups, dim=1).transpose(0, 1)[None],
            attn_mask=mask,
        )
        return attended[0].transpose(0, 1).reshape(num_tokens, -1)

    def _rotate(self, x: Tensor, positions: Tensor) -> Tensor:
        cos, sin = self.rope.cos[positions, None], self.rope.sin[positions, None]
        first, second = x.float().chunk(2, dim=-1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1).to(x.dtype)


@pytest.fixture
def attention_for() -> Callable[[Model], ContiguousAttention]:
    return lambda model: ContiguousAttention(model.config, model.rope)


@pytest.fixture
def greedy(
    attention_for: Callable[[Model], ContiguousAttention],
) -> Callable[[Model, list[int], int], list[int]]:
    """Greedy continuation: one prefill, then one token at a time."""

    def generate(model: Model, prompt: list[int], num_tokens: int) -> list[int]:
        attention, output, inputs = attention_for(model), list[int](), prompt
        for _ in range(num_tokens):
            hidden = model.forward(torch.tensor(inputs), attention)
            output.append(int(model.logits(hidden[-1:]).argmax()))
            inputs = output[-1:]
        return output

    return generate


TINY = {
    "vocab_size": 97,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
TINY_MODELS = {
    "llama": ("Llama", {"rms_norm_eps": 1e-5}),
    "llama-tied": ("Llama", {"tie_word_embeddings": True}),
    "llama3-rope": (
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "mistral": ("Mistral", {"sliding_window": None}),
    "qwen2": ("Qwen2", {}),
    "qwen3": ("Qwen3", {"head_dim": 32}),
}


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Folder of a random model that transformers built and saved, made once per name."""
    import transformers

    root = tmp_path_factory.mktemp("tiny")

    def make(name: str) -> Path:
        if not (folder := root / name).exists():
            family, extra = TINY_MODELS[name]
            config = getattr(transformers, f"{family}Config")(**{**TINY, **extra})
            torch.manual_seed(0)
            model = getattr(transformers, f"{family}ForCausalLM")(config)
            for parameter in model.parameters():
                # Random norms and biases too: at their initial ones and zeros a forgotten one would not show.
                torch.nn.init.normal_(parameter, std=0.3)
            model.save_pretrained(folder)
        return folder

    return make
