"""One prompt on its way through the worker: its tokens, block table and progress."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from forebay.kv.hashing import BlockKey
from forebay.types import SamplingParams, TokenLogprobs


@dataclass(eq=False, slots=True)
class Sequence:
    """A prompt; mutated by the engine thread only, once it is handed to the engine.

    0 ........ num_computed_tokens ........ num_tokens
    | KV is in the pool | to be computed    |
    block_table covers the whole prompt from admission to release; it is empty before and after.
    """

    request_id: str
    token_ids: list[int]
    params: SamplingParams
    root: bytes
    keys: list[BlockKey]
    block_size: int
    num_store_blocks: int = 0
    block_table: list[int] = field(default_factory=list)
    num_computed_tokens: int = 0
    num_local_cached_tokens: int = 0
    num_store_cached_tokens: int = 0
    num_reported_blocks: int = 0
    is_offered: bool = False
    times: Times = field(default_factory=lambda: Times())

    @property
    def num_tokens(self) -> int:
        """Length of the prompt."""
        return len(self.token_ids)

    @property
    def num_remaining_tokens(self) -> int:
        """Prompt tokens without KV."""
        return len(self.token_ids) - self.num_computed_tokens

    @property
    def num_blocks(self) -> int:
        """Blocks that hold the whole prompt, a partial last one included."""
        return -(-len(self.token_ids) // self.block_size)

    @property
    def num_computed_blocks(self) -> int:
        """Leading full blocks whose KV is in the pool."""
        return self.num_computed_tokens // self.block_size

    @property
    def num_cacheable_blocks(self) -> int:
        """Blocks that may come from a cache: at least one token must be computed to sample from."""
        return (len(self.token_ids) - 1) // self.block_size

    @property
    def next_key(self) -> bytes | None:
        """Key of the block to compute next; None if it must be computed here whatever is cached."""
        block = self.num_computed_blocks
        return self.keys[block].key if block < self.num_cacheable_blocks else None


@dataclass(slots=True)
class Times:
    """When a prompt passed each stage (time.monotonic), and how long it pulled."""

    arrival: float = field(default_factory=time.monotonic)
    first_chunk: float = 0.0
    first_token: float = 0.0
    pull_s: float = 0.0

    @property
    def queue_s(self) -> float:
        """Waiting before the first chunk, pulling not counted."""
        return max(0.0, self.first_chunk - self.arrival - self.pull_s)

    @property
    def compute_s(self) -> float:
        """From the first chunk to the first token."""
        return self.first_token - self.first_chunk


@dataclass(frozen=True, slots=True)
class Chunk:
    """Prompt tokens [start, end) of a sequence, computed in one step."""

    sequence: Sequence
    start: int
    end: int

    @property
    def num_tokens(self) -> int:
        """Length of the chunk."""
        return self.end - self.start

    @property
    def token_ids(self) -> list[int]:
        """The tokens to compute."""
        return self.sequence.token_ids[self.start : self.end]

    @property
    def is_last(self) -> bool:
        """The chunk ends the prompt."""
        return self.end == self.sequence.num_tokens


@dataclass(frozen=True, slots=True)
class Admitted:
    """The sequence holds its blocks; blocks [num_cached, num_cached + num_to_pull) wait for a pull."""

    sequence: Sequence
    num_cached: int
    num_to_pull: int


@dataclass(frozen=True, slots=True)
class BlocksComputed:
    """The first `num_blocks` full blocks are final in the pool."""

    sequence: Sequence
    num_blocks: int


@dataclass(frozen=True, slots=True)
class FirstTokens:
    """The prompt is computed: the first token of each choice, with log-probabilities where asked for."""

    sequence: Sequence
    token_ids: list[int]
    logprobs: list[TokenLogprobs]


Event = Admitted | BlocksComputed | FirstTokens
