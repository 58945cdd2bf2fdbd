"""Token sampling of a batch of rows, each independent of the others and reproducible from (seed, position).

Order: logit_bias, min_tokens mask, penalties, temperature, min_p, top_k, top_p, Gumbel-max draw; temperature
0 is argmax with the lowest id winning ties. Log-probabilities are of the raw logits.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forebay.kernels import sample as kernels
from forebay.types import SamplingParams, TokenLogprobs

_Columns = tuple[NDArray[np.int64], NDArray[np.int64]]


class RowState:
    """What sampling must remember about one sequence: parameters, seed, and how often each id occurred.

    Only penalties need occurrences, so other rows keep none. They are two growing columns, ids and output
    counts, plus an id -> column index: an appended token costs O(1), a step costs the distinct ids, never V.
    Owned by the engine thread, like the sequence it belongs to.
    """

    def __init__(
        self,
        params: SamplingParams,
        seed: int,
        prompt_ids: Sequence[int],
        eos_token_ids: Sequence[int] = (),
        output_ids: Sequence[int] = (),
    ) -> None:
        """`output_ids` are tokens generated before (a migrated sequence); seed is unsigned 64-bit."""
        self.params, self.num_output = params, 0
        self.signed_seed = (seed & ((1 << 64) - 1)) - (seed >> 63 & 1) * (1 << 64)
        stop_ids = set(params.stop_token_ids) | (set() if params.ignore_eos else set(eos_token_ids))
        self.stop_ids = np.array(sorted(stop_ids), dtype=np.int64)
        self.has_penalties = (
            params.repetition_penalty,
            params.presence_penalty,
            params.frequency_penalty,
        ) != (1, 0, 0)
        known = np.unique(np.asarray(prompt_ids if params.repetition_penalty != 1 else (), dtype=np.int64))
        self._column_of = {int(token_id): column for column, token_id in enumerate(known)}
        self._columns = np.zeros((2, max(64, 2 * len(known))), dtype=np.int64)  # ids, output counts
        self._columns[0, : len(known)] = known
        for token_id in output_ids:
            self.append(token_id)

    def append(self, token_id: int) -> None:
        """Record one generated token."""
        self.num_output += 1
        if self.has_penalties:
            column = self._column(token_id)  # may replace the columns
            self._columns[1, column] += 1

    def _column(self, token_id: int) -> int:
        column = self._column_of.setdefault(token_id, len(self._column_of))
        if column == self._columns.shape[1]:
            self._columns = np.concatenate((self._columns, np.zeros_like(self._columns)), axis=1)
        self._columns[0, column] = token_id
        return column

    def occurrences(self, pending: Sequence[int] = ()) -> _Columns:
        """Return (ids, output counts) to penalise, counting `pending` tokens that are not appended yet."""
        num_columns = len(self._column_of)
        ids, counts = self._columns[0, :num_columns], self._columns[1, :num_columns]
        if not pending:
            return ids, counts
        extra, extra_counts = np.unique(np.asarray(pending, dtype=np.int64), return_counts=True)
        counts, is_new = counts.copy(), np.ones(len(extra), dtype=bool)
        for i, token_id in enumerate(extra.tolist()):
            if (column := self._column_of.get(token_id)) is not None:
                counts[column] += extra_counts[i]
                is_new[i] = False
        return np.concatenate((ids, extra[is_new])), np.concatenate((counts, extra_counts[is_new]))


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """One token to sample: `position` is its absolute index, `pending` the step's draft tokens before it."""

    state: RowState
    position: int
    pending: tuple[int, ...] = ()

    @property
    def blocked_ids(self) -> NDArray[np.int64]:
        """Stop ids that min_tokens still forbids."""
        num_output = self.state.num_output + len(self.pending)
        return self.state.stop_ids[: None if num_output < self.state.params.min_tokens else 0]


@dataclass(frozen=True, slots=True)
class SamplingBatch:
    """The rows of one step, in the order of the logits."""

    rows: Sequence[SamplingRow]

    def column(self, name: str, dtype: torch.dtype, rows: Sequence[int], device: torch.device) -> Tensor:
        """Return the parameter `name` of the given rows as a tensor."""
        return torch.tensor([getattr(self.rows[r].state.params, name) for r in rows], dtype=dtype).to(device)


@dataclass(frozen=True, slots=True)
class SampleResult:
    """token_ids int64 [R]; logprobs per row, None where not asked for."""

    token_ids: Tensor
    logprobs: list[TokenLogprobs | None]


def sample(logits: Tensor, batch: SamplingBatch) -> SampleResult:
    """Sample one token per row of logits float32 [R, V], which are edited in place."""
    wanted = [r for r, row in enumerate(batch.rows) if row.state.params.logprobs is not None]
    raw = logits[wanted].log_softmax(-1) if wanted else None
    _edit(logits, batch)
    token_ids = logits.argmax(-1)
    drawn = [r for r, row in enumerate(batch.rows) if not row.state.params.is_greedy]
    if drawn:
        token_ids[drawn] = _draw(logits if len(drawn) == len(logits) else logits[drawn], batch, drawn)
    logprobs: list[TokenLogprobs | None] = [None] * len(batch.rows)
    if raw is not None:
        for r, entry in zip(wanted, _logprobs(raw, token_ids[wanted], batch, wanted), strict=True):
            logprobs[r] = entry
    return SampleResult(token_ids, logprobs)


def _draw(logits: Tensor, batch: SamplingBatch, rows: Sequence[int]) -> Tensor:
    """Draw from the tempered, truncated distribution of each row."""
    device, states = logits.device, [batch.rows[r] for r in rows]
    scaled = logits / batch.column("temperature", torch.float32, rows, device)[:, None]
    threshold = kernels.truncation_threshold(
        scaled,
        batch.column("top_k", torch.int64, rows, device),
        batch.column("top_p", torch.float64, rows, device),
        batch.column("min_p", torch.float64, rows, device),
    )
    seeds = torch.tensor([row.state.signed_seed for row in states], device=device)
    positions = torch.tensor([row.position for row in states], device=device)
    return kernels.gumbel_argmax(scaled, threshold, seeds, positions)


def _edit(logits: Tensor, batch: SamplingBatch) -> None:
    """Apply logit_bias, the min_tokens mask and penalties to the entries they name."""
    biases = [
        (r, np.fromiter(bias.keys(), np.int64), np.fromiter(bias.values(), np.float32))
        for r, row in enumerate(batch.rows)
        if (bias := row.state.params.logit_bias)
    ]
    if biases:
        rows, ids = _entries([(r, ids) for r, ids, _ in biases], logits.device)
        values = torch.from_numpy(np.concatenate([values for _, _, values in biases])).to(logits.device)
        logits[rows, ids] += values
    blocked = [(r, row.blocked_ids) for r, row in enumerate(batch.rows) if len(row.blocked_ids)]
    if blocked:
        logits[_entries(blocked, logits.device)] = -torch.inf
    _penalise(logits, batch)


def _penalise(logits: Tensor, batch: SamplingBatch) -> None:
    penalised = [(r, row) for r, row in enumerate(batch.rows) if row.state.has_penalties]
    if not penalised:
        return
    found = [row.state.occurrences(row.pending) for _, row in penalised]
    rows, ids = _entries([(r, ids) for (r, _), (ids, _) in zip(penalised, found, strict=True)], logits.device)
    counts = torch.from_numpy(np.concatenate([counts for _, counts in found])).to(logits.device)
    every, device = range(len(batch.rows)), logits.device
    repetition, presence, frequency = (
        batch.column(f"{name}_penalty", torch.float32, every, device)[rows]
        for name in ("repetition", "presence", "frequency")
    )
    kernels.apply_penalties(logits, rows, ids, counts, repetition, presence, frequency)


def _entries(parts: Sequence[tuple[int, NDArray[np.int64]]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Flatten (row, ids) pairs into the index tensors (rows [M], ids [M])."""
    ids = np.concatenate([ids for _, ids in parts])
    rows = np.repeat([r for r, _ in parts], [len(ids) for _, ids in parts])
    return torch.from_numpy(rows).to(device), torch.from_numpy(ids).to(device)


def _logprobs(
    raw: Tensor, token_ids: Tensor, batch: SamplingBatch, rows: Sequence[int]
) -> list[TokenLogprobs]:
    """Read the chosen and the top entries of raw [rows, V]; no ids are listed when 0 are asked for."""
    nums = [batch.rows[r].state.params.logprobs or 0 for r in rows]
    top = raw.topk(min(max(nums), raw.shape[1]))
    values, ids = top.values.tolist(), top.indices.tolist()
    chosen = raw.gather(1, token_ids[:, None])[:, 0].tolist()
    return [
        TokenLogprobs(token_id, chosen[i], tuple(ids[i][: nums[i]]), tuple(values[i][: nums[i]]))
        for i, token_id in enumerate(token_ids.tolist())
    ]
