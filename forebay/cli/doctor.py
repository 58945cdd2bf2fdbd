"""All checks of this machine, and their table."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from rich.table import Table

from forebay.doctor import Finding, machine, network

COLOURS = {"good": "green", "poor": "yellow", "bad": "red"}


def examine(*, model: str, listen: str, redis_url: str) -> list[Finding]:
    """All findings, in the order in which a start would meet them; no `model`: none is checked."""
    checks: list[Callable[[], Iterator[Finding]]] = [
        machine.versions,
        lambda: network.port(listen),
        lambda: network.redis(redis_url),
        machine.gpu,
        machine.shared_memory,
        machine.clocks,
        machine.disk,
    ]
    if model:
        checks.append(lambda: machine.model_folder(model))
    return [finding for check in checks for finding in check()]


def findings_table(findings: list[Finding]) -> Table:
    """For people."""
    table = Table("what", "state", "found", "fix")
    for finding in findings:
        colour = COLOURS[finding.state]
        table.add_row(finding.name, f"[{colour}]{finding.state}[/]", finding.found, finding.fix)
    return table
