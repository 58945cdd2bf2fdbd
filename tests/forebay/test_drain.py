"""The life of a service process: SIGTERM lets a stream finish, a second one does not wait, bad starts."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import textwrap

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.v1 import inference_pb2 as pb
from forebay.v1 import inference_pb2_grpc

SERVICE = """
import asyncio, sys
from forebay.errors import ConfigError
from forebay.rpc.server import Service, serve
from forebay.v1 import inference_pb2 as pb
from forebay.v1 import inference_pb2_grpc as rpc

class SlowServicer(rpc.InferenceServiceServicer):
    async def Generate(self, request, context):
        for i in range(int(request.text)):
            yield pb.GenerateResponse(text=str(i))
            await asyncio.sleep(0.1)

async def close():
    print("closed", flush=True)

async def build():
    if "--broken" in sys.argv:
        raise ConfigError("model: 'nonsense' does not exist")
    if "--waiting" in sys.argv:
        print("waiting", flush=True)
        await asyncio.sleep(60)
    add = lambda server: rpc.add_InferenceServiceServicer_to_server(SlowServicer(), server)
    return Service(add=add, names=["forebay.v1.InferenceService"], close=close)

serve("slow", build, listen=sys.argv[1], metrics_port=-1, log_level="info", grace_s=20)
"""


def free_address():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{probe.getsockname()[1]}"


def start(address, *flags):
    command = [sys.executable, "-c", textwrap.dedent(SERVICE), address, *flags]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def end(process):
    """(exit code, standard output, standard error)"""
    out, error = process.communicate(timeout=30)
    return process.returncode, out, error


@pytest.fixture
def process():
    address = free_address()
    process = start(address)
    process.address = address
    yield process
    process.kill()
    process.communicate()


@pytest.fixture
def channel(process):
    with grpc.insecure_channel(process.address) as channel:
        request = health_pb2.HealthCheckRequest()
        watch = health_pb2_grpc.HealthStub(channel).Watch(request, wait_for_ready=True, timeout=30)
        assert any(state.status == health_pb2.HealthCheckResponse.SERVING for state in watch)
        yield channel


def test_sigterm_lets_a_stream_finish_and_takes_no_new_one(process, channel):
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    stream = stub.Generate(pb.GenerateRequest(text="10"))
    seen = [next(stream).text]
    process.send_signal(signal.SIGTERM)
    seen += [message.text for message in stream]
    assert seen == [str(i) for i in range(10)]
    with pytest.raises(grpc.RpcError) as caught:
        next(stub.Generate(pb.GenerateRequest(text="1")))
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    code, out, error = end(process)
    assert (code, out) == (0, "closed\n")
    assert "Traceback" not in error


def test_a_second_signal_ends_the_grace(process, channel):
    stream = inference_pb2_grpc.InferenceServiceStub(channel).Generate(pb.GenerateRequest(text="100"))
    next(stream)
    process.send_signal(signal.SIGINT)
    next(stream)
    process.send_signal(signal.SIGINT)
    with pytest.raises(grpc.RpcError):
        list(stream)
    code, out, error = end(process)
    assert (code, out) == (0, "closed\n")
    assert "Traceback" not in error


def test_a_wrong_configuration_is_one_line_and_exit_2():
    code, _, error = end(start(free_address(), "--broken"))
    assert code == 2 and "nonsense" in error and error.count("\n") == 1


def test_a_taken_port_is_one_line_and_exit_2(process, channel):
    code, _, error = end(start(process.address))
    assert code == 2 and f"cannot listen on {process.address}" in error and "Traceback" not in error


def test_signal_while_building():
    process = start(free_address(), "--waiting")
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGTERM)
    code, _, _ = end(process)
    assert code == 0
