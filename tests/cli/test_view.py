"""What a person sees, on a terminal and in a file."""

from __future__ import annotations

import io
import json

import pytest
from rich.console import Console

from forebay.cli.lines import readable
from forebay.cli.view import ByteBar, StageView, receipt_table
from forebay.v1 import inference_pb2 as pb

LOADING = json.dumps({"event": "model_load", "level": "info", "done_bytes": 50, "total_bytes": 100})
WARNING = json.dumps({"event": "redis_lost", "level": "warning"})
INFO = json.dumps({"event": "rpc", "level": "info"})


@pytest.fixture(params=[True, False], ids=["terminal", "file"])
def console(request):
    return Console(file=io.StringIO(), force_terminal=request.param, width=100, color_system=None)


def shown(console):
    return console.file.getvalue()


def test_stages(console):
    with StageView(console) as view:
        for name in ("decode-0", "gateway-0"):
            view.on_stage(name, "starting", 0.1)
        view.on_line("decode-0", LOADING)
        view.on_stage("decode-0", "loading", 1.0)
        view.on_stage("decode-0", "serving", 2.0)
    view.on_stage("decode-0", "stopped", 3.0)
    assert "decode-0" in shown(console) and "serving" in shown(console)
    assert shown(console).rstrip().endswith("decode-0       stopped    3.0 s")


def test_only_trouble_is_shown_of_the_logs(console):
    with StageView(console) as view:
        for line in (INFO, WARNING, "Traceback [not markup]"):
            view.on_line("decode-0", line)
    assert "redis_lost" in shown(console) and "Traceback [not markup]" in shown(console)
    assert "rpc" not in shown(console)


def test_verbose_shows_all(console):
    with StageView(console, is_verbose=True) as view:
        view.on_line("decode-0", INFO)
    assert "rpc" in shown(console)


def test_log_lines_become_words():
    line = json.dumps(
        {"event": "redis_lost", "level": "warning", "pid": 1, "error": "x", "exception": "Trace"}
    )
    assert readable(line) == "redis_lost error=x\nTrace"
    assert readable("plain 1") == "plain 1" and readable("12") == "12"


def test_byte_bar(console):
    with ByteBar("converting", console) as bar:
        bar(0, 1000)
        bar(1000, 1000)
    assert "converting" in shown(console)


def test_receipt_with_and_without_drafts(console):
    receipt = pb.Receipt(request_id="r", actual_cached_tokens=32, predicted_cached_tokens=48)
    console.print(receipt_table(receipt, None))
    assert "32 (48 predicted)" in shown(console) and "draft" not in shown(console)
    receipt.num_draft_tokens, receipt.num_accepted_tokens = 9, 4
    console.print(receipt_table(receipt, pb.Usage(prompt_tokens=5)))
    assert "4 of 9 accepted" in shown(console) and "5 prompt" in shown(console)
