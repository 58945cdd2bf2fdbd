"""The life of `forebay up`: start, wait, watch, and an orderly end on the first Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from rich.console import Console

from forebay.cli.launcher import Launcher
from forebay.cli.view import ByteBar, StageView
from forebay.model.hub import resolve_model


def run_until_interrupted(launcher: Launcher, view: StageView) -> None:
    """Serve until Ctrl-C or SIGTERM (returns) or until a service ends by itself (raises ChildFailed)."""
    with stopping(launcher), contextlib.suppress(KeyboardInterrupt):
        with view:
            launcher.start()
            launcher.wait_ready()
        view.console.print(f"\n[b]gateway at {launcher.gateway_address}[/b]  [dim]Ctrl-C stops[/]")
        if launcher.http_url:
            view.console.print(f"[b]OpenAI API at {launcher.http_url}[/b]")
        view.console.print()
        launcher.watch()


def get_model(name: str, console: Console | None = None) -> Path:
    """Folder of a model, converted with a bar if need be; a wrong name fails here, before anything starts."""
    with ByteBar(f"converting {name}", console) as bar:
        return resolve_model(name, bar)


@contextlib.contextmanager
def stopping(launcher: Launcher) -> Iterator[None]:
    """Stop the launcher at the end: the first signal interrupts the body, a second one hurries the drain."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        if launcher.is_stopping:
            launcher.signal(signal.SIGTERM)
        else:
            launcher.is_stopping = True
            raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        launcher.is_stopping = True
        launcher.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
