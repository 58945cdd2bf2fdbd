"""What a drafter is, the histories that it continues, and the one that needs no model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from forebay.types import SamplingParams

from .kernels.ngram import ngram_propose


class History:
    """Accepted tokens of one sequence of a decode worker, and how its target samples."""

    def __init__(self, token_ids: Sequence[int], params: SamplingParams) -> None:
        self.params = params
        self._buffer: NDArray[np.int64] = np.empty(max(64, 2 * len(token_ids)), dtype=np.int64)
        self._num_tokens = 0
        self.extend(token_ids)

    def __len__(self) -> int:
        return self._num_tokens

    @property
    def token_ids(self) -> NDArray[np.int64]:
        """All tokens, int64 [len]; a view that `extend` may leave behind."""
        return self._buffer[: self._num_tokens]

    def extend(self, token_ids: Sequence[int]) -> None:
        """Append accepted tokens."""
        end = self._num_tokens + len(token_ids)
        if end > len(self._buffer):
            self._buffer = np.concatenate((self.token_ids, np.empty(end, dtype=np.int64)))
        self._buffer[self._num_tokens : end] = token_ids
        self._num_tokens = end


class Drafter(Protocol):
    """Proposes continuations. Engine thread only."""

    def propose(self, wanted: Mapping[History, int]) -> dict[History, list[int]]:
        """Up to so many tokens after each history, in a bounded piece of work; who is left out asks again."""
        ...

    def close(self, history: History) -> None:
        """The sequence ended: free what is held for it."""
        ...

    def check_idle(self) -> None:
        """Raise AssertionError if anything is held."""
        ...


class NgramDrafter:
    """Prompt lookup: what followed the last earlier occurrence of the longest matching suffix."""

    def __init__(self, max_ngram: int = 4, min_ngram: int = 2) -> None:
        self._max_ngram, self._min_ngram = max_ngram, min_ngram

    def propose_one(self, token_ids: Sequence[int] | NDArray[np.int64], num_tokens: int) -> list[int]:
        """Up to `num_tokens` tokens that may follow; empty without a match."""
        ids = np.asarray(token_ids, dtype=np.int64)
        return ngram_propose(ids, self._max_ngram, self._min_ngram, num_tokens)

    def propose(self, wanted: Mapping[History, int]) -> dict[History, list[int]]:
        """All of them."""
        return {history: self.propose_one(history.token_ids, num) for history, num in wanted.items()}

    def close(self, history: History) -> None:
        """Nothing is held beside the history."""

    def check_idle(self) -> None:
        """Nothing is held."""
