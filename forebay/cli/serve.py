"""Commands that start services: up, demo."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

UP_EXAMPLES = """[b]Examples[/b]

forebay up\n
forebay up --model ./my-model --prefill 2 --decode 2\n
forebay up --speculate model --draft-model ./my-small-model\n
forebay up --mode aggregated --redis-url redis://127.0.0.1:6379
"""
MODEL, SHAPE, MEMORY, OTHER = "Model", "Shape", "KV store", "Other"


class Mode(StrEnum):
    """Prefill and decode as processes of their own, or as one."""

    disaggregated = "disaggregated"
    aggregated = "aggregated"


class Dtype(StrEnum):
    """Weights and KV."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Speculate(StrEnum):
    """Where draft tokens come from."""

    off = "off"
    ngram = "ngram"
    model = "model"


class Transport(StrEnum):
    """How blocks move."""

    auto = "auto"
    shm = "shm"
    grpc = "grpc"


def _option(help: str, panel: str, *names: str) -> Any:  # noqa: A002
    return typer.Option(*names, help=help, rich_help_panel=panel)


def up(
    model: Annotated[str, _option("'demo', a folder, a .gguf file, or a hub id.", MODEL)] = "demo",
    model_name: Annotated[str, _option("Name that requests use; default: the folder's.", MODEL)] = "",
    dtype: Annotated[Dtype, _option("Weights and KV cache.", MODEL)] = Dtype.auto,
    speculate: Annotated[Speculate, _option("Where draft tokens come from.", MODEL)] = Speculate.off,
    draft_model: Annotated[str, _option("Small model for --speculate model.", MODEL)] = "",
    mode: Annotated[Mode, _option("One process per tier, or both in one.", SHAPE)] = Mode.disaggregated,
    prefill: Annotated[int, _option("Number of prefill services.", SHAPE, "--prefill")] = 1,
    decode: Annotated[int, _option("Number of decode services.", SHAPE, "--decode")] = 1,
    host: Annotated[str, _option("Address that the gateway listens on.", SHAPE)] = "127.0.0.1",
    port: Annotated[int, _option("Port of the gateway; 0 picks one.", SHAPE)] = 50051,
    http_port: Annotated[int, _option("Port of the OpenAI API; 0 picks one, -1: none.", SHAPE)] = 8000,
    redis_url: Annotated[str, _option("Default: a private server; 'off': none.", MEMORY)] = "",
    kv_arena_bytes: Annotated[int, _option("Bytes of the KV store; 0: its default.", MEMORY)] = 0,
    kv_transport: Annotated[Transport, _option("How blocks move.", MEMORY)] = Transport.auto,
    log_dir: Annotated[Path | None, _option("Write one log file per service.", OTHER)] = None,
    verbose: Annotated[bool, _option("Show all log lines, not only warnings.", OTHER, "--verbose")] = False,
) -> None:
    """Start all services on this machine; Ctrl-C drains and stops them."""
    from forebay.cli.launcher import Launcher
    from forebay.cli.run import get_model, run_until_interrupted
    from forebay.cli.view import StageView

    for name in filter(None, (model, draft_model)):
        get_model(name)
    view = StageView(is_verbose=verbose)
    launcher = Launcher(
        log_dir=log_dir,
        on_line=view.on_line,
        on_stage=view.on_stage,
        model=model,
        model_name=model_name,
        dtype=dtype.value,
        speculate=speculate.value,
        draft_model=draft_model,
        mode=mode.value,
        num_prefill=prefill,
        num_decode=decode,
        listen=f"{host}:{port}",
        http_listen=f"{host}:{http_port}" if http_port >= 0 else "",
        redis_url=redis_url,
        kv_arena_bytes=kv_arena_bytes,
        kv_transport=kv_transport.value,
    )
    run_until_interrupted(launcher, view)


def demo(
    prompt: Annotated[str, typer.Argument(help="What to ask.")] = "Which sea does the Danube flow to?",
    max_tokens: Annotated[int, typer.Option(help="Length of the answers at most.")] = 60,
    log_dir: Annotated[Path | None, typer.Option(help="Write one log file per service.")] = None,
) -> None:
    """Start everything with a small real model, ask it twice, show the receipts, stop."""
    from forebay.cli.demo import run_demo

    run_demo(prompt, max_tokens, log_dir)
