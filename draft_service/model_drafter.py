"""A small model as drafter: its own paged KV, kept per sequence, caught up with what the target accepted.

It draws with the target's noise (seed, position): where both distributions agree the draws agree, so more
drafts are accepted than by independent draws, and at temperature 0 both are argmax.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np
import torch
from torch import Tensor

from forebay.kv.paged_batch import BatchBuilder
from forebay.sampling import RowState, SamplingBatch, SamplingRow, sample
from forebay.worker import Worker

from .attention import DraftAttention
from .drafter import History


@dataclass(eq=False, slots=True)
class Draft:
    """The draft model's state of one history: tokens whose KV is in its blocks, accepted or not."""

    history: History
    row: RowState
    block_table: list[int] = field(default_factory=list)
    computed_ids: list[int] = field(default_factory=list)

    def rewind(self) -> None:
        """Keep what agrees with the accepted tokens, and leave the last of them to be computed."""
        accepted = self.history.token_ids[: len(self.computed_ids)]
        known = np.asarray(self.computed_ids[: len(accepted)], dtype=np.int64)
        differs = np.flatnonzero(accepted != known)
        num_good = int(differs[0]) if len(differs) else len(known)
        del self.computed_ids[min(num_good, len(self.history) - 1) :]


class ModelDrafter:
    """Drafts for all sequences of a step together: one pass to catch up, then one per further token."""

    def __init__(self, worker: Worker, max_batch_tokens: int) -> None:
        self._model, self._kv, self._pool = worker.model, worker.kv, worker.pool
        self._vocab_size = worker.config.vocab_size
        self._max_context, self._max_batch_tokens = worker.info.max_context, max_batch_tokens
        self._builder = BatchBuilder(worker.pool.block_size, worker.device)
        self._drafts: dict[History, Draft] = {}  # least recently used first

    @torch.inference_mode()
    def propose(self, wanted: Mapping[History, int]) -> dict[History, list[int]]:
        """Proposals of the histories that one pass can catch up; the others are further along next time."""
        done: dict[History, list[int]] = {}
        passes: list[tuple[Draft, list[int]]] = []
        budget = self._max_batch_tokens
        for history, num_tokens in wanted.items():
            if budget <= 0:
                break
            draft = self._draft(history)
            if not self._fits(draft, len(history) + num_tokens, {draft, *(other for other, _ in passes)}):
                done[history] = []
                continue
            num_known = len(draft.computed_ids)
            chunk = history.token_ids[num_known : num_known + budget].tolist()
            passes.append((draft, chunk))
            budget -= len(chunk)
        if passes:
            done |= self._extend(passes, wanted)
        return done

    def close(self, history: History) -> None:
        """Free the history's blocks."""
        draft = self._drafts.pop(history, None)
        if draft is not None:
            self._pool.release(draft.block_table)

    def check_idle(self) -> None:
        """Raise AssertionError if anything is held."""
        self._pool.check_integrity()
        assert not self._drafts and self._pool.num_used == 0, "draft state is left"

    def warm_up(self) -> None:
        """A forward pass over the padding block."""
        self._forward([0, 0], [0], [2], [[0]])

    def _extend(
        self, passes: list[tuple[Draft, list[int]]], wanted: Mapping[History, int]
    ) -> dict[History, list[int]]:
        hidden = self._run(passes)
        ends = np.cumsum([len(chunk) for _, chunk in passes])
        active = [
            (draft, int(end) - 1)
            for (draft, _), end in zip(passes, ends, strict=True)
            if len(draft.computed_ids) == len(draft.history)
        ]
        proposals: dict[History, list[int]] = {draft.history: [] for draft, _ in active}
        while active:
            rows = [row for _, row in active]
            self._sample([draft for draft, _ in active], hidden[rows], proposals)
            drafts = [d for d, _ in active if len(proposals[d.history]) < wanted[d.history]]
            if drafts:
                hidden = self._run([(draft, proposals[draft.history][-1:]) for draft in drafts])
            active = [(draft, row) for row, draft in enumerate(drafts)]
        return proposals

    def _sample(self, drafts: Sequence[Draft], hidden: Tensor, proposals: dict[History, list[int]]) -> None:
        """Append one token to each proposal."""
        rows = [SamplingRow(draft.row, len(draft.computed_ids)) for draft in drafts]
        token_ids = sample(self._model.logits(hidden), SamplingBatch(rows)).token_ids.tolist()
        for draft, token_id in zip(drafts, token_ids, strict=True):
            proposals[draft.history].append(token_id)

    def _run(self, passes: list[tuple[Draft, list[int]]]) -> Tensor:
        """Compute the KV of new tokens; hidden states [T, hidden]."""
        hidden = self._forward(
            list(chain.from_iterable(chunk for _, chunk in passes)),
            [len(draft.computed_ids) for draft, _ in passes],
            [len(chunk) for _, chunk in passes],
            [draft.block_table for draft, _ in passes],
        )
        for draft, chunk in passes:
            draft.computed_ids += chunk
        return hidden

    @torch.inference_mode()
    def _forward(
        self, token_ids: list[int], starts: list[int], query_lens: list[int], tables: list[list[int]]
    ) -> Tensor:
        batch = self._builder.build(token_ids, starts, query_lens, starts, tables)
        attention = DraftAttention(
            self._kv,
            self._model.rope,
            batch.positions,
            batch.slots,
            batch.block_tables,
            batch.cu_query_lens,
            batch.context_lens,
        )
        return self._model.forward(batch.token_ids, attention)

    def _draft(self, history: History) -> Draft:
        """The history's state, rewound to what was accepted, and marked as used."""
        draft = self._drafts.pop(history, None)
        if draft is None:
            draft = Draft(history, RowState(history.params, history.params.seed, ()))
        self._drafts[history] = draft
        draft.rewind()
        return draft

    def _fits(self, draft: Draft, num_tokens: int, busy: set[Draft]) -> bool:
        """Take the blocks for `num_tokens`, from the least recently used that are not `busy` if need be."""
        if num_tokens > self._max_context or draft.history.token_ids.max() >= self._vocab_size:
            return False
        num_missing = -(-num_tokens // self._pool.block_size) - len(draft.block_table)
        for other in [other for other in self._drafts.values() if other not in busy]:
            if num_missing <= self._pool.num_free:
                break
            self._pool.release(other.block_table)
            other.block_table, other.computed_ids = [], []
        if num_missing > self._pool.num_free:
            return False
        draft.block_table += self._pool.allocate(max(0, num_missing))
        return True
