"""The draft service's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forebay.config import option
from forebay.errors import ConfigError
from forebay.worker import WorkerConfig


@dataclass(frozen=True, kw_only=True)
class DraftConfig(WorkerConfig):
    """Proposals for decode to verify: n-gram lookup, or a small model with the target's tokenizer."""

    method: Literal["ngram", "model"] = option(
        "ngram", help="how tokens are proposed; 'ngram' loads no model"
    )
    max_ngram: int = option(4, help="longest suffix that is looked up")
    min_ngram: int = option(2, help="shortest suffix that is looked up")
    max_batch_tokens: int = option(512, help="tokens of one pass of the draft model")
    max_slots: int = option(4096, help="sequences held for one decode worker")
    max_draft_tokens: int = option(16, help="tokens proposed at once at most")

    def __post_init__(self) -> None:
        if not 0 < self.min_ngram <= self.max_ngram:
            raise ConfigError(f"min_ngram: between 1 and max_ngram ({self.max_ngram}), got {self.min_ngram}")
        if self.max_batch_tokens < 1 or self.max_draft_tokens < 1:
            raise ConfigError("max_batch_tokens and max_draft_tokens: at least 1")
