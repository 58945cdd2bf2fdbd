"""The demo model: GGUF import, tokenizer, and greedy text equal to transformers on the same weights."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from jinja2 import Template
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

from forebay.errors import UnsupportedModel
from forebay.model.config import ModelConfig
from forebay.model.gguf import config_fields, unpermute
from forebay.model.gguf_tokenizer import build_tokenizer
from forebay.model.hub import resolve_model
from forebay.model.registry import load_model

PROMPTS = ["What is gravity?", "Write a haiku about rivers.", "def fibonacci(n):"]


@pytest.fixture(scope="session")
def demo() -> Path:
    return resolve_model("demo")


@pytest.fixture(scope="session")
def tokenizer(demo: Path) -> Tokenizer:
    return Tokenizer.from_file(str(demo / "tokenizer.json"))


def test_config(demo: Path) -> None:
    config = ModelConfig.from_folder(demo)
    assert (config.num_layers, config.hidden_size, config.head_dim) == (30, 576, 64)
    assert (config.num_heads, config.num_kv_heads, config.vocab_size) == (9, 3, 49152)
    assert (config.rope.theta, config.rms_norm_eps, config.tie_embeddings) == (100000.0, 1e-5, True)
    assert (config.eos_token_ids, config.bos_token_id, config.max_positions) == ((2,), 1, 8192)


@pytest.mark.parametrize(
    ("text", "token_ids"),
    [
        ("The capital of France is", [504, 3575, 282, 4649, 314]),
        ("<|im_start|>user\nHi<|im_end|>", [1, 4093, 198, 26843, 2]),
        ("12 345", [33, 34, 216, 35, 36, 37]),
    ],
)
def test_token_ids(tokenizer: Tokenizer, text: str, token_ids: list[int]) -> None:
    assert tokenizer.encode(text).ids == token_ids
    assert tokenizer.decode(token_ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("text", ["  two  spaces\n\ttab", "été 漢字 🙂", "don't; ½ ٣", ""])
def test_tokens_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text).ids) == text


def test_special_tokens_are_skipped_in_decoding(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([1, 4093, 2]) == "user"


def test_chat_template(demo: Path) -> None:
    template = json.loads((demo / "tokenizer_config.json").read_text())["chat_template"]
    messages = [{"role": "user", "content": "Hi"}]
    text = Template(template).render(messages=messages, add_generation_prompt=True)
    assert text.endswith("<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")


def test_greedy_text_equals_transformers(demo: Path, tokenizer: Tokenizer, greedy: Callable) -> None:
    ours = load_model(demo, "float32", "cpu")
    theirs = AutoModelForCausalLM.from_pretrained(demo, dtype=torch.float32)
    for prompt in PROMPTS:
        text = f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
        ids = tokenizer.encode(text).ids
        whole = theirs.generate(torch.tensor([ids]), max_new_tokens=8, min_new_tokens=8, do_sample=False)
        assert greedy(ours, ids, 8) == whole[0, len(ids) :].tolist(), prompt


def test_unpermute_inverts_the_interleaving() -> None:
    rows = np.arange(2 * 8 * 3).reshape(16, 3)  # 2 heads of 8 rows
    interleaved = rows.reshape(2, 2, 4, 3).swapaxes(1, 2).reshape(16, 3)
    assert (unpermute(interleaved, 2) == rows).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"general.architecture": "gemma"}, "architecture 'gemma'"),
        ({"llama.rope.scaling.type": "yarn"}, "rope scaling"),
        ({}, r"lacks llama\.block_count"),
    ],
)
def test_refuses_other_files(change: dict[str, str], message: str) -> None:
    with pytest.raises(UnsupportedModel, match=message):
        config_fields({"general.architecture": "llama", **change}, is_tied=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokenizer.ggml.model": "llama"}, "tokenizer 'llama'"),
        ({"tokenizer.ggml.pre": "unheard-of"}, "pre-tokenizer 'unheard-of'"),
    ],
)
def test_refuses_other_tokenizers(change: dict[str, str], message: str) -> None:
    fields = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a"], "tokenizer.ggml.merges": []}
    with pytest.raises(UnsupportedModel, match=message):
        build_tokenizer({**fields, **change})
