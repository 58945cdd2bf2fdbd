"""Decode's side of drafting: keeps a drafter informed and collects what it proposes.

A drafter can be late, gone or wrong; that costs speed only. A proposal names the position it continues and
the token before it. One that was overtaken is still used as far as it agrees with what was sampled since.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from .scheduler import Run
from .sequence import Sequence as DecodeSequence

NUM_LATE_BEFORE_BYPASS = 8
NUM_STEPS_OF_BYPASS = 64


class Open(NamedTuple):
    """A sequence that begins: everything a drafter may want to know."""

    slot: int
    token_ids: list[int]
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    seed: int


class Extend(NamedTuple):
    """Accepted tokens; the history has `num_tokens` with them."""

    slot: int
    num_tokens: int
    token_ids: list[int]


class Proposal(NamedTuple):
    """`token_ids` continue a history of `position` tokens that ends with `tail`."""

    position: int
    tail: int
    token_ids: list[int]


@dataclass(slots=True)
class Update:
    """News for the drafter: begun, ended and extended histories, and how many tokens to propose."""

    num_draft_tokens: int = 0
    opens: list[Open] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    extends: list[Extend] = field(default_factory=list)

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to tell."""
        return not (self.opens or self.closes or self.extends)


class DraftSource(Protocol):
    """A drafter as the engine thread sees it. `epoch` changes when it forgot everything; negative: down."""

    epoch: int

    def send(self, update: Update) -> None:
        """Tell it; never blocks."""
        ...

    def take(self, histories: Mapping[int, list[int]], timeout_s: float) -> dict[int, list[int]]:
        """Proposals for these slots, waiting at most `timeout_s` while any is on its way."""
        ...


def matching(proposal: Proposal, token_ids: Sequence[int]) -> list[int]:
    """What is left of a proposal after `token_ids`; empty if it does not continue them."""
    position, tail, drafts = proposal
    num_overtaken = len(token_ids) - position
    if position < 1 or num_overtaken < 0 or token_ids[position - 1] != tail:
        return []
    if num_overtaken and list(token_ids[position:]) != drafts[:num_overtaken]:
        return []
    return drafts[num_overtaken:]


class ProposalBox:
    """Latest proposal of each slot, handed from the thread that receives to the thread that verifies."""

    def __init__(self) -> None:
        self._arrived = threading.Condition()
        self._proposals: dict[int, Proposal] = {}
        self._expected: dict[int, int] = {}  # slot -> history length asked about

    def expect(self, slot: int, position: int) -> None:
        """A proposal at `position` is on its way."""
        with self._arrived:
            self._expected[slot] = position

    def put(self, proposals: Iterable[tuple[int, Proposal]]) -> None:
        """Proposals arrived; those for slots that nobody asked about are dropped."""
        with self._arrived:
            for slot, proposal in proposals:
                if slot in self._expected:
                    self._proposals[slot] = proposal
            self._arrived.notify_all()

    def forget(self, slots: Iterable[int] | None = None) -> None:
        """Drop some slots, or all of them."""
        with self._arrived:
            for slot in list(self._expected) if slots is None else slots:
                self._expected.pop(slot, None)
                self._proposals.pop(slot, None)
            self._arrived.notify_all()

    def wait(self, slots: Iterable[int], timeout_s: float) -> bool:
        """Wait until nothing is on its way for `slots`; False if time ran out."""
        with self._arrived:
            return self._arrived.wait_for(lambda: not any(map(self._is_expected, slots)), timeout_s)

    def take(self, histories: Mapping[int, list[int]]) -> dict[int, list[int]]:
        """What fits the histories now."""
        with self._arrived:
            found = {s: self._proposals[s] for s in histories if s in self._proposals}
        return {slot: matching(proposal, histories[slot]) for slot, proposal in found.items()}

    def _is_expected(self, slot: int) -> bool:
        proposal = self._proposals.get(slot)
        return slot in self._expected and (proposal is None or proposal.position < self._expected[slot])


class Speculator:
    """Decides who drafts how much, tells the drafter what was accepted. Engine thread only."""

    def __init__(
        self, source: DraftSource, num_draft_tokens: int, max_batch: int, timeout_s: float, max_context: int
    ) -> None:
        self._source, self._num_draft_tokens, self._max_batch = source, num_draft_tokens, max_batch
        self._timeout_s, self._max_context = timeout_s, max_context
        self._num_slots = self._num_late = self._num_bypassed = 0
        self._closes: list[int] = []
        self._wanted: dict[DecodeSequence, int] = {}

    def propose(self) -> dict[DecodeSequence, list[int]]:
        """Drafts for the coming step, of the sequences that `sync` asked for."""
        wanted = {
            s: k
            for s, k in self._wanted.items()
            if s.draft.epoch == self._source.epoch and s.num_unwritten == 1
        }
        if not wanted:
            return {}
        started = time.monotonic()
        timeout_s = self._timeout_s if self._may_wait() else 0.0
        found = self._source.take({s.draft.slot: s.token_ids for s in wanted}, timeout_s)
        if timeout_s:
            is_late = time.monotonic() - started >= timeout_s
            self._num_late = self._num_late + 1 if is_late else 0
        return {s: found[s.draft.slot][:k] for s, k in wanted.items() if found.get(s.draft.slot)}

    def sync(self, running: Sequence[DecodeSequence]) -> None:
        """After a step: tell the drafter the new tokens of those that will want drafts."""
        self._wanted = {}
        update = Update(closes=self._closes)
        if self._source.epoch >= 0 and len(running) <= self._max_batch:
            for sequence in running:
                self._sync_one(sequence, update)
        if not update.is_empty and self._source.epoch >= 0:
            self._source.send(update)
        self._closes = []

    def observe(self, run: Run, num_accepted: int) -> None:
        """A run with drafts was verified."""
        if run.drafts:
            run.sequence.draft.observe(len(run.drafts), num_accepted)

    def close(self, sequence: DecodeSequence) -> None:
        """The sequence ended."""
        self._wanted.pop(sequence, None)
        if sequence.draft.slot and sequence.draft.epoch == self._source.epoch:
            self._closes.append(sequence.draft.slot)

    def _sync_one(self, sequence: DecodeSequence, update: Update) -> None:
        draft, token_ids = sequence.draft, sequence.token_ids
        # The last token of a verified run is the target's own, so one draft less than tokens left is useful.
        num_left = sequence.num_tokens_left(self._max_context) - 1
        num_drafts = draft.num_drafts(min(self._num_draft_tokens, num_left)) if num_left > 0 else 0
        if num_drafts == 0 or sequence.followers:
            return
        self._wanted[sequence] = num_drafts
        update.num_draft_tokens = max(update.num_draft_tokens, num_drafts)
        if draft.epoch != self._source.epoch:
            self._num_slots += 1
            draft.slot, draft.epoch = self._num_slots, self._source.epoch
            update.opens.append(self._open(sequence))
        elif draft.num_synced < len(token_ids):
            new = token_ids[draft.num_synced :]
            update.extends.append(Extend(draft.slot, len(token_ids), new))
        draft.num_synced = len(token_ids)

    def _open(self, sequence: DecodeSequence) -> Open:
        params, row = sequence.params, sequence.row
        return Open(
            sequence.draft.slot,
            list(sequence.token_ids),
            params.temperature,
            params.top_k,
            params.top_p,
            params.min_p,
            row.signed_seed & ((1 << 64) - 1),
        )

    def _may_wait(self) -> bool:
        """Not while the drafter is always late: then its proposals count when they happen to be there."""
        if self._num_late < NUM_LATE_BEFORE_BYPASS:
            return True
        self._num_bypassed += 1
        if self._num_bypassed >= NUM_STEPS_OF_BYPASS:
            self._num_late = self._num_bypassed = 0
        return False
