"""One thread that steps one or more engines; the only thread that mutates their state.

The event loop talks to it through `post` (fire and forget) and `call` (awaitable). A `step()` that raises
ends the loop and `on_failure` is told, because an engine in an unknown state must not go on serving; the
traceback goes to the thread's excepthook.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from forebay.errors import ForebayError

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
        self._inbox: deque[Callable[[], object]] = deque()
        self._wake = threading.Condition()
        self._is_stopping = False
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
        with self._wake:
            self._inbox.append(lambda: fn(*args))
            self._wake.notify()

    def call(self, fn: Callable[..., T], *args: Any) -> asyncio.Future[T]:
        """Like `post`, from the event loop, awaitable; a ForebayError goes to the awaiter only."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()

        def run() -> None:
            try:
                result = fn(*args)
            except ForebayError as error:
                loop.call_soon_threadsafe(_set_exception, future, error)
            else:
                loop.call_soon_threadsafe(_set_result, future, result)

        self.post(run)
        return future

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
            posts = list(self._inbox)
            self._inbox.clear()
        self._busy_since = time.monotonic()
        for post in posts:
            post()
        return True

    _has_work = False

    def _step_all(self) -> None:
        did_work = [engine.step() for engine in self.engines]
        self._has_work = any(did_work)
        self.num_steps += self._has_work


def _set_result(future: asyncio.Future[T], result: T) -> None:
    if not future.done():
        future.set_result(result)


def _set_exception(future: asyncio.Future[T], error: ForebayError) -> None:
    if not future.done():
        future.set_exception(error)
