"""Numbers of a run."""

from __future__ import annotations

import io
import json
import xml.etree.ElementTree as ElementTree

import pytest
from rich.console import Console

from forebay.bench.plot import render
from forebay.bench.runner import Sample
from forebay.bench.summary import Slo, load, percentile, summarize
from forebay.bench.tables import comparison, report
from forebay.errors import InvalidArgument

SAMPLES = [
    Sample(0.0, 0.1, 1.1, [0.1] * 10, 40, 20, 11, {"prefill": 90.0, "decode": 960.0}, 1050.0),
    Sample(1.0, 0.3, 0.9, [0.2] * 3, 10, 0, 4, {"prefill": 250.0, "decode": 600.0}, 850.0),
    Sample(1.5, 0.0, 0.5, error="OVERLOADED"),
]


def summary(**slo):
    return summarize(SAMPLES, Slo(**slo), {"rate": 1})


def shown(renderable):
    console = Console(file=io.StringIO(), width=140, color_system=None)
    console.print(renderable)
    return console.file.getvalue()


@pytest.mark.parametrize(("percent", "value"), [(0, 1.0), (50, 2.5), (100, 4.0), (90, 3.7)])
def test_percentile(percent, value):
    assert percentile([1.0, 2.0, 3.0, 4.0], percent) == pytest.approx(value)
    assert percentile([], percent) == 0.0 and percentile([7.0], percent) == 7.0


def test_numbers():
    run = summary()
    assert run["duration_s"] == pytest.approx(2.0) and run["errors"] == {"OVERLOADED": 1}
    assert (run["prompt_tokens"], run["cached_tokens"], run["output_tokens"]) == (50, 20, 15)
    assert run["hit_rate"] == pytest.approx(0.4) and run["output_tokens_per_s"] == pytest.approx(7.5)
    assert run["requests_per_s"] == pytest.approx(1.0)
    assert run["ttft_ms"]["mean"] == pytest.approx(200) and run["ttft_ms"]["max"] == pytest.approx(300)
    assert run["tpot_ms"]["p50"] == pytest.approx(150) and run["itl_ms"]["p99"] == pytest.approx(200)
    assert run["e2e_ms"]["mean"] == pytest.approx(1000)


def test_stages_add_up_to_what_the_client_saw():
    stages = summary()["stages_ms"]
    assert list(stages) == ["prefill", "decode", "network"]
    assert sum(stage["share"] for stage in stages.values()) == pytest.approx(1.0)
    assert sum(stage["mean"] for stage in stages.values()) == pytest.approx(1000)


@pytest.mark.parametrize(
    ("slo", "num_good"),
    [({}, 2), ({"ttft_ms": 200}, 1), ({"itl_ms": 150}, 1), ({"ttft_ms": 200, "itl_ms": 50}, 0)],
)
def test_goodput(slo, num_good):
    goodput = summary(**slo)["goodput"]
    assert goodput["num_good"] == num_good and goodput["share"] == pytest.approx(num_good / 3)
    assert goodput["requests_per_s"] == pytest.approx(num_good / 2)


def test_all_failed():
    run = summarize([SAMPLES[2]], Slo(), {})
    assert run["ttft_ms"]["p99"] == 0 and run["stages_ms"] == {}
    assert "1 failed OVERLOADED 1" in shown(report(run))


def test_the_table():
    text = shown(report(summary(ttft_ms=200)))
    for part in ("first token", "200.0", "prefill", "7.5 output tokens/s", "40.0% of 50", "goodput: 33.3%"):
        assert part in text


def test_comparison_of_files(tmp_path):
    before, after = summary(), summary()
    after["ttft_ms"]["mean"], after["settings"] = 100.0, {"rate": 2}
    (tmp_path / "a.json").write_text(json.dumps(before))
    text = shown(comparison(load(tmp_path / "a.json"), after, ("a", "b")))
    assert "-50.0%" in text and "+0.0%" in text and "different settings" in text


@pytest.mark.parametrize("text", ["{", "[]", "{}"])
def test_files_that_are_no_result(tmp_path, text):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"a\.json"):
        load(path)
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load(tmp_path / "none.json")


@pytest.mark.parametrize("samples", [SAMPLES, SAMPLES[2:], SAMPLES[:1]])
def test_the_plot_is_an_svg_whose_lines_stay_inside(samples):
    root = ElementTree.fromstring(render(samples))
    lines = [
        line for line in root.iter("{http://www.w3.org/2000/svg}polyline") if line.get("class") == "line"
    ]
    assert len(lines) == 4
    points = [tuple(map(float, point.split(","))) for line in lines for point in line.get("points").split()]
    assert all(44 <= x <= 276 and 44 <= y <= 244 for x, y in points)
    assert bool(points) == any(not sample.error for sample in samples)
