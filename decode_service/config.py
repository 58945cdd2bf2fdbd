"""Decode's configuration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from forebay.config import option
from forebay.errors import ConfigError
from forebay.worker import WorkerConfig

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 512, 2048
CPU_CHUNK_TOKENS, GPU_CHUNK_TOKENS = 64, 1024


@dataclass(frozen=True, kw_only=True)
class DecodeConfig(WorkerConfig):
    """KV blocks to tokens: continuous batching, speculation, preemption."""

    max_batch_size: int = option(256, help="sequences that run at once")
    max_batch_tokens: int = option(
        0, help="query tokens of a step beyond one per decoding sequence; 0: 512 on CPU, 2048 on GPU"
    )
    max_chunk_tokens: int = option(
        0, help="tokens of missing KV computed beside sequences that decode; 0: 64 on CPU, 1024 on GPU"
    )
    max_pending_tokens: int = option(65536, help="unsent tokens at which a gateway's stream is given up")
    push_generated: bool = option(True, help="push full blocks computed here to the store")
    push_batch_blocks: int = option(4, help="full blocks of a sequence that are pushed together")
    speculate: Literal["off", "ngram", "model"] = option("off", help="where draft tokens come from")
    draft_address: str = option("", help="draft service; with 'ngram' none is needed: lookup in process")
    num_draft_tokens: int = option(4, help="draft tokens per sequence and step at most")
    speculate_max_batch: int = option(8, help="running sequences above which nothing is drafted")
    draft_timeout_ms: float = option(5.0, help="how long a step waits for drafts at most")

    def __post_init__(self) -> None:
        if self.max_batch_size < 1:
            raise ConfigError(f"max_batch_size: at least 1, got {self.max_batch_size}")
        for name in ("max_batch_tokens", "max_chunk_tokens"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name}: 0 or more, got {getattr(self, name)}")
        if self.speculate == "model" and not self.draft_address:
            raise ConfigError("draft_address: needed with speculate=model")
        if not 0 < self.num_draft_tokens <= 16:
            raise ConfigError(f"num_draft_tokens: between 1 and 16, got {self.num_draft_tokens}")

    def batch_tokens(self, device: str) -> int:
        """Most query tokens of a step on `device`."""
        return self.max_batch_tokens or (CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS)

    def chunk_tokens(self, device: str) -> int:
        """Most tokens of missing KV in a step on `device` that others decode in."""
        return self.max_chunk_tokens or (CPU_CHUNK_TOKENS if device == "cpu" else GPU_CHUNK_TOKENS)
