"""Where a request's time went: marks taken on the way, and the stages between them, which add up."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Literal

from forebay.v1.decode_pb2 import Started
from forebay.v1.inference_pb2 import Receipt, Stage, Usage
from forebay.v1.prefill_pb2 import FirstToken

from .router import LOCAL, Route


@dataclass(slots=True)
class Timeline:
    """Moments on the monotonic clock, seconds; 0 where it did not come to that."""

    arrived: float = field(default_factory=time.perf_counter)
    tokenized: float = 0.0
    indexed: float = 0.0
    routed: float = 0.0
    prefill_failed: float = 0.0
    prefilled: float = 0.0
    started: float = 0.0
    first_token: float = 0.0
    ended: float = 0.0
    prefill: FirstToken | None = None
    decode: Started | None = None

    def mark(self, name: Literal["tokenized", "indexed", "routed"]) -> Timeline:
        """Now is the moment called `name`; returns itself."""
        setattr(self, name, time.perf_counter())
        return self

    @property
    def ttft_s(self) -> float:
        """Arrival to first token."""
        return self.first_token - self.arrived

    @property
    def total_s(self) -> float:
        """Arrival to end."""
        return self.ended - self.arrived

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens whose KV was reused where the prompt was completed."""
        if self.prefill is not None:
            return self.prefill.num_local_cached_tokens + self.prefill.num_store_cached_tokens
        if self.decode is not None:
            return self.decode.num_local_cached_tokens + self.decode.num_pulled_tokens
        return 0


class _Stages:
    """Cuts the time from the first mark on into named, adjacent pieces."""

    def __init__(self, start: float) -> None:
        self.at = start
        self.pieces: list[tuple[str, float]] = []

    def until(self, name: str, moment: float, **reported_ms: float) -> None:
        """Up to `moment`: what workers reported of it, clipped to fit, and the rest under `name`."""
        left = max(0.0, moment - self.at)
        self.at += left
        for reported, ms in reported_ms.items():
            piece = min(max(0.0, ms / 1e3), left)
            left -= piece
            self.pieces.append((reported, piece))
        self.pieces.append((name, left))

    def to_pb(self) -> list[Stage]:
        return [Stage(name=name, ms=seconds * 1e3) for name, seconds in self.pieces if seconds > 0]


def stages(timeline: Timeline) -> list[Stage]:
    """Adjacent stages from arrival to end; they add up to the total."""
    cuts = _Stages(timeline.arrived)
    cuts.until("tokenize", timeline.tokenized)
    cuts.until("index", timeline.indexed)
    cuts.until("route", timeline.routed)
    if timeline.prefill_failed:
        cuts.until("failed_prefill", timeline.prefill_failed)
    if timeline.prefill is not None:
        _prefill_stages(cuts, timeline, timeline.prefill)
    elif timeline.decode is not None:
        # Decode reports that it joined together with its first token: between them it computed the prompt.
        reported = timeline.decode
        cuts.until("prefill", timeline.first_token, pull=reported.pull_ms, decode_queue=reported.queue_ms)
    cuts.until("decode" if timeline.first_token else "waiting", timeline.ended)
    return cuts.to_pb()


def _prefill_stages(cuts: _Stages, timeline: Timeline, first: FirstToken) -> None:
    reported = {"prefill_queue": first.queue_ms, "pull": first.pull_ms, "prefill": first.compute_ms}
    cuts.until("dispatch", timeline.prefilled, **reported)
    if timeline.decode is not None:
        cuts.until("transfer", timeline.started, decode_queue=timeline.decode.queue_ms)


def make_receipt(
    request_id: str, seed: int, timeline: Timeline, route: Route | None, num_draft: int, num_accepted: int
) -> Receipt:
    """The receipt of a request that ended; call once: it completes the placement's reason."""
    if route is not None and timeline.prefill_failed:
        route.placement.reason += f"; prefill {route.placement.prefill} failed, decode computed the prompt"
        route.placement.prefill = LOCAL
    return Receipt(
        request_id=request_id,
        stages=stages(timeline),
        predicted_cached_tokens=route.num_cached_tokens if route else 0,
        actual_cached_tokens=timeline.num_cached_tokens,
        placement=route.placement if route else None,
        num_draft_tokens=num_draft,
        num_accepted_tokens=num_accepted,
        seed=seed,
        ttft_ms=timeline.ttft_s * 1e3 if timeline.first_token else 0.0,
        total_ms=timeline.total_s * 1e3,
    )


def make_usage(num_prompt_tokens: int, num_completion_tokens: int, timeline: Timeline) -> Usage:
    """Token counts."""
    return Usage(
        prompt_tokens=num_prompt_tokens,
        completion_tokens=num_completion_tokens,
        cached_tokens=timeline.num_cached_tokens,
    )
