"""Domain nouns with their translation from and to protobuf; no torch, no I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from forebay.v1 import common_pb2 as pb

_MASK64 = (1 << 64) - 1


class FinishReason(IntEnum):
    """Why a choice ended; values equal the proto enum's."""

    UNSPECIFIED = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    ERROR = 4


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How the next token is chosen; ranges are checked at the edge (`forebay.limits`)."""

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: dict[int, float] = field(default_factory=dict)
    seed: int = 0
    max_tokens: int = 0
    min_tokens: int = 0
    stop_token_ids: tuple[int, ...] = ()
    ignore_eos: bool = False
    n: int = 1
    logprobs: int | None = None

    @classmethod
    def from_pb(cls, message: pb.SamplingParams) -> SamplingParams:
        """Unset fields take their defaults; `max_tokens` and `seed` stay 0 when unset."""
        values = {f.name: getattr(message, f.name) for f in _SCALAR_FIELDS if message.HasField(f.name)}
        return cls(
            **values,
            logit_bias=dict(message.logit_bias),
            stop_token_ids=tuple(message.stop_token_ids),
        )

    def to_pb(self) -> pb.SamplingParams:
        """Every scalar is set explicitly, so that both ends agree on defaults."""
        values = {f.name: getattr(self, f.name) for f in _SCALAR_FIELDS if getattr(self, f.name) is not None}
        return pb.SamplingParams(**values, logit_bias=self.logit_bias, stop_token_ids=self.stop_token_ids)

    @property
    def is_greedy(self) -> bool:
        """Temperature 0: argmax, no random numbers."""
        return self.temperature == 0.0


_SCALAR_FIELDS = [
    f for f in pb.SamplingParams.DESCRIPTOR.fields if f.name not in ("logit_bias", "stop_token_ids")
]


@dataclass(frozen=True, slots=True)
class TokenLogprobs:
    """Log-probabilities at one position, natural log, of the raw logits."""

    token_id: int
    logprob: float
    top_token_ids: tuple[int, ...] = ()
    top_logprobs: tuple[float, ...] = ()

    @classmethod
    def from_pb(cls, message: pb.TokenLogprobs) -> TokenLogprobs:
        """From the wire."""
        return cls(
            message.token_id, message.logprob, tuple(message.top_token_ids), tuple(message.top_logprobs)
        )

    def to_pb(self) -> pb.TokenLogprobs:
        """The wire form."""
        return pb.TokenLogprobs(
            token_id=self.token_id,
            logprob=self.logprob,
            top_token_ids=self.top_token_ids,
            top_logprobs=self.top_logprobs,
        )


def choice_seed(seed: int, choice: int) -> int:
    """Seed of choice `choice` of n: the request's own for choice 0, else splitmix64(seed + choice)."""
    if choice == 0:
        return seed & _MASK64
    z = (seed + choice * 0x9E3779B97F4A7C15) & _MASK64
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & _MASK64
    return z ^ (z >> 31)


def finish_of(
    token_id: int,
    num_output_tokens: int,
    params: SamplingParams,
    eos_token_ids: tuple[int, ...],
    num_tokens_left: int,
) -> FinishReason:
    """Whether a choice ends with `token_id` as its `num_output_tokens`-th output token.

    `num_tokens_left` is what the context still holds after this token. Stop tokens count only once
    `min_tokens` are out; the stop token itself is the last token of the output.
    """
    is_stop = token_id in params.stop_token_ids or (not params.ignore_eos and token_id in eos_token_ids)
    if is_stop and num_output_tokens > params.min_tokens:
        return FinishReason.STOP
    if (params.max_tokens and num_output_tokens >= params.max_tokens) or num_tokens_left <= 0:
        return FinishReason.LENGTH
    return FinishReason.UNSPECIFIED
