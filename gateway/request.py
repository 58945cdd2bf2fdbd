"""A request and its choices: what was asked, and what was said so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from forebay.types import FinishReason, SamplingParams
from forebay.v1.common_pb2 import TokenLogprobs
from forebay.v1.inference_pb2 import Receipt, Usage

from .buffer import Chunk
from .models import ServedModel
from .receipt import Timeline
from .stop_strings import StopFilter


@dataclass(slots=True)
class Request:
    """A checked and tokenised request; `params` has its seed and `max_tokens` set."""

    request_id: str
    operation: str
    model: ServedModel
    token_ids: list[int]
    params: SamplingParams
    stop: tuple[str, ...] = ()
    text_output: bool = True
    keep_special_tokens: bool = False
    timeline: Timeline = field(default_factory=Timeline)

    @property
    def stop_token_ids(self) -> frozenset[int]:
        """Tokens that end a choice; they are the output's last token and not in its text."""
        eos = () if self.params.ignore_eos else self.model.info.eos_token_ids
        return frozenset(self.params.stop_token_ids).union(eos)


@dataclass(slots=True)
class Piece:
    """New output of one choice, ready to send."""

    choice: int
    token_ids: Sequence[int]
    text: str
    logprobs: Sequence[TokenLogprobs]
    finish_reason: int = 0
    usage: Usage | None = None
    receipt: Receipt | None = None


class Choice:
    """One of the n completions: the journal of its tokens, its text, its end."""

    def __init__(self, request: Request, index: int) -> None:
        self.index = index
        self.output_ids: list[int] = []
        self.finish_reason = FinishReason.UNSPECIFIED
        self._stop_token_ids = request.stop_token_ids
        self._filter = StopFilter(request.stop) if request.stop else None
        self._text_output = request.text_output
        wants_text = request.text_output or bool(request.stop)
        keep_special = request.keep_special_tokens
        self._detokenizer = (
            request.model.tokenizer.detokenizer(keep_special=keep_special) if wants_text else None
        )

    @property
    def is_finished(self) -> bool:
        """Whether the client has its last piece."""
        return self.finish_reason != FinishReason.UNSPECIFIED

    def accept(self, chunk: Chunk) -> Piece:
        """The piece for the client; not to be called after the end."""
        token_ids, text = self._read(chunk.token_ids)
        if chunk.finished is not None and not self.is_finished:
            self.finish_reason = FinishReason(chunk.finished.reason)
            text += self._flush()
        self.output_ids.extend(token_ids)
        if not self._text_output:
            text = ""
        return Piece(self.index, token_ids, text, chunk.logprobs[: len(token_ids)], self.finish_reason)

    def _read(self, token_ids: list[int]) -> tuple[list[int], str]:
        """(tokens up to a stop string, their text); sets the finish reason where one was found."""
        if self._detokenizer is None:
            return token_ids, ""
        if self._filter is None:
            return token_ids, self._detokenizer.push(self._speakable(token_ids))
        text = ""
        for count, token_id in enumerate(token_ids, 1):
            piece, stopped = self._filter.push(self._detokenizer.push(self._speakable([token_id])))
            text += piece
            if stopped:
                self.finish_reason = FinishReason.STOP
                return token_ids[:count], text
        return token_ids, text

    def _speakable(self, token_ids: list[int]) -> list[int]:
        """A stop token is always the last one."""
        if token_ids and token_ids[-1] in self._stop_token_ids:
            return token_ids[:-1]
        return token_ids

    def _flush(self) -> str:
        if self._detokenizer is None:
            return ""
        text = self._detokenizer.flush()
        if self._filter is None:
            return text
        text, stopped = self._filter.push(text)
        return text if stopped else text + self._filter.flush()
