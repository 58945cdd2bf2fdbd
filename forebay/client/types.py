"""What the client returns: plain frozen dataclasses, field for field what the protos describe."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, under the raw logits; alternatives best first."""

    token_id: int
    logprob: float
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Usage:
    """Token counts; completion tokens are those of all choices, cached ones are part of the prompt."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a request's life, milliseconds."""

    name: str
    ms: float


@dataclass(frozen=True, slots=True)
class Placement:
    """The router's choice with the numbers that it used."""

    prefill: str
    decode: str
    reason: str
    expected_ttft_ms: float
    num_queued_tokens: int
    num_novel_tokens: int
    num_moved_blocks: int
    prefill_tokens_per_s: float
    link_bytes_per_s: float
    decode_num_running: int


@dataclass(frozen=True, slots=True)
class Receipt:
    """Where a request's time went; the stages add up to `total_ms`. `seed` makes the output repeatable."""

    request_id: str
    stages: tuple[Stage, ...]
    predicted_cached_tokens: int
    actual_cached_tokens: int
    placement: Placement
    num_draft_tokens: int
    num_accepted_tokens: int
    seed: int
    ttft_ms: float
    total_ms: float


@dataclass(frozen=True, slots=True)
class Delta:
    """New output of one choice. The last delta of a choice has `finish_reason` ("stop", "length", ...),
    the last one of the stream `usage` and `receipt`; the first one `request_id`."""

    choice: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprobs, ...] = ()
    finish_reason: str | None = None
    usage: Usage | None = None
    receipt: Receipt | None = None
    request_id: str = ""


@dataclass(slots=True)
class Choice:
    """One completion so far."""

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: str | None = None
    logprobs: list[TokenLogprobs] = field(default_factory=list)

    def add(self, delta: Delta) -> None:
        """Append new output."""
        self.token_ids += delta.token_ids
        self.text += delta.text
        self.logprobs += delta.logprobs
        self.finish_reason = delta.finish_reason or self.finish_reason


@dataclass(slots=True)
class Completion:
    """A whole answer: its choices by number, counts, receipt."""

    choices: dict[int, Choice] = field(default_factory=dict)
    usage: Usage | None = None
    receipt: Receipt | None = None
    request_id: str = ""

    @classmethod
    def of(cls, deltas: Iterable[Delta]) -> Completion:
        """All of a stream."""
        completion = cls()
        for delta in deltas:
            completion.add(delta)
        return completion

    def add(self, delta: Delta) -> None:
        """Append new output."""
        self.choices.setdefault(delta.choice, Choice()).add(delta)
        self.usage = delta.usage or self.usage
        self.receipt = delta.receipt or self.receipt
        self.request_id = delta.request_id or self.request_id

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text if 0 in self.choices else ""

    @property
    def token_ids(self) -> list[int]:
        """Tokens of the first choice."""
        return self.choices[0].token_ids if 0 in self.choices else []

    def to_json(self, *, with_logprobs: bool = False) -> dict[str, Any]:
        """The first choice at the top level; all of them under "choices" if there are several."""
        choices = [_plain(choice, with_logprobs) for _, choice in sorted(self.choices.items())]
        result = dict(choices[0]) if choices else _plain(Choice(), with_logprobs)
        result["usage"] = asdict(self.usage) if self.usage else None
        result["receipt"] = asdict(self.receipt) if self.receipt else None
        return result | ({"choices": choices} if len(choices) > 1 else {})


def _plain(choice: Choice, with_logprobs: bool) -> dict[str, Any]:
    fields = asdict(choice)
    if not with_logprobs:
        del fields["logprobs"]
    return fields


@dataclass(frozen=True, slots=True)
class Tokens:
    """A text as token ids and as the vocabulary spells them."""

    token_ids: tuple[int, ...]
    tokens: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Model:
    """A served model; `max_context` counts prompt and output tokens, `block_size` tokens per KV block."""

    model: str
    fingerprint: bytes
    block_size: int
    max_context: int
    vocab_size: int
    eos_token_ids: tuple[int, ...]
    dtype: str
    block_bytes: int
    folder: str


@dataclass(frozen=True, slots=True)
class Story:
    """What happened to a request: `outcome` is "OK", "CANCELLED" or the reason of its error."""

    receipt: Receipt
    usage: Usage
    outcome: str
    operation: str
    model: str


@dataclass(frozen=True, slots=True)
class Load:
    """A worker's load; rates are 0 before their first measurement."""

    num_running: int
    num_waiting: int
    num_queued_tokens: int
    num_used_blocks: int
    num_blocks: int
    prefill_tokens_per_s: float
    link_bytes_per_s: float
    num_steps: int
    num_cached_blocks: int


@dataclass(frozen=True, slots=True)
class Worker:
    """A worker as the gateway sees it."""

    role: str
    address: str
    is_alive: bool
    model: str
    version: str
    load: Load


@dataclass(frozen=True, slots=True)
class Traffic:
    """Counts since the gateway's start, percentiles over its recent requests in milliseconds."""

    num_live_requests: int
    num_ended_requests: int
    num_failed_requests: int
    num_prompt_tokens: int
    num_cached_tokens: int
    num_output_tokens: int
    ttft_p50_ms: float
    ttft_p99_ms: float
    tpot_p50_ms: float
    tpot_p99_ms: float


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers that a gateway routes to, and its traffic."""

    workers: tuple[Worker, ...]
    traffic: Traffic
