"""Prefill's configuration."""

from __future__ import annotations

from dataclasses import dataclass

from forebay.config import option
from forebay.errors import ConfigError
from forebay.worker import WorkerConfig

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 512, 8192


@dataclass(frozen=True, kw_only=True)
class PrefillConfig(WorkerConfig):
    """Prompt tokens to KV blocks and the first token: chunks under a token budget."""

    max_batch_tokens: int = option(0, help="prompt tokens of one step; 0: 512 on CPU, 8192 on GPU")
    max_running: int = option(64, help="prompts that hold blocks at once")
    max_requests: int = option(
        1024, help="prompts in care, waiting ones included, before new ones are refused"
    )
    handoff_ttl_s: float = option(
        1.0, help="beside a decode engine: how long a finished prompt whose stream has ended waits for it"
    )

    def __post_init__(self) -> None:
        for name in ("max_running", "max_requests"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}: at least 1, got {getattr(self, name)}")
        if self.max_batch_tokens < 0:
            raise ConfigError(f"max_batch_tokens: 0 or more, got {self.max_batch_tokens}")

    def batch_tokens(self, device: str) -> int:
        """The budget of a step on `device`."""
        return self.max_batch_tokens or (CPU_BATCH_TOKENS if device == "cpu" else GPU_BATCH_TOKENS)
