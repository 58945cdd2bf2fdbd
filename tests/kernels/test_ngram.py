"""N-gram lookup proposes what followed the most recent occurrence of the longest known suffix."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draft_service.kernels import reference
from draft_service.kernels.ngram import ngram_propose


def _propose(tokens: list[int], max_ngram: int = 3, min_ngram: int = 1, k: int = 4) -> list[int]:
    return ngram_propose(np.array(tokens, dtype=np.int64), max_ngram, min_ngram, k)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ([], []),
        ([5], []),
        ([1, 2, 3], []),
        ([7, 7], [7]),
        ([1, 2, 3, 9, 1, 2, 3], [9, 1, 2, 3]),
        ([1, 2, 8, 1, 2, 9, 1, 2], [9, 1, 2]),  # the later match wins
        ([1, 2, 3, 8, 2, 3, 9, 1, 2, 3], [8, 2, 3, 9]),  # the longer match wins over the later one
    ],
)
def test_examples(tokens: list[int], expected: list[int]) -> None:
    assert _propose(tokens) == expected


def test_shorter_suffixes_than_the_minimum_are_ignored() -> None:
    assert _propose([1, 5, 6, 2, 1], min_ngram=2) == []


@given(st.lists(st.integers(0, 3), max_size=40), st.integers(1, 4), st.integers(1, 4), st.integers(1, 5))
def test_equals_the_scan(tokens: list[int], max_ngram: int, min_ngram: int, k: int) -> None:
    array = np.array(tokens, dtype=np.int64)
    assert ngram_propose(array, max_ngram, min_ngram, k) == reference.ngram_propose(
        array, max_ngram, min_ngram, k
    )
