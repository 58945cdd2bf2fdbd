"""One step's batch as tensors: which token of which sequence reads and writes which pool slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True, slots=True)
class PagedBatch:
    """T query tokens of S sequences; token_ids, positions, slots int64 [T], the rest int32.

    block_tables [S, max_blocks]; cu_query_lens [S + 1]; context_lens [S], counted after this step's tokens.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    cu_query_lens: Tensor
    context_lens: Tensor


class BatchBuilder:
    """Builds batches over one pool; keeps the block tables of the last one, which rarely change."""

    def __init__(self, block_size: int, device: torch.device) -> None:
        self.block_size, self.device = block_size, device
        self._lists: list[list[int]] = []
        self._tables = np.zeros((0, 1), dtype=np.int32)
        self._tables_on_device = torch.empty(0)

    def build(
        self,
        token_ids: Sequence[int],
        starts: Sequence[int],
        query_lens: Sequence[int],
        written_froms: Sequence[int],
        block_tables: Sequence[list[int]],
    ) -> PagedBatch:
        """Sequence s asks with positions starts[s].. and writes KV only from position written_froms[s] on."""
        self._set_tables(block_tables)
        lens, first = np.asarray(query_lens), np.asarray(starts)
        ends = np.cumsum(lens)
        cu_query_lens = np.concatenate(([0], ends)).astype(np.int32)
        rows = np.repeat(np.arange(len(lens)), lens)
        positions = np.arange(len(rows)) + (first - ends + lens)[rows]
        slots = self._tables[rows, positions // self.block_size] * np.int64(self.block_size)
        slots += positions % self.block_size
        slots[positions < np.asarray(written_froms)[rows]] = -1
        return PagedBatch(
            self._send(np.asarray(token_ids, dtype=np.int64)),
            self._send(positions),
            self._send(slots),
            self._tables_on_device,
            self._send(cu_query_lens),
            self._send((first + lens).astype(np.int32)),
        )

    def _set_tables(self, block_tables: Sequence[list[int]]) -> None:
        if self._lists == block_tables:
            return
        self._lists = [list(table) for table in block_tables]
        self._tables = np.zeros((len(self._lists), max(map(len, self._lists))), dtype=np.int32)
        for row, table in zip(self._tables, self._lists, strict=True):
            row[: len(table)] = table
        self._tables_on_device = self._send(self._tables)

    def _send(self, values: NDArray[np.generic]) -> Tensor:
        return torch.from_numpy(values).to(self.device, non_blocking=True)
