"""Every Triton kernel compiles for sm_90 within its registers and shared memory; needs no GPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

MAX_SHARED_BYTES = 232_448  # one sm_90 thread block


def test_kernels_fit_sm90() -> None:
    """In a process of its own: the interpreter replaces triton.jit, and is chosen once a process."""
    root = Path(__file__).parents[2]
    path = os.pathsep.join(filter(None, (str(root), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"TRITON_INTERPRET": "0", "PYTHONPATH": path}
    script = Path(__file__).parent / "sm90.py"
    result = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    for name, usage in json.loads(result.stdout).items():
        assert usage["stack_bytes"] == 0 and usage["spills"] == 0, (name, usage)
        assert usage["shared_bytes"] <= MAX_SHARED_BYTES, (name, usage)
        if name.startswith("split"):
            assert usage["mma"] > 0, (name, usage)
            assert usage["async_copies"] > 0, (name, usage)
