"""The draft engine: histories of all decode workers, and what they wait for. Engine thread only."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from forebay.errors import FailedPrecondition
from forebay.types import SamplingParams

from .drafter import Drafter, History


class Proposal(NamedTuple):
    """Tokens that may follow a history of `position` tokens ending with `tail`."""

    slot: int
    position: int
    tail: int
    token_ids: list[int]


class Begin(NamedTuple):
    """A sequence begins."""

    slot: int
    token_ids: Sequence[int]
    params: SamplingParams


@dataclass(frozen=True, slots=True)
class News:
    """One step of a decode worker; `num_draft_tokens` are wanted for each slot begun or extended."""

    begins: list[Begin] = field(default_factory=list)
    closes: list[int] = field(default_factory=list)
    extends: list[tuple[int, Sequence[int]]] = field(default_factory=list)
    num_draft_tokens: int = 0


class DraftEngine:
    """Answers every slot that asks; several requests for one slot meanwhile are answered once."""

    def __init__(self, drafter: Drafter, max_slots: int, max_draft_tokens: int) -> None:
        self.publish: Callable[[dict[int, list[Proposal]]], None] = lambda proposals: None
        self.num_steps = 0
        self._drafter, self._max_slots, self._max_draft_tokens = drafter, max_slots, max_draft_tokens
        self._streams: dict[int, dict[int, History]] = {}
        self._wanted: dict[History, tuple[int, int, int]] = {}  # stream, slot, number of tokens

    @property
    def num_histories(self) -> int:
        """Sequences held."""
        return sum(map(len, list(self._streams.values())))

    @property
    def num_waiting(self) -> int:
        """Sequences that wait for a proposal."""
        return len(self._wanted)

    def tell(self, stream: int, news: News) -> None:
        """What happened at a decode worker; slots that it never opened are ignored."""
        histories = self._streams.setdefault(stream, {})
        for slot in news.closes:
            self._close(histories, slot)
        num_wanted = min(news.num_draft_tokens, self._max_draft_tokens)
        for slot, token_ids, params in news.begins:
            self._close(histories, slot)
            if len(token_ids) and len(histories) < self._max_slots:
                histories[slot] = History(token_ids, params)
                self._want(stream, slot, num_wanted)
        for slot, token_ids in news.extends:
            if slot in histories:
                histories[slot].extend(token_ids)
                self._want(stream, slot, num_wanted)

    def close_stream(self, stream: int) -> None:
        """A decode worker is gone."""
        histories = self._streams.pop(stream, {})
        for slot in list(histories):
            self._close(histories, slot)

    def step(self) -> bool:
        """Propose once for who waits; False if nobody does."""
        if not self._wanted:
            return False
        wanted = {history: num for history, (_, _, num) in self._wanted.items()}
        proposals: dict[int, list[Proposal]] = {}
        for history, token_ids in self._drafter.propose(wanted).items():
            stream, slot, _ = self._wanted.pop(history)
            proposal = Proposal(slot, len(history), int(history.token_ids[-1]), token_ids)
            proposals.setdefault(stream, []).append(proposal)
        self.num_steps += 1
        if proposals:
            self.publish(proposals)
        return True

    def check_integrity(self, is_idle: bool) -> None:
        """Raise FailedPrecondition if, when idle, anything is held."""
        try:
            if is_idle:
                assert self.num_histories == 0, f"{self.num_histories} histories are left"
                assert not self._wanted, "proposals are wanted"
                self._drafter.check_idle()
        except AssertionError as error:
            raise FailedPrecondition(f"draft: {error}", reason="INTEGRITY") from error

    def _want(self, stream: int, slot: int, num_tokens: int) -> None:
        if num_tokens:
            self._wanted[self._streams[stream][slot]] = (stream, slot, num_tokens)

    def _close(self, histories: dict[int, History], slot: int) -> None:
        history = histories.pop(slot, None)
        if history is not None:
            self._wanted.pop(history, None)
            self._drafter.close(history)
