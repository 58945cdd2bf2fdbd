"""The table of all Prometheus metrics, from the modules that register them."""

from __future__ import annotations

import importlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prometheus_client import Histogram
from prometheus_client.metrics import MetricWrapperBase

from forebay.cli.protos import ROOT
from forebay.v1.admin_pb2 import GetLoadResponse
from forebay.worker_metrics import LoadCollector

SERVICES = ("forebay", "gateway", "prefill_service", "decode_service", "draft_service", "kv_store")
REGISTERS = re.compile(r"^[A-Z][A-Z0-9_]* = (Counter|Gauge|Histogram|Summary)\(", re.MULTILINE)
HEAD = """# Metrics

Every service serves Prometheus metrics on its `metrics_port`. This table is made from the code that registers
them by `forebay metrics-doc --out docs/metrics.md`; a test compares the two.

| Metric | Type | Labels | Registered in | Meaning |
|---|---|---|---|---|
"""


@dataclass(frozen=True, slots=True, order=True)
class Entry:
    """One metric; `buckets` are the bounds of a histogram."""

    name: str
    kind: str
    labels: tuple[str, ...]
    where: str
    meaning: str
    buckets: tuple[float, ...] = ()

    def row(self) -> str:
        """A line of the table."""
        name = f"{self.name}_total" if self.kind == "counter" else self.name
        labels = ", ".join(f"`{label}`" for label in self.labels) or "-"
        bounds = f"; buckets {', '.join(f'{bound:g}' for bound in self.buckets)}" if self.buckets else ""
        return f"| `{name}` | {self.kind} | {labels} | `{self.where}` | {self.meaning}{bounds} |\n"


def render() -> str:
    """The whole document."""
    entries = sorted([*_registered(), *_loads()])
    return HEAD + "".join(entry.row() for entry in entries)


def _registered() -> Iterator[Entry]:
    for module in _modules():
        for value in vars(importlib.import_module(module)).values():
            if isinstance(value, MetricWrapperBase):
                yield _entry(value, module)


def _modules() -> Iterator[str]:
    """Modules with a registration at their top level; found by text, so that nothing heavy is imported."""
    for path in sorted(file for service in SERVICES for file in (ROOT / service).rglob("*.py")):
        if REGISTERS.search(path.read_text()):
            yield _module_of(path)


def _module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)


def _entry(metric: MetricWrapperBase, module: str) -> Entry:
    (family,) = metric.describe()
    # The library offers labels and bounds nowhere else.
    labels = tuple(metric._labelnames)
    bounds = tuple(metric._kwargs["buckets"]) if isinstance(metric, Histogram) else ()
    return Entry(family.name, family.type, labels, module, family.documentation, bounds)


def _loads() -> Iterator[Entry]:
    meanings = _comments("GetLoadResponse", ROOT / "protos" / GetLoadResponse.DESCRIPTOR.file.name)
    fields = [field.name for field in GetLoadResponse.DESCRIPTOR.fields]
    families = LoadCollector("", GetLoadResponse).collect()
    for name, family in zip(fields, families, strict=True):
        yield Entry(family.name, family.type, ("role",), "forebay.worker_metrics", meanings[name])


def _comments(message: str, path: Path) -> dict[str, str]:
    """The one-line comment above each field of a message."""
    body = path.read_text().partition(f"message {message} {{")[2].partition("\n}")[0]
    return {name: text.rstrip(".") for text, name in re.findall(r"// (.+)\n\s+[\w ]+ (\w+) = \d+;", body)}
