"""Whole platforms as separate processes, started once per configuration and shared by the session."""

import os
import signal
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from e2e_client import Client, check_idle

from forebay.cli.launcher import Launcher

# The few that live at once bound memory: a platform holds the weights several times.
MAX_LIVE_RIGS = 2
POOL_BYTES, ARENA_BYTES = 384 << 20, 256 << 20


class Rig:
    """A running platform and a client of its gateway."""

    def __init__(self, launcher: Launcher) -> None:
        self.launcher = launcher
        self.client = Client(launcher.gateway_address)

    @property
    def addresses(self) -> list[str]:
        return [address for role in self.launcher.addresses.values() for address in role]

    def check_idle(self) -> None:
        check_idle(self.addresses)

    def kill(self, role: str) -> None:
        """SIGKILL all processes of a role; the launcher watches only when asked to."""
        if role == "redis":
            self.launcher.redis.kill()
        else:
            self.launcher.signal(signal.SIGKILL, [p for p in self.launcher.processes if p.child.role == role])

    def stop(self) -> None:
        self.client.close()
        self.launcher.stop()


def with_pools(extra: dict[str, dict]) -> dict[str, dict]:
    """Small pools for all workers, unless the test says otherwise."""
    pools = {role: {"pool_bytes": POOL_BYTES} for role in ("prefill", "decode", "aggregated")}
    return {role: pools.get(role, {}) | extra.get(role, {}) for role in pools | extra}


@pytest.fixture(scope="session")
def rigs(tmp_path_factory):
    """`rigs(**launcher options)` gives the platform of that configuration, started if it is not running."""
    live: dict[str, Rig] = {}

    def get(**options) -> Rig:
        key = repr(sorted(options.items()))
        rig = live.pop(key, None)
        if rig is None:
            while len(live) >= MAX_LIVE_RIGS:
                live.pop(next(iter(live))).stop()
            options = {"model": "demo", "dtype": "float32", "kv_arena_bytes": ARENA_BYTES, **options}
            options = {"http_listen": "127.0.0.1:0", **options}
            options["extra"] = with_pools(options.get("extra", {}))
            rig = Rig(Launcher(log_dir=tmp_path_factory.mktemp("rig"), **options).__enter__())
        live[key] = rig
        return rig

    yield get
    for rig in live.values():
        rig.stop()


@pytest.fixture
def rig(rigs, request):
    """The platform of `request.param` (or the default one); idle and intact after the test."""
    platform = rigs(**getattr(request, "param", {}))
    yield platform
    platform.check_idle()


os.environ.setdefault("HF_HUB_OFFLINE", "1")
