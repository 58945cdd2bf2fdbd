"""What a person sees: bars, stages, receipts. Plain lines where the output is no terminal."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from forebay.cli.lines import event_of, readable
from forebay.client import Receipt, Usage

STAGES = {
    "starting": "starting",
    "loading": "loading",
    "serving": "[green]serving[/]",
    "stopped": "stopped",
}


class _Bars:
    """A rich progress display, inert where the console is no terminal."""

    def __init__(self, console: Console | None, *columns: ProgressColumn) -> None:
        self.console = console or Console(stderr=True)
        self.progress = Progress(*columns, TimeElapsedColumn(), console=self.console)

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()


class ByteBar(_Bars):
    """One bar over bytes; call it with (bytes done, bytes in all)."""

    def __init__(self, title: str, console: Console | None = None) -> None:
        super().__init__(console, TextColumn("{task.description}"), BarColumn(), DownloadColumn())
        self._title = title
        self._task: TaskID | None = None

    def __call__(self, done_bytes: int, total_bytes: int) -> None:
        """Move the bar."""
        if self._task is None:
            self._task = self.progress.add_task(self._title, total=total_bytes)
            if not self.console.is_terminal:
                self.console.print(self._title)
        self.progress.update(self._task, completed=done_bytes, total=total_bytes)


class StageView(_Bars):
    """One line per service; `on_stage` and `on_line` are the launcher's callbacks."""

    def __init__(self, console: Console | None = None, *, is_verbose: bool = False) -> None:
        super().__init__(
            console, TextColumn("{task.description:<14}"), BarColumn(), TextColumn("{task.fields[stage]}")
        )
        self._tasks: dict[str, TaskID] = {}
        self._is_verbose = is_verbose

    def on_stage(self, name: str, stage: str, seconds: float) -> None:
        """A service entered a stage."""
        if not self.console.is_terminal or stage == "stopped":
            self.console.print(f"{name:<14} {STAGES[stage]} [dim]{seconds:6.1f} s[/]", highlight=False)
            return
        task = self._task_of(name)
        if stage == "serving":
            self.progress.update(task, completed=1.0, total=1.0)
        self.progress.update(task, stage=STAGES[stage])

    def on_line(self, name: str, line: str) -> None:
        """A line of a service's log: loading moves its bar, trouble is shown."""
        event = event_of(line)
        if event.get("event") == "model_load":
            self._on_load(name, event)
        elif self._is_verbose or event.get("level") in ("warning", "error", "critical") or not event:
            self.console.print(f"[dim]{name:<14}[/]", end=" ")
            self.console.print(readable(line), markup=False, highlight=False, soft_wrap=True)

    def _on_load(self, name: str, event: dict[str, object]) -> None:
        done, total = float(str(event["done_bytes"])), max(float(str(event["total_bytes"])), 1.0)
        # The last tenth is what follows the weights.
        self.progress.update(self._task_of(name), completed=0.9 * done / total, total=1.0)

    def _task_of(self, name: str) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self.progress.add_task(name, total=None, stage="")
        return self._tasks[name]


@contextlib.contextmanager
def counting(title: str, total: int) -> Iterator[Callable[[], None]]:
    """A bar over `total` things on standard error; call the result for each that is done."""
    bars = _Bars(None, TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    task = bars.progress.add_task(title, total=total)
    with bars:
        yield lambda: bars.progress.advance(task)


def receipt_table(receipt: Receipt, usage: Usage | None) -> Table:
    """Stages in milliseconds, cache reuse, placement."""
    table = Table(title=f"receipt {receipt.request_id}", title_justify="left", show_header=False)
    for stage in receipt.stages:
        table.add_row(stage.name, f"{stage.ms:.1f} ms")
    table.add_section()
    table.add_row("first token", f"{receipt.ttft_ms:.1f} ms")
    table.add_row("total", f"{receipt.total_ms:.1f} ms")
    if usage is not None:
        table.add_row("tokens", f"{usage.prompt_tokens} prompt, {usage.completion_tokens} generated")
    cached = f"{receipt.actual_cached_tokens} ({receipt.predicted_cached_tokens} predicted)"
    table.add_row("cached tokens", cached)
    if receipt.num_draft_tokens:
        table.add_row("draft tokens", f"{receipt.num_accepted_tokens} of {receipt.num_draft_tokens} accepted")
    table.add_row("prefill at", receipt.placement.prefill)
    table.add_row("decode at", receipt.placement.decode)
    table.add_row("because", receipt.placement.reason)
    return table
