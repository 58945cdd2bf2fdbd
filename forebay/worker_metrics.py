"""Prometheus view of a worker's load, read at scrape time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from forebay.v1.admin_pb2 import GetLoadResponse


class LoadCollector(Collector):
    """One gauge `forebay_worker_<field>{role}` per field of GetLoadResponse."""

    def __init__(self, role: str, load: Callable[[], GetLoadResponse]) -> None:
        self._role, self._load = role, load

    def collect(self) -> Iterator[Metric]:
        """Current values."""
        load = self._load()
        for field in load.DESCRIPTOR.fields:
            name = f"forebay_worker_{field.name.removeprefix('num_')}"
            family = GaugeMetricFamily(name, f"{field.name} of GetLoad", labels=["role"])
            family.add_metric([self._role], getattr(load, field.name))
            yield family

    def describe(self) -> Iterable[Metric]:
        """Nothing ahead of time: several workers may share a process in tests."""
        return []
