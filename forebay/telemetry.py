"""Logs and metrics: structlog JSON lines with a request id, one Prometheus endpoint per service."""

from __future__ import annotations

import logging
import os
import sys

import structlog
from prometheus_client import start_http_server

REQUEST_ID_KEY = "forebay-request-id"


def configure_logs(service: str, level: str = "info", *, as_json: bool = True) -> None:
    """One JSON object per line on standard error; `service`, `pid` and the bound request id in each."""
    renderer: structlog.typing.Processor = (
        structlog.processors.JSONRenderer() if as_json else structlog.dev.ConsoleRenderer()
    )
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", key="ts"),
            structlog.processors.format_exc_info,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.getLevelNamesMapping()[level.upper()]),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
    )
    structlog.contextvars.bind_contextvars(service=service, pid=os.getpid())


def serve_metrics(port: int, host: str = "127.0.0.1") -> int:
    """Serve the Prometheus registry on `host:port` (0 picks a port, negative: off); returns the port."""
    if port < 0:
        return -1
    server, _ = start_http_server(port, addr=host)
    return int(server.server_port)
