"""Configuration of the gateway."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forebay.config import option


@dataclass(frozen=True, kw_only=True)
class GatewayConfig:
    """The public entry: validates, tokenises, routes, streams."""

    listen: str = option("127.0.0.1:50051", help="host:port of the gRPC server; port 0 picks one")
    http_listen: str = option("", help="host:port of the OpenAI-compatible HTTP server; empty turns it off")
    metrics_port: int = option(-1, help="port of the Prometheus endpoint; 0 picks one, -1 turns it off")
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", help="least level that is logged"
    )
    grace_s: float = option(10.0, help="seconds that streams get to finish at shutdown")
    prefill: tuple[str, ...] = option((), help="addresses of prefill workers")
    decode: tuple[str, ...] = option((), help="addresses of decode workers; one in both lists is aggregated")
    redis_url: str = option("", help="Redis with prefix index and membership; none: the static lists only")
    model_folder: str = option("", help="folder with tokenizer and template; default: the one workers name")
    poll_s: float = option(1.0, help="seconds between two looks at a worker")
    startup_wait_s: float = option(10.0, help="seconds to wait for the first worker before serving anyway")
    index_budget_s: float = option(0.005, help="seconds that an index lookup may take")
    local_prefill_max_tokens: int = option(
        -1,
        help="decode itself computes a prompt with at most this many novel tokens; -1: one block, 0: never",
    )
    max_requests: int = option(4096, help="live requests; more are refused with UNAVAILABLE")
    max_buffered_tokens: int = option(4096, help="tokens held for a slow client before it is cancelled")
