"""One choice of a request while it lives in this worker. Owned by the engine thread."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, auto
from typing import NamedTuple

from forebay.kv.hashing import BlockHasher, BlockKey
from forebay.sampling import RowState
from forebay.types import FinishReason, SamplingParams, finish_of

from .speculative import DraftState


class Owner(NamedTuple):
    """Who asked: the gateway's stream and its name for the request on it."""

    stream: int
    slot: int


class Status(Enum):
    """Where a sequence is in its life."""

    WAITING = auto()  # holds no blocks
    RESERVED = auto()  # holds blocks; its prompt is being computed elsewhere or pulled
    RUNNING = auto()  # in the batch
    FINISHED = auto()  # holds nothing, known to nobody


@dataclass(slots=True)
class Stats:
    """What the receipt tells about a sequence; times are monotonic seconds."""

    attached_s: float
    started_s: float = 0.0
    pulled_s: float = 0.0
    num_local_tokens: int = 0
    num_pulled_tokens: int = 0
    num_preemptions: int = 0
    has_joined: bool = False


class Sequence:
    """Tokens, blocks and sampling state of one choice.

    The KV of the first `num_computed` tokens is in the blocks of `block_table`. A sequence with `followers`
    computes the prompt for all choices of its request; they take over its blocks when that is done.
    """

    def __init__(
        self,
        owner: Owner,
        choice: int,
        token_ids: list[int],
        num_prompt_tokens: int,
        row: RowState,
        root: bytes,
        hasher: BlockHasher,
        stats: Stats,
    ) -> None:
        self.owner, self.choice, self.root = owner, choice, root
        self.token_ids, self.num_prompt_tokens = token_ids, num_prompt_tokens
        self.row, self.stats = row, stats
        self.arrival = 0
        self.status = Status.WAITING
        self.is_started = False
        self.followers: list[Sequence] = []
        self.first_token_ids: list[int] = []  # of this choice and its followers, until they part
        self.block_table: list[int] = []
        self.spare_blocks: list[int] = []  # one per follower, for its copy of the prompt's partial block
        self.num_computed = 0
        self.num_published = 0  # leading blocks published in the pool
        self.num_pushed = 0  # leading blocks that the store holds or was offered
        self.num_ready_blocks = 0  # leading blocks that the store is said to hold
        self.is_pulling = False
        self.can_pull = True
        self.draft = DraftState()
        self._hasher, self._keys = hasher, list[BlockKey]()

    @property
    def params(self) -> SamplingParams:
        """How to sample."""
        return self.row.params

    @property
    def num_choices(self) -> int:
        """Choices that this sequence stands for."""
        return 1 + len(self.followers)

    @property
    def num_output_tokens(self) -> int:
        """Tokens generated so far, here or elsewhere."""
        return len(self.token_ids) - self.num_prompt_tokens

    @property
    def samples_next(self) -> bool:
        """Whether the step that computes the last token also samples the next one."""
        return not self.first_token_ids

    @property
    def query_start(self) -> int:
        """Position of the next query; the last token is asked again when all KV is there already."""
        return min(self.num_computed, len(self.token_ids) - 1)

    @property
    def num_unwritten(self) -> int:
        """Query tokens until the next token can be sampled (or the choices can part)."""
        return len(self.token_ids) - self.query_start

    @property
    def is_ready(self) -> bool:
        """Whether it may join the batch: told to, and nothing more can be pulled."""
        return self.is_started and not self.is_pulling

    def num_blocks(self, num_tokens: int) -> int:
        """Blocks that hold `num_tokens` tokens."""
        return -(-num_tokens // self._hasher.block_size)

    def num_full_blocks(self) -> int:
        """Leading blocks whose tokens are all computed."""
        return self.num_computed // self._hasher.block_size

    def keys(self, num_blocks: int) -> list[BlockKey]:
        """Keys of the first `num_blocks` full blocks (fewer, if fewer tokens are known)."""
        size, num_known = self._hasher.block_size, len(self._keys)
        num_blocks = min(num_blocks, len(self.token_ids) // size)
        if num_known < num_blocks:
            self._keys += self._hasher.extend(self.token_ids[num_known * size : num_blocks * size])
        return self._keys[:num_blocks]

    def append(self, token_id: int) -> None:
        """Add a generated token."""
        self.token_ids.append(token_id)
        self.row.append(token_id)

    def finish_reason(self, eos_token_ids: tuple[int, ...], max_context: int) -> FinishReason:
        """Whether its last token ends it."""
        left = max_context - len(self.token_ids)
        return finish_of(self.token_ids[-1], self.num_output_tokens, self.params, eos_token_ids, left)

    def num_tokens_left(self, max_context: int) -> int:
        """Tokens that may still be generated."""
        left = max_context - len(self.token_ids)
        return min(left, self.params.max_tokens - self.num_output_tokens) if self.params.max_tokens else left
