"""The launcher over stub services: stages, wiring, order of the drain, death of a child, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time

import psutil
import pytest

from forebay.cli import launcher as module
from forebay.cli.launcher import ChildFailed, Launcher
from forebay.errors import Unavailable
from forebay.rpc.server import LAUNCHER_PID


@pytest.fixture
def stages():
    return []


@pytest.fixture
def launch(stub_services, tmp_path, stages):
    def launch(**options):
        def on_stage(name, stage, seconds):
            stages.append((name, stage))

        return Launcher(log_dir=tmp_path, on_stage=on_stage, redis_url="off", **options)

    return launch


def closed_at(tmp_path, name):
    return float(re.search(r"closed at ([\d.]+)", (tmp_path / f"{name}.log").read_text())[1])


def test_all_reach_serving_and_drain_in_reverse(launch, tmp_path, stages):
    with launch(extra={"decode": {"load_s": 3.0}}) as services:
        assert set(services.addresses) == {"kv_store", "prefill", "decode", "gateway"}
        assert services.gateway_address == services.addresses["gateway"][0]
        pids = [process.popen.pid for process in services.processes]
        assert ("decode-0", "loading") in stages
        assert {name for name, stage in stages if stage == "serving"} == {
            p.child.name for p in services.processes
        }
    assert [name for name, stage in stages if stage == "stopped"] == [
        "gateway-0", "decode-0", "prefill-0", "kv_store-0",
    ]  # fmt: skip
    gateway, decode, prefill, store = (
        closed_at(tmp_path, name) for name in ("gateway-0", "decode-0", "prefill-0", "kv_store-0")
    )
    assert gateway < min(decode, prefill) and max(decode, prefill) < store
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_children_start_at_once(launch):
    start = time.monotonic()
    with launch(
        num_prefill=2, extra={role: {"load_s": 1.0} for role in ("kv_store", "prefill", "decode", "gateway")}
    ):
        assert time.monotonic() - start < 5.0, "five loads of one second each, one after another"


def test_a_child_that_ends_at_start_is_named_with_its_last_words(launch):
    services = launch(extra={"prefill": {"refuse": 1}})
    with pytest.raises(ChildFailed, match="(?s)prefill-0 ended with code 2.*the last words"), services:
        pass
    assert services.processes == []


def test_a_child_that_dies_later_ends_the_watch(launch):
    with (
        launch(extra={"decode": {"die_after": 0.7}}) as services,
        pytest.raises(ChildFailed, match="decode-0.*-9"),
    ):
        services.watch()


def test_not_ready_in_time(launch):
    services = launch(extra={"prefill": {"load_s": 30}})
    services.start()
    with pytest.raises(Unavailable, match="not SERVING after 1 s: .*prefill-0"):
        services.wait_ready(timeout_s=1.0)
    services.stop()
    services.stop()


def test_what_does_not_end_is_killed(launch, monkeypatch):
    monkeypatch.setattr(module, "KILL_AFTER_S", 0.5)
    with launch() as services:
        services.signal(signal.SIGSTOP, [services.find("decode-0")])
    assert services.processes == []


def test_children_have_the_environment(launch):
    with launch() as services:
        environ = psutil.Process(services.find("decode-0").popen.pid).environ()
        assert environ["MALLOC_MMAP_THRESHOLD_"] == "1073741824" and environ["OMP_WAIT_POLICY"] == "passive"


UP = """
import sys
from forebay.cli import main, plan
plan.MODULES = dict.fromkeys(plan.MODULES, "stub_service")
sys.argv = ["forebay", "up", "--model", "/", "--redis-url", "off", "--port", "0", *sys.argv[1:]]
main()
"""


@pytest.fixture
def up(stub_services):
    """`forebay up` over stub services, once it serves."""
    process = subprocess.Popen(
        [sys.executable, "-c", UP], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    with process:
        wait_for(process, "gateway at 127.0.0.1:")
        yield process
        process.send_signal(signal.SIGTERM)


def wait_for(process, text):
    seen = ""
    while text not in seen:
        line = process.stderr.readline()
        assert line, seen
        seen += line
    return seen


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_up_drains_on_one_signal(up, number):
    up.send_signal(number)
    _, error = up.communicate(timeout=30)
    assert up.returncode == 0, error
    stopped = re.findall(r"(\S+) +stopped", error)
    assert stopped == ["gateway-0", "decode-0", "prefill-0", "kv_store-0"]


def test_up_exits_1_when_a_service_dies(up):
    child = next(child for child in psutil.Process(up.pid).children() if "-m" in child.cmdline())
    child.kill()
    _, error = up.communicate(timeout=30)
    assert up.returncode == 1
    assert re.search(r"forebay: \S+ ended with code -9", error) and "Traceback" not in error


def test_services_end_when_the_launcher_is_killed(up):
    children = psutil.Process(up.pid).children()
    up.kill()
    gone, alive = psutil.wait_procs(children, timeout=30)
    assert len(gone) == 4 and not alive


def test_a_loading_service_ends_too(stub_services):
    listen = {"--listen=127.0.0.1:0", "--load-s=60"}
    parent = f"import subprocess, sys, os; os.environ['{LAUNCHER_PID}'] = str(os.getpid()); " + (
        f"print(subprocess.Popen([sys.executable, '-m', 'stub_service', *{sorted(listen)}]).pid, flush=True)"
    )
    done = subprocess.run([sys.executable, "-c", parent], capture_output=True, text=True, timeout=30)
    _, alive = psutil.wait_procs([p for p in psutil.process_iter() if p.pid == int(done.stdout)], timeout=30)
    assert not alive


def test_up_with_a_private_redis(stub_services, tmp_path):
    with Launcher(log_dir=tmp_path) as services:
        assert services.redis_url.startswith("unix://") and services.redis.is_running
        redis = services.redis
    assert not redis.is_running
