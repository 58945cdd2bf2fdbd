"""What recent requests were like: their stories for Explain, totals and percentiles for whoever watches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from forebay.errors import NotFound
from forebay.v1.admin_pb2 import Traffic
from forebay.v1.inference_pb2 import ExplainResponse

from .generation import Generation

# About 1 KiB each.
MAX_STORIES = 4096
NUM_IN_PERCENTILES = 1000


class RecentRequests:
    """The last `max_stories` requests that ended, by id, and counts over all of them."""

    def __init__(self, max_stories: int = MAX_STORIES) -> None:
        self._max_stories = max_stories
        self._stories: OrderedDict[str, ExplainResponse] = OrderedDict()
        self._ended = Traffic()

    def add(self, generation: Generation) -> None:
        """Keep the story of a request that just ended; the oldest one goes."""
        story = generation.story()
        self._stories[generation.request.request_id] = story
        if len(self._stories) > self._max_stories:
            self._stories.popitem(last=False)
        ended, usage = self._ended, story.usage
        ended.num_ended_requests += 1
        ended.num_failed_requests += story.outcome not in ("OK", "CANCELLED")
        ended.num_prompt_tokens += usage.prompt_tokens
        ended.num_cached_tokens += usage.cached_tokens
        ended.num_output_tokens += usage.completion_tokens

    def find(self, request_id: str) -> ExplainResponse:
        """The story of a request; raises NotFound once it is forgotten."""
        story = self._stories.get(request_id)
        if story is None:
            kept = f"the last {self._max_stories} requests that ended here are kept"
            raise NotFound(f"no request {request_id!r} is known: {kept}", reason="REQUEST_NOT_FOUND")
        return story

    def traffic(self, live: Iterable[Generation]) -> Traffic:
        """Totals, the tokens of live requests included, and percentiles."""
        traffic, live = Traffic(), list(live)
        traffic.CopyFrom(self._ended)
        traffic.num_live_requests = len(live)
        traffic.num_output_tokens += sum(generation.num_output_tokens for generation in live)
        recent = [s for s in list(self._stories.values())[-NUM_IN_PERCENTILES:] if s.receipt.ttft_ms > 0]
        ttfts = sorted(story.receipt.ttft_ms for story in recent)
        tpots = sorted(_tpot_ms(story) for story in recent if story.usage.completion_tokens > 1)
        traffic.ttft_p50_ms, traffic.ttft_p99_ms = _at(ttfts, 0.5), _at(ttfts, 0.99)
        traffic.tpot_p50_ms, traffic.tpot_p99_ms = _at(tpots, 0.5), _at(tpots, 0.99)
        return traffic


def _tpot_ms(story: ExplainResponse) -> float:
    """Decode time over tokens; choices run side by side, which this takes for one after the other."""
    return (story.receipt.total_ms - story.receipt.ttft_ms) / (story.usage.completion_tokens - 1)


def _at(ascending: list[float], share: float) -> float:
    return ascending[min(int(share * len(ascending)), len(ascending) - 1)] if ascending else 0.0
