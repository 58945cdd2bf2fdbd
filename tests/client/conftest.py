"""A scripted gateway over real gRPC: each call runs the next step of `script`, the last one repeats."""

from __future__ import annotations

import threading
from concurrent import futures

import grpc
import pytest

from forebay.rpc.interceptor import STATUS_DETAILS_KEY, to_status
from forebay.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2_grpc
from forebay.v1 import inference_pb2 as pb


class ScriptedGateway(inference_pb2_grpc.InferenceServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """A step is a list of messages to send and errors to end with."""

    def __init__(self) -> None:
        self.requests, self.script = [], [[pb.GenerateResponse(text="ok", finish_reason=1)]]
        self.cancelled, self.release = threading.Event(), threading.Event()

    def Generate(self, request, context):
        yield from self._play(request, context)

    def Chat(self, request, context):
        for piece in self._play(request, context):
            yield pb.ChatResponse(choice=piece.choice, text=piece.text, finish_reason=piece.finish_reason)

    def Tokenize(self, request, context):
        for _ in self._play(request, context):
            pass
        return pb.TokenizeResponse(token_ids=[1, 2], tokens=["a", "b"])

    def Detokenize(self, request, context):
        return pb.DetokenizeResponse(text="-".join(map(str, request.token_ids)))

    def ListModels(self, request, context):
        info = common_pb2.ModelInfo(model="m", fingerprint=b"f", eos_token_ids=[2], max_context=64)
        return pb.ListModelsResponse(models=[info])

    def Explain(self, request, context):
        return pb.ExplainResponse(receipt=pb.Receipt(request_id=request.request_id), outcome="OK")

    def ListWorkers(self, request, context):
        load = admin_pb2.GetLoadResponse(num_running=3)
        worker = admin_pb2.WorkerStatus(role="decode", address="d:1", is_alive=True, load=load)
        return admin_pb2.ListWorkersResponse(workers=[worker], traffic={"num_output_tokens": 9})

    def _play(self, request, context):
        self.requests.append((request, context.time_remaining()))
        context.add_callback(self.cancelled.set)
        for step in self.script[min(len(self.requests), len(self.script)) - 1]:
            if isinstance(step, Exception):
                details = to_status(step).SerializeToString()
                context.set_trailing_metadata(((STATUS_DETAILS_KEY, details),))
                context.abort(step.status, step.message)
            elif step == "wait":
                self.release.wait(10)
            elif step == "bare":
                context.abort(grpc.StatusCode.UNAVAILABLE, "a proxy says no")
            else:
                yield step


@pytest.fixture
def gateway():
    """The servicer, with `address`."""
    servicer = ScriptedGateway()
    with futures.ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
        servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield servicer
        servicer.release.set()
        server.stop(None).wait()
