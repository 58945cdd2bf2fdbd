"""Decode on a GPU: one CUDA graph a step, and the next step under way before this one's tokens are read.

A graph holds a whole step of a batch bucket: inputs from the resident rows, the model, sampling, the rows'
next inputs. So the next step can be launched before the host knows a token: stop checks come one step late,
and what a step computed for a sequence that has ended is dropped. Runs of several queries, and rows that
the graph cannot express, are computed by the plain runner; a row's tokens do not depend on which of the two
computed it.
"""

from __future__ import annotations

from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from forebay.kernels.sampling_state import SamplingState
from forebay.model.attention import Model
from forebay.types import TokenLogprobs

from .attention import DecodeAttention
from .device_state import DeviceState, Row
from .kernels.step import NUM_RESULTS, begin_step, end_step
from .readback import ReadBack
from .runner import Runner, Samples
from .scheduler import Run
from .sequence import Sequence

Draw = Callable[[Tensor, SamplingState], tuple[Tensor, Tensor]]

BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
SCRATCH_BYTES = 512 << 20  # of attention's parts, in the largest bucket
SCRATCH_SPLIT = 256  # context tokens of one part


@dataclass(frozen=True, slots=True)
class Flight:
    """A launched step: its rows, and where its results will be."""

    rows: dict[Sequence, Row]
    place: int

    def holds(self, run: Run) -> bool:
        """Whether the step computes this run."""
        row = self.rows.get(run.sequence)
        return row is not None and row.position == run.start and row.table is run.sequence.block_table


class GraphRunner(Runner):
    """Computes runs over kv [L, num_blocks, 2, Hkv, block_size, D]; may return no token for a run it defers.

    A sequence that comes while a step is under way gets its token one `execute` later than asked.
    """

    def __init__(
        self, model: Model, kv: Tensor, max_batch_size: int, max_context: int, runs_ahead: bool, draw: Draw
    ) -> None:
        """`draw` samples as `triton_sample.sample` does; without `runs_ahead` steps do not overlap."""
        super().__init__(model, kv)
        self._buckets = [size for size in BUCKETS if size < 2 * max_batch_size]
        num_rows, config = self._buckets[-1], model.config
        self.max_context = min(max_context, graph_context(num_rows, config.num_heads, config.head_dim))
        self.state = DeviceState(num_rows, self.max_context, kv.shape[4], config.vocab_size, kv.device)
        self._ends = torch.arange(num_rows + 1, dtype=torch.int32, device=kv.device)
        self._read_back = ReadBack(self.state.steps.results)
        self._replay: dict[int, Callable[[], None]] = {
            size: partial(self._compute, size) for size in self._buckets
        }
        self._runs_ahead, self._draw = runs_ahead, draw
        self._flight: Flight | None = None
        self._num_launched = 0

    @torch.inference_mode()
    def execute(self, runs: Seq[Run]) -> list[Samples]:
        """As the plain runner; an empty result of a sampling run means: ask again."""
        flight, self._flight = self._flight, None
        plain = [run for run in runs if _is_plain(run)]
        fresh = [run for run in plain if flight is None or not flight.holds(run)]
        is_steady = len(plain) == len(runs)
        if flight is not None and len(fresh) < len(plain):
            deferred, asked = self._run_on(flight, plain, fresh, is_steady)
        else:
            deferred, asked = set(), [run for run in fresh if self._fits(run)][: self.state.num_rows]
            flight = self._run_anew(asked, is_steady and len(asked) == len(plain))
        done = deferred | {id(run) for run in asked}
        rest = [run for run in runs if id(run) not in done]
        others = iter(super().execute(rest) if rest else ())
        landed = iter(self._land(flight, asked) if flight is not None else ())
        defer: Samples = ([], [])
        asked_ids = done - deferred
        return [
            next(landed) if id(run) in asked_ids else defer if id(run) in deferred else next(others)
            for run in runs
        ]

    def _run_on(
        self, flight: Flight, plain: list[Run], fresh: list[Run], is_steady: bool
    ) -> tuple[set[int], list[Run]]:
        """Launch the step after `flight` if it can be; returns ids of deferred runs, and runs in hand."""
        fresh_ids = {id(run) for run in fresh}
        known = [run for run in plain if id(run) not in fresh_ids]
        wanted = _next(known) | {run.sequence: run.start for run in fresh}
        if not (is_steady and self._can_launch(wanted) and all(map(self._fits, fresh))):
            return set(), known
        self._flight = self._launch(wanted)
        return fresh_ids, known

    def _run_anew(self, asked: list[Run], is_all: bool) -> Flight | None:
        """Launch a step of these runs, and the one after it if they are all there is."""
        if not asked:
            return None
        flight = self._launch({run.sequence: run.start for run in asked})
        if is_all and self._can_launch(wanted := _next(asked)):
            self._flight = self._launch(wanted)
        return flight

    @torch.inference_mode()
    def warm_up(self) -> None:
        """Compile, and capture a graph of each bucket; the largest first, so that all share its memory."""
        super().warm_up()
        if not self.kv.is_cuda:
            return
        pool = torch.cuda.graph_pool_handle()
        self.state.send()
        for size in reversed(self._buckets):
            self._compute(size)
            torch.cuda.synchronize(self.kv.device)
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
                self._compute(size)
            self._replay[size] = graph.replay
        self.state.steps.clock.zero_()
        self._num_launched, self._flight = 0, None
        torch.cuda.synchronize(self.kv.device)

    def _fits(self, run: Run) -> bool:
        return self.state.can_edit(run.sequence) and self.state.has_room(run.sequence, run.start)

    def _can_launch(self, wanted: dict[Sequence, int]) -> bool:
        """Whether the next step can run while another does: rows stay where they are, blocks are there."""
        if not (self._runs_ahead and 0 < len(wanted) <= self.state.num_rows):
            return False
        if self._is_sparse(wanted):
            return False
        return all(self.state.has_room(sequence, position) for sequence, position in wanted.items())

    def _launch(self, wanted: dict[Sequence, int]) -> Flight:
        """Start a step that feeds these sequences' tokens at these positions."""
        state = self.state
        if self._is_sparse(wanted):
            state.assign({s: position for s, position in wanted.items() if s in state.rows})
            state.pack()
        state.assign(wanted)
        state.send()
        self._replay[self._bucket(state.num_used)]()
        flight = Flight(state.advance(), self._num_launched % NUM_RESULTS)
        self._read_back.start(flight.place)
        self._num_launched += 1
        return flight

    def _land(self, flight: Flight, runs: list[Run]) -> list[Samples]:
        """Wait for a step's tokens; those of these runs."""
        token_ids, logprobs = (column.tolist() for column in self._read_back.wait(flight.place))
        samples: list[Samples] = []
        for run in runs:
            index, is_asked = flight.rows[run.sequence].index, run.sequence.params.logprobs is not None
            entry = TokenLogprobs(token_ids[index], logprobs[index]) if is_asked else None
            samples.append(([token_ids[index]], [entry]))
        return samples

    def _compute(self, num_rows: int) -> None:
        """One step of the first `num_rows` rows; what a graph holds."""
        state, steps, rows = self.state, self.state.steps, slice(num_rows)
        begin_step(state.host, steps, num_rows, state.block_size)
        attention = DecodeAttention(
            self.kv,
            self.model.rope,
            steps.query_positions[rows],
            steps.slots[rows],
            steps.tables[rows],
            self._ends[: num_rows + 1],
            steps.contexts[rows],
        )
        hidden = self.model.forward(steps.token_ids[rows], attention)
        token_ids, logprobs = self._draw(self.model.logits(hidden), state.sampling)
        end_step(steps, token_ids, logprobs, num_rows)

    def _is_sparse(self, wanted: dict[Sequence, int]) -> bool:
        return self._bucket(self.state.num_used_with(wanted)) > self._bucket(len(wanted))

    def _bucket(self, num_rows: int) -> int:
        return next(size for size in self._buckets if num_rows <= size)


def graph_context(num_rows: int, num_heads: int, head_dim: int) -> int:
    """Context tokens for which attention's parts of `num_rows` rows fit SCRATCH_BYTES; more run plainly."""
    return SCRATCH_BYTES // (4 * num_rows * num_heads * head_dim) * SCRATCH_SPLIT


def _is_plain(run: Run) -> bool:
    """One token in, one out, without alternatives."""
    is_single = run.num_queries == 1 and run.is_sampling and not run.sequence.followers
    return is_single and not run.sequence.params.logprobs


def _next(runs: Seq[Run]) -> dict[Sequence, int]:
    """Positions of the tokens that these runs sample, as far as it can be told that they will be fed."""
    wanted = {}
    for run in runs:
        sequence, max_tokens = run.sequence, run.sequence.params.max_tokens
        if not max_tokens or sequence.num_output_tokens + 1 < max_tokens:
            wanted[sequence] = run.start + 1
    return wanted
