"""The live view of a gateway's workers and traffic."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from forebay.client import CallError, Fleet, Forebay, Traffic, Worker

BAR_WIDTH = 12
NO_NUMBER = "-"


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A fleet at a moment of the monotonic clock."""

    at_s: float
    fleet: Fleet

    @classmethod
    def take(cls, client: Forebay) -> Snapshot:
        """Ask the gateway now."""
        return cls(time.monotonic(), client.fleet(timeout_s=5.0))


def watch(client: Forebay, interval_s: float, console: Console) -> None:
    """Redraw each `interval_s` until interrupted; a gateway that goes away may come back."""
    last: Snapshot | None = None
    with Live(console=console, auto_refresh=False) as live:
        while True:
            try:
                now = Snapshot.take(client)
            except CallError as error:
                live.update(f"[red]{error.message}", refresh=True)
            else:
                live.update(view(client.address, now, last), refresh=True)
                last = now
            time.sleep(interval_s)


def view(address: str, now: Snapshot, last: Snapshot | None) -> RenderableType:
    """All of it; rates need an earlier snapshot."""
    lines = map(Text.from_markup, _traffic_lines(address, now, last))
    return Group(*lines, "", _table(now, last))


def _traffic_lines(address: str, now: Snapshot, last: Snapshot | None) -> Iterator[str]:
    traffic = now.fleet.traffic
    tokens_per_s = _rate(now, last, "num_output_tokens")
    requests_per_s = _rate(now, last, "num_ended_requests")
    counts = (traffic.num_live_requests, traffic.num_ended_requests, traffic.num_failed_requests)
    yield f"[b]gateway {address}[/b]  {counts[0]} live, {counts[1]} ended, {counts[2]} of them failed"
    yield f"[b]{tokens_per_s} tokens/s[/b]  {requests_per_s} requests/s  hit rate {_hit_rate(now, last)}"
    yield (
        f"first token p50 {traffic.ttft_p50_ms:.0f} ms, p99 {traffic.ttft_p99_ms:.0f} ms   "
        f"per token p50 {traffic.tpot_p50_ms:.1f} ms, p99 {traffic.tpot_p99_ms:.1f} ms"
    )


def _rate(now: Snapshot, last: Snapshot | None, name: str) -> str:
    """Per second since the last look; a gateway that restarted counts from zero."""
    if last is None or now.at_s <= last.at_s:
        return NO_NUMBER
    done = getattr(now.fleet.traffic, name) - getattr(last.fleet.traffic, name)
    return f"{max(0, done) / (now.at_s - last.at_s):.1f}"


def _hit_rate(now: Snapshot, last: Snapshot | None) -> str:
    """Of the prompts that ended since the last look, and of all."""
    whole, before = now.fleet.traffic, last.fleet.traffic if last else None
    recent = _share(whole, before) if before else NO_NUMBER
    return f"{recent} now, {_share(whole, None)} in all"


def _share(traffic: Traffic, before: Traffic | None) -> str:
    num_cached = traffic.num_cached_tokens - (before.num_cached_tokens if before else 0)
    num_prompt = traffic.num_prompt_tokens - (before.num_prompt_tokens if before else 0)
    return f"{num_cached / num_prompt:.1%}" if num_prompt > 0 else NO_NUMBER


def _table(now: Snapshot, last: Snapshot | None) -> Table:
    table = Table(
        "role", "address", "state", "model", "running", "waiting", "queued", "KV", "cached", "prefill"
    )
    for title in ("link", "steps/s"):
        table.add_column(title)
    before = {(w.role, w.address): w for w in last.fleet.workers} if last else {}
    elapsed_s = now.at_s - last.at_s if last else 0.0
    for worker in now.fleet.workers:
        table.add_row(*_cells(worker), _steps(worker, before.get((worker.role, worker.address)), elapsed_s))
    if not now.fleet.workers:
        table.caption = "the gateway knows no worker"
    return table


def _cells(worker: Worker) -> Iterator[str]:
    load = worker.load
    yield worker.role
    yield worker.address
    yield "[green]alive[/]" if worker.is_alive else "[red]gone[/]"
    yield worker.model or NO_NUMBER
    yield from map(str, (load.num_running, load.num_waiting, load.num_queued_tokens))
    yield _bar(load.num_used_blocks, load.num_blocks)
    yield _percent(load.num_cached_blocks, load.num_blocks)
    yield f"{load.prefill_tokens_per_s:.0f} tok/s" if load.prefill_tokens_per_s else NO_NUMBER
    yield f"{load.link_bytes_per_s / 1e6:.0f} MB/s" if load.link_bytes_per_s else NO_NUMBER


def _steps(worker: Worker, before: Worker | None, elapsed_s: float) -> str:
    if before is None or elapsed_s <= 0:
        return NO_NUMBER
    return f"{max(0, worker.load.num_steps - before.load.num_steps) / elapsed_s:.0f}"


def _bar(part: int, whole: int) -> str:
    filled = round(BAR_WIDTH * part / whole) if whole else 0
    return f"{'█' * filled}{'░' * (BAR_WIDTH - filled)} {_percent(part, whole)}"


def _percent(part: int, whole: int) -> str:
    return f"{part / whole:.0%}" if whole else NO_NUMBER
