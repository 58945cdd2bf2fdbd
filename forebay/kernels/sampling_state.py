"""Sampling parameters of a batch where the sampling kernels read them; imports no Triton."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class SamplingState:
    """Parameters of R rows, resident on the GPU and rewritten in place between steps.

    temperature (0 is greedy), top_p (1 is off), min_p (0 is off), repetition, presence, frequency:
    float32 [R]; top_k (0 is off) and num_edits int32 [R]; seeds and positions int64 [R]; edit_ids int32
    and edit_values float32 [R, E]: logit_bias, and -inf for ids that min_tokens forbids. count_rows int32
    [R] names each row's place in counts int32 [P, V], or is -1: an entry is twice the id's occurrences in
    the output, plus one if the id is in the prompt or the output.
    """

    temperature: Tensor
    top_k: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    seeds: Tensor
    positions: Tensor
    num_edits: Tensor
    edit_ids: Tensor
    edit_values: Tensor
    count_rows: Tensor
    counts: Tensor
