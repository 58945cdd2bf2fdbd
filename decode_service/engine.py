"""Decode's engine: commands of the gateways, and the step loop over scheduler and runner.

Everything here runs on the engine thread; the exits are `publish`, once per step, and the block exchange.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from forebay.errors import AlreadyExists, FailedPrecondition, ForebayError, InvalidArgument
from forebay.transport.local import LocalHandoff
from forebay.types import FinishReason, TokenLogprobs

from .admission import Admission
from .drafting import Speculator
from .exchange import BlockExchange
from .outputs import Outputs, StepOutput
from .runner import Runner, Samples
from .scheduler import Run, Scheduler
from .sequence import Owner, Sequence, Status
from .speculative import num_accepted


@dataclass(slots=True)
class Slot:
    """A request: its live choices by index, and the sequence that computes the prompt until they part."""

    request_id: str
    num_first_tokens: int
    choices: dict[int, Sequence]
    lead: Sequence


class DecodeEngine:
    """Owns the sequences of all gateways."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        blocks: BlockExchange,
        admission: Admission,
        handoff: LocalHandoff | None = None,
    ) -> None:
        """`publish` gets all outputs of a step, by stream; `handoff`: prefill works on the same pool."""
        self.scheduler, self.runner, self.outputs = scheduler, runner, Outputs()
        self.num_steps = 0
        self.publish: Callable[[dict[int, StepOutput]], None] = lambda outputs: None
        self._blocks, self._admission = blocks, admission
        self.speculator: Speculator | None = None
        self._handoff = handoff
        self._slots: dict[Owner, Slot] = {}

    @property
    def num_slots(self) -> int:
        """Requests of all gateways."""
        return len(self._slots)

    # Commands

    def attach(self, request_id: str, lead: Sequence) -> None:
        """A request comes; it stays out of the batch until `start`."""
        choices = {sequence.choice: sequence for sequence in (lead, *lead.followers)}
        if lead.owner in self._slots:
            self._drop_slot(lead.owner)
            self.refuse(lead.owner, choices, AlreadyExists(f"slot {lead.owner.slot} is in use"))
            return
        self._slots[lead.owner] = Slot(request_id, len(choices), choices, lead)
        self.scheduler.add(lead)

    def refuse(self, owner: Owner, choices: Iterable[int], error: ForebayError) -> None:
        """A request cannot be held; the error is the slot's own."""
        self.outputs.failed(owner, choices, error)

    def ready(self, owner: Owner, num_blocks: int) -> None:
        """The store holds the first `num_blocks` blocks."""
        slot = self._slots.get(owner)
        if slot is not None:
            self._blocks.note_ready(slot.lead, num_blocks)

    def start(self, owner: Owner, first_token_ids: list[int], num_blocks: int) -> None:
        """The prompt is computed elsewhere as far as it will be: join the batch."""
        slot = self._slots.get(owner)
        if slot is None or slot.lead.is_started:
            return
        lead, stats = slot.lead, slot.lead.stats
        try:
            self._admission.check_first_tokens(first_token_ids, slot.num_first_tokens)
        except InvalidArgument as error:
            choices = list(slot.choices)
            self._drop_slot(owner)
            self.outputs.failed(owner, choices, error)
            return
        lead.is_started, stats.started_s = True, time.monotonic()
        if first_token_ids:
            is_one = slot.num_first_tokens == 1
            lead.first_token_ids = [
                first_token_ids[0 if is_one else choice] for choice in sorted(slot.choices)
            ]
        if not self._adopt(slot):
            self._blocks.note_ready(lead, num_blocks)

    def cancel(self, owner: Owner, choice: int | None = None) -> None:
        """Free a request's choices, or one of them; says CANCELLED for each."""
        slot = self._slots.get(owner)
        if slot is None:
            return
        for index in [choice] if choice is not None else list(slot.choices):
            if index in slot.choices:
                self.outputs.finished(slot.choices[index], FinishReason.CANCELLED)
                self._drop_choice(owner, index)

    def close_stream(self, stream: int) -> None:
        """A gateway is gone: free all it had."""
        for owner in [owner for owner in self._slots if owner.stream == stream]:
            self._drop_slot(owner)
        self.outputs.drop(stream)

    def check_integrity(self, is_idle: bool) -> None:
        """Raise FailedPrecondition if the accounts are wrong or, when idle, anything is held."""
        scheduler = self.scheduler
        try:
            scheduler.pool.check_integrity()
            if is_idle:
                assert not self._slots, f"slots are left: {sorted(self._slots)}"
                assert scheduler.num_sequences == 0, f"{scheduler.num_sequences} sequences are left"
                assert self._blocks.num_moving == 0, f"{self._blocks.num_moving} blocks are moving"
                assert scheduler.pool.num_used == 0, f"{scheduler.pool.num_used} blocks are referenced"
        except AssertionError as error:
            raise FailedPrecondition(f"decode: {error}", reason="INTEGRITY") from error

    # The loop

    def step(self) -> bool:
        """Schedule → run → postprocess → publish; False if there was nothing to do."""
        admitted = self.scheduler.admit()
        for sequence in admitted:
            self._blocks.note_admitted(sequence)
        joined = self._join()
        proposals = self.speculator.propose() if self.speculator is not None else {}
        runs = self.scheduler.plan(proposals)
        if runs:
            self.num_steps += 1
            for run, samples in zip(runs, self.runner.execute(runs), strict=True):
                self._complete(run, samples)
        if self.speculator is not None:
            self.speculator.sync(self.scheduler.running)
        self._flush()
        return bool(runs or admitted or joined)

    def _complete(self, run: Run, samples: Samples) -> None:
        """Take one run's results: tokens out, blocks published, ends noticed."""
        sequence, (token_ids, logprobs) = run.sequence, samples
        sequence.num_computed = max(sequence.num_computed, run.start + run.num_tokens)
        self.scheduler.publish(sequence)
        if not token_ids:
            if sequence.first_token_ids and sequence.num_computed == len(sequence.token_ids):
                self._part(sequence)
        elif sequence.followers:
            group = [sequence, *sequence.followers]
            self._part(sequence)
            for choice, token_id, entry in zip(group, token_ids, logprobs, strict=True):
                self._emit(choice, [token_id], [entry])
        else:
            num_kept = num_accepted(run.drafts, token_ids)
            if self.speculator is not None:
                self.speculator.observe(run, num_kept)
            sequence.num_computed += num_kept
            self._emit(sequence, token_ids[: num_kept + 1], logprobs)
        self._blocks.push(sequence)

    def _emit(self, sequence: Sequence, token_ids: list[int], logprobs: list[TokenLogprobs | None]) -> None:
        """Append the target's tokens up to the first that ends the choice."""
        for token_id, entry in zip(token_ids, logprobs, strict=False):
            sequence.append(token_id)
            self.outputs.token(sequence, token_id, entry)
            if self._finish_if_ended(sequence):
                return
        self.scheduler.publish(sequence)

    def _finish_if_ended(self, sequence: Sequence) -> bool:
        reason = self._admission.finish_reason(sequence)
        if reason is FinishReason.UNSPECIFIED:
            return False
        sequence.num_computed = min(sequence.num_computed, len(sequence.token_ids))
        self.scheduler.publish(sequence)
        self.outputs.finished(sequence, reason)
        self._drop_choice(sequence.owner, sequence.choice)
        return True

    def _join(self) -> bool:
        now_s, joined = time.monotonic(), self.scheduler.join()
        for sequence in joined:
            if not sequence.stats.has_joined:
                sequence.stats.has_joined = True
                self.outputs.started(sequence, now_s)
            if sequence.first_token_ids and (
                not sequence.followers or sequence.num_computed == len(sequence.token_ids)
            ):
                self._part(sequence)
        return bool(joined)

    def _part(self, lead: Sequence) -> None:
        """The prompt is there: each choice goes its own way, with its first token if prefill made it."""
        group, first_token_ids = [lead, *lead.followers], lead.first_token_ids
        self.runner.copy_blocks(self.scheduler.part(lead))
        lead.first_token_ids = []
        for sequence, token_id in zip(group, first_token_ids, strict=False):
            sequence.append(token_id)
            self._finish_if_ended(sequence)

    def _flush(self) -> None:
        scheduler = self.scheduler
        num_waiting = len(scheduler.waiting) + len(scheduler.reserved)
        taken = self.outputs.take(
            self.num_steps, len(scheduler.running), num_waiting, scheduler.pool.num_used
        )
        if taken:
            self.publish(taken)

    def _adopt(self, slot: Slot) -> bool:
        """Take over the prompt's blocks from prefill in the same process."""
        taken = self._handoff.take(slot.request_id) if self._handoff is not None else None
        if taken is None:
            return False
        blocks, num_tokens = taken
        lead = slot.lead
        is_adopted = lead.status is Status.WAITING and self.scheduler.adopt(lead, blocks, num_tokens)
        if is_adopted:
            lead.stats.num_local_tokens = num_tokens
        else:
            self.scheduler.pool.release(blocks)
        return is_adopted

    # Ends

    def _drop_slot(self, owner: Owner) -> None:
        for choice in list(self._slots[owner].choices):
            self._drop_choice(owner, choice)

    def _drop_choice(self, owner: Owner, choice: int) -> None:
        """Free one choice; the slot goes with its last one."""
        slot = self._slots[owner]
        sequence = slot.choices.pop(choice)
        group = [slot.lead, *slot.lead.followers]
        if slot.lead.followers and sequence in group:
            self.scheduler.drop_follower(slot.lead, group.index(sequence))
            slot.choices |= {slot.lead.choice: slot.lead}
        else:
            self._blocks.push(sequence, is_last=True)
            self.scheduler.remove(sequence)
            if self.speculator is not None:
                self.speculator.close(sequence)
        if not slot.choices:
            del self._slots[owner]
            if self._handoff is not None:
                self.scheduler.pool.release(self._handoff.drop(slot.request_id))
