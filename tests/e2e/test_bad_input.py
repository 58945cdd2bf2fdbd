"""Bad input gets INVALID_ARGUMENT with field, limit and got; nothing is lost and the next request works."""

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from forebay.v1 import common_pb2, inference_pb2


def sampling(**options):
    return (
        common_pb2.SamplingParams(max_tokens=4, **options)
        if "max_tokens" not in options
        else (common_pb2.SamplingParams(**options))
    )


def generate(**options):
    options.setdefault("text", "Hello")
    if "token_ids" in options:
        options.pop("text")
        options["token_ids"] = inference_pb2.TokenIds(ids=options["token_ids"])
    return inference_pb2.GenerateRequest(**options)


CASES = {
    "empty prompt": (generate(text=""), "text"),
    "empty token ids": (generate(token_ids=[]), "token_ids"),
    "no prompt": (inference_pb2.GenerateRequest(), "prompt"),
    "over the context": (generate(sampling=sampling(max_tokens=10_000_000)), "max_tokens"),
    "long prompt": (generate(text="word " * 20_000), "prompt"),
    "token id out of range": (generate(token_ids=[1, 2, 1 << 30]), "token_ids"),
    "temperature below": (generate(sampling=sampling(temperature=-0.1)), "temperature"),
    "temperature above": (generate(sampling=sampling(temperature=2.1)), "temperature"),
    "temperature nan": (generate(sampling=sampling(temperature=float("nan"))), "temperature"),
    "top_p zero": (generate(sampling=sampling(top_p=0.0)), "top_p"),
    "top_p above": (generate(sampling=sampling(top_p=1.5)), "top_p"),
    "min_p above": (generate(sampling=sampling(min_p=1.5)), "min_p"),
    "n zero": (generate(sampling=sampling(n=0)), "n"),
    "n above": (generate(sampling=sampling(n=17)), "n"),
    "n huge": (generate(sampling=sampling(n=1_000_000_000)), "n"),
    "logprobs above": (generate(sampling=sampling(logprobs=21)), "logprobs"),
    "logit bias id": (generate(sampling=sampling(logit_bias={1 << 30: 1.0})), "logit_bias"),
    "repetition penalty zero": (generate(sampling=sampling(repetition_penalty=0.0)), "repetition_penalty"),
    "max_tokens zero": (generate(sampling=sampling(max_tokens=0)), "max_tokens"),
    "stop token id": (generate(sampling=sampling(stop_token_ids=[1 << 30])), "stop_token_ids"),
    "a megabyte of stop strings": (generate(stop=["x" * 1000] * 1000), "stop"),
    "empty stop string": (generate(stop=[""]), "stop"),
    "unknown model": (generate(model="gpt-17"), "model"),
    "request id": (generate(request_id="a\nb"), "request_id"),
}


def details_of(error: grpc.RpcError) -> tuple[error_details_pb2.ErrorInfo, error_details_pb2.BadRequest]:
    trailing = dict(error.trailing_metadata())
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in status.details:
        detail.Unpack(info) or detail.Unpack(bad)
    return info, bad


@pytest.mark.parametrize("name", CASES)
def test_refused_with_the_field(rig, name):
    request, field = CASES[name]
    with pytest.raises(grpc.RpcError) as caught:
        list(rig.client.stub.Generate(request, timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT, caught.value.details()
    info, _ = details_of(caught.value)
    assert info.domain == "forebay" and info.reason
    assert field in caught.value.details()


@pytest.mark.parametrize("payload", [b"\xff\xff\xff", b"\x12\x03\xed\xa0\x80", b"\x0a\xff"])
@pytest.mark.parametrize("method", ["Generate", "Chat"])
def test_malformed_message(rig, method, payload):
    """Truncated varints, lengths past the end, and a lone surrogate's bytes in a string."""
    call = rig.client.channel.unary_stream(f"/forebay.v1.InferenceService/{method}")
    with pytest.raises(grpc.RpcError) as caught:
        list(call(payload, timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert details_of(caught.value)[0].reason == "MALFORMED_MESSAGE"


def chat(*messages: tuple[str, str]):
    return inference_pb2.ChatRequest(
        messages=[inference_pb2.ChatMessage(role=role, content=content) for role, content in messages],
        sampling=sampling(),
    )


@pytest.mark.parametrize("request_", [chat(), chat(("wizard", "hi"))], ids=["no messages", "unknown role"])
def test_bad_conversation(rig, request_):
    with pytest.raises(grpc.RpcError) as caught:
        list(rig.client.stub.Chat(request_, timeout=10))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_next_request_works(rig):
    assert rig.client.generate("The capital of France is", max_tokens=4).token_ids
