"""When a call is tried again: UNAVAILABLE only, before the first token, within the deadline."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass

from forebay.client.errors import CallError, DeadlineExceeded, ServiceUnavailable
from forebay.errors import InvalidArgument

DEFAULT_TIMEOUT_S = 600.0
UNARY_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """`max_attempts` calls in all (1: never again). The delay starts at `initial_delay_s`, doubles up to
    `max_delay_s`, is spread by half of itself, and is at least what the server asks for."""

    max_attempts: int = 3
    initial_delay_s: float = 0.1
    max_delay_s: float = 5.0

    def delay_s(self, num_failed: int, error: CallError) -> float | None:
        """Seconds to wait after the `num_failed`-th failure; None: give up."""
        if not isinstance(error, ServiceUnavailable) or num_failed >= self.max_attempts:
            return None
        backoff_s = min(self.initial_delay_s * 2 ** (num_failed - 1), self.max_delay_s)
        return max(backoff_s, error.retry_after_s or 0.0) * random.uniform(1.0, 1.5)


class Attempts:
    """The attempts of one call under one deadline."""

    def __init__(self, policy: RetryPolicy, timeout_s: float) -> None:
        if not timeout_s > 0:
            raise InvalidArgument("every call has a deadline", field="timeout_s", limit="> 0", got=timeout_s)
        self._policy, self._deadline, self._num_failed = policy, time.monotonic() + timeout_s, 0

    @property
    def left_s(self) -> float:
        """Seconds to the deadline, never negative."""
        return max(0.0, self._deadline - time.monotonic())

    def next_delay_s(self, error: CallError) -> float:
        """Seconds to wait before the next attempt; raises `error` if there is none."""
        self._num_failed += 1
        delay_s = self._policy.delay_s(self._num_failed, error)
        if delay_s is None or isinstance(error, DeadlineExceeded) or delay_s >= self.left_s:
            raise error
        return delay_s
