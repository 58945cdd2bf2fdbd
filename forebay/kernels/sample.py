"""Sampling kernels: logit edits, truncation thresholds, Philox noise and the Gumbel-max draw."""

from torch import Tensor

from forebay.kernels import sample_reference as reference


def apply_penalties(
    logits: Tensor,
    rows: Tensor,
    ids: Tensor,
    counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Penalise entries (rows[m], ids[m]) of logits [R, V] in place; entries are distinct, the rest is [M].

    counts: how often the id is in the output; repetition also covers ids with count 0 (the prompt's).
    """
    reference.apply_penalties(logits, rows, ids, counts, repetition, presence, frequency)


def truncation_threshold(scaled: Tensor, top_k: Tensor, top_p: Tensor, min_p: Tensor) -> Tensor:
    """Return the lowest logit [R] each row of scaled [R, V] may draw: min-p, then top-k, then top-p.

    top_k int64 [R] (0 is off), top_p float64 [R] (1 is off), min_p float64 [R] (0 is off).
    Ties at the threshold stay in.
    """
    return reference.truncation_threshold(scaled, top_k, top_p, min_p)


def philox_uniform(seeds: Tensor, positions: Tensor, ids: Tensor) -> Tensor:
    """Return float32 noise in [0, 1) of (seed, position, vocabulary id), broadcast over int64 tensors.

    Philox4x32-10 with key = seed, counter = (id // 4, position, 0, 0), lane id % 4, like Triton's.
    """
    return reference.philox_uniform(seeds, positions, ids)


def gumbel_argmax(scaled: Tensor, threshold: Tensor, seeds: Tensor, positions: Tensor) -> Tensor:
    """Draw one id per row of scaled [R, V] from the softmax over entries >= threshold [R]; int64 [R].

    The draw is argmax(scaled + Gumbel noise), so a row depends on its logits, seed and position alone.
    """
    return reference.gumbel_argmax(scaled, threshold, seeds, positions)
