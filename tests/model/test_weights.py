"""Reading checkpoints: sharded, tied, cast; and clear errors for what does not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from forebay.errors import ConfigError, ForebayError, NotFound, UnsupportedModel
from forebay.model.registry import load_model

Folder = Callable[[str], Path]
Attention = Callable


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Folder) -> Path:
    """A private copy that a test may damage."""
    return shutil.copytree(tiny_folder("llama"), tmp_path / "model")


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


def logits(folder: Path, attention_for: Callable, dtype: str = "float32") -> torch.Tensor:
    model = load_model(folder, dtype, "cpu")
    return model.logits(model.forward(torch.arange(9), attention_for(model)))


def test_sharded_equals_single(folder: Path, attention_for: Callable) -> None:
    single = logits(folder, attention_for)
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(tensors)
    weight_map = {name: f"model-{index % 2 + 1:05}-of-00002.safetensors" for index, name in enumerate(names)}
    for shard in set(weight_map.values()):
        save_file({name: tensors[name] for name in names if weight_map[name] == shard}, folder / shard)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    assert torch.equal(logits(folder, attention_for), single)
    (folder / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(NotFound, match="names model-00002-of-00002"):
        logits(folder, attention_for)


def test_progress_reaches_the_total(folder: Path) -> None:
    seen: list[tuple[int, int]] = []
    load_model(folder, "bfloat16", "cpu", lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1] == (folder / "model.safetensors").stat().st_size


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_casts_stored_dtype(folder: Path, attention_for: Callable, stored: torch.dtype) -> None:
    rewrite(folder, lambda tensors: tensors.update({n: t.to(stored) for n, t in tensors.items()}))
    assert logits(folder, attention_for).dtype == torch.float32


def test_extra_tied_head_and_rope_buffers_are_ignored(folder: Path) -> None:
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**fields, "tie_word_embeddings": True}))
    buffer = {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}
    rewrite(folder, lambda tensors: tensors.update(buffer))
    load_model(folder, "float32", "cpu")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.pop("model.layers.1.mlp.up_proj.weight"), r"no tensor model\.layers\.1\.mlp\.up_proj"),
        (
            lambda t: t.update({"model.layers.0.odd": torch.zeros(1)}),
            r"1 unexpected tensors.*model\.layers\.0\.odd",
        ),
        (lambda t: t.update({"model.norm.weight": torch.zeros(3)}), r"shape \[3\]; config.json says \[64\]"),
        (lambda t: t.update({"model.norm.weight": torch.zeros(64).to(torch.float8_e4m3fn)}), "float8_e4m3fn"),
    ],
    ids=["missing", "unexpected", "shape", "dtype"],
)
def test_names_the_tensor_that_does_not_fit(folder: Path, change: Callable, message: str) -> None:
    rewrite(folder, change)
    with pytest.raises(UnsupportedModel, match=message):
        load_model(folder, "float32", "cpu")


def test_damaged_absent_and_other_formats(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(UnsupportedModel, match="damaged"):
        load_model(folder, "float32", "cpu")
    weights.rename(folder / "pytorch_model.bin")
    with pytest.raises(NotFound, match=r"no \*\.safetensors"):
        load_model(folder, "float32", "cpu")


def test_unknown_dtype(folder: Path) -> None:
    with pytest.raises(ConfigError, match="float32, bfloat16") as error:
        load_model(folder, "int8", "cpu")
    assert isinstance(error.value, ForebayError)
