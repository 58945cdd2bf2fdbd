"""Identity of the KV that a model writes: workers exchange blocks only if theirs are equal. Torch-free."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path

from forebay.kv.layout import LAYOUT_VERSION
from forebay.model.config import ModelConfig
from forebay.model.folder import shard_paths

# A whole checkpoint takes seconds to minutes to hash; header, size and both ends tell revisions apart in ms.
SAMPLE_BYTES = 1 << 20


def fingerprint(folder: Path, dtype: str, kv_dtype: str, block_size: int) -> bytes:
    """32-byte SHA-256 over weights, tokenizer, hyperparameters, dtypes, block size and layout version."""
    parts: dict[str, object] = {
        "config": asdict(ModelConfig.from_folder(folder)),
        "tokenizer": _file_digest(folder / "tokenizer.json"),
        "weights": [(path.name, path.stat().st_size, _sample_digest(path)) for path in shard_paths(folder)],
        "dtype": dtype,
        "kv_dtype": kv_dtype,
        "block_size": block_size,
        "layout_version": LAYOUT_VERSION,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).digest()


def _file_digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes() if path.exists() else b"").hexdigest()


def _sample_digest(path: Path) -> str:
    """SHA-256 over a safetensors file's header and its first and last MiB."""
    size = path.stat().st_size
    with path.open("rb") as file:
        header_bytes = 8 + int.from_bytes(file.read(8), "little")
        file.seek(0)
        digest = hashlib.sha256(file.read(min(size, max(header_bytes, SAMPLE_BYTES))))
        file.seek(max(0, size - SAMPLE_BYTES))
        digest.update(file.read())
    return digest.hexdigest()
