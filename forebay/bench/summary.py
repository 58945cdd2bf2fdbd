"""Numbers of a run: percentiles, rates, goodput, stages. All of it is plain JSON."""

from __future__ import annotations

import json
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from forebay.bench.runner import Sample
from forebay.errors import InvalidArgument

PERCENTILES = (50, 90, 95, 99)
Summary = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Slo:
    """Limits in milliseconds, None for none: time to first token, and the 99th percentile of the pauses
    within one request. A request that keeps both, and did not fail, is good."""

    ttft_ms: float | None = None
    itl_ms: float | None = None

    def is_kept(self, sample: Sample) -> bool:
        """Whether the request was good."""
        if sample.error or (self.ttft_ms is not None and sample.ttft_s * 1e3 > self.ttft_ms):
            return False
        return self.itl_ms is None or percentile(sorted(sample.gaps_s), 99) * 1e3 <= self.itl_ms


def percentile(ascending: Sequence[float], percent: float) -> float:
    """Linear between the neighbours; 0 without values."""
    if not ascending:
        return 0.0
    rank = (len(ascending) - 1) * percent / 100
    low = int(rank)
    high = min(low + 1, len(ascending) - 1)
    return ascending[low] + (ascending[high] - ascending[low]) * (rank - low)


def summarize(samples: Sequence[Sample], slo: Slo, settings: dict[str, Any]) -> Summary:
    """Of a whole run; latencies are those of the requests that did not fail."""
    good = [sample for sample in samples if not sample.error]
    duration_s = max(s.started_s + s.e2e_s for s in samples) - min(s.started_s for s in samples)
    return {
        "settings": settings,
        "duration_s": duration_s,
        "num_requests": len(samples),
        "errors": dict(Counter(sample.error for sample in samples if sample.error)),
        **_rates(good, duration_s),
        "ttft_ms": spread(s.ttft_s for s in good),
        "itl_ms": spread(gap for s in good for gap in s.gaps_s),
        "tpot_ms": spread(s.tpot_s for s in good if s.num_output > 1),
        "e2e_ms": spread(s.e2e_s for s in good),
        "goodput": _goodput(samples, slo, duration_s),
        "stages_ms": _stages(good),
    }


def spread(seconds: Iterable[float]) -> dict[str, float]:
    """Mean, percentiles and maximum in milliseconds."""
    ascending = sorted(value * 1e3 for value in seconds)
    found = {f"p{percent}": percentile(ascending, percent) for percent in PERCENTILES}
    mean = statistics.fmean(ascending) if ascending else 0.0
    return {"mean": mean} | found | {"max": ascending[-1] if ascending else 0.0}


def load(path: Path) -> Summary:
    """A summary that was written before."""
    try:
        summary = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InvalidArgument(f"cannot be read: {error}", field=str(path)) from error
    if not isinstance(summary, dict) or "ttft_ms" not in summary:
        raise InvalidArgument("is no result of `forebay bench --json`", field=str(path))
    return summary


def _rates(good: Sequence[Sample], duration_s: float) -> Summary:
    num_prompt, num_cached, num_output = (
        sum(sample.num_prompt for sample in good),
        sum(sample.num_cached for sample in good),
        sum(sample.num_output for sample in good),
    )
    return {
        "prompt_tokens": num_prompt,
        "cached_tokens": num_cached,
        "output_tokens": num_output,
        "hit_rate": num_cached / num_prompt if num_prompt else 0.0,
        "requests_per_s": len(good) / duration_s,
        "output_tokens_per_s": num_output / duration_s,
        "total_tokens_per_s": (num_prompt + num_output) / duration_s,
    }


def _goodput(samples: Sequence[Sample], slo: Slo, duration_s: float) -> Summary:
    num_good = sum(map(slo.is_kept, samples))
    return {
        "slo_ttft_ms": slo.ttft_ms,
        "slo_itl_ms": slo.itl_ms,
        "num_good": num_good,
        "share": num_good / len(samples),
        "requests_per_s": num_good / duration_s,
    }


def _stages(good: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """Per stage of the receipts; "network" is what the client measured beyond the gateway's total."""
    names = dict.fromkeys(name for sample in good for name in sample.stages)
    rows = {name: [sample.stages.get(name, 0.0) for sample in good] for name in names}
    if good:
        rows["network"] = [max(0.0, sample.e2e_s * 1e3 - sample.total_ms) for sample in good]
    whole = sum(sum(values) for values in rows.values())
    return {name: _stage(sorted(values), whole) for name, values in rows.items()}


def _stage(ascending: Sequence[float], whole: float) -> dict[str, float]:
    mean, share = statistics.fmean(ascending), sum(ascending) / whole if whole else 0.0
    return {
        "mean": mean,
        "p50": percentile(ascending, 50),
        "p99": percentile(ascending, 99),
        "share": share,
    }
