"""The buffer between link and client, and the arithmetic of receipts."""

import asyncio

import pytest

from forebay.errors import ForebayError, Unavailable
from forebay.v1.common_pb2 import TokenLogprobs
from forebay.v1.decode_pb2 import Finished, Spill, Started
from forebay.v1.prefill_pb2 import FirstToken
from gateway.buffer import TokenBuffer
from gateway.receipt import Timeline, stages


def make_buffer(n=1, max_tokens=8):
    overflows = []
    return TokenBuffer(n, max_tokens, lambda: overflows.append(1)), overflows


async def test_coalesces_while_nobody_takes():
    buffer, _ = make_buffer(2)
    for token_id in (1, 2, 3):
        buffer.add(0, token_id)
    buffer.add(1, 9)
    assert [(c.choice, c.token_ids) for c in await buffer.take()] == [(0, [1, 2, 3]), (1, [9])]


async def test_take_waits_for_a_token():
    buffer, _ = make_buffer()
    taking = asyncio.create_task(buffer.take())
    await asyncio.sleep(0)
    buffer.add(0, 5)
    buffer.add(0, 6)
    assert (await taking)[0].token_ids == [5, 6]


async def test_tokens_come_before_the_error():
    buffer, _ = make_buffer()
    buffer.add(0, 1)
    buffer.fail(Unavailable("lost"))
    buffer.fail(ForebayError("later"))
    assert (await buffer.take())[0].token_ids == [1]
    with pytest.raises(Unavailable, match="lost"):
        await buffer.take()


async def test_bound():
    buffer, overflows = make_buffer(max_tokens=8)
    for token_id in range(8):
        buffer.add(0, token_id)
    assert not overflows
    await buffer.take()
    for token_id in range(9):
        buffer.add(0, token_id)
    assert overflows
    with pytest.raises(ForebayError) as caught:
        await buffer.take()
    assert caught.value.reason == "SLOW_CONSUMER"


async def test_spills():
    buffer, _ = make_buffer(2)
    buffer.spill(Spill(started=Started(queue_ms=1)))
    buffer.spill(Spill(choice=1, started=Started(queue_ms=2)))
    buffer.spill(Spill(choice=1, logprobs=TokenLogprobs(token_id=4)))
    buffer.spill(Spill(choice=1, finished=Finished(reason=1)))
    assert buffer.started.queue_ms == 1 and buffer.num_unfinished == 1
    (chunk,) = await buffer.take()
    assert chunk.choice == 1 and chunk.logprobs[0].token_id == 4 and chunk.finished.reason == 1


def names_ms(timeline):
    return {stage.name: round(stage.ms) for stage in stages(timeline)}


def test_stages_with_prefill():
    timeline = Timeline(
        arrived=0, tokenized=0.001, indexed=0.003, routed=0.004, prefilled=0.104, first_token=0.105
    )
    timeline.prefill = FirstToken(queue_ms=20, pull_ms=10, compute_ms=60)
    timeline.started, timeline.decode, timeline.ended = 0.134, Started(pull_ms=80, queue_ms=5), 1.0
    assert names_ms(timeline) == {
        "tokenize": 1, "index": 2, "route": 1, "prefill_queue": 20, "pull": 10, "prefill": 60, "dispatch": 10,
        "decode_queue": 5, "transfer": 25, "decode": 866,
    }  # fmt: skip
    assert sum(stage.ms for stage in stages(timeline)) == pytest.approx(1000)


def test_stages_without_prefill():
    timeline = Timeline(arrived=0, tokenized=0.001, indexed=0.001, routed=0.002, first_token=0.05, ended=0.1)
    timeline.prefill_failed, timeline.started, timeline.decode = 0.01, 0.03, Started(pull_ms=5, queue_ms=5)
    assert names_ms(timeline) == {
        "tokenize": 1, "route": 1, "failed_prefill": 8, "pull": 5, "decode_queue": 5,
        "prefill": 30, "decode": 50,
    }  # fmt: skip


@pytest.mark.parametrize("reported_ms", [-5.0, 1e9, float("inf")])
def test_reports_are_clipped_to_what_was_measured(reported_ms):
    timeline = Timeline(arrived=0, tokenized=0.001, indexed=0.001, routed=0.002, prefilled=0.1, ended=0.2)
    timeline.prefill = FirstToken(queue_ms=reported_ms, pull_ms=reported_ms, compute_ms=reported_ms)
    assert sum(stage.ms for stage in stages(timeline)) == pytest.approx(200)
    assert all(stage.ms >= 0 for stage in stages(timeline))
