"""config.json in the layouts of transformers 4 and 5, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from forebay.errors import InvalidArgument, NotFound, UnsupportedModel
from forebay.model.config import ModelConfig

LLAMA: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 96,
    "vocab_size": 97,
    "max_position_embeddings": 128,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "eos_token_id": 2,
    "bos_token_id": 1,
}
LLAMA3_SCALING = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_reads_a_folder(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [5, 2]}))
    config = ModelConfig.from_folder(tmp_path)
    assert (config.head_dim, config.num_kv_heads, config.qkv_size) == (16, 2, 128)
    assert (config.eos_token_ids, config.bos_token_id) == ((5, 2), 1)
    assert not (config.tie_embeddings or config.qkv_bias or config.qk_norm)


def test_rope_reads_the_same_in_both_layouts() -> None:
    old = ModelConfig.from_json({**LLAMA, "rope_theta": 5e5, "rope_scaling": LLAMA3_SCALING})
    new = {key: value for key, value in LLAMA.items() if key != "rope_theta"}
    new["rope_parameters"] = {**LLAMA3_SCALING, "rope_theta": 5e5}
    assert ModelConfig.from_json(new) == old
    assert (old.rope.kind, old.rope.theta, old.rope.original_max_positions) == ("llama3", 5e5, 8192)


def test_old_name_of_the_rope_type() -> None:
    config = ModelConfig.from_json({**LLAMA, "rope_scaling": {"type": "linear", "factor": 2.0}})
    assert (config.rope.kind, config.rope.factor) == ("linear", 2.0)


@pytest.mark.parametrize(
    ("name", "qkv_bias", "qk_norm"),
    [
        ("Qwen2ForCausalLM", True, False),
        ("Qwen3ForCausalLM", False, True),
        ("MistralForCausalLM", False, False),
    ],
)
def test_architecture_decides_bias_and_norm(name: str, qkv_bias: bool, qk_norm: bool) -> None:
    config = ModelConfig.from_json({**LLAMA, "architectures": [name]})
    assert (config.qkv_bias, config.qk_norm) == (qkv_bias, qk_norm)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["GPT2LMHeadModel"]}, "GPT2LMHeadModel is not supported; supported: Llama"),
        ({"architectures": None}, "none named"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"quantization_config": {"quant_method": "gptq"}}, "quantised"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "rope type 'yarn'"),
        ({"partial_rotary_factor": 0.5}, "partial rotary"),
        ({"architectures": ["MistralForCausalLM"], "sliding_window": 64}, "sliding-window"),
        (
            {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "use_sliding_window": True},
            "sliding",
        ),
    ],
)
def test_refuses_what_it_would_compute_wrongly(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        ModelConfig.from_json({**LLAMA, **change})


@pytest.mark.parametrize(
    "change",
    [
        {"architectures": ["MistralForCausalLM"], "sliding_window": 128},
        {"architectures": ["MistralForCausalLM"], "sliding_window": None},
        {"architectures": ["Qwen2ForCausalLM"], "sliding_window": 64, "use_sliding_window": False},
    ],
)
def test_a_window_that_never_slides_is_accepted(change: dict[str, Any]) -> None:
    ModelConfig.from_json({**LLAMA, **change})


def test_missing_and_malformed_files(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match=r"config\.json does not exist"):
        ModelConfig.from_folder(tmp_path)
    for text in ("{", "[]", json.dumps({**LLAMA, "vocab_size": "many"})):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(InvalidArgument, match=r"config\.json"):
            ModelConfig.from_folder(tmp_path)
