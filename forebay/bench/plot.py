"""A run as an SVG: how the latencies are distributed, and tokens per second over its time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from html import escape

from forebay.bench.runner import Sample
from forebay.bench.summary import percentile

WIDTH, HEIGHT, MARGIN = 320, 200, 44
NUM_STEPS = 200
Points = list[tuple[float, float]]
STYLE = """<style>
svg { font: 12px sans-serif; color: #222; background: #fff }
text { fill: currentColor } polyline { fill: none }
.axis { stroke: currentColor } .line { stroke: #0a7; stroke-width: 2 }
@media (prefers-color-scheme: dark) { svg { color: #ddd; background: #181818 } }
</style>"""


def render(samples: Sequence[Sample]) -> str:
    """A standalone SVG with four panels."""
    good = [sample for sample in samples if not sample.error]
    panels = [
        _distribution("first token, ms", [s.ttft_s for s in good]),
        _distribution("between deltas, ms", [gap for s in good for gap in s.gaps_s]),
        _distribution("whole request, ms", [s.e2e_s for s in good]),
        _panel("output tokens/s over seconds", _throughput(good), ""),
    ]
    size = f'width="{WIDTH * len(panels)}" height="{HEIGHT + 2 * MARGIN}"'
    body = "".join(f'<g transform="translate({WIDTH * n},0)">{panel}</g>' for n, panel in enumerate(panels))
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size}>{STYLE}{body}</svg>\n'


def _distribution(title: str, seconds: Sequence[float]) -> str:
    """The share of values (y) that are at most x."""
    ascending = sorted(value * 1e3 for value in seconds)
    points = [(percentile(ascending, 100 * n / NUM_STEPS), n / NUM_STEPS) for n in range(NUM_STEPS + 1)]
    note = f"p50 {percentile(ascending, 50):.1f}, p99 {percentile(ascending, 99):.1f}"
    return _panel(title, points if ascending else [], note)


def _throughput(good: Sequence[Sample]) -> Points:
    """Tokens per second; within a request they are taken as evenly spread after its first one."""
    if not good:
        return []
    start = min(sample.started_s for sample in good)
    width_s = max(max(sample.started_s + sample.e2e_s for sample in good) - start, 1e-9) / NUM_STEPS
    counts = [0] * (NUM_STEPS + 1)
    for moment in (moment for sample in good for moment in _moments(sample)):
        counts[min(int((moment - start) / width_s), NUM_STEPS)] += 1
    return [(n * width_s, count / width_s) for n, count in enumerate(counts)]


def _moments(sample: Sample) -> Iterator[float]:
    first = sample.started_s + sample.ttft_s
    yield from (first + n * sample.tpot_s for n in range(sample.num_output))


def _panel(title: str, points: Points, note: str) -> str:
    right, top = (
        max((x for x, _ in points), default=0.0) or 1.0,
        max((y for _, y in points), default=0.0) or 1.0,
    )
    inner = WIDTH - 2 * MARGIN
    path = " ".join(
        f"{MARGIN + inner * x / right:.1f},{MARGIN + HEIGHT * (1 - y / top):.1f}" for x, y in points
    )
    bottom = MARGIN + HEIGHT
    return (
        f'<text x="{MARGIN}" y="{MARGIN - 24}" font-weight="bold">{escape(title)}</text>'
        f'<text x="{MARGIN}" y="{MARGIN - 8}">{escape(note)}</text>'
        f'<polyline class="axis" points="{MARGIN},{MARGIN} {MARGIN},{bottom} {MARGIN + inner},{bottom}"/>'
        f'<text x="{MARGIN - 6}" y="{MARGIN + 4}" text-anchor="end">{top:.3g}</text>'
        f'<text x="{MARGIN + inner}" y="{bottom + 16}" text-anchor="end">{right:.4g}</text>'
        f'<polyline class="line" points="{path}"/>'
    )
