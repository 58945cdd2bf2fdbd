"""Commands that look at a platform: top, explain, doctor, metrics-doc."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from forebay.cli.ask import DEFAULT_GATEWAY, Gateway

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def top(
    gateway: Gateway = DEFAULT_GATEWAY,
    interval: Annotated[float, typer.Option(help="Seconds between two looks.", min=0.1)] = 1.0,
    once: Annotated[bool, typer.Option("--once", help="Look once and end.")] = False,
) -> None:
    """Watch replicas, queues, KV use, hit rate and tokens/s; Ctrl-C ends."""
    from rich.console import Console

    from forebay.cli.top import Snapshot, view, watch
    from forebay.client import Forebay

    console = Console()
    with Forebay(gateway) as client:
        if once or not console.is_terminal:
            console.print(view(gateway, Snapshot.take(client), None))
        else:
            watch(client, interval, console)


def explain(
    request_id: Annotated[str, typer.Argument(help="As the receipt or the logs name it.")],
    gateway: Gateway = DEFAULT_GATEWAY,
    as_json: AsJson = False,
) -> None:
    """Show where the time of a recent request went, and why it was placed so."""
    from dataclasses import asdict

    from rich.console import Console

    from forebay.cli.view import receipt_table
    from forebay.client import Forebay

    with Forebay(gateway) as client:
        story = client.explain(request_id)
    if as_json:
        typer.echo(json.dumps(asdict(story)))
        return
    console = Console()
    console.print(f"{story.operation} by {story.model}: [b]{story.outcome}[/b]", highlight=False)
    console.print(receipt_table(story.receipt, story.usage))


def doctor(
    model: Annotated[str, typer.Option(help="Also check this model folder.")] = "",
    listen: Annotated[str, typer.Option(help="host:port that the gateway shall have.")] = DEFAULT_GATEWAY,
    redis_url: Annotated[str, typer.Option(help="Also check this Redis.", envvar="FOREBAY_REDIS_URL")] = "",
    as_json: AsJson = False,
) -> None:
    """Check what this machine needs to run everything; each finding comes with its fix."""
    from dataclasses import asdict

    from rich.console import Console

    from forebay.cli.doctor import examine, findings_table

    findings = examine(model=model, listen=listen, redis_url=redis_url)
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        Console().print(findings_table(findings))
    raise typer.Exit(1 if any(finding.state == "bad" for finding in findings) else 0)


def metrics_doc(
    out: Annotated[Path | None, typer.Option(help="Write to a file; default: standard output.")] = None,
) -> None:
    """Write the table of all Prometheus metrics, from the code that registers them."""
    from forebay.cli.metrics_doc import render

    if out is None:
        typer.echo(render(), nl=False)
    else:
        out.write_text(render())
