"""Bad requests over real gRPC: INVALID_ARGUMENT with details, before any worker hears of them."""

import asyncio

import grpc
import pytest
from gateway_fakes import MAX_CONTEXT
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import common_pb2, inference_pb2


def generate(**fields):
    fields.setdefault("text", "hello")
    if "token_ids" in fields:
        del fields["text"]
        fields["token_ids"] = inference_pb2.TokenIds(ids=fields["token_ids"])
    return inference_pb2.GenerateRequest(**fields)


CASES = {
    "no prompt": (inference_pb2.GenerateRequest(), "prompt"),
    "empty text": (generate(text=""), "text"),
    "empty ids": (generate(token_ids=[]), "token_ids"),
    "ids out of range": (generate(token_ids=[512]), "token_ids"),
    "prompt of the whole context": (generate(token_ids=[9] * MAX_CONTEXT), "prompt"),
    "too many bytes": (generate(text="x" * (64 * 1024 + 1)), "text"),
    "max_tokens": (
        generate(token_ids=[9], sampling=common_pb2.SamplingParams(max_tokens=MAX_CONTEXT)),
        "sampling.max_tokens",
    ),
    "a megabyte of stop strings": (generate(stop=["x" * 1000] * 1000), "stop"),
    "request id": (generate(request_id="a b"), "request_id"),
    "NaN": (generate(sampling=common_pb2.SamplingParams(temperature=float("nan"))), "sampling.temperature"),
}


def details_of(error):
    status = status_pb2.Status.FromString(dict(error.trailing_metadata())["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        assert detail.Unpack(info) or detail.Unpack(bad)
    return info, bad


@pytest.mark.parametrize("name", CASES)
async def test_refused(rig, name):
    message, field = CASES[name]
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [m async for m in rig.stub.Generate(message)]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    info, bad = details_of(caught.value)
    assert (
        field in bad.field_violations[0].field
        and info.metadata["limit"] + info.metadata["got"]
        or name == "no prompt"
    )
    assert not rig.prefill.requests and not rig.decode.commands


async def test_unknown_model(rig):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        [m async for m in rig.stub.Generate(generate(model="tinny"))]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert (
        details_of(caught.value)[0].reason == "MODEL_NOT_FOUND" and "did you mean" in caught.value.details()
    )


@pytest.mark.parametrize("method", ["Generate", "Chat", "Tokenize"])
@pytest.mark.parametrize("raw", [b"\xff\xff\xff", b"\x12\x03\xed\xa0\x80", b"\x0a\xff"])
async def test_malformed(rig, method, raw):
    make = rig.channel.unary_unary if method == "Tokenize" else rig.channel.unary_stream
    call = make(f"/forebay.v1.InferenceService/{method}")(raw)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await (call if method == "Tokenize" else call.read())
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)[0].reason == "MALFORMED_MESSAGE"


def chat(*messages):
    return inference_pb2.ChatRequest(
        messages=[inference_pb2.ChatMessage(role=role, content=content) for role, content in messages]
    )


async def test_chat(rig):
    messages = [m async for m in rig.stub.Chat(chat(("system", "be brief"), ("user", "hi")))]
    assert [i for m in messages for i in m.token_ids] == [10, 11, 12, 13]
    assert messages[-1].receipt.seed and messages[-1].finish_reason
    prompt = await rig.stub.Detokenize(
        inference_pb2.DetokenizeRequest(token_ids=rig.prefill.requests[0].token_ids)
    )
    assert prompt.text == (
        "<|im_start|>system\nbe brief<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert rig.prefill.requests[0].token_ids[0] == 1, "the template's special tokens are special"


@pytest.mark.parametrize(
    "message, words",
    [
        (chat(), "the conversation is empty"),
        (chat(("wizard", "hi")), "unknown role"),
        (chat(("tool", "hi")), "tools are not for this model"),
        (chat(("user", "x" * 70_000)), "too long"),
    ],
    ids=["empty", "role", "template", "size"],
)
async def test_chat_refused(rig, message, words):
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        [m async for m in rig.stub.Chat(message)]
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_long_text_does_not_stall_others(rig):
    """64 KB of tokenising runs beside the loop."""
    rig.decode.script, rig.decode.delay_s = (lambda attach, choice: [11] * 50), 0.002
    fast = asyncio.create_task(asyncio.wait_for(_num_tokens(rig.stub.Generate(generate())), 5))
    text = "The quick brown fox. " * 3000
    await asyncio.gather(*(rig.stub.Tokenize(inference_pb2.TokenizeRequest(text=text)) for _ in range(4)))
    assert await fast == 51


async def _num_tokens(call):
    return sum([len(m.token_ids) async for m in call])
