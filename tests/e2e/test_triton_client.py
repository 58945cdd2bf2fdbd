"""tritonclient, unchanged, against a whole platform and a real model."""

import json
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).parents[1] / "gateway" / "triton_calls.py"
PROMPT = "The three primary colours are"


def test_text_whole_and_streamed(rig):
    command = [sys.executable, str(SCRIPT), rig.launcher.gateway_address, "SmolLM2-135M-Instruct", PROMPT]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    expected = rig.client.generate(PROMPT, max_tokens=8)
    assert found["infer"]["text"] == [expected.text] and found["infer"]["tokens"] == 8
    pieces = found["stream"]["pieces"]
    assert "".join(pieces["a"]) == expected.text == pieces["b"][0] and len(pieces["a"]) > 1
    assert found["model_ready"] == [True, False] and len(found["stream"]["errors"]) == 1
