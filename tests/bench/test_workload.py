"""Prompts and arrival times of the load generator."""

from __future__ import annotations

import json
import statistics

import pytest

from forebay.bench.workload import Words, poisson, random_jobs, read_trace, trace_jobs
from forebay.client import Model
from forebay.errors import InvalidArgument

MODEL = Model("m", b"", 16, 1000, 800, (2,), "float32", 0, "")
WORDS = Words(MODEL, seed=1)


def write(path, *lines):
    path.write_text("\n".join(json.dumps(line) for line in lines))
    return path


def line(timestamp, input_length, output_length, *hash_ids):
    lengths = {"input_length": input_length, "output_length": output_length}
    return {"timestamp": timestamp, **lengths, "hash_ids": hash_ids}


def test_prompts_share_the_prefix_and_nothing_else():
    first, second = random_jobs(WORDS, 2, input_length=50, output_length=7, prefix_length=20)
    assert len(first.prompt) == len(second.prompt) == 50 and first.num_output == 7
    assert first.prompt[:20] == second.prompt[:20] and first.prompt[20:] != second.prompt[20:]
    assert all(100 <= token_id < 700 for token_id in first.prompt)
    assert random_jobs(Words(MODEL, seed=1), 2, 50, 7, 20) == [first, second]
    assert random_jobs(Words(MODEL, seed=2), 1, 50, 7, 20) != [first]
    with pytest.raises(InvalidArgument, match="prefix_length"):
        random_jobs(WORDS, 1, 10, 1, 11)


def test_poisson_arrivals():
    jobs = poisson(random_jobs(WORDS, 2000, 1, 1, 0), rate=4.0, seed=3)
    times = [job.at_s for job in jobs]
    gaps = [b - a for a, b in zip(times, times[1:], strict=False)]
    assert statistics.fmean(gaps) == pytest.approx(0.25, rel=0.1)
    assert statistics.pstdev(gaps) == pytest.approx(0.25, rel=0.15)
    with pytest.raises(InvalidArgument, match="rate"):
        poisson(jobs, 0, 1)


def test_a_trace_is_replayed(tmp_path):
    lines = [line(1000, 600, 10, 1, 2), line(3000, 900, 5, 1, 3), line(4000, 5000, 9, *range(10))]
    trace = read_trace(write(tmp_path / "t.jsonl", *lines), None)
    jobs = trace_jobs(WORDS, trace, time_scale=0.5, length_scale=0.125, max_context=1000)
    assert [job.at_s for job in jobs] == [0.0, 1.0, 1.5]
    assert [len(job.prompt) for job in jobs] == [75, 112, 625]
    assert [job.num_output for job in jobs] == [1, 1, 1]
    assert jobs[0].prompt[:64] == jobs[1].prompt[:64] and jobs[0].prompt[64:75] != jobs[1].prompt[64:75]


def test_what_exceeds_the_context_is_cut(tmp_path):
    trace = read_trace(write(tmp_path / "t.jsonl", line(0, 5000, 900, *range(10)), line(0, 1, 1)), None)
    long, short = trace_jobs(WORDS, trace, 1.0, 1.0, max_context=1000)
    assert (len(long.prompt), long.num_output) == (500, 500) and len(short.prompt) == 1


def test_only_the_first_lines(tmp_path):
    path = write(tmp_path / "t.jsonl", *(line(n, 1, 1) for n in range(5)))
    assert len(read_trace(path, 2)) == 2


@pytest.mark.parametrize(
    "text", ["", "{}", "[1]", '{"timestamp": 0, "input_length": "x", "output_length": 1}']
)
def test_a_file_that_is_no_trace(tmp_path, text):
    path = tmp_path / "t.jsonl"
    path.write_text(text)
    with pytest.raises(InvalidArgument, match=r"t\.jsonl"):
        read_trace(path, None)
