"""The JSON of answers: `chat.completion` and `text_completion`, whole and in chunks."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from forebay.types import FinishReason
from forebay.v1.common_pb2 import TokenLogprobs

from ..request import Request
from ..tokenizer import Tokenizer
from .logprobs import chat_logprobs, completion_logprobs

REASONS = {
    FinishReason.STOP: "stop",
    FinishReason.LENGTH: "length",
    FinishReason.CANCELLED: "abort",
    FinishReason.ERROR: "error",
}
Choice = dict[str, Any]


class Shape(ABC):
    """One answer's identity, and how its choices look; `num_choices` are all prompts' together."""

    prefix: ClassVar[str]
    kind: ClassVar[str]
    chunk_kind: ClassVar[str]

    def __init__(self, requests: Sequence[Request]) -> None:
        first = requests[0]
        self.id = self.prefix + first.request_id
        self.created = int(time.time())
        self.model = first.model.name
        self.num_choices = sum(request.params.n for request in requests)
        self._tokenizer: Tokenizer = first.model.tokenizer

    def whole(self, choices: Sequence[Choice], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer of a call that does not stream."""
        return self._envelope(self.kind, choices) | {"usage": usage}

    def chunk(self, choices: Sequence[Choice], usage: dict[str, Any] | None = None) -> dict[str, Any]:
        """One event of a stream."""
        envelope = self._envelope(self.chunk_kind, choices)
        return envelope if usage is None else envelope | {"usage": usage}

    def opening(self, index: int) -> Choice | None:
        """What a choice begins with, before any text."""
        return None

    def delta(self, index: int, text: str) -> Choice:
        """New text of a choice."""
        return self.choice(index, text)

    @abstractmethod
    def choice(self, index: int, text: str) -> Choice:
        """A whole choice."""

    @abstractmethod
    def logprobs(self, index: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Log-probabilities of the next tokens of a choice."""

    def _envelope(self, kind: str, choices: Sequence[Choice]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class ChatShape(Shape):
    """/v1/chat/completions."""

    prefix, kind, chunk_kind = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def opening(self, index: int) -> Choice | None:
        """Who speaks."""
        return self._choice(index) | {"delta": {"role": "assistant", "content": ""}}

    def delta(self, index: int, text: str) -> Choice:
        """New text of a choice."""
        return self._choice(index) | {"delta": {"content": text} if text else {}}

    def choice(self, index: int, text: str) -> Choice:
        """A whole choice."""
        return self._choice(index) | {"message": {"role": "assistant", "content": text, "refusal": None}}

    def logprobs(self, index: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Log-probabilities of the next tokens of a choice."""
        return chat_logprobs(entries, self._tokenizer)

    @staticmethod
    def _choice(index: int) -> Choice:
        return {"index": index, "logprobs": None, "finish_reason": None}


class CompletionShape(Shape):
    """/v1/completions."""

    prefix, kind, chunk_kind = "cmpl-", "text_completion", "text_completion"

    def __init__(self, requests: Sequence[Request]) -> None:
        super().__init__(requests)
        self._offsets = [0] * self.num_choices

    def choice(self, index: int, text: str) -> Choice:
        """A whole choice, or new text of one."""
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None}

    def logprobs(self, index: int, entries: Sequence[TokenLogprobs]) -> dict[str, Any]:
        """Log-probabilities of the next tokens of a choice."""
        shape, self._offsets[index] = completion_logprobs(entries, self._tokenizer, self._offsets[index])
        return shape
