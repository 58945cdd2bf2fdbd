"""One guarded way to Redis: every call has a budget, failures open a breaker, nothing is ever raised.

Redis holds hints (which store may hold which block, who is alive). Gone, slow, full or holding garbage, it
costs reuse and nothing else, so a call that fails answers None.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import redis.asyncio as redis
import structlog
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError
from tenacity import AsyncRetrying, retry_if_result, stop_after_delay, wait_random_exponential

log = structlog.get_logger(__name__)

_CONNECT_TIMEOUT_S = 1.0


class Breaker:
    """Opens after `threshold` failures in a row, then lets one trial through per pause."""

    def __init__(self, threshold: int = 3, pause_s: float = 0.2, max_pause_s: float = 5.0) -> None:
        self._threshold, self._first_pause_s, self._max_pause_s = threshold, pause_s, max_pause_s
        self._num_failures, self._pause_s, self._closed_until = 0, pause_s, 0.0

    @property
    def is_open(self) -> bool:
        """True while calls are not let through."""
        return time.monotonic() < self._closed_until

    def succeed(self) -> None:
        """A call went well."""
        self._num_failures, self._pause_s, self._closed_until = 0, self._first_pause_s, 0.0

    def fail(self) -> None:
        """A call failed."""
        self._num_failures += 1
        if self._num_failures >= self._threshold:
            self._closed_until = time.monotonic() + self._pause_s
            self._pause_s = min(2 * self._pause_s, self._max_pause_s)


@dataclass
class LinkStats:
    """Counters since start."""

    num_calls: int = 0
    num_failures: int = 0
    num_bypassed: int = 0


class RedisLink:
    """Runs server-side scripts within a budget; `budget_s` None means the connection's own timeout."""

    def __init__(self, url: str, *, budget_s: float | None = 0.005, timeout_s: float = 1.0) -> None:
        # redis-py's own retries sleep up to 10 s between attempts; here the breaker and `wait_ready` decide.
        self._client = redis.Redis.from_url(
            url,
            socket_timeout=timeout_s,
            socket_connect_timeout=_CONNECT_TIMEOUT_S,
            retry=Retry(NoBackoff(), 0),
            health_check_interval=0,
        )
        self._budget_s = timeout_s if budget_s is None else budget_s
        self._scripts: dict[str, Any] = {}
        self._breaker = Breaker()
        self._is_healthy = True
        self.stats = LinkStats()

    @property
    def is_healthy(self) -> bool:
        """False from the first failed call to the next one that succeeds."""
        return self._is_healthy

    async def wait_ready(self, timeout_s: float) -> bool:
        """Connect, trying again with growing pauses; False if Redis did not answer in time."""
        trials = AsyncRetrying(
            stop=stop_after_delay(timeout_s),
            wait=wait_random_exponential(multiplier=0.05, max=0.5),
            retry=retry_if_result(lambda is_ready: not is_ready),
            retry_error_callback=lambda _: False,
        )
        return bool(await trials(self._ping))

    async def run(self, script: str, keys: Sequence[str], args: Sequence[object]) -> object | None:
        """The reply of `lua/<script>.lua`, or None where Redis is of no help now."""
        if self._breaker.is_open:
            self.stats.num_bypassed += 1
            return None
        self.stats.num_calls += 1
        num_cancels = _num_cancels()
        try:
            async with asyncio.timeout(self._budget_s):
                reply: object = await self._script(script)(keys=keys, args=args)
        except (RedisError, OSError, TimeoutError) as error:
            self._fail(error)
            reply = None
        else:
            self._succeed()
        # redis-py writes under asyncio.wait_for, which before Python 3.12 loses a cancellation that comes
        # together with its result: whoever cancelled would wait for ever.
        if _num_cancels() > num_cancels:
            raise asyncio.CancelledError
        return reply

    async def close(self) -> None:
        """Close all connections."""
        await self._client.aclose()

    async def _ping(self) -> bool:
        try:
            async with asyncio.timeout(_CONNECT_TIMEOUT_S):
                await self._client.ping()
        except (RedisError, OSError, TimeoutError) as error:
            self._fail(error)
            return False
        self._succeed()
        return True

    def _script(self, name: str) -> Any:
        if name not in self._scripts:
            source = files("forebay.kv").joinpath("lua", f"{name}.lua").read_text()
            self._scripts[name] = self._client.register_script(source)
        return self._scripts[name]

    def _succeed(self) -> None:
        self._breaker.succeed()
        if not self._is_healthy:
            log.info("redis_back", num_failures=self.stats.num_failures)
            self._is_healthy = True

    def _fail(self, error: Exception) -> None:
        # A server that answers with an error (wrong type, out of memory) is there: no reason to stay away.
        if not isinstance(error, ResponseError):
            self._breaker.fail()
        self.stats.num_failures += 1
        if self._is_healthy:
            log.warning("redis_lost", error=type(error).__name__)
            self._is_healthy = False


def _num_cancels() -> int:
    task = asyncio.current_task()
    return task.cancelling() if task is not None else 0
