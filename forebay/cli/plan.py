"""From launch options to the list of processes: which module, which flags, which address. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from forebay.errors import ConfigError, suggest

# Modules are named as strings: this package imports no service.
MODULES = {
    "kv_store": "kv_store",
    "draft": "draft_service",
    "prefill": "prefill_service",
    "decode": "decode_service",
    "aggregated": "forebay.aggregated",
    "gateway": "gateway",
}
# Bulk gRPC spends most of its CPU on page faults of freed buffers: keep them. Huge pages: a step reads all
# weights, and TLB misses cost a tenth of it. Idle OpenMP threads must not spin, because several processes
# share the cores: with 1,000 spins decode lost a third of its speed beside prefill.
ENVIRONMENT = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 32),
    "MALLOC_TOP_PAD_": str(1 << 28),
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
    "OMP_WAIT_POLICY": "passive",
    "KMP_BLOCKTIME": "0",
    "PYTHONUNBUFFERED": "1",
}
Flags = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class LaunchOptions:
    """What a set of services looks like. `extra`: flags by role; `redis_url`: "" starts a private server;
    `http_listen`: "" leaves the gateway's HTTP port closed.
    """

    model: str = "demo"
    model_name: str = ""
    mode: Literal["disaggregated", "aggregated"] = "disaggregated"
    dtype: str = "auto"
    device: str = "auto"
    num_prefill: int = 1
    num_decode: int = 1
    num_stores: int = 1
    speculate: Literal["off", "ngram", "model"] = "off"
    draft_model: str = ""
    redis_url: str = ""
    kv_arena_bytes: int = 0
    kv_transport: Literal["auto", "shm", "grpc"] = "auto"
    listen: str = "127.0.0.1:0"
    http_listen: str = ""
    log_level: str = "info"
    extra: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("num_prefill", "num_decode", "num_stores"):
            least = 1 if name == "num_decode" else 0
            if getattr(self, name) < least:
                raise ConfigError(f"{name}: at least {least}, got {getattr(self, name)}")
        if self.speculate == "model" and not self.draft_model:
            raise ConfigError("draft_model: speculate=model needs one")
        for role in self.extra:
            if role not in MODULES:
                raise ConfigError(f"extra: no role {role!r}{suggest(role, MODULES)}")


@dataclass(frozen=True)
class Child:
    """One process to start."""

    name: str
    role: str
    address: str
    flags: Flags

    @property
    def arguments(self) -> list[str]:
        """What follows the Python executable."""
        flags = [f"--{key.replace('_', '-')}={_text(value)}" for key, value in self.flags.items()]
        return ["-m", MODULES[self.role], *flags]


def plan(options: LaunchOptions, redis_url: str, new_address: Callable[[], str]) -> list[Child]:
    """The processes in order of start; `new_address` gives a free internal host:port on each call."""

    def start(role: str, num: int, flags: Flags) -> list[Child]:
        return [_child(options, role, i, new_address(), flags) for i in range(num)]

    stores = start("kv_store", options.num_stores, _store_flags(options, redis_url))
    model = _model_flags(options, redis_url, _addresses(stores))
    drafts = start("draft", int(options.speculate != "off"), _draft_flags(options))
    speculation: Flags = {"speculate": options.speculate, "draft_address": ",".join(_addresses(drafts))}
    if options.mode == "aggregated":
        prefill = decode = workers = start("aggregated", options.num_decode, model | speculation)
    else:
        prefill = start("prefill", options.num_prefill, model)
        decode = start("decode", options.num_decode, model | speculation)
        workers = prefill + decode
    flags: Flags = {
        "prefill": _addresses(prefill),
        "decode": _addresses(decode),
        "redis_url": redis_url,
        "startup_wait_s": 600.0,
    } | ({"http_listen": options.http_listen} if options.http_listen else {})
    return [*stores, *drafts, *workers, _child(options, "gateway", 0, options.listen, flags)]


def _child(options: LaunchOptions, role: str, index: int, address: str, flags: Flags) -> Child:
    own = {"listen": address, "log_level": options.log_level, **flags, **options.extra.get(role, {})}
    return Child(f"{role}-{index}", role, address, own)


def _draft_flags(options: LaunchOptions) -> Flags:
    return {
        "method": options.speculate,
        "model": options.draft_model,
        "dtype": options.dtype,
        "device": options.device,
    }


def _model_flags(options: LaunchOptions, redis_url: str, stores: list[str]) -> Flags:
    return {
        "model": options.model,
        "model_name": options.model_name,
        "dtype": options.dtype,
        "device": options.device,
        "kv_stores": stores,
        "kv_transport": options.kv_transport,
        "redis_url": redis_url,
    }


def _store_flags(options: LaunchOptions, redis_url: str) -> Flags:
    flags: Flags = {"redis_url": redis_url, "shared_memory": options.kv_transport != "grpc"}
    return flags | ({"arena_bytes": options.kv_arena_bytes} if options.kv_arena_bytes else {})


def _addresses(children: list[Child]) -> list[str]:
    return [child.address for child in children]


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
