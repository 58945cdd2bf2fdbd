"""The HTTP port on its way from the command line to the gateway."""

from __future__ import annotations

from forebay.cli.launcher import Launcher
from forebay.cli.plan import LaunchOptions, plan


def gateway_flags(**options):
    return plan(LaunchOptions(**options), "", lambda: "host:1")[-1].flags


def test_the_port_is_closed_unless_asked_for():
    assert "http_listen" not in gateway_flags()
    assert gateway_flags(http_listen="host:8000")["http_listen"] == "host:8000"


def test_the_launcher_picks_a_port_and_tells_the_url(stub_services, tmp_path):
    with Launcher(log_dir=tmp_path, redis_url="off", http_listen="127.0.0.1:0") as services:
        address = services.find("gateway-0").child.flags["http_listen"]
        assert not address.endswith(":0") and address != services.gateway_address
        assert services.http_url == f"http://{address}/v1"
    with Launcher(log_dir=tmp_path, redis_url="off") as services:
        assert services.http_url == ""
