"""Where a request runs: plain arithmetic over the workers' last known state, no I/O.

Expected time to first token at a prefill worker =
    queued tokens / its rate + novel tokens / its rate + blocks to move * block bytes / link rate.
A decode worker costs the time to pull what its own cache lacks plus a little per sequence it runs.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from forebay.v1.inference_pb2 import Placement

# Used until a worker has measured its own.
DEFAULT_PREFILL_TOKENS_PER_S = 4000.0
DEFAULT_LINK_BYTES_PER_S = 1e9
# What one more sequence in the batch costs, as time to first token: it breaks ties towards idle workers.
SEQUENCE_COST_S = 0.002
MAX_ROUTED_KEYS = 65536
LOCAL = "decode"


class RoutedKeys:
    """Block keys sent to one worker, least recently used first: an estimate of its local cache."""

    def __init__(self, max_keys: int = MAX_ROUTED_KEYS) -> None:
        self._keys: OrderedDict[bytes, None] = OrderedDict()
        self._max_keys = max_keys

    def match(self, keys: Sequence[bytes]) -> int:
        """Leading keys that the worker has seen."""
        for num_known, key in enumerate(keys):
            if key not in self._keys:
                return num_known
        return len(keys)

    def add(self, keys: Sequence[bytes]) -> None:
        """Now the most recent; children are forgotten before parents."""
        for key in reversed(keys):
            self._keys[key] = None
            self._keys.move_to_end(key)
        while len(self._keys) > self._max_keys:
            self._keys.popitem(last=False)

    def clear(self) -> None:
        """The worker lost its cache."""
        self._keys.clear()

    def __len__(self) -> int:
        return len(self._keys)


@dataclass(slots=True)
class WorkerState:
    """What the gateway knows of one worker: reported by it, and `own_*` counted here since."""

    address: str
    num_queued_tokens: int = 0
    num_running: int = 0
    num_waiting: int = 0
    num_used_blocks: int = 0
    num_blocks: int = 0
    prefill_tokens_per_s: float = 0.0
    link_bytes_per_s: float = 0.0
    own_queued_tokens: int = 0
    own_sequences: int = 0
    routed: RoutedKeys = field(default_factory=RoutedKeys)

    @property
    def queued_tokens(self) -> int:
        """Prompt tokens before a new one; the report lags, the own count misses other gateways."""
        return max(self.num_queued_tokens, self.own_queued_tokens)

    @property
    def num_sequences(self) -> int:
        """Sequences at a decode worker."""
        return max(self.num_running + self.num_waiting, self.own_sequences)

    @property
    def prefill_rate(self) -> float:
        """Tokens per second."""
        return self.prefill_tokens_per_s or DEFAULT_PREFILL_TOKENS_PER_S

    @property
    def link_rate(self) -> float:
        """Bytes per second."""
        return self.link_bytes_per_s or DEFAULT_LINK_BYTES_PER_S

    def fits(self, num_blocks: int) -> bool:
        """Whether the pool has room now; an unknown pool always has."""
        return not self.num_blocks or self.num_blocks - self.num_used_blocks >= num_blocks


@dataclass(frozen=True, slots=True)
class Demand:
    """What a request needs: its full blocks' keys and sizes in tokens and blocks."""

    keys: Sequence[bytes]
    num_prompt_tokens: int
    num_store_blocks: int
    block_size: int
    block_bytes: int
    num_choices: int = 1

    @property
    def num_blocks(self) -> int:
        """Blocks that the prompt takes."""
        return -(-self.num_prompt_tokens // self.block_size)

    def novel_tokens(self, num_cached_blocks: int) -> int:
        """Prompt tokens to compute; at least one, for the logits."""
        return max(1, self.num_prompt_tokens - num_cached_blocks * self.block_size)


class Cost(NamedTuple):
    """One worker's part of the expected time to first token."""

    seconds: float
    num_novel_tokens: int
    num_moved_blocks: int


@dataclass(slots=True)
class Route:
    """A choice of workers; holds its share of their `own_*` counts until closed."""

    prefill: WorkerState | None
    decode: WorkerState
    placement: Placement
    num_cached_tokens: int
    num_queued_tokens: int
    num_choices: int

    def open(self) -> None:
        """Count the request at its workers."""
        self.decode.own_sequences += self.num_choices
        if self.prefill is not None:
            self.prefill.own_queued_tokens += self.num_queued_tokens

    def prefill_done(self) -> None:
        """The prompt is no longer queued; idempotent."""
        if self.prefill is not None:
            self.prefill.own_queued_tokens -= self.num_queued_tokens
        self.num_queued_tokens = 0

    def close(self) -> None:
        """The request is gone; idempotent."""
        self.prefill_done()
        self.decode.own_sequences -= self.num_choices
        self.num_choices = 0


class Router:
    """Picks one (prefill, decode) pair per request."""

    def __init__(self, local_prefill_max_tokens: int = -1) -> None:
        self._local_max = local_prefill_max_tokens

    def route(self, demand: Demand, prefills: Sequence[WorkerState], decodes: Sequence[WorkerState]) -> Route:
        """The pair with the least expected time to first token; `decodes` must not be empty.

        A worker in both lists is aggregated: it serves both parts of a request or none.
        """
        by_address = {worker.address: worker for worker in prefills}
        aggregated = {worker.address for worker in decodes} & by_address.keys()
        dedicated = [worker for worker in prefills if worker.address not in aggregated]
        best = min(dedicated, key=lambda worker: prefill_cost(demand, worker).seconds, default=None)
        options = [
            self._option(demand, by_address[w.address] if w.address in aggregated else best, w)
            for w in decodes
        ]
        _, _, route = min(options, key=lambda option: option[:2])
        _remember(demand, route)
        return route

    def _option(
        self, demand: Demand, prefill: WorkerState | None, decode: WorkerState
    ) -> tuple[bool, float, Route]:
        """(pool too full, expected seconds, route) for one decode worker."""
        pull = decode_cost(demand, decode)
        if self._is_local(demand, pull.num_novel_tokens):
            prefill = None
        compute = prefill_cost(demand, prefill) if prefill else _local_cost(pull, decode)
        # An aggregated worker hands blocks over in place; otherwise decode pulls what it lacks.
        is_shared = prefill is not None and prefill.address == decode.address
        seconds = compute.seconds + (0.0 if is_shared else pull.seconds)
        seconds += decode.num_sequences * SEQUENCE_COST_S
        return (
            not decode.fits(demand.num_blocks),
            seconds,
            _make_route(demand, prefill, decode, compute, seconds),
        )

    def _is_local(self, demand: Demand, num_novel_tokens: int) -> bool:
        limit = demand.block_size if self._local_max < 0 else self._local_max
        return num_novel_tokens <= limit


def prefill_cost(demand: Demand, worker: WorkerState) -> Cost:
    """Queue, computing and moving at one prefill worker."""
    num_local = worker.routed.match(demand.keys)
    num_moved = max(0, demand.num_store_blocks - num_local)
    num_novel = demand.novel_tokens(num_local + num_moved)
    compute_s = (worker.queued_tokens + num_novel) / worker.prefill_rate
    return Cost(compute_s + num_moved * demand.block_bytes / worker.link_rate, num_novel, num_moved)


def decode_cost(demand: Demand, worker: WorkerState) -> Cost:
    """Time to pull what the worker lacks; novel tokens are those that neither it nor the store has."""
    num_local = worker.routed.match(demand.keys)
    num_cached = max(num_local, demand.num_store_blocks)
    seconds = (len(demand.keys) - num_local) * demand.block_bytes / worker.link_rate
    return Cost(seconds, demand.novel_tokens(num_cached), num_cached - num_local)


def _local_cost(pull: Cost, decode: WorkerState) -> Cost:
    return Cost(pull.num_novel_tokens / decode.prefill_rate, pull.num_novel_tokens, pull.num_moved_blocks)


def _make_route(
    demand: Demand, prefill: WorkerState | None, decode: WorkerState, cost: Cost, seconds: float
) -> Route:
    placement = Placement(
        prefill=prefill.address if prefill else LOCAL,
        decode=decode.address,
        reason=_reason(demand, prefill, decode, cost, seconds),
        expected_ttft_ms=seconds * 1e3,
        num_queued_tokens=prefill.queued_tokens if prefill else 0,
        num_novel_tokens=cost.num_novel_tokens,
        num_moved_blocks=cost.num_moved_blocks,
        prefill_tokens_per_s=(prefill or decode).prefill_rate,
        link_bytes_per_s=(prefill or decode).link_rate,
        decode_num_running=decode.num_sequences,
    )
    num_cached_tokens = demand.num_prompt_tokens - cost.num_novel_tokens
    num_queued_tokens = cost.num_novel_tokens if prefill else 0
    return Route(prefill, decode, placement, num_cached_tokens, num_queued_tokens, demand.num_choices)


def _reason(
    demand: Demand, prefill: WorkerState | None, decode: WorkerState, cost: Cost, seconds: float
) -> str:
    where = f"prefill {prefill.address}" if prefill else f"decode {decode.address} computes the prompt itself"
    queued = f"{prefill.queued_tokens} queued + " if prefill else ""
    worker = prefill or decode
    return (
        f"{where}: {queued}{cost.num_novel_tokens} of {demand.num_prompt_tokens} tokens novel at "
        f"{worker.prefill_rate:.0f}/s, {cost.num_moved_blocks} blocks to move at "
        f"{worker.link_rate / 1e6:.0f} MB/s; "
        f"decode {decode.address}: {decode.num_sequences} sequences; expected {seconds * 1e3:.1f} ms"
    )


def _remember(demand: Demand, route: Route) -> None:
    """Both workers will have the prompt's blocks."""
    route.decode.routed.add(demand.keys)
    if route.prefill is not None:
        route.prefill.routed.add(demand.keys)
    route.open()
