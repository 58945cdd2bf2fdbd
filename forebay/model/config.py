"""Model hyperparameters read from a Hugging Face folder (transformers 4 and 5 layouts). Torch-free."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from forebay.errors import InvalidArgument, NotFound, UnsupportedModel

ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM")
ROPE_KINDS = ("default", "linear", "llama3")


@dataclass(frozen=True)
class RopeConfig:
    """Rotary embedding parameters; the last four fields matter only to the kinds that name them."""

    theta: float = 10000.0
    kind: str = "default"
    factor: float = 1.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 0

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Self:
        """Read `rope_parameters` (transformers 5) or `rope_theta` + `rope_scaling` (4)."""
        scaling: Mapping[str, Any] = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
        kind = scaling.get("rope_type") or scaling.get("type") or "default"
        if kind not in ROPE_KINDS:
            raise UnsupportedModel(f"rope type {kind!r} is not supported; supported: {', '.join(ROPE_KINDS)}")
        if float(scaling.get("partial_rotary_factor", fields.get("partial_rotary_factor")) or 1.0) != 1.0:
            raise UnsupportedModel("partial rotary embeddings are not supported")
        return cls(
            theta=float(scaling.get("rope_theta") or fields.get("rope_theta") or cls.theta),
            kind=kind,
            factor=float(scaling.get("factor") or cls.factor),
            low_freq_factor=float(scaling.get("low_freq_factor") or cls.low_freq_factor),
            high_freq_factor=float(scaling.get("high_freq_factor") or cls.high_freq_factor),
            original_max_positions=int(scaling.get("original_max_position_embeddings") or 0),
        )


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides the shapes and the arithmetic of a decoder-only model."""

    architecture: str
    num_layers: int
    hidden_size: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int
    vocab_size: int
    max_positions: int
    rms_norm_eps: float
    rope: RopeConfig
    tie_embeddings: bool
    qkv_bias: bool
    qk_norm: bool
    eos_token_ids: tuple[int, ...]
    bos_token_id: int | None

    @property
    def qkv_size(self) -> int:
        """Width of the fused q, k, v projection."""
        return (self.num_heads + 2 * self.num_kv_heads) * self.head_dim

    @classmethod
    def from_folder(cls, folder: Path) -> Self:
        """Read config.json and, where present, generation_config.json."""
        fields = _read_json(folder / "config.json")
        generation = folder / "generation_config.json"
        return cls.from_json(fields, _read_json(generation) if generation.exists() else {})

    @classmethod
    def from_json(cls, fields: Mapping[str, Any], generation: Mapping[str, Any] | None = None) -> Self:
        """Validate the parsed files; raises UnsupportedModel for a model this project cannot run exactly."""
        architecture = _architecture(fields)
        _refuse_variants(fields, architecture)
        num_heads, hidden_size = _integer(fields, "num_attention_heads"), _integer(fields, "hidden_size")
        generation = generation or {}
        return cls(
            architecture=architecture,
            num_layers=_integer(fields, "num_hidden_layers"),
            hidden_size=hidden_size,
            num_heads=num_heads,
            num_kv_heads=fields.get("num_key_value_heads") or num_heads,
            head_dim=fields.get("head_dim") or hidden_size // num_heads,
            intermediate_size=_integer(fields, "intermediate_size"),
            vocab_size=_integer(fields, "vocab_size"),
            max_positions=_integer(fields, "max_position_embeddings"),
            rms_norm_eps=float(fields.get("rms_norm_eps", 1e-6)),
            rope=RopeConfig.from_json(fields),
            tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
            qkv_bias=architecture == "Qwen2ForCausalLM",
            qk_norm=architecture == "Qwen3ForCausalLM",
            eos_token_ids=_eos_ids(generation.get("eos_token_id"), fields.get("eos_token_id")),
            bos_token_id=fields.get("bos_token_id"),
        )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        fields = json.loads(path.read_text())
    except FileNotFoundError:
        raise NotFound(f"{path} does not exist; a model folder holds config.json") from None
    except json.JSONDecodeError as error:
        raise InvalidArgument(f"not JSON: {error}", field=str(path)) from error
    if not isinstance(fields, dict):
        raise InvalidArgument("not a JSON object", field=str(path))
    return fields


def _architecture(fields: Mapping[str, Any]) -> str:
    names = fields.get("architectures") or []
    for name in names:
        if name in ARCHITECTURES:
            return str(name)
    named = ", ".join(names) or "none named"
    raise UnsupportedModel(f"architecture {named} is not supported; supported: {', '.join(ARCHITECTURES)}")


def _refuse_variants(fields: Mapping[str, Any], architecture: str) -> None:
    """Refuse what would run and give wrong text."""
    if (activation := fields.get("hidden_act", "silu")) != "silu":
        raise UnsupportedModel(f"hidden_act {activation!r} is not supported; only silu is")
    for name in ("attention_bias", "mlp_bias"):
        if fields.get(name):
            raise UnsupportedModel(f"{name} is not supported for {architecture}")
    if fields.get("quantization_config"):
        raise UnsupportedModel("quantised checkpoints are not supported; use 16 or 32-bit weights")
    window = fields.get("sliding_window")
    slides = fields.get("use_sliding_window", architecture == "MistralForCausalLM")
    if slides and window and window < _integer(fields, "max_position_embeddings"):
        raise UnsupportedModel(f"sliding-window attention ({window} tokens) is not supported")


def _integer(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or value <= 0:
        raise InvalidArgument("must be a positive integer", field=f"config.json: {name}", got=value)
    return value


def _eos_ids(*sources: int | list[int] | None) -> tuple[int, ...]:
    """Union in order: generation_config.json often lists more end tokens than config.json."""
    found: dict[int, None] = {}
    for source in sources:
        found.update(dict.fromkeys([source] if isinstance(source, int) else source or []))
    return tuple(found)
