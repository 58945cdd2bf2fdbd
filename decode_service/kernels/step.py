"""The ends of a decode step whose rows live on the GPU: inputs from the rows, and rows from the results."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from . import reference

NUM_RESULTS = 4  # steps whose results are kept until they are read


@dataclass(frozen=True)
class HostRows:
    """What the host decides about R rows, sent as one block of words; int32 [R] unless said otherwise.

    A row takes up token and position when its generation changes, and is off while position >= limit.
    KV is written from position written_from on. grown_block becomes entry grown_at of its table (-1: none).
    Of the row's edits the first num_bias count always, num_edits up to position free_from of the sampled
    token. top_k, count_rows, seeds (int64) and the float32 temperature, top_p, min_p, repetition, presence
    and frequency are those of `SamplingState`.
    """

    words: Tensor
    seeds: Tensor
    temperature: Tensor
    top_p: Tensor
    min_p: Tensor
    repetition: Tensor
    presence: Tensor
    frequency: Tensor
    generation: Tensor
    token: Tensor
    position: Tensor
    limit: Tensor
    written_from: Tensor
    grown_at: Tensor
    grown_block: Tensor
    num_bias: Tensor
    num_edits: Tensor
    free_from: Tensor
    top_k: Tensor
    count_rows: Tensor

    @classmethod
    def build(cls, num_rows: int, device: torch.device, is_pinned: bool = False) -> HostRows:
        """All zero: every row is off."""
        words = torch.zeros(20, num_rows, dtype=torch.int32, device=device, pin_memory=is_pinned)
        seeds, floats = words[:2].view(-1).view(torch.int64), words[2:8].view(torch.float32)
        return cls(words, seeds, *floats, *words[8:])


@dataclass(frozen=True)
class StepRows:
    """What steps keep and compute for R rows of up to W blocks.

    Kept: tokens, positions int64 [R] (the next input), generations int32 [R], tables int32 [R, W],
    clock int32 [1] (steps so far), results int64 [NUM_RESULTS, 2, R] (token, bits of its log-probability).
    Of the step: token_ids, query_positions, slots (-1 is off), sampled_positions int64, contexts (0 is off)
    and num_edits int32, all [R].
    """

    tokens: Tensor
    positions: Tensor
    generations: Tensor
    tables: Tensor
    clock: Tensor
    results: Tensor
    token_ids: Tensor
    query_positions: Tensor
    slots: Tensor
    sampled_positions: Tensor
    contexts: Tensor
    num_edits: Tensor

    @classmethod
    def build(cls, num_rows: int, width: int, device: torch.device) -> StepRows:
        """All zero."""

        def zeros(*shape: int, dtype: torch.dtype = torch.int64) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=device)

        row, words = num_rows, torch.int32
        return cls(
            zeros(row), zeros(row), zeros(row, dtype=words), zeros(row, width, dtype=words),
            zeros(1, dtype=words), zeros(NUM_RESULTS, 2, row),
            zeros(row), zeros(row), zeros(row), zeros(row), zeros(row, dtype=words), zeros(row, dtype=words),
        )  # fmt: skip


def begin_step(host: HostRows, rows: StepRows, num_rows: int, block_size: int) -> None:
    """Compute the step's inputs of the first `num_rows` rows."""
    if rows.tokens.is_cuda:
        from . import triton_step  # importing Triton costs 0.5 s: only where it runs

        triton_step.begin_step(host, rows, num_rows, block_size)
    else:
        reference.begin_step(host, rows, num_rows, block_size)


def end_step(rows: StepRows, token_ids: Tensor, logprobs: Tensor, num_rows: int) -> None:
    """Take the sampled token_ids int64 and logprobs float32 [num_rows] as results and next inputs."""
    if rows.tokens.is_cuda:
        from . import triton_step

        triton_step.end_step(rows, token_ids, logprobs, num_rows)
    else:
        reference.end_step(rows, token_ids, logprobs, num_rows)
