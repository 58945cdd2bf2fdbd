"""A run, or two of them, for people."""

from __future__ import annotations

from collections.abc import Iterator

from rich.console import Group, RenderableType
from rich.table import Table

from forebay.bench.summary import PERCENTILES, Summary

LATENCIES = {"ttft_ms": "first token", "itl_ms": "between deltas", "tpot_ms": "per token", "e2e_ms": "whole"}
COLUMNS = ("mean", *(f"p{percent}" for percent in PERCENTILES), "max")
BAR_WIDTH = 30
# Changes smaller than this say nothing.
NOISE = 0.03


def report(summary: Summary) -> RenderableType:
    """Latencies, stages, rates."""
    return Group(_latencies(summary), "", _stages(summary), "", *_lines(summary))


def comparison(before: Summary, after: Summary, names: tuple[str, str]) -> Table:
    """Each number of both runs with its change; green is better."""
    table = Table("", *names, "change")
    settings = (before.get("settings"), after.get("settings"))
    if settings[0] != settings[1]:
        table.caption = "the two runs had different settings"
    for name, old, new, is_more_better in _pairs(before, after):
        table.add_row(name, f"{old:.2f}", f"{new:.2f}", _change(old, new, is_more_better))
    return table


def _latencies(summary: Summary) -> Table:
    table = Table("ms", *COLUMNS)
    for key, title in LATENCIES.items():
        table.add_row(title, *(f"{summary[key][column]:.1f}" for column in COLUMNS))
    return table


def _stages(summary: Summary) -> Table:
    table = Table("stage, ms", "mean", "p50", "p99", "share of the time")
    for name, row in summary["stages_ms"].items():
        bar = "█" * round(row["share"] * BAR_WIDTH)
        numbers = (f"{row[column]:.1f}" for column in ("mean", "p50", "p99"))
        table.add_row(name, *numbers, f"{row['share']:5.1%} {bar}")
    return table


def _lines(summary: Summary) -> Iterator[str]:
    num_failed = sum(summary["errors"].values())
    causes = ", ".join(f"{reason} {count}" for reason, count in summary["errors"].items())
    yield f"{summary['num_requests']} requests in {summary['duration_s']:.1f} s, {num_failed} failed {causes}"
    yield f"{summary['requests_per_s']:.2f} requests/s, {summary['output_tokens_per_s']:.1f} output tokens/s"
    yield f"{summary['hit_rate']:.1%} of {summary['prompt_tokens']} prompt tokens from the cache"
    goodput = summary["goodput"]
    if goodput["slo_ttft_ms"] is not None or goodput["slo_itl_ms"] is not None:
        rate = f"{goodput['requests_per_s']:.2f} requests/s"
        yield f"goodput: {goodput['share']:.1%} of the requests kept the limits, {rate}"


def _pairs(before: Summary, after: Summary) -> Iterator[tuple[str, float, float, bool]]:
    for key, title in LATENCIES.items():
        for column in COLUMNS:
            yield f"{title} {column}, ms", before[key][column], after[key][column], False
    for key in ("requests_per_s", "output_tokens_per_s", "hit_rate"):
        yield key, before[key], after[key], True
    yield "goodput requests/s", before["goodput"]["requests_per_s"], after["goodput"]["requests_per_s"], True
    for name in (name for name in before["stages_ms"] if name in after["stages_ms"]):
        old, new = before["stages_ms"][name]["mean"], after["stages_ms"][name]["mean"]
        yield f"stage {name} mean, ms", old, new, False


def _change(old: float, new: float, is_more_better: bool) -> str:
    if not old:
        return "-"
    change = new / old - 1
    if abs(change) < NOISE:
        return f"[dim]{change:+.1%}[/]"
    return f"[{'green' if (change > 0) == is_more_better else 'red'}]{change:+.1%}[/]"
