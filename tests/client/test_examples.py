"""The examples run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from forebay.errors import InvalidArgument
from forebay.v1 import inference_pb2 as pb

ROOT = Path(__file__).parents[2]
SHOWN = {
    "stream.py": "prefill      2.0 ms",
    "many_chats.py": "snow white? 'Hi'",
    "errors.py": "n allows 16, got 99",
}


@pytest.mark.parametrize("name", sorted(path.name for path in (ROOT / "examples").glob("*.py")))
def test_example(gateway, name):
    last = pb.GenerateResponse(text="Hi", finish_reason=1, receipt={"stages": [{"name": "prefill", "ms": 2}]})
    error = InvalidArgument("out of range", field="n", limit=16, got=99)
    gateway.script = [[error]] if name == "errors.py" else [[last]]
    command = [sys.executable, str(ROOT / "examples" / name), gateway.address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env={"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0 and not done.stderr, done.stderr
    assert SHOWN[name] in done.stdout
