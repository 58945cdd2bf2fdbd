"""The command that measures a running gateway."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from forebay.cli.ask import DEFAULT_GATEWAY, DEFAULT_TIMEOUT_S, Gateway, ModelName
from forebay.errors import InvalidArgument

if TYPE_CHECKING:
    from forebay.bench.runner import Sample
    from forebay.client import Model

BENCH_EXAMPLES = """[b]Examples[/b]

forebay bench --concurrency 16 --input-length 512 --prefix-length 384\n
forebay bench --rate 5 --num-requests 300 --slo-ttft 500 --slo-itl 50 --json a.json\n
forebay bench --trace conversation_trace.jsonl --time-scale 2 --length-scale 0.1\n
forebay bench --compare a.json b.json
"""
WHEN, WHAT, RESULT = "When requests come", "What they ask", "Result"


def _option(help: str, panel: str, *names: str) -> Any:  # noqa: A002
    return typer.Option(*names, help=help, rich_help_panel=panel)


def bench(
    gateway: Gateway = DEFAULT_GATEWAY,
    model: ModelName = None,
    concurrency: Annotated[int, _option("Closed loop: this many requests are always live.", WHEN)] = 8,
    rate: Annotated[float | None, _option("Open loop: requests per second, Poisson.", WHEN)] = None,
    trace: Annotated[Path | None, _option("Open loop: replay a JSONL trace.", WHEN)] = None,
    time_scale: Annotated[float, _option("Of the trace: 0.5 doubles its load.", WHEN)] = 1.0,
    num_requests: Annotated[int | None, _option("Default: 100, or the whole trace.", WHAT)] = None,
    input_length: Annotated[int, _option("Tokens of a prompt.", WHAT)] = 128,
    output_length: Annotated[int, _option("Tokens to generate.", WHAT)] = 64,
    prefix_length: Annotated[int, _option("Tokens that all prompts begin with.", WHAT)] = 0,
    length_scale: Annotated[float, _option("Of the trace's prompts and outputs.", WHAT)] = 1.0,
    seed: Annotated[int, _option("Of prompts and arrival times.", WHAT)] = 0,
    timeout: Annotated[float, _option("Seconds that an answer may take.", WHAT)] = DEFAULT_TIMEOUT_S,
    slo_ttft: Annotated[float | None, _option("Goodput: first token within, ms.", RESULT)] = None,
    slo_itl: Annotated[
        float | None, _option("Goodput: p99 of a request's pauses within, ms.", RESULT)
    ] = None,
    json_file: Annotated[Path | None, _option("Write the numbers to a file.", RESULT, "--json")] = None,
    plot: Annotated[Path | None, _option("Draw the distributions to an SVG file.", RESULT)] = None,
    compare: Annotated[tuple[Path, Path] | None, _option("Compare two such files and end.", RESULT)] = None,
) -> None:
    """Send load to a gateway; shows latencies, rates, goodput, and where the time went."""
    options = {
        name: value for name, value in locals().items() if name not in ("compare", "json_file", "plot")
    }
    if compare is not None:
        _compare(*compare)
        return
    _check(options)
    from rich.console import Console

    from forebay.bench.summary import Slo, summarize
    from forebay.bench.tables import report

    samples = asyncio.run(_run(options))
    settings = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    summary = summarize(samples, Slo(slo_ttft, slo_itl), settings)
    Console().print(report(summary))
    if json_file is not None:
        json_file.write_text(json.dumps(summary, indent=1) + "\n")
    if plot is not None:
        from forebay.bench.plot import render

        plot.write_text(render(samples))
    raise typer.Exit(1 if all(sample.error for sample in samples) else 0)


def _check(options: dict[str, Any]) -> None:
    if options["rate"] is not None and options["trace"] is not None:
        raise typer.BadParameter("--rate and --trace exclude each other")
    for name in ("concurrency", "num_requests", "input_length", "output_length"):
        if options[name] is not None and options[name] < 1:
            raise typer.BadParameter(f"--{name.replace('_', '-')}: at least 1")
    if options["trace"] is not None and not options["trace"].is_file():
        raise typer.BadParameter(f"--trace: no file {options['trace']}")


async def _run(options: dict[str, Any]) -> list[Sample]:
    from forebay.bench.runner import Bench
    from forebay.bench.workload import poisson
    from forebay.client import AsyncForebay

    async with AsyncForebay(options["gateway"], timeout_s=options["timeout"]) as client:
        model = _choose(await client.models(), options["model"])
        jobs = _jobs(model, options)
        with _progress(len(jobs)) as advance:
            run = Bench(client, model.model, lambda sample: advance())
            if options["rate"] is not None:
                return await run.open(poisson(jobs, options["rate"], options["seed"]))
            if options["trace"] is not None:
                return await run.open(jobs)
            return await run.closed(jobs, options["concurrency"])


def _choose(models: list[Model], name: str | None) -> Model:
    for model in models:
        if name in (None, model.model):
            return model
    raise InvalidArgument("the gateway serves no such model", field="--model", got=name or "none at all")


def _jobs(model: Model, options: dict[str, Any]) -> list[Any]:
    from forebay.bench.workload import Words, random_jobs, read_trace, trace_jobs

    words = Words(model, options["seed"])
    if options["trace"] is not None:
        lines = read_trace(options["trace"], options["num_requests"])
        return trace_jobs(words, lines, options["time_scale"], options["length_scale"], model.max_context)
    lengths = (options["input_length"], options["output_length"], options["prefix_length"])
    return random_jobs(words, options["num_requests"] or 100, *lengths)


def _progress(total: int) -> Any:
    from forebay.cli.view import counting

    return counting("requests", total)


def _compare(before: Path, after: Path) -> None:
    from rich.console import Console

    from forebay.bench.summary import load
    from forebay.bench.tables import comparison

    Console().print(comparison(load(before), load(after), (before.name, after.name)))
