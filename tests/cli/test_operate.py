"""top, explain, doctor, metrics-doc as a person runs them."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from forebay.cli import top
from forebay.cli.metrics_doc import render
from forebay.cli.top import Snapshot, view
from forebay.client import Fleet, Forebay, Load, Traffic, Worker

ROOT = Path(__file__).parents[2]


def forebay(*arguments, address="127.0.0.1:1"):
    env = os.environ | {"FOREBAY_GATEWAY": address, "COLUMNS": "160", "NO_COLOR": "1"}
    command = [sys.executable, "-m", "forebay.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=env, timeout=60)


def snapshot(at_s, *, steps=0, **traffic):
    numbers = dict.fromkeys(Traffic.__dataclass_fields__, 0) | traffic
    worker = Worker("decode", "d:1", at_s < 10, "m", "1", Load(3, 1, 500, 25, 100, 4000.0, 2e8, steps, 40))
    return Snapshot(at_s, Fleet((worker,), Traffic(**numbers)))


def shown(renderable):
    console = Console(file=io.StringIO(), width=160, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


def test_explain(gateway):
    done = forebay("explain", "r-7", address=gateway.address)
    assert done.returncode == 0
    for part in ("chat by canned: OK", "receipt r-7", "decode", "31.5 ms"):
        assert part in done.stdout
    story = json.loads(forebay("explain", "r-7", "--json", address=gateway.address).stdout)
    assert story["receipt"]["stages"] == [{"name": "decode", "ms": 31.5}] and story["outcome"] == "OK"


def test_top_without_a_terminal_looks_once(gateway):
    done = forebay("top", address=gateway.address)
    assert done.returncode == 0
    for part in ("d:1", "alive", "25%", "40.0% in all", "p99 70 ms"):
        assert part in done.stdout


def test_top_needs_a_gateway():
    done = forebay("top", "--once")
    assert done.returncode == 1 and "nothing answers" in done.stderr


def test_rates_are_since_the_last_look():
    last = snapshot(1.0, steps=100, num_output_tokens=50, num_prompt_tokens=10, num_cached_tokens=0)
    now = snapshot(3.0, steps=160, num_output_tokens=250, num_prompt_tokens=30, num_cached_tokens=15)
    text = shown(view("g:1", now, last))
    for part in ("100.0 tokens/s", "75.0% now", "50.0% in all", "│ 30 ", "4000 tok/s", "200 MB/s", "40%"):
        assert part in text
    assert "- tokens/s" in shown(view("g:1", now, None))
    assert "gone" in shown(view("g:1", snapshot(11.0), now)), "and no negative rates after a restart"


def test_no_workers():
    empty = Snapshot(1.0, Fleet((), snapshot(1.0).fleet.traffic))
    assert "knows no worker" in shown(view("g:1", empty, None))


def test_watching_survives_a_gateway_that_goes_away(gateway, monkeypatch):
    looks = []

    def take(client):
        looks.append(client.address)
        if len(looks) == 2:
            with Forebay("127.0.0.1:1") as nobody:
                return nobody.fleet()
        return Snapshot(float(len(looks)), client.fleet())

    def sleep(seconds):
        if len(looks) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(Snapshot, "take", take)
    monkeypatch.setattr(top, "time", type("Clock", (), {"sleep": sleep}))
    console = Console(file=io.StringIO(), force_terminal=True, width=160)
    with Forebay(gateway.address) as client, pytest.raises(KeyboardInterrupt):
        top.watch(client, 1.0, console)
    assert "nothing answers" in console.file.getvalue() and "d:1" in console.file.getvalue()


def test_doctor_is_json_and_a_table(gateway):
    done = forebay("doctor", "--listen", gateway.address, "--json")
    findings = {finding["name"]: finding for finding in json.loads(done.stdout)}
    assert {"python", "packages", "port", "redis", "gpu", "shared memory", "clock", "disk"} <= findings.keys()
    assert all(f["fix"] for f in findings.values() if f["state"] != "good")
    assert done.returncode == any(f["state"] == "bad" for f in findings.values())
    done = forebay("doctor", "--model", "/nonexistent")
    assert done.returncode == 1 and "no folder /nonexistent" in done.stdout


def test_the_metrics_document_matches_the_code():
    path = ROOT / "docs" / "metrics.md"
    assert path.read_text() == render(), "run `forebay metrics-doc --out docs/metrics.md`"


def test_every_registered_metric_is_in_the_document():
    from prometheus_client import REGISTRY

    import gateway.metrics  # noqa: F401

    text = render()
    ours = [family.name for family in REGISTRY.collect() if family.name.startswith(("forebay_", "gen_ai_"))]
    assert ours and all(name in text for name in ours)
