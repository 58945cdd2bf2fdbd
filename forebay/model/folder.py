"""Files of a Hugging Face model folder. Torch-free."""

import json
from pathlib import Path

from forebay.errors import NotFound

INDEX_NAME = "model.safetensors.index.json"


def shard_paths(folder: Path) -> list[Path]:
    """The safetensors files of a model folder, sorted; raises NotFound if there are none or one is absent."""
    index = folder / INDEX_NAME
    if index.exists():
        paths = sorted({folder / name for name in json.loads(index.read_text())["weight_map"].values()})
    else:
        paths = sorted(folder.glob("*.safetensors"))
    absent = [path.name for path in paths if not path.exists()]
    if absent:
        raise NotFound(f"{folder}: {INDEX_NAME} names {some(absent)}, which is not there")
    if not paths:
        raise NotFound(f"{folder} holds no *.safetensors; other formats are not read: they may run code")
    return paths


def some(names: list[str]) -> str:
    """The first few of many names, for an error message."""
    return ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "") if names else "nothing else"
