"""A generation over a hand-fed buffer."""

import pytest
from gateway_fakes import tiny_tokenizer

from forebay.errors import ForebayError, ResourceExhausted
from forebay.types import FinishReason, SamplingParams
from forebay.v1.decode_pb2 import Finished, Spill
from forebay.v1.inference_pb2 import Placement
from gateway.buffer import TokenBuffer
from gateway.generation import Generation
from gateway.models import Models
from gateway.request import Request
from gateway.router import Route, WorkerState


class FakeAttempt:
    """Records what the generation wants; tokens are put into its buffer by the test."""

    num_ready = 0

    def __init__(self, num_choices: int) -> None:
        self.buffer = TokenBuffer(num_choices, 1000, self.close)
        self.is_closed = False
        self.cancelled: list[int] = []

    def start(self, timeout_s: float | None) -> None:
        pass

    def cancel_choice(self, choice: int) -> None:
        self.cancelled.append(choice)

    def close(self, is_complete: bool = False) -> None:
        self.is_closed = True


@pytest.fixture
async def model(info):
    models = Models()
    assert await models.learn(info)
    return models.find(None, lambda fingerprint: True)


def start(model, **options):
    params = SamplingParams(max_tokens=100, n=options.pop("n", 1))
    request = Request("id", "chat", model, [5, 6, 7], params, **options)
    generation, attempt = Generation(request, lambda g: None), FakeAttempt(params.n)
    state = WorkerState("d")
    generation.start(attempt, Route(None, state, Placement(), 0, 0, params.n), None)
    return generation, attempt


def feed(attempt, choice, ids):
    for token_id in ids:
        attempt.buffer.add(choice, token_id)


async def test_blocks_are_freed_before_the_last_piece_is_written(model):
    generation, attempt = start(model, stop=("fox",))
    feed(attempt, 0, tiny_tokenizer().encode("quick fox jumps").ids)
    pieces = generation.pieces()
    last = await anext(pieces)
    assert last.text == "quick " and last.finish_reason == FinishReason.STOP and last.receipt is not None
    assert attempt.is_closed
    with pytest.raises(StopAsyncIteration):
        await anext(pieces)
    assert generation.outcome == "OK"


async def test_a_stopped_choice_is_cancelled_and_its_late_tokens_are_dropped(model):
    generation, attempt = start(model, stop=("fox",), n=2)
    pieces = generation.pieces()
    fox = tiny_tokenizer().encode("fox").ids
    feed(attempt, 0, fox)
    assert (await anext(pieces)).finish_reason == FinishReason.STOP
    assert attempt.cancelled == [0] and not attempt.is_closed
    feed(attempt, 0, [20])
    feed(attempt, 1, [21])
    piece = await anext(pieces)
    assert (piece.choice, piece.token_ids) == (1, [21])
    attempt.buffer.spill(Spill(choice=1, finished=Finished(reason=FinishReason.LENGTH)))
    piece = await anext(pieces)
    assert piece.finish_reason == FinishReason.LENGTH and piece.usage.completion_tokens == 1 + len(fox)


@pytest.mark.parametrize(
    "reason, kind",
    [("POOL_EXHAUSTED", ResourceExhausted), ("SOMETHING_ELSE", ForebayError), ("", ForebayError)],
)
async def test_errors_of_the_worker(model, reason, kind):
    generation, attempt = start(model)
    end = Finished(reason=FinishReason.ERROR, error_reason=reason, error_message="why")
    attempt.buffer.spill(Spill(finished=end))
    with pytest.raises(kind, match="why"):
        await anext(generation.pieces())
    assert generation.outcome == (reason or "INTERNAL") and attempt.is_closed


async def test_held_bytes_and_text_come_at_the_end(model):
    generation, attempt = start(model, stop=("<END>",))
    ids = [*tiny_tokenizer().encode("a <EN").ids, *tiny_tokenizer().encode("🎉").ids[:1]]
    feed(attempt, 0, ids)
    attempt.buffer.spill(Spill(finished=Finished(reason=FinishReason.LENGTH)))
    assert (await anext(generation.pieces())).text == "a <EN\ufffd"


async def test_an_unknown_choice_is_ignored(model):
    generation, attempt = start(model)
    feed(attempt, 3, [5])
    feed(attempt, 0, [10])
    assert (await anext(generation.pieces())).token_ids == [10]
