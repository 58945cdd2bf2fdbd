"""The one table of limits on what a caller may ask for, with the checks that gateway and workers share.

Every check is O(1) or stops at its limit, raises InvalidArgument with field, limit and what was got, and
runs before anything is spent on the request.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import NamedTuple

from forebay.errors import InvalidArgument
from forebay.types import SamplingParams
from forebay.v1 import common_pb2 as pb


class Range(NamedTuple):
    """Closed interval; without its lower end where `is_low_open`."""

    low: float
    high: float
    is_low_open: bool = False

    def __contains__(self, value: object) -> bool:
        """NaN and infinities are in no range."""
        assert isinstance(value, (int, float))
        return self.low <= value <= self.high and not (self.is_low_open and value == self.low)

    def __str__(self) -> str:
        """As mathematics writes it."""
        return f"{'(' if self.is_low_open else '['}{self.low:g}, {self.high:g}]"


SAMPLING_RANGES = {
    "temperature": Range(0, 2),
    "top_k": Range(0, 2**31 - 1),
    "top_p": Range(0, 1, is_low_open=True),
    "min_p": Range(0, 1),
    "repetition_penalty": Range(0, 10, is_low_open=True),
    "presence_penalty": Range(-2, 2),
    "frequency_penalty": Range(-2, 2),
    "n": Range(1, 16),
    "logprobs": Range(0, 20),
}
LOGIT_BIAS_RANGE = Range(-100, 100)
MAX_LOGIT_BIAS = 300
MAX_STOP_TOKEN_IDS = 64
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_CHAT_MESSAGES = 4096
MAX_PROMPT_BYTES_PER_TOKEN = 32
MIN_PROMPT_BYTES_CAP = 64 * 1024
CHAT_ROLES = ("system", "user", "assistant", "tool")
_REQUEST_ID = re.compile(r"[!-~]{1,128}")


def sampling_from_pb(message: pb.SamplingParams, vocab_size: int) -> SamplingParams:
    """Parse and check; sizes are checked before anything is copied."""
    _check_count("sampling.logit_bias", len(message.logit_bias), MAX_LOGIT_BIAS)
    _check_count("sampling.stop_token_ids", len(message.stop_token_ids), MAX_STOP_TOKEN_IDS)
    if message.HasField("max_tokens") and message.max_tokens == 0:
        raise InvalidArgument("must be at least 1", field="sampling.max_tokens", limit=1, got=0)
    params = SamplingParams.from_pb(message)
    check_sampling(params, vocab_size)
    return params


def check_sampling(params: SamplingParams, vocab_size: int) -> None:
    """Ranges of all fields that do not depend on the prompt."""
    for name, allowed in SAMPLING_RANGES.items():
        value = getattr(params, name)
        if value is not None and value not in allowed:
            raise InvalidArgument("out of range", field=f"sampling.{name}", limit=allowed, got=value)
    _check_count("sampling.logit_bias", len(params.logit_bias), MAX_LOGIT_BIAS)
    _check_count("sampling.stop_token_ids", len(params.stop_token_ids), MAX_STOP_TOKEN_IDS)
    _check_ids("sampling.logit_bias", params.logit_bias, vocab_size)
    _check_ids("sampling.stop_token_ids", params.stop_token_ids, vocab_size)
    for bias in params.logit_bias.values():
        if bias not in LOGIT_BIAS_RANGE:
            raise InvalidArgument(
                "out of range", field="sampling.logit_bias", limit=LOGIT_BIAS_RANGE, got=bias
            )


def check_token_ids(token_ids: Sequence[int], vocab_size: int, max_context: int) -> None:
    """Not empty, not too many, each in the vocabulary."""
    if not token_ids:
        raise InvalidArgument("the prompt is empty", field="token_ids", limit="at least 1 token", got=0)
    _check_prompt_tokens(len(token_ids), max_context)
    _check_ids("token_ids", token_ids, vocab_size)


def check_text(text: str, max_bytes: int, field: str = "text") -> None:
    """Not empty and not longer than is worth tokenising."""
    if not text:
        raise InvalidArgument("the prompt is empty", field=field, limit="at least 1 character", got=0)
    num_bytes = len(text.encode())
    if num_bytes > max_bytes:
        raise InvalidArgument("the prompt has too many bytes", field=field, limit=max_bytes, got=num_bytes)


def max_prompt_bytes(max_context: int) -> int:
    """Longest text that is tokenised at all: no real prompt of `max_context` tokens is as long."""
    return max(MIN_PROMPT_BYTES_CAP, MAX_PROMPT_BYTES_PER_TOKEN * max_context)


def fit_context(num_prompt_tokens: int, params: SamplingParams, max_context: int) -> SamplingParams:
    """Check prompt plus output against the context; an unset `max_tokens` becomes the rest of it."""
    _check_prompt_tokens(num_prompt_tokens, max_context)
    room = max_context - num_prompt_tokens
    if params.max_tokens > room:
        what = f"prompt ({num_prompt_tokens} tokens) plus max_tokens exceeds the context of {max_context}"
        raise InvalidArgument(what, field="sampling.max_tokens", limit=room, got=params.max_tokens)
    params = replace(params, max_tokens=params.max_tokens or room)
    if params.min_tokens > params.max_tokens:
        raise InvalidArgument(
            "exceeds max_tokens", field="sampling.min_tokens", limit=params.max_tokens, got=params.min_tokens
        )
    return params


def check_stop(stop: Sequence[str]) -> tuple[str, ...]:
    """Number and size of stop strings; empty ones would end every output at once."""
    _check_count("stop", len(stop), MAX_STOP_STRINGS)
    for text in stop:
        num_bytes = len(text.encode())
        if not 1 <= num_bytes <= MAX_STOP_BYTES:
            limit = f"1 to {MAX_STOP_BYTES} bytes"
            raise InvalidArgument("a stop string has a wrong size", field="stop", limit=limit, got=num_bytes)
    return tuple(stop)


def check_request_id(request_id: str) -> str:
    """1 to 128 printable ASCII characters without spaces: it goes to logs and metadata."""
    if not _REQUEST_ID.fullmatch(request_id):
        limit = "1 to 128 printable ASCII characters, no spaces"
        raise InvalidArgument(
            "bad name", field="request_id", limit=limit, got=f"{len(request_id)} characters"
        )
    return request_id


def check_messages(roles: Sequence[str]) -> None:
    """A conversation has messages, of known roles."""
    if not roles:
        raise InvalidArgument("the conversation is empty", field="messages", limit="at least 1", got=0)
    _check_count("messages", len(roles), MAX_CHAT_MESSAGES)
    for role in roles:
        if role not in CHAT_ROLES:
            raise InvalidArgument(
                "unknown role", field="messages.role", limit=list(CHAT_ROLES), got=role[:64]
            )


def _check_prompt_tokens(num_prompt_tokens: int, max_context: int) -> None:
    """At least one token of the context is left for the output."""
    if num_prompt_tokens >= max_context:
        what = f"the prompt leaves no room for output in a context of {max_context} tokens"
        raise InvalidArgument(what, field="prompt", limit=max_context - 1, got=num_prompt_tokens)


def _check_count(field: str, count: int, limit: int) -> None:
    if count > limit:
        raise InvalidArgument("too many entries", field=field, limit=limit, got=count)


def _check_ids(field: str, token_ids: Iterable[int], vocab_size: int) -> None:
    highest, lowest = max(token_ids, default=0), min(token_ids, default=0)
    if lowest < 0 or highest >= vocab_size:
        got = lowest if lowest < 0 else highest
        raise InvalidArgument("token id out of range", field=field, limit=f"[0, {vocab_size})", got=got)
