"""The Llama family (also Mistral without sliding windows, and Qwen2): grouped-query attention, SwiGLU."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from forebay.kernels.rms_norm import add_rms_norm, rms_norm
from forebay.kernels.swiglu import swiglu
from forebay.model.attention import Attention
from forebay.model.config import ModelConfig
from forebay.model.linear import Linear
from forebay.model.rope import RopeTable
from forebay.model.weights import Checkpoint


@dataclass(frozen=True)
class Layer:
    """One decoder layer's weights; q, k, v and gate, up are fused by rows."""

    qkv: Linear
    output: Linear
    gate_up: Linear
    down: Linear
    mlp_norm: Tensor
    q_norm: Tensor | None
    k_norm: Tensor | None


class Llama:
    """A decoder-only model; it holds weights and does arithmetic, and knows nothing of positions or KV."""

    def __init__(self, config: ModelConfig, checkpoint: Checkpoint) -> None:
        self.config = config
        self.rope = RopeTable.build(config, checkpoint.device)
        self._embedding = checkpoint.load("model.embed_tokens.weight", config.vocab_size, config.hidden_size)
        self._layers = [_load_layer(config, checkpoint, index) for index in range(config.num_layers)]
        # One norm before each layer, then the final one: norm i + 1 is fused with layer i's residual sum.
        names = [f"model.layers.{index}.input_layernorm" for index in range(config.num_layers)]
        self._norms = [
            checkpoint.load(f"{name}.weight", config.hidden_size) for name in (*names, "model.norm")
        ]
        head = self._embedding
        if not config.tie_embeddings:
            head = checkpoint.load("lm_head.weight", config.vocab_size, config.hidden_size)
        self._head = Linear(head)

    @torch.inference_mode()
    def forward(self, token_ids: Tensor, attention: Attention) -> Tensor:
        """Hidden states after the final norm: int64 [T] -> [T, hidden_size]."""
        eps = self.config.rms_norm_eps
        residual = functional.embedding(token_ids, self._embedding)
        x = rms_norm(residual, self._norms[0], eps)
        for index, layer in enumerate(self._layers):
            x = layer.output(attention(index, self._qkv(layer, x)))
            x, residual = add_rms_norm(x, residual, layer.mlp_norm, eps)
            x = layer.down(swiglu(layer.gate_up(x)))
            x, residual = add_rms_norm(x, residual, self._norms[index + 1], eps)
        return x

    @torch.inference_mode()
    def logits(self, hidden: Tensor) -> Tensor:
        """Scores of every vocabulary entry: [R, hidden_size] -> float32 [R, vocab_size]."""
        return self._head(hidden).float()

    def _qkv(self, layer: Layer, x: Tensor) -> Tensor:
        return layer.qkv(x)


def _load_layer(config: ModelConfig, checkpoint: Checkpoint, index: int) -> Layer:
    hidden, prefix = config.hidden_size, f"model.layers.{index}"
    q_size, kv_size = config.num_heads * config.head_dim, config.num_kv_heads * config.head_dim
    attention, mlp = f"{prefix}.self_attn", f"{prefix}.mlp"
    rows = {
        f"{attention}.{name}_proj": size for name, size in (("q", q_size), ("k", kv_size), ("v", kv_size))
    }
    gate_up = {f"{mlp}.{name}_proj": config.intermediate_size for name in ("gate", "up")}
    return Layer(
        qkv=_fused(checkpoint, rows, hidden, config.qkv_bias),
        output=_fused(checkpoint, {f"{attention}.o_proj": hidden}, q_size),
        gate_up=_fused(checkpoint, gate_up, hidden),
        down=_fused(checkpoint, {f"{mlp}.down_proj": hidden}, config.intermediate_size),
        mlp_norm=checkpoint.load(f"{prefix}.post_attention_layernorm.weight", hidden),
        q_norm=checkpoint.load(f"{attention}.q_norm.weight", config.head_dim) if config.qk_norm else None,
        k_norm=checkpoint.load(f"{attention}.k_norm.weight", config.head_dim) if config.qk_norm else None,
    )


def _fused(checkpoint: Checkpoint, rows: dict[str, int], columns: int, has_bias: bool = False) -> Linear:
    """One linear layer from several projections of the same input, stacked in order."""
    weight = checkpoint.load_stacked({f"{name}.weight": size for name, size in rows.items()}, columns)
    if not has_bias:
        return Linear(weight)
    return Linear(weight, checkpoint.load_stacked({f"{name}.bias": size for name, size in rows.items()}))
