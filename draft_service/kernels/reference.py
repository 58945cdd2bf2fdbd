"""Plain twins of drafting's kernels: the CPU serving path and the tests' yardstick."""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from forebay.kernels.paged_reference import RunPlan, run_attention


def draft_attention(
    q: Tensor,
    kv_layer: Tensor,
    block_tables: Tensor,
    cu_query_lens: Tensor,
    context_lens: Tensor,
    scale: float,
    plan: RunPlan | None = None,
) -> Tensor:
    """Attend each sequence's run of last positions causally to its paged context."""
    plan = plan or RunPlan.build(block_tables, cu_query_lens, context_lens, *kv_layer.shape[2:4])
    return run_attention(q, kv_layer, block_tables, plan, scale)


def ngram_propose(token_ids: NDArray[np.int64], max_ngram: int, min_ngram: int, k: int) -> list[int]:
    """Scan for the longest suffix seen before, most recent match first; return up to k tokens after it."""
    tokens = [int(token) for token in token_ids]
    for n in range(min(max_ngram, len(tokens) - 1), min_ngram - 1, -1):
        suffix = tokens[-n:]
        for start in range(len(tokens) - n - 1, -1, -1):
            if tokens[start : start + n] == suffix:
                return tokens[start + n : start + n + k]
    return []
