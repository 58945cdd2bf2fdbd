"""The server shell over real gRPC: error details, malformed bytes, secrecy, health, reflection."""

from __future__ import annotations

import asyncio

import grpc
import pytest
import structlog
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_status import rpc_status

from forebay.errors import InvalidArgument, NotFound, Unavailable
from forebay.rpc.client import connect, request_metadata
from forebay.rpc.server import Server, Service
from forebay.v1 import draft_pb2, draft_pb2_grpc, inference_pb2_grpc
from forebay.v1 import inference_pb2 as pb

INFERENCE = pb.DESCRIPTOR.services_by_name["InferenceService"].full_name
DRAFT = draft_pb2.DESCRIPTOR.services_by_name["DraftService"].full_name
SECRET = "password=hunter2"
FAILURES = {
    "invalid": InvalidArgument("too long", field="text", limit=5, got=7),
    "absent": NotFound("no such thing"),
    "busy": Unavailable("busy", retry_after_s=1.5),
    "crash": RuntimeError(SECRET),
    "long": NotFound("\N{SNOWMAN}" * 5000, got="x" * 50_000),
}


class FailingServicer(inference_pb2_grpc.InferenceServiceServicer):
    """Fails in the way that the text names; streams fail after one message."""

    async def Tokenize(self, request, context):
        if request.text in FAILURES:
            raise FAILURES[request.text]
        return pb.TokenizeResponse(tokens=[structlog.contextvars.get_contextvars()["request_id"]])

    async def Generate(self, request, context):
        yield pb.GenerateResponse(text="first")
        raise FAILURES[request.text]


class AnsweringServicer(draft_pb2_grpc.DraftServiceServicer):
    """One frame for each request, the whole stream long."""

    async def Mux(self, request_iterator, context):
        async for _ in request_iterator:
            yield draft_pb2.DraftFrame()


async def nothing():
    pass


def service():
    def add(server):
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(FailingServicer(), server)
        draft_pb2_grpc.add_DraftServiceServicer_to_server(AnsweringServicer(), server)

    return Service(add=add, names=[INFERENCE], close=nothing)


@pytest.fixture
async def server():
    server = Server("127.0.0.1:0")
    await server.start()
    yield server
    await server.stop(None)


@pytest.fixture
async def channel(server):
    await server.add(service())
    async with connect(f"127.0.0.1:{server.port}") as channel:
        yield channel


@pytest.fixture
def stub(channel):
    return inference_pb2_grpc.InferenceServiceStub(channel)


async def fail_unary(stub, text):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Tokenize(pb.TokenizeRequest(text=text))
    return caught.value


async def fail_stream(stub, text):
    seen = []
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for message in stub.Generate(pb.GenerateRequest(text=text)):
            seen.append(message.text)
    assert seen == ["first"]
    return caught.value


def error_info(error):
    info = error_details_pb2.ErrorInfo()
    assert rpc_status.from_call(error).details[0].Unpack(info)
    return info


@pytest.mark.parametrize("fail", [fail_unary, fail_stream])
@pytest.mark.parametrize("text", ["invalid", "absent", "busy"])
async def test_a_domain_error_arrives_with_status_message_and_details(stub, fail, text):
    error, expected = await fail(stub, text), FAILURES[text]
    assert (error.code(), error.details()) == (expected.status, expected.message)
    info = error_info(error)
    assert info.reason == expected.reason and dict(info.metadata) == expected.metadata


@pytest.mark.parametrize("fail", [fail_unary, fail_stream])
async def test_an_unexpected_error_does_not_leak_its_text(stub, fail):
    error = await fail(stub, "crash")
    assert error.code() is grpc.StatusCode.INTERNAL
    everything = repr((error.details(), error.trailing_metadata(), error.initial_metadata(), error))
    assert "hunter2" not in everything and "RuntimeError" not in everything


async def test_an_error_with_a_huge_message_still_arrives(stub):
    error = await fail_unary(stub, "long")
    assert error.code() is grpc.StatusCode.NOT_FOUND and error.details().endswith("...")
    assert error_info(error).reason == "NOT_FOUND"


@pytest.mark.parametrize("raw", [b"\xff\xff\xff\xff", b"\x12\x05ab", b"\x12\x02\xff\xfe"])
async def test_malformed_bytes_are_an_invalid_argument(channel, raw):
    call = channel.unary_unary(f"/{INFERENCE}/Tokenize")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(raw)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert error_info(caught.value).reason == "MALFORMED_MESSAGE"


async def test_malformed_bytes_in_a_streaming_call(channel):
    call = channel.unary_stream(f"/{INFERENCE}/Generate")(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_malformed_bytes_amid_a_stream_end_it(channel):
    call = channel.stream_stream(f"/{DRAFT}/Mux")()
    await call.write(b"")
    assert await call.read() == b""
    await call.write(b"\xff\xff")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


async def test_an_unknown_method_is_unimplemented(channel):
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await channel.unary_unary(f"/{INFERENCE}/Nonsense")(b"")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_the_request_id_is_bound_while_handling(stub):
    reply = await stub.Tokenize(pb.TokenizeRequest(text="ok"), metadata=request_metadata("r-1"))
    assert list(reply.tokens) == ["r-1"]


async def test_health_goes_from_not_serving_to_serving_to_not_serving(server):
    async with connect(f"127.0.0.1:{server.port}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        watch = stub.Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await inference_pb2_grpc.InferenceServiceStub(channel).Tokenize(pb.TokenizeRequest())
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        await server.add(service())
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVING
        named = await stub.Check(health_pb2.HealthCheckRequest(service=INFERENCE))
        assert named.status == health_pb2.HealthCheckResponse.SERVING
        stopping = asyncio.create_task(server.stop(60.0))
        assert (await watch.read()).status == health_pb2.HealthCheckResponse.NOT_SERVING
        assert await watch.read() is grpc.aio.EOF
        await asyncio.wait_for(stopping, 5)


async def test_health_of_an_unknown_name(channel):
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest(service="forebay.v1.Nonsense")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Check(request)
    assert caught.value.code() is grpc.StatusCode.NOT_FOUND
    watch = stub.Watch(request)
    assert (await watch.read()).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    watch.cancel()


async def test_reflection_lists_the_services(channel):
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    call = stub.ServerReflectionInfo(iter([reflection_pb2.ServerReflectionRequest(list_services="")]))
    names = {s.name for s in (await call.read()).list_services_response.service}
    assert {INFERENCE, "grpc.health.v1.Health"} <= names


async def test_a_taken_port_is_an_os_error(server):
    with pytest.raises(OSError, match="cannot listen on"):
        await Server(f"127.0.0.1:{server.port}").start()
