"""Every Triton kernel compiles for sm_90 within its registers and shared memory; needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

MAX_SHARED_BYTES = 232_448  # one sm_90 thread block


def _compile(script: str) -> dict[str, dict[str, int]]:
    """In a process of its own: the interpreter replaces triton.jit, and is chosen once a process."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path}
    command = [sys.executable, Path(__file__).parent / script]
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    usages: dict[str, dict[str, int]] = json.loads(result.stdout)
    for name, usage in usages.items():
        assert usage["stack_bytes"] == 0 and usage["spills"] == 0, (name, usage)
        assert usage["shared_bytes"] <= MAX_SHARED_BYTES, (name, usage)
    return usages


def test_kernels_fit_sm90() -> None:
    for name, usage in _compile("sm90.py").items():
        if name.startswith("split"):
            assert usage["mma"] > 0, (name, usage)
            assert usage["async_copies"] > 0, (name, usage)


def test_gluon_kernels_fit_sm90() -> None:
    """Attention and linears use Hopper's matrix and copy units."""
    for name, usage in _compile("sm90_gluon.py").items():
        if name.startswith(("prefill", "linear")):
            assert usage["wgmma"] > 0 and usage["tma_loads"] > 0, (name, usage)
        if name.startswith("split"):
            assert usage["mma"] > 0 and usage["tma_loads"] > 0, (name, usage)
