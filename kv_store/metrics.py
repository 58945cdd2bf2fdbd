"""Prometheus view of the store, read at scrape time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from .store import BlockStore, StoreStats


class StoreCollector(Collector):
    """One gauge per occupancy figure, one counter per field of StoreStats."""

    def __init__(self, store: BlockStore) -> None:
        self._store = store

    def collect(self) -> Iterator[Metric]:
        """Current values."""
        store = self._store
        yield _gauge("arena_bytes", "Bytes of shared memory", store.arena.num_bytes)
        yield _gauge("blocks", "Visible blocks", store.num_blocks)
        yield _gauge("leases", "Leases that have not ended", store.num_leases)
        for field in fields(StoreStats):
            name = field.name.removeprefix("num_")
            family = CounterMetricFamily(f"forebay_kv_store_{name}", f"{name.replace('_', ' ')} since start")
            family.add_metric([], getattr(store.stats, field.name))
            yield family


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(f"forebay_kv_store_{name}", text, value=value)
