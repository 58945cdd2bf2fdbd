"""Clients that go away, workers that die, clients that do not read: nothing is left, nobody else notices."""

import asyncio
import contextlib

import grpc
import pytest
from gateway_fakes import FakeDecode
from google.rpc import error_details_pb2, status_pb2

from forebay.types import FinishReason
from forebay.v1 import common_pb2, decode_pb2, inference_pb2

PROMPT = "The quick brown fox " * 8


def request(text=PROMPT, **sampling):
    return inference_pb2.GenerateRequest(text=text, sampling=common_pb2.SamplingParams(**sampling))


async def ids_of(call):
    ids = []
    while (message := await call.read()) is not grpc.aio.EOF:
        ids.extend(message.token_ids)
    return ids


def reason_of(error: grpc.aio.AioRpcError) -> str:
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    return info.reason


async def until(condition, within_s=3.0):
    async with asyncio.timeout(within_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("mode", ["refuse", "die", "end"])
async def test_prefill_failure_is_not_an_error(rig, mode):
    rig.prefill.mode = mode
    call = rig.stub.Generate(request())
    messages = [m async for m in call]
    assert [i for m in messages for i in m.token_ids] == [10, 11, 12, 13]
    assert not rig.decode.starts()[0].first_token_ids
    placement = messages[-1].receipt.placement
    assert placement.prefill == "decode" and "failed" in placement.reason
    assert "failed_prefill" in [s.name for s in messages[-1].receipt.stages]
    assert messages[-1].usage.cached_tokens == 11


async def test_prefill_killed_midway(rig):
    rig.prefill.mode = "hang"
    call = rig.stub.Generate(request())
    await until(lambda: rig.prefill.num_live)
    await rig.prefill.stop()
    assert await ids_of(call) == [10, 11, 12, 13]


async def test_wrong_number_of_first_tokens_falls_back(rig):
    rig.prefill.first_tokens = lambda r: [10, 10]
    assert await ids_of(rig.stub.Generate(request())) == [10, 11, 12, 13]


async def test_cancel_during_prefill(rig):
    rig.prefill.mode = "hang"
    call = rig.stub.Generate(request())
    await until(lambda: rig.prefill.num_live and rig.decode.slots)
    call.cancel()
    await rig.check_idle(1.0)
    assert not rig.decode.starts()


async def test_cancel_between_prefill_and_decode(rig):
    """The first token was streamed, decode was told to start and has not begun to answer."""
    rig.decode.delay_s = 30
    call = rig.stub.Generate(request())
    await call.read()
    call.cancel()
    await rig.check_idle(1.0)


@pytest.mark.parametrize("num_messages", [0, 1, 3])
async def test_cancel_while_decoding(rig, num_messages):
    rig.decode.script = lambda attach, choice: [11] * 900
    rig.decode.delay_s = 0.002
    call = rig.stub.Generate(request(n=2))
    for _ in range(num_messages):
        await call.read()
    call.cancel()
    await rig.check_idle(1.0)


async def test_cancel_at_many_moments(rig):
    rig.decode.script = lambda attach, choice: [11] * 50
    rig.decode.delay_s = 0.001

    async def one(i: int) -> None:
        call = rig.stub.Generate(request(f"{i} {PROMPT}", n=1 + i % 3))
        reading = asyncio.create_task(ids_of(call))
        await asyncio.sleep(0.002 * i)
        call.cancel()
        with contextlib.suppress(asyncio.CancelledError, grpc.aio.AioRpcError):
            await reading

    await asyncio.gather(*(one(i) for i in range(32)))
    await rig.check_idle(1.0)
    assert await ids_of(rig.stub.Generate(request(max_tokens=1))) == [10]


async def test_deadline(rig):
    rig.decode.delay_s = 30
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ids_of(rig.stub.Generate(request(), timeout=0.2))
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await rig.check_idle(1.0)


async def test_disconnect(rig):
    rig.decode.delay_s = 30
    channel = grpc.aio.insecure_channel(rig.address, options=[("grpc.use_local_subchannel_pool", 1)])
    call = channel.unary_stream(
        "/forebay.v1.InferenceService/Generate",
        request_serializer=inference_pb2.GenerateRequest.SerializeToString,
        response_deserializer=inference_pb2.GenerateResponse.FromString,
    )(request())
    await call.read()
    await channel.close()
    await rig.check_idle(1.0)


async def test_worker_lost(rig):
    rig.decode.delay_s = 30
    call = rig.stub.Generate(request())
    assert list((await call.read()).token_ids) == [10]
    address = rig.decode.address
    await rig.decode.stop()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ids_of(call)
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and reason_of(caught.value) == "WORKER_LOST"
    rig.decode = FakeDecode(rig.decode.info)
    await rig.decode.start(address)
    async with asyncio.timeout(5):
        while True:
            try:
                assert await ids_of(rig.stub.Generate(request())) == [10, 11, 12, 13]
                break
            except grpc.aio.AioRpcError as error:
                assert error.code() is grpc.StatusCode.UNAVAILABLE
                await asyncio.sleep(0.05)


async def test_no_decode_worker(make_rig):
    rig = await make_rig()
    await rig.decode.stop()
    await asyncio.sleep(0.3)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ids_of(rig.stub.Generate(request()))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert reason_of(caught.value) == "NO_DECODE_CAPACITY"


async def test_decode_error_keeps_its_reason(rig):
    rig.decode.end = decode_pb2.Finished(
        reason=FinishReason.ERROR, error_reason="POOL_EXHAUSTED", error_message="too big"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ids_of(rig.stub.Generate(request()))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "POOL_EXHAUSTED" and caught.value.details() == "too big"


async def test_overloaded(make_rig):
    rig = await make_rig(max_requests=1)
    rig.decode.delay_s = 30
    call = rig.stub.Generate(request())
    await call.read()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ids_of(rig.stub.Generate(request()))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE and reason_of(caught.value) == "OVERLOADED"
    call.cancel()


async def test_slow_consumer(make_rig, info):
    """A client that does not read fills the transport's window, then the buffer; then its KV is freed."""
    info.max_context = 1 << 20
    rig = await make_rig(max_buffered_tokens=2000)
    rig.decode.script = lambda attach, choice: [11] * 600_000
    rig.decode.width = 1500
    small_window = [("grpc.http2.lookahead_bytes", 1024), ("grpc.http2.bdp_probe", 0)]
    async with grpc.aio.insecure_channel(rig.address, options=small_window) as channel:
        call = channel.unary_stream(
            "/forebay.v1.InferenceService/Generate",
            request_serializer=inference_pb2.GenerateRequest.SerializeToString,
            response_deserializer=inference_pb2.GenerateResponse.FromString,
        )(request())
        await call.read()
        await until(lambda: not rig.decode.slots, 10)
        assert await ids_of(rig.stub.Generate(request(max_tokens=1))) == [10], "others go on"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ids_of(call)
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert reason_of(caught.value) == "SLOW_CONSUMER"


async def test_malformed_frame_breaks_only_the_stream(rig):
    rig.decode.script = lambda attach, choice: [11]
    step, broken = rig.decode._step, []

    def bad_step(*args):
        frame = step(*args)
        if not broken:
            frame.choices += b"\0"
            broken.append(1)
        return frame

    rig.decode._step = bad_step
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await ids_of(rig.stub.Generate(request()))
    assert reason_of(caught.value) == "WORKER_LOST"
    await asyncio.sleep(0.3)
    assert await ids_of(rig.stub.Generate(request())) == [10, 11]
