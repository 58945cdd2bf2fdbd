"""Decode's requests as rows where the model runs: which sequence is where, and what changed since.

A step moves its rows on by itself; the host sends one small block of words when anything changed, and a
sequence's table when it gets a row.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forebay.kernels.sampling_state import SamplingState

from .kernels.step import NUM_RESULTS, HostRows, StepRows
from .sequence import Sequence

MAX_EDITS = 64  # entries of logit_bias and stop ids of one row


@dataclass(slots=True)
class Row:
    """A sequence's place: `position` is that of the token which the next step feeds."""

    index: int
    position: int
    table: list[int]  # the sequence's own; another list means other blocks
    num_sent: int  # leading blocks of the table that the device has, or gets with the next words


class DeviceState:
    """R rows of up to `max_context` tokens; owned by the engine thread."""

    def __init__(
        self, num_rows: int, max_context: int, block_size: int, vocab_size: int, device: torch.device
    ) -> None:
        self.num_rows, self.block_size, self._device = num_rows, block_size, device
        self.max_context = max_context
        self.host = HostRows.build(num_rows, device)
        self.steps = StepRows.build(num_rows, -(-max_context // block_size), device)
        self._words = HostRows.build(num_rows, torch.device("cpu"))
        self._columns: dict[str, NDArray] = {
            f.name: getattr(self._words, f.name).numpy() for f in fields(HostRows)
        }
        self._staging = [
            HostRows.build(num_rows, torch.device("cpu"), device.type == "cuda").words
            for _ in range(NUM_RESULTS)
        ]
        self.sampling = self._sampling_state(vocab_size)
        self.rows: dict[Sequence, Row] = {}
        self._free = list(range(num_rows))
        self._num_sends, self._is_dirty = 0, True
        for index in range(num_rows):
            self._turn_off(index)

    @property
    def num_used(self) -> int:
        """Rows from the first to the last one in use."""
        return 1 + max((row.index for row in self.rows.values()), default=-1)

    def num_used_with(self, wanted: Mapping[Sequence, int]) -> int:
        """`num_used` once exactly these sequences have rows."""
        kept = [self.rows[sequence].index for sequence in wanted if sequence in self.rows]
        gone = [row.index for sequence, row in self.rows.items() if sequence not in wanted]
        free = heapq.nsmallest(len(wanted) - len(kept), self._free + gone)
        return 1 + max(kept + free, default=-1)

    def can_edit(self, sequence: Sequence) -> bool:
        """Whether the row's edits fit."""
        return len(sequence.params.logit_bias) + len(sequence.row.stop_ids) <= MAX_EDITS

    def has_room(self, sequence: Sequence, position: int) -> bool:
        """Whether the sequence's blocks, and a row, hold a token at `position`."""
        return position < min(len(sequence.block_table) * self.block_size, self.max_context)

    def assign(self, wanted: Mapping[Sequence, int]) -> None:
        """Let exactly these sequences have rows, which feed their tokens at these positions.

        The token of a sequence whose row is not there yet is known to the host. There are rows for all.
        """
        for sequence in [s for s in self.rows if s not in wanted]:
            self._release(sequence)
        for sequence, position in wanted.items():
            row = self.rows.get(sequence)
            if row is None:
                row = self.rows[sequence] = Row(heapq.heappop(self._free), -1, [], 0)
            if row.position != position or row.table is not sequence.block_table:
                self._bind(row, sequence, position)
            elif len(row.table) > row.num_sent:
                self._grow(row)

    def pack(self) -> None:
        """Leave no free row before one in use; rows that move forget what steps did to them."""
        for row in sorted(self.rows.values(), key=lambda row: -row.index):
            if self._free and self._free[0] < row.index:
                self._turn_off(row.index)
                row.index = heapq.heapreplace(self._free, row.index)
                row.position = -1
            else:
                break

    def send(self) -> None:
        """Bring the words to the device if they changed."""
        if not self._is_dirty:
            return
        staging = self._staging[self._num_sends % NUM_RESULTS]
        staging.copy_(self._words.words)
        self.host.words.copy_(staging, non_blocking=True)
        self._num_sends, self._is_dirty = self._num_sends + 1, False

    def advance(self) -> dict[Sequence, Row]:
        """A step was launched: its rows as they were in it."""
        stepped = {s: Row(r.index, r.position, r.table, r.num_sent) for s, r in self.rows.items()}
        for row in self.rows.values():
            row.position += 1
        return stepped

    # Rows

    def _bind(self, row: Row, sequence: Sequence, position: int) -> None:
        column, params, index = self._columns, sequence.params, row.index
        row.position, row.table = position, sequence.block_table
        self._send_table(row)
        column["generation"][index] += 1
        column["token"][index] = sequence.token_ids[position]
        column["position"][index], column["written_from"][index] = position, sequence.num_computed
        column["seeds"][index] = sequence.row.signed_seed
        for name in ("temperature", "top_k", "top_p", "min_p"):
            column[name][index] = getattr(params, name)
        self._bind_edits(index, sequence, position)
        column["count_rows"][index] = index if sequence.row.has_penalties else -1
        if sequence.row.has_penalties:
            self._bind_penalties(index, sequence)

    def _bind_edits(self, index: int, sequence: Sequence, position: int) -> None:
        column, params, row = self._columns, sequence.params, sequence.row
        bias = params.logit_bias
        stop_ids = row.stop_ids[: None if row.num_output < params.min_tokens else 0].tolist()
        column["num_bias"][index], column["num_edits"][index] = len(bias), len(bias) + len(stop_ids)
        column["free_from"][index] = position + 1 - row.num_output + params.min_tokens
        if bias or stop_ids:
            ids = torch.tensor([*bias, *stop_ids], dtype=torch.int32)
            values = torch.tensor([*bias.values(), *[-np.inf] * len(stop_ids)], dtype=torch.float32)
            self.sampling.edit_ids[index, : len(ids)] = ids.to(self._device)
            self.sampling.edit_values[index, : len(ids)] = values.to(self._device)

    def _bind_penalties(self, index: int, sequence: Sequence) -> None:
        for name in ("repetition", "presence", "frequency"):
            self._columns[name][index] = getattr(sequence.params, f"{name}_penalty")
        ids, counts = (torch.from_numpy(c.copy()).to(self._device) for c in sequence.row.occurrences())
        self.sampling.counts[index].zero_()
        self.sampling.counts[index, ids] = (2 * counts + 1).int()

    def _grow(self, row: Row) -> None:
        if len(row.table) > row.num_sent + 1:
            self._send_table(row)
            return
        self._columns["grown_at"][row.index], self._columns["grown_block"][row.index] = (
            row.num_sent,
            row.table[-1],
        )
        self._set_limit(row)

    def _send_table(self, row: Row) -> None:
        width = self.steps.tables.shape[1]
        table = torch.tensor(row.table[:width], dtype=torch.int32)
        if self._device.type == "cuda":
            table = table.pin_memory()
        self.steps.tables[row.index, : len(table)].copy_(table, non_blocking=True)
        self._columns["grown_at"][row.index] = -1
        self._set_limit(row)

    def _set_limit(self, row: Row) -> None:
        row.num_sent, self._is_dirty = len(row.table), True
        self._columns["limit"][row.index] = min(row.num_sent * self.block_size, self.max_context)

    def _release(self, sequence: Sequence) -> None:
        index = self.rows.pop(sequence).index
        heapq.heappush(self._free, index)
        self._turn_off(index)

    def _turn_off(self, index: int) -> None:
        for name in ("limit", "temperature", "top_k", "min_p", "num_bias", "num_edits"):
            self._columns[name][index] = 0
        self._columns["top_p"][index] = 1
        self._columns["count_rows"][index] = self._columns["grown_at"][index] = -1
        self._is_dirty = True

    def _sampling_state(self, vocab_size: int) -> SamplingState:
        def zeros(*shape: int, dtype: torch.dtype) -> Tensor:
            return torch.zeros(shape, dtype=dtype, device=self._device)

        host, steps = self.host, self.steps
        return SamplingState(
            host.temperature, host.top_k, host.top_p, host.min_p, host.repetition, host.presence,
            host.frequency, host.seeds, steps.sampled_positions, steps.num_edits,
            zeros(self.num_rows, MAX_EDITS, dtype=torch.int32),
            zeros(self.num_rows, MAX_EDITS, dtype=torch.float32),
            host.count_rows, zeros(self.num_rows, vocab_size, dtype=torch.int32),
        )  # fmt: skip
