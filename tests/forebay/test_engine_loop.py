"""The engine thread: order, idling, results, failure."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from forebay.engine_loop import EngineLoop
from forebay.errors import NotFound, Unavailable


class CountingEngine:
    """Works off `num_left` steps; remembers the threads that stepped it."""

    def __init__(self, num_left: int = 0) -> None:
        self.num_left, self.num_calls, self.threads = num_left, 0, set()

    def add(self, num: int) -> int:
        self.num_left += num
        return self.num_left

    def step(self) -> bool:
        self.num_calls += 1
        self.threads.add(threading.current_thread())
        self.num_left = max(0, self.num_left - 1)
        return self.num_left > 0


@pytest.fixture
def engines():
    return [CountingEngine(), CountingEngine()]


@pytest.fixture
def loop(engines):
    loop = EngineLoop(engines)
    loop.start()
    yield loop
    loop.stop()


async def wait_until(condition, timeout_s=5.0):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.002)


async def test_call_returns_a_result_from_the_engine_thread(loop):
    thread = await loop.call(threading.current_thread)
    assert thread.name == "engine" and thread is not threading.current_thread()


async def test_calls_keep_their_order(loop):
    seen = []
    futures = [loop.call(seen.append, i) for i in range(100)]
    await asyncio.gather(*futures)
    assert seen == list(range(100))


async def test_posted_work_is_stepped_until_done_by_all_engines(loop, engines):
    await loop.call(engines[0].add, 10)
    await wait_until(lambda: engines[0].num_left == 0)
    assert engines[1].num_calls >= 10
    assert {t.name for t in engines[0].threads | engines[1].threads} == {"engine"}


async def test_an_idle_loop_does_not_spin(loop, engines):
    await loop.call(lambda: None)
    await asyncio.sleep(0.02)
    calls = engines[0].num_calls
    await asyncio.sleep(0.05)
    assert engines[0].num_calls == calls
    assert loop.seconds_since_progress == 0.0


async def test_a_domain_error_reaches_only_the_awaiter(loop):
    def fail():
        raise NotFound("no such thing")

    with pytest.raises(NotFound, match="no such thing"):
        await loop.call(fail)
    assert await loop.call(lambda: 1) == 1 and not loop.has_failed


async def test_a_cancelled_awaiter_is_left_alone(loop):
    gate = threading.Event()
    future = loop.call(gate.wait, 5)
    future.cancel()
    gate.set()
    assert await loop.call(lambda: 2) == 2


async def test_seconds_since_progress_grows_while_a_step_hangs(loop):
    gate = threading.Event()
    loop.post(gate.wait, 5)
    await wait_until(lambda: loop.seconds_since_progress > 0.02)
    gate.set()
    await wait_until(lambda: loop.seconds_since_progress == 0.0)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_failing_step_ends_the_loop_and_nobody_waits_for_ever():
    class Broken:
        def step(self):
            raise ZeroDivisionError

    failed = threading.Event()
    loop = EngineLoop([Broken()], failed.set)
    first = loop.call(lambda: 1)
    loop.start()
    assert await asyncio.wait_for(first, 5) == 1
    assert await asyncio.to_thread(failed.wait, 5) and loop.has_failed
    with pytest.raises(Unavailable):
        await asyncio.wait_for(loop.call(lambda: 1), 5)
    loop.stop()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_programming_error_in_a_call_rejects_it_and_all_behind_it():
    loop = EngineLoop([CountingEngine()])
    broken, behind = loop.call(lambda: 1 / 0), loop.call(lambda: 1)
    loop.start()
    for future in (broken, behind):
        with pytest.raises(Unavailable):
            await asyncio.wait_for(future, 5)
    assert loop.has_failed


async def test_stop_is_clean_and_rejects_later_calls(engines):
    loop = EngineLoop(engines)
    loop.start()
    loop.stop()
    loop.stop()
    assert not loop.has_failed
    with pytest.raises(Unavailable):
        await asyncio.wait_for(loop.call(lambda: 1), 5)
