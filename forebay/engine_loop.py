"""One thread that steps one or more engines; the only thread that mutates their state.

The event loop talks to it through `post` (fire and forget) and `call` (awaitable). A `step()` that raises
ends the loop and `on_failure` is told, because an engine in an unknown state must not go on serving; the
traceback goes to the thread's excepthook. Whoever awaits a `call` of an ended loop gets Unavailable.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from forebay.errors import ForebayError, Unavailable

T = TypeVar("T")


class Engine(Protocol):
    """Something with a `step()`; True means that it did work and wants to be called again."""

    def step(self) -> bool:
        """Do one unit of work."""
        ...


class EngineLoop:
    """Runs the engines' steps in turn and sleeps when all are idle and nothing was posted."""

    def __init__(self, engines: Sequence[Engine], on_failure: Callable[[], None] | None = None) -> None:
        self.engines = list(engines)
        self.has_failed = False
        self.num_steps = 0
        self._on_failure = on_failure
        # Each entry is called once: with True on the engine thread, or with False when the loop has ended.
        self._inbox: deque[Callable[[bool], object]] = deque()
        self._wake = threading.Condition()
        self._is_stopping = self._has_ended = False
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, timeout_s: float = 10.0) -> None:
        """Finish the step at hand and end the thread."""
        with self._wake:
            self._is_stopping = True
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout_s)

    def post(self, fn: Callable[..., object], *args: Any) -> None:
        """Run `fn(*args)` on the engine thread before the next step; an error in it ends the loop."""
        self._put(lambda is_alive: fn(*args) if is_alive else None)

    def call(self, fn: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Like `post`, from the event loop, awaitable; a ForebayError goes to the awaiter only."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run(is_alive: bool) -> None:
            outcome: T | ForebayError = Unavailable("the engine has stopped")
            try:
                if is_alive:
                    outcome = fn(*args)
            except ForebayError as error:
                outcome = error
            finally:
                _deliver(loop, future, outcome)

        self._put(run)
        return future

    def _put(self, entry: Callable[[bool], object]) -> None:
        with self._wake:
            if not self._has_ended:
                self._inbox.append(entry)
                self._wake.notify()
                return
        entry(False)

    @property
    def seconds_since_progress(self) -> float:
        """How long the step at hand has run; 0 when idle."""
        since = self._busy_since
        return 0.0 if since is None else time.monotonic() - since

    def _run(self) -> None:
        is_clean = False
        try:
            while self._take_posts():
                self._step_all()
            is_clean = True
        finally:
            self._busy_since = None
            self.has_failed = not is_clean
            self._reject_rest()
            if self.has_failed and self._on_failure is not None:
                self._on_failure()

    def _take_posts(self) -> bool:
        """Run what was posted; block while there is nothing to do. False when stopping."""
        with self._wake:
            while not self._inbox and not self._has_work and not self._is_stopping:
                self._busy_since = None
                self._wake.wait()
            if self._is_stopping:
                return False
            num_posts = len(self._inbox)
        self._busy_since = time.monotonic()
        for _ in range(num_posts):
            self._inbox.popleft()(True)
        return True

    def _reject_rest(self) -> None:
        with self._wake:
            self._has_ended = True
            rest = list(self._inbox)
            self._inbox.clear()
        for entry in rest:
            entry(False)

    _has_work = False

    def _step_all(self) -> None:
        did_work = [engine.step() for engine in self.engines]
        self._has_work = any(did_work)
        self.num_steps += self._has_work


def _deliver(loop: asyncio.AbstractEventLoop, future: asyncio.Future[T], outcome: T | ForebayError) -> None:
    with contextlib.suppress(RuntimeError):  # the event loop has closed: nobody waits any more
        loop.call_soon_threadsafe(_settle, future, outcome)


def _settle(future: asyncio.Future[T], outcome: T | ForebayError) -> None:
    if future.done():
        return
    if isinstance(outcome, ForebayError):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)
