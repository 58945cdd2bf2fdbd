"""A planned step as tensors: forward pass, logits, samples. No policy.

Shapes: T query tokens, S sequences, R sampled rows.
"""

from __future__ import annotations

from collections.abc import Sequence as Seq
from itertools import chain

import torch
from torch import Tensor

from forebay.kernels.threads import threads_for
from forebay.kv.hashing import BlockHasher
from forebay.kv.paged_batch import BatchBuilder
from forebay.kv.pool import PADDING_BLOCK
from forebay.model.attention import Model
from forebay.sampling import RowState, SamplingBatch, SamplingRow, sample
from forebay.types import SamplingParams, TokenLogprobs

from .attention import DecodeAttention
from .scheduler import Run
from .sequence import Owner, Sequence, Stats

Samples = tuple[list[int], list[TokenLogprobs | None]]


class Runner:
    """Computes runs over kv [L, num_blocks, 2, Hkv, block_size, D]."""

    def __init__(self, model: Model, kv: Tensor) -> None:
        self.model, self.kv = model, kv
        self._builder = BatchBuilder(kv.shape[4], kv.device)

    @torch.inference_mode()
    def execute(self, runs: Seq[Run]) -> list[Samples]:
        """Write the runs' KV; each run's sampled tokens and log-probabilities (empty if it samples none)."""
        with threads_for(sum(run.num_queries for run in runs), self.kv.device):
            return self._execute(runs)

    def _execute(self, runs: Seq[Run]) -> list[Samples]:
        hidden = self._forward(runs)
        rows, picks = _sampling_rows(runs)
        flat = [row for group in rows for row in group]
        if not flat:
            if self.kv.is_cuda:
                torch.cuda.current_stream(self.kv.device).synchronize()  # full blocks are about to be pushed
            return [([], []) for _ in runs]
        if picks != list(range(len(hidden))):
            hidden = hidden[torch.tensor(picks, device=hidden.device)]
        result = sample(self.model.logits(hidden), SamplingBatch(flat))
        token_ids, logprobs = result.token_ids.tolist(), result.logprobs
        samples, end = [], 0
        for group in rows:
            start, end = end, end + len(group)
            samples.append((token_ids[start:end], logprobs[start:end]))
        return samples

    def warm_up(self) -> None:
        """A forward pass and a draw over the padding block: compiles kernels, proves that the model runs."""
        hasher = BlockHasher(b"", self.kv.shape[4])
        row = RowState(SamplingParams(), 0, [0])
        sequence = Sequence(Owner(0, 0), 0, [0, 0], 1, row, b"", hasher, Stats(0.0))
        sequence.block_table = [PADDING_BLOCK]
        self.execute([Run(sequence, 0, 2), Run(sequence, 0, 2)])
        self.execute([Run(sequence, 1, 1)])

    @torch.inference_mode()
    def copy_blocks(self, pairs: Seq[tuple[int, int]]) -> None:
        """Copy whole blocks (source, destination) in all layers."""
        if pairs:
            sources, destinations = torch.tensor(pairs, device=self.kv.device).unbind(1)
            self.kv[:, destinations] = self.kv[:, sources]

    def _forward(self, runs: Seq[Run]) -> Tensor:
        """Hidden states [T, hidden]."""
        batch = self._builder.build(
            list(chain.from_iterable(run.query_ids() for run in runs)),
            [run.start for run in runs],
            [run.num_queries for run in runs],
            [run.sequence.num_computed for run in runs],
            [run.sequence.block_table for run in runs],
        )
        attention = DecodeAttention(
            self.kv,
            self.model.rope,
            batch.positions,
            batch.slots,
            batch.block_tables,
            batch.cu_query_lens,
            batch.context_lens,
        )
        return self.model.forward(batch.token_ids, attention)


def _sampling_rows(runs: Seq[Run]) -> tuple[list[list[SamplingRow]], list[int]]:
    """Rows to sample for each run, and for each row the query token whose hidden state it uses."""
    rows: list[list[SamplingRow]] = []
    picks: list[int] = []
    end = 0
    for run in runs:
        end += run.num_queries
        sequence, position = run.sequence, run.start + run.num_tokens
        if not run.is_sampling:
            rows.append([])
        elif sequence.followers:
            states = [sequence.row, *(follower.row for follower in sequence.followers)]
            rows.append([SamplingRow(state, position) for state in states])
            picks += [end - 1] * len(states)
        else:
            drafts = run.drafts
            rows.append([SamplingRow(sequence.row, position + i, drafts[:i]) for i in range(len(drafts) + 1)])
            picks += range(end - 1 - len(drafts), end)
    return rows, picks
