"""Checks a request against the model and the pool, and makes its sequences. Pure; any thread."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass

from forebay.errors import FailedPrecondition, InvalidArgument, ResourceExhausted
from forebay.kv.hashing import BlockHasher, prefix_root
from forebay.limits import check_sampling, check_token_ids
from forebay.sampling import RowState
from forebay.types import FinishReason, SamplingParams, choice_seed
from forebay.v1.common_pb2 import ModelInfo

from .sequence import Owner, Sequence, Stats

MAX_CHOICES = 16


@dataclass(frozen=True, slots=True)
class AttachRequest:
    """A request as a gateway announces it: prompt and, when it moves here, tokens emitted elsewhere."""

    request_id: str
    token_ids: list[int]
    num_prompt_tokens: int
    params: SamplingParams
    salt: bytes
    fingerprint: bytes
    choice: int | None = None

    def choices(self) -> Iterable[int]:
        """Choice indices that it asks for; only the first of an absurd number."""
        if self.choice is not None:
            return [self.choice if self.choice < MAX_CHOICES else 0]
        return range(self.params.n if 0 < self.params.n <= MAX_CHOICES else 1)


class Admission:
    """What a request must be to be held at all."""

    def __init__(self, info: ModelInfo, num_blocks: int) -> None:
        """`num_blocks`: blocks of the pool, the padding block not counted."""
        self._info, self._num_blocks = info, num_blocks
        self._eos_token_ids = tuple(info.eos_token_ids)

    def build(self, owner: Owner, request: AttachRequest) -> Sequence:
        """The sequence of the first choice, the others as its followers; raises what is wrong with it."""
        self._check(request)
        root = prefix_root(request.fingerprint, request.salt)
        lead, *followers = [self._sequence(owner, request, root, choice) for choice in request.choices()]
        lead.followers = followers
        return lead

    def check_first_tokens(self, token_ids: list[int], num_choices: int) -> None:
        """None at all, or one known token per choice."""
        if len(token_ids) not in (0, num_choices):
            raise InvalidArgument(
                "wrong number of tokens", field="first_token_ids", limit=num_choices, got=len(token_ids)
            )
        if token_ids and max(token_ids) >= self._info.vocab_size:
            raise InvalidArgument(
                "unknown token", field="first_token_ids", limit=self._info.vocab_size - 1, got=max(token_ids)
            )

    def finish_reason(self, sequence: Sequence) -> FinishReason:
        """Whether the sequence's last token ends it."""
        return sequence.finish_reason(self._eos_token_ids, self._info.max_context)

    def _check(self, request: AttachRequest) -> None:
        info, num_tokens = self._info, len(request.token_ids)
        if request.fingerprint != info.fingerprint:
            raise FailedPrecondition(
                "fingerprint: this worker serves another model", reason="FINGERPRINT_MISMATCH"
            )
        check_token_ids(request.token_ids, info.vocab_size, info.max_context)
        check_sampling(request.params, info.vocab_size)
        if not 0 < request.num_prompt_tokens <= num_tokens:
            raise InvalidArgument(
                "out of range", field="num_prompt_tokens", limit=num_tokens, got=request.num_prompt_tokens
            )
        if request.choice is None and request.params.n > 1 and num_tokens > request.num_prompt_tokens:
            raise InvalidArgument("needed when one choice of several moves", field="choice")
        if request.choice is not None and request.choice >= request.params.n:
            raise InvalidArgument(
                "out of range", field="choice", limit=request.params.n - 1, got=request.choice
            )
        self._check_fits(num_tokens, 1 if request.choice is not None else request.params.n)

    def _check_fits(self, num_tokens: int, num_choices: int) -> None:
        """The prompt, a partial block per choice, and one block to grow."""
        num_needed = num_tokens // self._info.block_size + num_choices
        if num_needed > self._num_blocks:
            raise ResourceExhausted(
                f"the request needs {num_needed} blocks at once, the pool has {self._num_blocks}",
                reason="REQUEST_TOO_LARGE",
            )

    def _sequence(self, owner: Owner, request: AttachRequest, root: bytes, choice: int) -> Sequence:
        prompt_ids = request.token_ids[: request.num_prompt_tokens]
        output_ids = request.token_ids[request.num_prompt_tokens :]
        seed = choice_seed(request.params.seed, choice)
        return Sequence(
            owner,
            choice,
            list(request.token_ids),
            request.num_prompt_tokens,
            RowState(request.params, seed, prompt_ids, self._eos_token_ids, output_ids),
            root,
            BlockHasher(root, self._info.block_size),
            Stats(attached_s=time.monotonic()),
        )
