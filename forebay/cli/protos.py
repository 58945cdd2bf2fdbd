"""Regenerate the stubs in `forebay` from `protos/`, or compare it with a fresh regeneration."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from forebay.errors import ConfigError, FailedPrecondition

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = (Path("forebay/v1"), Path("forebay/kserve"))
# Stubs of this release load on every protobuf from 5.29 on; those of a newer one do not.
GENERATOR_VERSION = "1.71.2"


def generate(out: Path) -> list[Path]:
    """Write all stubs below `out`; returns their paths relative to it, sorted."""
    _require_generator()
    sources = sorted(
        str(path) for package in PACKAGES for path in (ROOT / "protos" / package).glob("*.proto")
    )
    if not sources:
        raise ConfigError(f"no .proto files under {ROOT / 'protos'}: this needs a source checkout")
    outputs = [f"--{kind}_out={out}" for kind in ("python", "pyi", "grpc_python")]
    command = [sys.executable, "-m", "grpc_tools.protoc", f"-I{ROOT / 'protos'}", *outputs, *sources]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise ConfigError(f"protoc: {done.stderr.strip()}")
    return stubs_in(out)


def regenerate() -> list[Path]:
    """Replace the committed stubs; those of removed protos go too."""
    fresh = generate(ROOT)
    with tempfile.TemporaryDirectory() as folder:
        for stale in set(fresh) - set(generate(Path(folder))):
            (ROOT / stale).unlink()
    return stubs_in(ROOT)


def check() -> None:
    """Raise FailedPrecondition naming the stubs that a regeneration would change."""
    with tempfile.TemporaryDirectory() as folder:
        fresh = {path: (Path(folder) / path).read_bytes() for path in generate(Path(folder))}
    committed = {path: (ROOT / path).read_bytes() for path in stubs_in(ROOT)}
    names = sorted(p.name for p in fresh.keys() | committed.keys() if fresh.get(p) != committed.get(p))
    if names:
        raise FailedPrecondition(f"stubs differ from protos/: {', '.join(names)}; run `forebay protos`")


def stubs_in(root: Path) -> list[Path]:
    """All generated files below `root`, relative to it."""
    found = (path for package in PACKAGES for path in (root / package).glob("*_pb2*.py*"))
    return sorted(path.relative_to(root) for path in found)


def _require_generator() -> None:
    try:
        found = version("grpcio-tools")
    except PackageNotFoundError:
        found = "none"
    if found != GENERATOR_VERSION:
        raise ConfigError(
            f"grpcio-tools {GENERATOR_VERSION} is needed, found {found}: "
            f"pip install --no-deps grpcio-tools=={GENERATOR_VERSION}"
        )
