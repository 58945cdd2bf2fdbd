"""The doctor's findings, each with something wrong and with nothing wrong."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
from collections import namedtuple

import pytest

from forebay.doctor import machine, network
from forebay.errors import ConfigError
from forebay.rpc.server import Server

Usage = namedtuple("Usage", "total used free")


def states(findings):
    return [finding.state for finding in findings]


def one(findings):
    (finding,) = findings
    assert bool(finding.fix) == (finding.state != "good"), finding
    return finding


def test_versions():
    assert states(machine.versions()) == ["good", "good"]


def test_an_old_or_missing_package(monkeypatch):
    monkeypatch.setattr(
        machine, "requires", lambda name: ["grpcio>=99.1", "nosuchpackage>=1", "x>=1; extra == 'y'"]
    )
    python, packages = machine.versions()
    assert packages.state == "bad" and "older than 99.1" in packages.found
    assert "nosuchpackage is missing" in packages.found and packages.fix and python.state == "good"


def test_a_source_folder_that_is_not_installed(monkeypatch):
    def missing(name):
        raise machine.PackageNotFoundError(name)

    monkeypatch.setattr(machine, "requires", missing)
    assert states(machine.versions()) == ["good", "poor"]


def test_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    assert one(network.port(address)).state == "good"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        finding = one(network.port(f"127.0.0.1:{taken.getsockname()[1]}"))
        assert finding.state == "bad" and "--port" in finding.fix
    assert one(network.port("nonsense")).state == "bad"
    assert one(network.port("127.0.0.1:99999")).state == "bad"


async def test_a_port_that_has_a_gateway():
    import asyncio

    server = Server("127.0.0.1:0")
    await server.start()
    finding = one(await asyncio.to_thread(lambda: list(network.port(f"127.0.0.1:{server.port}"))))
    assert finding.state == "good" and "NOT_SERVING" in finding.found
    await server.stop(None)


def test_redis(redis_url, monkeypatch):
    assert one(network.redis(redis_url)).state == "good"
    assert one(network.redis("")).state == "good"
    assert one(network.redis("redis://127.0.0.1:1")).state == "bad"
    assert one(network.redis("nonsense")).state == "bad"
    monkeypatch.setattr(network, "MAX_CLOCK_SKEW_S", -1.0)
    assert "clock differs" in one(network.redis(redis_url)).found

    def missing():
        raise ConfigError("no Redis server")

    monkeypatch.setattr(network, "find_binary", missing)
    assert one(network.redis("")).state == "bad"


@pytest.mark.parametrize(
    ("output", "code", "torch", "state"),
    [
        ("H100, 80 GiB", 0, "2.9+cu128", "good"),
        ("H100", 0, "2.9+cpu", "poor"),
        ("no driver", 9, "2.9", "bad"),
    ],
)
def test_gpu(monkeypatch, output, code, torch, state):
    monkeypatch.setattr(machine.shutil, "which", lambda name: "nvidia-smi")
    monkeypatch.setattr(machine, "version", lambda name: torch)
    done = subprocess.CompletedProcess([], code, output, "")
    monkeypatch.setattr(machine.subprocess, "run", lambda *args, **options: done)
    finding = one(machine.gpu())
    assert finding.state == state and output in finding.found


def test_a_driver_that_hangs(monkeypatch):
    def hang(*args, **options):
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(machine.shutil, "which", lambda name: "nvidia-smi")
    monkeypatch.setattr(machine.subprocess, "run", hang)
    assert one(machine.gpu()).state == "bad"


def test_room(monkeypatch, tmp_path):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 1 << 40))
    monkeypatch.setattr(machine, "SHM", tmp_path)
    assert (one(machine.shared_memory()).state, one(machine.disk()).state) == ("good", "good")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(1, 1, 64 << 20))
    assert (one(machine.shared_memory()).state, one(machine.disk()).state) == ("poor", "poor")
    monkeypatch.setattr(machine, "SHM", tmp_path / "none")
    assert "grpc" in one(machine.shared_memory()).fix


def test_clock(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "CLOCK", tmp_path / "clock")
    assert one(machine.clocks()).state == "good"
    for name, state in (("tsc", "good"), ("hpet", "poor")):
        (tmp_path / "clock").write_text(f"{name}\n")
        assert one(machine.clocks()).state == state


def test_model_folder(tmp_path):
    assert one(machine.model_folder(str(tmp_path / "none"))).state == "bad"
    finding = one(machine.model_folder(str(tmp_path)))
    assert finding.state == "bad" and "config.json, tokenizer.json" in finding.found
    for name in ("config.json", "tokenizer.json"):
        (tmp_path / name).write_text(json.dumps({"architectures": ["Strange"], "model_type": "strange"}))
    assert "*.safetensors" in one(machine.model_folder(str(tmp_path))).found
    (tmp_path / "model.safetensors").touch()
    finding = one(machine.model_folder(str(tmp_path)))
    assert finding.state == "bad" and "not supported" in finding.found
    assert one(machine.model_folder("demo")).state in ("good", "poor")
