"""What the HTTP port refuses, how, and what happens when a client leaves or a worker dies."""

import asyncio
import http.client
import json
import socket

import grpc
import openai
import pytest
from openai import AsyncOpenAI

from forebay.types import FinishReason
from forebay.v1 import decode_pb2, inference_pb2

HELLO = [{"role": "user", "content": "hello"}]
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


async def call(rig, path, body=None, method="POST", kind="application/json"):
    """(status, headers, parsed body)."""

    def send():
        connection = http.client.HTTPConnection(rig.http_address, timeout=10)
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        connection.request(method, path, content, {"Content-Type": kind} if kind else {})
        response = connection.getresponse()
        answer = response.status, dict(response.headers), json.loads(response.read())
        connection.close()
        return answer

    return await asyncio.to_thread(send)


def chat(**fields):
    return CHAT, {"messages": HELLO} | fields


def complete(**fields):
    return COMPLETIONS, {"prompt": "hello"} | fields


CASES = {
    "out of range": (chat(temperature=3), "temperature"),
    "not a number": (chat(temperature="warm"), "temperature"),
    "a boolean is no number": (chat(top_p=True), "top_p"),
    "a huge number": (chat(temperature=10**400), "temperature"),
    "not whole": (chat(n=1.5), "n"),
    "too many choices": (chat(n=17), "n"),
    "no tokens": (chat(max_tokens=0), "max_tokens"),
    "too many tokens": (complete(max_tokens=5000), "max_tokens"),
    "too many stops": (chat(stop=["a"] * 17), "stop"),
    "a stop that is no string": (chat(stop=[1]), "stop"),
    "bias": (chat(logit_bias={"x": 1}), "logit_bias.x"),
    "bias of an unknown token": (chat(logit_bias={"100000": 1}), "logit_bias"),
    "top_logprobs alone": (chat(top_logprobs=2), "top_logprobs"),
    "too many logprobs": (complete(logprobs=21), "logprobs"),
    "no messages": ((CHAT, {}), "messages"),
    "messages of no objects": (chat(messages=["x"]), "messages[0]"),
    "no content": (chat(messages=[{"role": "user"}]), "messages[0].content"),
    "an image": (
        chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
        "messages[0].content[0].type",
    ),
    "role": (chat(messages=[{"role": "robot", "content": "x"}]), "messages"),
    "surrogate": (chat(messages=[{"role": "user", "content": "\ud800"}]), "messages[0].content"),
    "no prompt": ((COMPLETIONS, {}), "prompt"),
    "an empty prompt": (complete(prompt=""), "prompt"),
    "no prompts": (complete(prompt=[]), "prompt"),
    "token ids": (complete(prompt=[[512]]), "prompt"),
    "too many prompts": (complete(prompt=["x"] * 129), "prompt"),
    "tools": (chat(tools=[{"type": "function"}]), "tools"),
    "a schema": (chat(response_format={"type": "json_object"}), "response_format"),
    "best_of": (complete(best_of=3), "best_of"),
    "echo": (complete(echo=True), "echo"),
    "stream options": (chat(stream_options={"include_usage": True}), "stream_options"),
    "stream": (chat(stream="yes"), "stream"),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
async def test_bad_requests(http_rig, case):
    (path, body), param = case
    status, _, answer = await call(http_rig, path, body)
    assert (status, answer["error"]["param"]) == (400, param), answer
    assert answer["error"]["type"] == "invalid_request_error" and answer["error"]["message"].startswith(param)
    assert not http_rig.prefill.requests


async def test_what_asks_for_nothing_is_no_offence(http_rig):
    nothing = {
        "tools": [],
        "tool_choice": "none",
        "response_format": {"type": "text"},
        "best_of": 1,
        "stop": None,
    }
    status, _, _ = await call(http_rig, *chat(**nothing, user="me"))
    assert status == 200


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"[" * 100_000, b"\xff", b'"x"'], ids=range(6))
async def test_no_json(http_rig, body):
    status, _, answer = await call(http_rig, CHAT, body)
    assert (status, answer["error"]["code"]) == (400, "malformed_message")


async def test_http_itself(http_rig):
    status, _, answer = await call(http_rig, CHAT, b"x" * (5 << 20))
    assert (status, answer["error"]["code"]) == (413, "body_too_large")
    status, _, answer = await call(http_rig, CHAT, {}, kind="text/plain")
    assert (status, answer["error"]["code"]) == (415, "unsupported_media_type")
    assert (await call(http_rig, CHAT, method="GET"))[0] == 405
    assert (await call(http_rig, "/v1/models", method="DELETE"))[0] == 405
    status, _, answer = await call(http_rig, "/v1/embeddings", {})
    assert status == 404 and "/v1/completions" in answer["error"]["message"]
    assert (await call(http_rig, "/health", method="GET"))[2] == {"status": "ok"}


async def test_a_body_that_does_not_come(http_rig, monkeypatch):
    monkeypatch.setattr("gateway.openai.app.BODY_TIMEOUT_S", 0.1)
    reader, writer = await asyncio.open_connection(*http_rig.http_address.split(":"))
    writer.write(
        f"POST {CHAT} HTTP/1.1\r\nContent-Type: application/json\r\nContent-Length: 9\r\n\r\n{{".encode()
    )
    assert b" 408 " in await reader.readline()
    writer.close()


async def test_requests_in_one_packet(http_rig):
    reader, writer = await asyncio.open_connection(*http_rig.http_address.split(":"))
    writer.write(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 2 + b"GET /health HTTP/1.0\r\n\r\n")
    assert (await reader.read()).count(b'{"status":"ok"}') == 3
    writer.close()


async def test_a_client_that_does_not_read_is_cancelled(make_http_rig, monkeypatch):
    """Tokens wait in the socket first, then in the buffer, which is bounded; then nobody waits any more."""
    monkeypatch.setattr("gateway.openai.app.STALL_S", 0.3)
    rig = await make_http_rig(max_buffered_tokens=50)
    rig.decode.script = lambda attach, choice: [11] * 150_000
    rig.decode.width = 40
    reader, writer = await asyncio.open_connection(*rig.http_address.split(":"), limit=1024)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = json.dumps(complete(stream=True, max_tokens=1000, logprobs=0)[1]).encode()
    head = f"POST {COMPLETIONS} HTTP/1.1\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    assert (await reader.read(1000)).startswith(b"HTTP/1.1 200")
    await rig.check_idle(within_s=20)
    writer.transport.abort()


async def test_unknown_model(http_rig):
    status, _, answer = await call(http_rig, *chat(model="tinny"))
    assert (status, answer["error"]["code"], answer["error"]["param"]) == (404, "model_not_found", "model")


async def test_nobody_serves(http_rig):
    await http_rig.decode.stop()
    for _ in range(100):
        if (await call(http_rig, "/health", method="GET"))[0] == 503:
            break
        await asyncio.sleep(0.05)
    status, headers, answer = await call(http_rig, *chat())
    assert (status, answer["error"]["code"], headers["retry-after"]) == (503, "no_decode_capacity", "1")
    assert answer["error"]["type"] == "service_unavailable_error"
    http_rig.decode.slots.clear()


async def test_a_full_gateway_says_so_before_a_stream_begins(make_http_rig):
    rig = await make_http_rig(max_requests=0)
    status, _, answer = await call(rig, *chat(stream=True))
    assert (status, answer["error"]["code"]) == (503, "overloaded")


async def test_a_worker_fails_in_a_stream(http_rig):
    http_rig.decode.end = decode_pb2.Finished(
        reason=FinishReason.ERROR, error_reason="UNAVAILABLE", error_message="the worker stops"
    )
    async with AsyncOpenAI(base_url=f"http://{http_rig.http_address}/v1", api_key="-") as client:
        texts = []
        with pytest.raises(openai.APIError, match="the worker stops"):
            async for chunk in await client.completions.create(model="tiny", prompt="x", stream=True):
                texts.append(chunk.choices[0].text)
    assert len(texts) == 4


@pytest.mark.parametrize("is_stream", [False, True])
async def test_a_client_that_leaves_stops_the_work(http_rig, is_stream):
    http_rig.decode.script = lambda attach, choice: [11] * 500
    http_rig.decode.delay_s = 0.02
    host, port = http_rig.http_address.split(":")
    _, writer = await asyncio.open_connection(host, int(port))
    body = json.dumps(chat(stream=is_stream)[1]).encode()
    head = f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
    while not http_rig.decode.starts():
        await asyncio.sleep(0.01)
    writer.close()
    await writer.wait_closed()
    await http_rig.check_idle(within_s=1.0)


async def test_a_client_that_breaks_a_stream_off(http_rig):
    http_rig.decode.script = lambda attach, choice: [11] * 500
    http_rig.decode.delay_s = 0.02
    async with AsyncOpenAI(base_url=f"http://{http_rig.http_address}/v1", api_key="-") as client:
        stream = await client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        await stream.close()
        await http_rig.check_idle(within_s=1.0)


async def test_draining_refuses_and_waits(http_rig):
    http_rig.decode.script = lambda attach, choice: [11] * 20
    http_rig.decode.delay_s = 0.02
    running = asyncio.create_task(call(http_rig, *complete(max_tokens=50)))
    while not http_rig.decode.starts():
        await asyncio.sleep(0.01)
    draining = asyncio.create_task(http_rig.service.drain())
    await asyncio.sleep(0.01)
    with pytest.raises(grpc.aio.AioRpcError, match="stopping"):
        await http_rig.stub.Generate(inference_pb2.GenerateRequest(text="x")).read()
    with pytest.raises(OSError):
        await call(http_rig, *complete())
    assert (await running)[0] == 200
    await draining


async def test_closing_ends_what_runs(http_rig):
    http_rig.decode.script = lambda attach, choice: [11] * 5000
    http_rig.decode.delay_s = 0.02
    whole = asyncio.create_task(call(http_rig, *complete(max_tokens=900)))
    while not http_rig.decode.starts():
        await asyncio.sleep(0.01)
    await http_rig.service.close()
    status, _, answer = await whole
    assert (status, answer["error"]["code"]) == (503, "stopping")
