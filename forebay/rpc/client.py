"""Channels to other services, with the measured arguments, and metadata that travels along."""

from __future__ import annotations

import grpc
import structlog

from forebay.rpc.channel import CLIENT_ARGS
from forebay.telemetry import REQUEST_ID_KEY


def connect(address: str) -> grpc.aio.Channel:
    """A channel to `host:port` (or unix:...); connects lazily, reconnects by itself."""
    return grpc.aio.insecure_channel(address, options=CLIENT_ARGS)


def request_metadata(request_id: str | None = None) -> tuple[tuple[str, str], ...]:
    """Metadata that carries the request id to the next service."""
    bound = structlog.contextvars.get_contextvars().get("request_id", "")
    return ((REQUEST_ID_KEY, request_id or str(bound)),)
