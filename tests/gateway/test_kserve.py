"""The KServe dialect: a stock tritonclient in its own process, and what only bare messages can say."""

import asyncio
import json
import sys
from pathlib import Path

import grpc
import pytest
from gateway_fakes import tiny_tokenizer
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from forebay.kserve import grpc_predict_v2_pb2 as pb
from forebay.kserve.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub
from gateway.kserve.tensors import pack

TEXT = tiny_tokenizer().decode([10, 11, 12, 13])
Input = pb.ModelInferRequest.InferInputTensor


@pytest.fixture
def stub(rig):
    return GRPCInferenceServiceStub(rig.channel)


def request(text=b"hello", **fields):
    tensor = Input(name="text_input", datatype="BYTES", shape=[1], contents={"bytes_contents": [text]})
    return pb.ModelInferRequest(**{"inputs": [tensor]} | fields)


def flag(name, value=True):
    return Input(name=name, datatype="BOOL", shape=[1], contents={"bool_contents": [value]})


async def test_tritonclient(rig):
    script = Path(__file__).parent / "triton_calls.py"
    process = await asyncio.create_subprocess_exec(
        sys.executable, str(script), rig.address, "tiny", "hello", stdout=asyncio.subprocess.PIPE
    )
    output, _ = await process.communicate()
    found = json.loads(output)
    assert found["live"] and found["ready"] and found["model_ready"] == [True, False]
    assert found["server"] == "forebay" and found["decoupled"] is True
    assert found["inputs"] == {"text_input": "BYTES", "streaming": "BOOL", "sampling_parameters": "BYTES"}
    assert found["outputs"] == ["text_output", "finish_reason"]
    assert found["optional"] == ["streaming", "sampling_parameters"]
    assert found["index"] == [{"name": "tiny", "version": "1", "state": "READY"}]
    assert found["infer"] == {"text": [TEXT], "reason": ["stop"], "id": "one", "tokens": 4}
    assert "temperature" in found["refused"] and "INVALID_ARGUMENT" in found["refused"]
    pieces = found["stream"]["pieces"]
    assert "".join(pieces["a"]) == TEXT and len(pieces["a"]) > 1 and pieces["b"] == [TEXT]
    assert len(found["stream"]["errors"]) == 1 and "n: must be 1" in found["stream"]["errors"][0]
    assert rig.prefill.requests[0].sampling.max_tokens == 8


async def test_typed_contents_and_choices(rig, stub):
    message = request()
    message.parameters["n"].int64_param = 2
    message.parameters["stop"].string_param = "zzz"
    message.outputs.add(name="finish_reason")
    answer = await stub.ModelInfer(message)
    assert [(tensor.name, list(tensor.shape)) for tensor in answer.outputs] == [("finish_reason", [2])]
    assert list(answer.raw_output_contents) == [pack(["stop", "stop"])] and answer.model_name == "tiny"
    assert rig.prefill.requests[0].sampling.max_tokens == 16


async def test_sampling_as_json(rig, stub):
    sampling = Input(name="sampling_parameters", datatype="BYTES", shape=[1, 1])
    sampling.contents.bytes_contents.append(
        json.dumps({"max_tokens": 5, "stop_token_ids": [7], "top_k": 3}).encode()
    )
    message = request(inputs=[*request().inputs, sampling])
    message.parameters["max_tokens"].int64_param = 6
    await stub.ModelInfer(message)
    sent = rig.prefill.requests[0].sampling
    assert (sent.max_tokens, sent.top_k, list(sent.stop_token_ids)) == (6, 3, [7])


BAD = {
    "no text": (request(inputs=[]), "text_input"),
    "not UTF-8": (request(b"\xff"), "text_input"),
    "unknown input": (request(inputs=[flag("stop")]), "unknown input"),
    "wrong datatype": (request(inputs=[flag("text_input")]), "wrong datatype"),
    "two elements": (request(inputs=[Input(name="text_input", datatype="BYTES", shape=[2])]), "one element"),
    "raw without inputs": (request(raw_input_contents=[b"", b""]), "raw_input_contents"),
    "raw of a wrong length": (request(raw_input_contents=[b"\x09\0\0\0x"]), "text_input"),
    "a raw flag of two bytes": (
        request(
            inputs=[
                Input(name="text_input", datatype="BYTES", shape=[1]),
                Input(name="streaming", datatype="BOOL"),
            ],
            raw_input_contents=[pack(["x"]), b"\0\0"],
        ),
        "one byte",
    ),
    "sampling that is no JSON": (
        request(
            inputs=[
                *request().inputs,
                Input(name="sampling_parameters", datatype="BYTES", contents={"bytes_contents": [b"{"]}),
            ]
        ),
        "sampling_parameters is not valid JSON",
    ),
    "unknown output": (request(outputs=[{"name": "logits"}]), "unknown output"),
    "version": (request(model_version="2"), "model_version"),
    "streaming": (request(inputs=[*request().inputs, flag("streaming")]), "ModelStreamInfer"),
    "model": (request(model_name="none"), "not served"),
    "best_of": (request(parameters={"best_of": {"int64_param": 3}}), "best_of"),
}


@pytest.mark.parametrize("case", BAD.values(), ids=BAD)
async def test_bad_requests(rig, stub, case):
    message, words = case
    with pytest.raises(grpc.aio.AioRpcError, match=words) as caught:
        await stub.ModelInfer(message)
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT and not rig.prefill.requests


async def test_a_broken_stream_stops_all_its_requests(rig, stub):
    rig.decode.script = lambda attach, choice: [11] * 500
    rig.decode.delay_s = 0.02
    call = stub.ModelStreamInfer()
    for name in "ab":
        await call.write(request(id=name, inputs=[*request().inputs, flag("streaming")]))
    seen = {(await call.read()).infer_response.id for _ in range(6)}
    assert seen == {"a", "b"}
    call.cancel()
    await rig.check_idle(within_s=1.0)


async def test_more_requests_than_run_at_once(rig, stub, monkeypatch):
    monkeypatch.setattr("gateway.kserve.servicer.MAX_STREAM_REQUESTS", 2)
    call = stub.ModelStreamInfer()
    for number in range(7):
        await call.write(request(id=str(number)))
    await call.done_writing()
    assert sorted([answer.infer_response.id async for answer in call]) == list("0123456")


async def test_reflection_and_health_know_it(rig):
    name = "inference.GRPCInferenceService"
    reflect = reflection_pb2_grpc.ServerReflectionStub(rig.channel).ServerReflectionInfo()
    await reflect.write(reflection_pb2.ServerReflectionRequest(file_containing_symbol=name))
    (file, *_) = (await reflect.read()).file_descriptor_response.file_descriptor_proto
    assert b"ModelStreamInfer" in file
    reflect.cancel()
    answer = await health_pb2_grpc.HealthStub(rig.channel).Check(health_pb2.HealthCheckRequest(service=name))
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
