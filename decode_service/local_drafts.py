"""Drafts looked up in this process: the n-gram drafter of the draft service, loaded by name."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import Protocol

from .drafting import Update


class Lookup(Protocol):
    """What is used of `draft_service.drafter.NgramDrafter`."""

    def propose_one(self, token_ids: list[int], num_tokens: int) -> list[int]:
        """Up to `num_tokens` tokens that may follow."""
        ...


class LocalDrafts:
    """A `DraftSource` without state: each proposal is looked up in the history when it is asked for."""

    epoch = 0

    def __init__(self) -> None:
        self._lookup: Lookup = importlib.import_module("draft_service.drafter").NgramDrafter()
        self._num_draft_tokens = 0

    def send(self, update: Update) -> None:
        """Nothing to remember but how much to propose."""
        self._num_draft_tokens = update.num_draft_tokens

    def take(self, histories: Mapping[int, list[int]], timeout_s: float) -> dict[int, list[int]]:
        """Proposals for these slots."""
        most = self._num_draft_tokens
        return {slot: self._lookup.propose_one(ids, most) for slot, ids in histories.items()}
