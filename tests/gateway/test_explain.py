"""What a gateway remembers and tells of requests and workers."""

import asyncio

import grpc
import pytest

from forebay.v1 import admin_pb2
from forebay.v1 import inference_pb2 as pb
from gateway.recent import RecentRequests


def prompt(text="The quick brown fox " * 8, **fields):
    return pb.GenerateRequest(text=text, **fields)


async def explain(rig, request_id):
    return await rig.stub.Explain(pb.ExplainRequest(request_id=request_id))


async def list_workers(rig):
    return await rig.admin.ListWorkers(admin_pb2.ListWorkersRequest())


async def test_explain_repeats_the_receipt(rig):
    messages = [m async for m in rig.stub.Generate(prompt())]
    story = await explain(rig, messages[0].request_id)
    assert story.receipt == messages[-1].receipt and story.usage == messages[-1].usage
    assert (story.outcome, story.operation, story.model) == ("OK", "text_completion", "tiny")


async def test_explain_a_request_that_failed(rig):
    rig.decode.delay_s, rig.decode.script = 0.02, lambda attach, choice: [11] * 500
    call = rig.stub.Generate(prompt())
    request_id = dict(await call.initial_metadata())["forebay-request-id"]
    with pytest.raises(grpc.aio.AioRpcError):
        async for message in call:
            if message.token_ids and rig.decode.slots:
                await rig.decode.stop()
    story = await explain(rig, request_id)
    assert story.outcome == "WORKER_LOST" and story.receipt.ttft_ms > 0
    assert (await list_workers(rig)).traffic.num_failed_requests == 1
    await rig.decode.start(rig.decode.address)


async def test_explain_a_cancelled_request(rig):
    rig.prefill.mode = "hang"
    call = rig.stub.Generate(prompt())
    metadata = dict(await call.initial_metadata())
    await asyncio.sleep(0.05)
    with pytest.raises(grpc.aio.AioRpcError, match="still runs"):
        await explain(rig, metadata["forebay-request-id"])
    call.cancel()
    await rig.check_idle()
    story = await explain(rig, metadata["forebay-request-id"])
    assert story.outcome == "CANCELLED" and story.usage.completion_tokens == 0
    assert story.receipt.stages[-1].name == "waiting" and story.receipt.ttft_ms == 0
    assert sum(s.ms for s in story.receipt.stages) == pytest.approx(story.receipt.total_ms)
    assert story.receipt.placement.decode == rig.decode.address


async def test_an_unknown_request_is_not_found(rig):
    with pytest.raises(grpc.aio.AioRpcError) as error:
        await explain(rig, "nobody")
    assert error.value.code() is grpc.StatusCode.NOT_FOUND and "4096" in error.value.details()


async def test_memory_is_bounded(rig):
    stories = RecentRequests(max_stories=2)
    ids = []
    for _ in range(3):
        messages = [m async for m in rig.stub.Generate(prompt())]
        ids.append(messages[0].request_id)
        stories.add(_Ended(await explain(rig, ids[-1])))
    assert stories.find(ids[2]) and stories.find(ids[1])
    with pytest.raises(Exception, match="last 2 requests"):
        stories.find(ids[0])
    traffic = stories.traffic([])
    assert (traffic.num_ended_requests, traffic.num_output_tokens) == (3, 12)
    assert 0 < traffic.ttft_p50_ms <= traffic.ttft_p99_ms and traffic.tpot_p99_ms > 0


class _Ended:
    """What RecentRequests asks of a generation."""

    def __init__(self, story):
        self._story = story
        self.request = type("Request", (), {"request_id": story.receipt.request_id})

    def story(self):
        return self._story


async def test_workers_with_load_and_traffic(rig):
    rig.decode.load.num_running = 3
    await asyncio.sleep(0.2)
    [m async for m in rig.stub.Generate(prompt())]
    answer = await list_workers(rig)
    decode, prefill = answer.workers
    assert (decode.role, decode.address, decode.is_alive, decode.model) == (
        "decode",
        rig.decode.address,
        True,
        "tiny",
    )
    assert decode.load.num_running == 3 and decode.load.num_blocks == 1000 and decode.version
    assert (prefill.role, prefill.address) == ("prefill", rig.prefill.address)
    assert answer.traffic.num_output_tokens == 4 and answer.traffic.num_cached_tokens == 7
    assert answer.traffic.num_live_requests == 0 and answer.traffic.ttft_p50_ms > 0


async def test_a_dead_worker_is_listed_as_dead(rig):
    await rig.prefill.stop()
    for _ in range(100):
        answer = await list_workers(rig)
        if not answer.workers[1].is_alive:
            break
        await asyncio.sleep(0.05)
    assert not answer.workers[1].is_alive and answer.workers[0].is_alive
