"""Turns a step's chunks into tensors, runs the model, samples first tokens. No policy.

Shapes: T tokens of the step, S chunks, R rows to sample, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain

import torch
from torch import Tensor

from forebay.kv.paged_batch import BatchBuilder
from forebay.kv.pool import PADDING_BLOCK
from forebay.model.attention import Model
from forebay.sampling import RowState, SamplingBatch, SamplingRow, sample
from forebay.types import SamplingParams, choice_seed

from .attention import PrefillAttention
from .sequence import Chunk, FirstTokens, Sequence


class Runner:
    """Computes on one device; kv is [L, num_blocks, 2, Hkv, block_size, D].

    `on_layer(layer)`, if set, is called within `forward` once a layer's keys and values are in the pool.
    """

    def __init__(self, model: Model, kv: Tensor) -> None:
        self.model, self.kv = model, kv
        self._builder = BatchBuilder(kv.shape[4], kv.device)
        self.on_layer: Callable[[int], None] | None = None

    def run(self, chunks: list[Chunk]) -> list[FirstTokens]:
        """Write the chunks' KV into the pool; first tokens of the prompts that end with this step."""
        hidden = self.forward(chunks)
        last = [row for row, chunk in enumerate(chunks) if chunk.is_last]
        if last:
            return self.first_tokens(hidden[last], [chunks[row].sequence for row in last])
        if self.kv.is_cuda:
            torch.cuda.current_stream(self.kv.device).synchronize()  # the blocks are about to be pushed
        return []

    @torch.inference_mode()
    def forward(self, chunks: list[Chunk]) -> Tensor:
        """Final hidden state of each chunk's last token, [S, hidden]."""
        starts = [chunk.start for chunk in chunks]
        batch = self._builder.build(
            token_ids=list(chain.from_iterable(chunk.token_ids for chunk in chunks)),
            starts=starts,
            query_lens=[chunk.num_tokens for chunk in chunks],
            written_froms=starts,
            block_tables=[chunk.sequence.block_table for chunk in chunks],
        )
        attention = PrefillAttention(
            self.kv,
            self.model.rope,
            batch.positions,
            batch.slots,
            batch.block_tables,
            batch.cu_query_lens,
            batch.context_lens,
            self.on_layer,
        )
        hidden = self.model.forward(batch.token_ids, attention)
        return hidden[batch.cu_query_lens[1:].long() - 1]

    @torch.inference_mode()
    def first_tokens(self, hidden: Tensor, sequences: list[Sequence]) -> list[FirstTokens]:
        """Sample all choices of each sequence from its last hidden state [S, hidden]."""
        logits = self.model.logits(hidden)
        rows = [(s, row) for s, sequence in enumerate(sequences) for row in self._sampling_rows(sequence)]
        result = sample(logits[[s for s, _ in rows]], SamplingBatch([row for _, row in rows]))
        token_ids = result.token_ids.tolist()
        firsts = [FirstTokens(sequence, [], []) for sequence in sequences]
        for (s, _), token_id, logprobs in zip(rows, token_ids, result.logprobs, strict=True):
            firsts[s].token_ids.append(token_id)
            if logprobs is not None:
                firsts[s].logprobs.append(logprobs)
        return firsts

    def warm_up(self) -> None:
        """One forward pass and one draw over the padding block: compiles kernels, proves the model runs."""
        block_size = self._builder.block_size
        sequence = Sequence("warm-up", [0] * block_size, SamplingParams(), b"", [], block_size)
        sequence.block_table = [PADDING_BLOCK]
        self.run([Chunk(sequence, 0, block_size)])

    def _sampling_rows(self, sequence: Sequence) -> list[SamplingRow]:
        params, eos_token_ids = sequence.params, self.model.config.eos_token_ids
        return [
            SamplingRow(
                RowState(params, choice_seed(params.seed, choice), sequence.token_ids, eos_token_ids),
                position=sequence.num_tokens,
            )
            for choice in range(params.n)
        ]
