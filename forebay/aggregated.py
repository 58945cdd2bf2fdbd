"""`python -m forebay.aggregated`: prefill and decode in one process: one model, one pool, one engine thread.

The services are loaded by name: this package imports none. Prompts pass from prefill to decode as block ids
(`forebay.transport.local`), never through a store.
"""

from __future__ import annotations

import importlib
from dataclasses import Field, field, fields, make_dataclass
from typing import Any, get_type_hints

from forebay.config import load_or_exit, option
from forebay.transport.local import LocalHandoff
from forebay.worker import Worker, WorkerConfig
from forebay.worker_app import Parts, WorkerApp, serve_worker

ROLE = "aggregated"
CPU_MIXED_TOKENS, GPU_MIXED_TOKENS = 64, 1024
# Of the pool, kept from new prompts while anything runs: sequences grow into it instead of being preempted.
SPARE_FRACTION = 1 / 16


def config_class(prefill: type[WorkerConfig], decode: type[WorkerConfig]) -> type[WorkerConfig]:
    """Options of a worker, of prefill and of decode; a name that both have is prefixed by its service."""
    mixed = option(
        0,
        help="prompt tokens of a step while sequences decode (bounds their gaps); 0: 64 on CPU, 1024 on GPU",
    )

    def check(config: Any) -> None:
        part_of(config, prefill, decode)
        part_of(config, decode, prefill)

    own = [(name, hint, _copy(f)) for name, hint, f in (*_own(prefill, decode), *_own(decode, prefill))]
    return make_dataclass(
        "AggregatedConfig",
        [*own, ("mixed_batch_tokens", int, mixed)],
        bases=(WorkerConfig,),
        frozen=True,
        kw_only=True,
        namespace={"__doc__": "Prefill and decode in one process.", "__post_init__": check},
    )


def part_of(config: Any, cls: type[WorkerConfig], other: type[WorkerConfig]) -> Any:
    """The configuration of one service within an aggregated one; raises ConfigError as the service would."""
    shared = {f.name: getattr(config, f.name) for f in fields(WorkerConfig)}
    own = {f.name: getattr(config, name) for name, _, f in _own(cls, other)}
    return cls(**shared, **own)


def make_parts(config: Any, worker: Worker) -> list[Parts]:
    """Both services over one worker; decode steps first, so that a token waits for one chunk at most."""
    prefill, decode = _servers()
    classes = prefill.PrefillConfig, decode.DecodeConfig
    prefill_config = part_of(config, *classes)
    handoff = LocalHandoff()
    decode_parts: Parts = decode.DecodeParts(part_of(config, *reversed(classes)), worker, handoff)
    device = worker.device.type
    whole = prefill_config.batch_tokens(device)
    mixed = config.mixed_batch_tokens or (CPU_MIXED_TOKENS if device == "cpu" else GPU_MIXED_TOKENS)

    def budget() -> int:
        return min(mixed, whole) if decode_parts.load().num_running else whole

    num_spare_blocks = int(worker.pool.num_blocks * SPARE_FRACTION)
    prefill_parts: Parts = prefill.PrefillParts(prefill_config, worker, handoff, budget, num_spare_blocks)
    return [decode_parts, prefill_parts]


def _servers() -> tuple[Any, Any]:
    return importlib.import_module("prefill_service.server"), importlib.import_module("decode_service.server")


def _own(cls: type[WorkerConfig], other: type[WorkerConfig]) -> list[tuple[str, Any, Field[Any]]]:
    """(name in the aggregated configuration, type, field) of what `cls` adds to a worker's options."""
    shared, taken = {f.name for f in fields(WorkerConfig)}, {f.name for f in fields(other)}
    hints, service = get_type_hints(cls), cls.__name__.removesuffix("Config").lower()
    return [
        (f"{service}_{f.name}" if f.name in taken else f.name, hints[f.name], f)
        for f in fields(cls)
        if f.name not in shared
    ]


def _copy(original: Field[Any]) -> Any:
    """A field object belongs to one class."""
    return field(default=original.default, metadata=original.metadata)


def main() -> None:
    """Serve until told to stop."""
    prefill, decode = _servers()
    config = load_or_exit(config_class(prefill.PrefillConfig, decode.DecodeConfig), ROLE)
    serve_worker(WorkerApp(ROLE, config, lambda worker: make_parts(config, worker)), ROLE, config)


if __name__ == "__main__":
    main()
