"""Counters of prefill, and their Prometheus view, read at scrape time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector

from .sequence import Sequence


@dataclass(slots=True)
class PrefillStats:
    """Totals since start; the engine thread writes. `busy_s` over elapsed time is the busy fraction."""

    num_prompts: int = 0
    num_computed_tokens: int = 0
    num_local_cached_tokens: int = 0
    num_store_cached_tokens: int = 0
    num_steps: int = 0
    busy_s: float = 0.0

    def add_step(self, num_tokens: int, step_s: float) -> None:
        """One batch was computed."""
        self.num_steps += 1
        self.num_computed_tokens += num_tokens
        self.busy_s += step_s

    def add_prompt(self, sequence: Sequence) -> None:
        """A prompt is computed to its end."""
        self.num_prompts += 1
        self.num_local_cached_tokens += sequence.num_local_cached_tokens
        self.num_store_cached_tokens += sequence.num_store_cached_tokens


class PrefillCollector(Collector):
    """One counter per field of PrefillStats."""

    def __init__(self, stats: PrefillStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Current values."""
        for field in fields(PrefillStats):
            name = field.name.removeprefix("num_").replace("busy_s", "busy_seconds")
            family = CounterMetricFamily(f"forebay_prefill_{name}", f"{name.replace('_', ' ')} since start")
            family.add_metric([], getattr(self._stats, field.name))
            yield family

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: several workers may share a process in tests."""
        return []
