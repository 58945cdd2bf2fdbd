"""Configuration of the KV store service."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forebay.config import option


@dataclass(frozen=True, kw_only=True)
class KvStoreConfig:
    """The KV store: holds blocks off the GPU and lends them out under leases."""

    listen: str = option("127.0.0.1:0", help="host:port of the gRPC server; port 0 picks one")
    advertise: str = option("", help="host:port that others reach this store at; default: where it listens")
    metrics_port: int = option(-1, help="port of the Prometheus endpoint; 0 picks one, -1 turns it off")
    log_level: Literal["debug", "info", "warning", "error"] = option(
        "info", help="least level that is logged"
    )
    grace_s: float = option(5.0, help="seconds that streams get to finish at shutdown")
    arena_bytes: int = option(1 << 30, help="bytes of shared memory for blocks")
    slab_bytes: int = option(
        0, help="unit in which the arena is given to a block size; 0: 1/16, at most 64 MiB"
    )
    prefault: bool = option(True, help="touch the whole arena at start, not during the first requests")
    shared_memory: bool = option(True, help="offer the arena to peers on this host")
    max_lease_s: float = option(60.0, help="longest lease granted, seconds")
    redis_url: str = option("", help="Redis of the prefix index and membership; none: not published")
