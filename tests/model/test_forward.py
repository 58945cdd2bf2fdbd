"""Our forward pass against transformers on tiny random models of every architecture."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from forebay.model.registry import load_model

NAMES = ["llama", "llama-tied", "llama3-rope", "mistral", "qwen2", "qwen3"]
TOKENS = torch.randint(0, 97, (23,), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", NAMES)
def test_logits_equal_transformers(name: str, tiny_folder: Callable, attention_for: Callable) -> None:
    folder = tiny_folder(name)
    model = load_model(folder, "float32", "cpu")
    ours = model.logits(model.forward(TOKENS, attention_for(model)))
    with torch.no_grad():
        theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)(TOKENS[None]).logits[0]
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, theirs, rtol=2e-5, atol=2e-4)


@pytest.mark.parametrize("name", ["llama", "qwen3"])
def test_chunks_give_the_logits_of_one_pass(
    name: str, tiny_folder: Callable, attention_for: Callable
) -> None:
    model = load_model(tiny_folder(name), "float32", "cpu")
    whole = model.forward(TOKENS, attention_for(model))
    attention = attention_for(model)
    chunks = [model.forward(chunk, attention) for chunk in TOKENS.split([7, 1, 1, 14])]
    torch.testing.assert_close(torch.cat(chunks), whole, rtol=1e-5, atol=1e-5)


def test_bfloat16_stays_close(tiny_folder: Callable[[str], Path], attention_for: Callable) -> None:
    exact, rounded = (load_model(tiny_folder("llama"), dtype, "cpu") for dtype in ("float32", "bfloat16"))
    expected = exact.forward(TOKENS, attention_for(exact))
    got = rounded.forward(TOKENS, attention_for(rounded))
    assert got.dtype == torch.bfloat16
    assert (got - expected).norm() / expected.norm() < 0.03
