"""The fingerprint changes with everything that changes KV, and with nothing else."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from forebay.model import fingerprint as module
from forebay.model.fingerprint import fingerprint

BASE = ("float32", "float32", 16)


@pytest.fixture
def folder(tmp_path: Path, tiny_folder: Callable[[str], Path]) -> Path:
    copy = shutil.copytree(tiny_folder("llama"), tmp_path / "model")
    (copy / "tokenizer.json").write_text("{}")
    return copy


def test_is_stable_and_free_of_the_path(folder: Path, tmp_path: Path) -> None:
    other = shutil.copytree(folder, tmp_path / "elsewhere")
    assert len(fingerprint(folder, *BASE)) == 32
    assert fingerprint(folder, *BASE) == fingerprint(other, *BASE)


@pytest.mark.parametrize(
    "arguments",
    [("bfloat16", "float32", 16), ("float32", "bfloat16", 16), ("float32", "float32", 32)],
    ids=str,
)
def test_depends_on_each_argument(folder: Path, arguments: tuple[str, str, int]) -> None:
    assert fingerprint(folder, *arguments) != fingerprint(folder, *BASE)


def flip(path: Path, offset: int) -> None:
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def set_rope(path: Path) -> None:
    fields = json.loads((path / "config.json").read_text())
    fields["rope_parameters"] = {"rope_type": "default", "rope_theta": 5e5}
    (path / "config.json").write_text(json.dumps(fields))


@pytest.mark.parametrize(
    "change",
    [
        lambda path: flip(path / "model.safetensors", 20),
        lambda path: flip(path / "model.safetensors", -1),
        lambda path: os.truncate(path / "model.safetensors", (path / "model.safetensors").stat().st_size + 1),
        lambda path: (path / "model.safetensors").rename(path / "weights.safetensors"),
        lambda path: (path / "tokenizer.json").write_text("{ }"),
        set_rope,
    ],
    ids=["header", "last byte", "size", "name", "tokenizer", "rope"],
)
def test_depends_on_each_file(folder: Path, change: Callable[[Path], object]) -> None:
    before = fingerprint(folder, *BASE)
    change(folder)
    assert fingerprint(folder, *BASE) != before


def test_depends_on_the_layout_version(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = fingerprint(folder, *BASE)
    monkeypatch.setattr(module, "LAYOUT_VERSION", 99)
    assert fingerprint(folder, *BASE) != before
