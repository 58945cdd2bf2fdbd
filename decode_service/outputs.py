"""What a step tells the gateways, in columns, one object per stream."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

from forebay.errors import ForebayError
from forebay.types import FinishReason, TokenLogprobs

from .sequence import Owner, Sequence


@dataclass(frozen=True, slots=True)
class Finished:
    """The end of a choice."""

    reason: FinishReason
    error: ForebayError | None = None
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_preemptions: int = 0
    stop_token_id: int | None = None


@dataclass(frozen=True, slots=True)
class Started:
    """A choice joined the batch."""

    pull_ms: float
    queue_ms: float
    num_local_tokens: int
    num_pulled_tokens: int
    num_computed_tokens: int


Event = Finished | Started | TokenLogprobs


@dataclass(slots=True)
class StepOutput:
    """Columns of tokens and the rare events of one stream; later steps may be appended before it is sent."""

    step: int = 0
    slots: list[int] = field(default_factory=list)
    choices: bytearray = field(default_factory=bytearray)
    token_ids: list[int] = field(default_factory=list)
    events: list[tuple[int, int, Event]] = field(default_factory=list)  # slot, choice, event
    num_running: int = 0
    num_waiting: int = 0
    num_used_blocks: int = 0

    def absorb(self, later: StepOutput) -> None:
        """Append a later step's output."""
        self.step, self.num_running, self.num_waiting = later.step, later.num_running, later.num_waiting
        self.num_used_blocks = later.num_used_blocks
        self.slots += later.slots
        self.choices += later.choices
        self.token_ids += later.token_ids
        self.events += later.events


class Outputs:
    """Collects what happens until `take`."""

    def __init__(self) -> None:
        self._streams: dict[int, StepOutput] = {}

    def token(self, sequence: Sequence, token_id: int, logprobs: TokenLogprobs | None) -> None:
        """A generated token."""
        output = self._output(sequence.owner)
        output.slots.append(sequence.owner.slot)
        output.choices.append(sequence.choice)
        output.token_ids.append(token_id)
        if logprobs is not None:
            output.events.append((sequence.owner.slot, sequence.choice, logprobs))

    def started(self, sequence: Sequence, now_s: float) -> None:
        """A sequence joined the batch, for all choices it stands for."""
        stats, num_prompt = sequence.stats, sequence.num_prompt_tokens
        num_local = min(stats.num_local_tokens, num_prompt)
        num_pulled = min(stats.num_pulled_tokens, num_prompt - num_local)
        started = Started(
            pull_ms=1e3 * max(0.0, stats.pulled_s - stats.attached_s),
            queue_ms=1e3 * (now_s - stats.started_s),
            num_local_tokens=num_local,
            num_pulled_tokens=num_pulled,
            num_computed_tokens=num_prompt - num_local - num_pulled,
        )
        for choice in (sequence.choice, *(f.choice for f in sequence.followers)):
            self._output(sequence.owner).events.append((sequence.owner.slot, choice, started))

    def finished(self, sequence: Sequence, reason: FinishReason) -> None:
        """A choice ended."""
        draft = sequence.draft
        finished = Finished(
            reason,
            num_draft_tokens=draft.num_proposed,
            num_accepted_tokens=draft.num_accepted,
            num_preemptions=sequence.stats.num_preemptions,
            stop_token_id=sequence.token_ids[-1] if reason is FinishReason.STOP else None,
        )
        self._output(sequence.owner).events.append((sequence.owner.slot, sequence.choice, finished))

    def failed(self, owner: Owner, choices: Iterable[int], error: ForebayError) -> None:
        """Choices ended with an error of their own."""
        for choice in choices:
            event = Finished(FinishReason.ERROR, error)
            self._output(owner).events.append((owner.slot, choice, event))

    def drop(self, stream: int) -> None:
        """Forget what was for a stream that is gone."""
        self._streams.pop(stream, None)

    def take(
        self, step: int, num_running: int, num_waiting: int, num_used_blocks: int
    ) -> dict[int, StepOutput]:
        """All outputs since the last call, by stream."""
        taken, self._streams = self._streams, {}
        for output in taken.values():
            output.step, output.num_running, output.num_waiting = step, num_running, num_waiting
            output.num_used_blocks = num_used_blocks
        return taken

    def _output(self, owner: Owner) -> StepOutput:
        output = self._streams.get(owner.stream)
        if output is None:
            output = self._streams[owner.stream] = StepOutput()
        return output
