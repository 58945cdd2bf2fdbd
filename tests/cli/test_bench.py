"""`forebay bench` against a gateway with canned answers."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest


def bench(*arguments, address="127.0.0.1:1"):
    env = os.environ | {"FOREBAY_GATEWAY": address, "COLUMNS": "140", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "forebay.cli", "bench", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def result(gateway, path, *arguments):
    done = bench(*arguments, "--json", path, address=gateway.address)
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads(path.read_text())


def test_closed_loop(gateway, tmp_path):
    options = "--concurrency 3 --num-requests 7 --input-length 20 --output-length 5 --prefix-length 8"
    shown, run = result(gateway, tmp_path / "a.json", *options.split(), "--slo-ttft", 10_000)
    assert run["num_requests"] == 7 and run["errors"] == {} and run["output_tokens"] == 21
    assert run["goodput"]["num_good"] == 7 and run["settings"]["concurrency"] == 3
    assert run["stages_ms"]["prefill"]["mean"] == 12.5
    assert "first token" in shown and "goodput: 100.0%" in shown
    request = gateway.requests[0]
    assert len(request.token_ids.ids) == 20 and not request.text_output
    assert request.sampling.ignore_eos and request.sampling.max_tokens == 5


def test_open_loop(gateway, tmp_path):
    _, run = result(gateway, tmp_path / "a.json", "--rate", 50, "--num-requests", 10)
    assert run["num_requests"] == 10 and 0.02 < run["duration_s"] < 5


def test_trace(gateway, tmp_path):
    trace = tmp_path / "t.jsonl"
    rows = [
        {"timestamp": 100 * n, "input_length": 600, "output_length": 30, "hash_ids": [0, n]} for n in range(4)
    ]
    trace.write_text("".join(json.dumps(row) + "\n" for row in rows))
    options = ("--trace", trace, "--time-scale", 0.1, "--length-scale", 0.1)
    _, run = result(gateway, tmp_path / "a.json", *options)
    assert run["num_requests"] == 4 and run["settings"]["trace"] == str(trace)
    prompts = sorted(list(request.token_ids.ids) for request in gateway.requests)
    assert all(len(prompt) == 60 for prompt in prompts) and prompts[0][:51] == prompts[3][:51]


def test_compare(gateway, tmp_path):
    for name in ("a.json", "b.json"):
        result(gateway, tmp_path / name, "--num-requests", 3)
    done = bench("--compare", tmp_path / "a.json", tmp_path / "b.json")
    assert done.returncode == 0 and "a.json" in done.stdout and "first token p99, ms" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rate", "1", "--trace", "x"], "exclude"),
        (["--concurrency", "0"], "--concurrency: at least 1"),
        (["--trace", "/nonexistent"], "no file"),
    ],
)
def test_wrong_usage(arguments, message):
    done = bench(*arguments)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr


def test_no_gateway_and_no_model(gateway):
    done = bench()
    assert done.returncode == 1 and "nothing answers" in done.stderr
    done = bench("--model", "other", address=gateway.address)
    assert done.returncode == 1 and "no such model" in done.stderr
