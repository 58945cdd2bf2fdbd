"""Prompt lookup: propose the tokens that followed the latest earlier occurrence of the current suffix."""

import numpy as np
from numpy.typing import NDArray


def ngram_propose(token_ids: NDArray[np.int64], max_ngram: int, min_ngram: int, k: int) -> list[int]:
    """Return up to k tokens after the most recent match of the longest suffix of min..max_ngram tokens."""
    num_tokens = len(token_ids)
    ends = np.flatnonzero(token_ids[:-1] == token_ids[-1]) if num_tokens > 1 else np.empty(0, np.int64)
    best_end, candidates = -1, ends
    for n in range(1, min(max_ngram, num_tokens - 1) + 1):
        if n > 1:
            candidates = candidates[candidates >= n - 1]
            candidates = candidates[token_ids[candidates - n + 1] == token_ids[num_tokens - n]]
        if len(candidates) == 0:
            break
        if n >= min_ngram:
            best_end = int(candidates[-1])
    if best_end < 0:
        return []
    proposal: list[int] = token_ids[best_end + 1 : best_end + 1 + k].tolist()
    return proposal
