"""Our own client and commands against a whole platform."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from forebay.client import Forebay

ROOT = Path(__file__).parents[2]
PROMPT = "The Danube rises in the Black Forest of Germany and flows to the Black Sea. " * 4


def forebay(rig, *arguments):
    env = os.environ | {"FOREBAY_GATEWAY": rig.launcher.gateway_address, "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "forebay.cli", *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_client(rig):
    with Forebay(rig.launcher.gateway_address) as client:
        first, second = (client.generate(PROMPT, max_tokens=8, temperature=0).collect() for _ in range(2))
        assert first.text == second.text and second.usage.cached_tokens > 0
        tokens = client.tokenize(PROMPT).token_ids
        assert client.detokenize(tokens) == PROMPT and len(tokens) == first.usage.prompt_tokens
        story = client.explain(second.request_id)
        assert story.receipt == second.receipt and story.outcome == "OK"
        fleet = client.fleet()
    assert {worker.role for worker in fleet.workers} == {"prefill", "decode"}
    assert all(worker.is_alive and worker.load.num_blocks for worker in fleet.workers)
    assert fleet.traffic.num_output_tokens >= 16 and fleet.traffic.ttft_p99_ms > 0


def test_the_commands(rig, tmp_path):
    load = {"num-requests": 6, "concurrency": 2, "input-length": 64, "prefix-length": 32, "output-length": 8}
    files = {"json": tmp_path / "a.json", "plot": tmp_path / "a.svg"}
    shown = forebay(rig, "bench", *(f"--{name}={value}" for name, value in (load | files).items()))
    run = json.loads((tmp_path / "a.json").read_text())
    assert run["errors"] == {} and run["output_tokens"] == 48 and run["cached_tokens"] > 0
    assert {"prefill", "decode"} <= run["stages_ms"].keys() and "first token" in shown
    # Most of what a client measures is in the receipt.
    assert run["stages_ms"]["network"]["share"] < 0.1
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    shown = forebay(rig, "top", "--once")
    assert "prefill" in shown and "decode" in shown and "alive" in shown


def test_the_examples(rig):
    for name in ("stream.py", "many_chats.py", "errors.py"):
        command = [sys.executable, str(ROOT / "examples" / name), rig.launcher.gateway_address]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and not done.stderr, done.stderr
