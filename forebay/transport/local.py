"""Prefill to decode inside one process: block ids change hands, no byte moves."""

from __future__ import annotations

from collections.abc import Sequence


class LocalHandoff:
    """Finished block tables by request id. Only the engine thread calls it.

    Whoever offers gives its references away; whoever takes owns them. What `drop` and `take` return must be
    released or used by the caller.
    """

    def __init__(self) -> None:
        self._offers: dict[str, tuple[list[int], int]] = {}

    def __len__(self) -> int:
        return len(self._offers)

    def offer(self, request_id: str, block_ids: Sequence[int], num_tokens: int) -> None:
        """Leave a block table (its last block may be partial) that holds `num_tokens` tokens."""
        if request_id in self._offers:
            raise ValueError(f"request {request_id} has an offer already")
        self._offers[request_id] = (list(block_ids), num_tokens)

    def take(self, request_id: str) -> tuple[list[int], int] | None:
        """The block table and its number of tokens, or None."""
        return self._offers.pop(request_id, None)

    def drop(self, request_id: str) -> list[int]:
        """Withdraw an offer; returns the block ids whose references are the caller's again."""
        block_ids, _ = self._offers.pop(request_id, ([], 0))
        return block_ids
