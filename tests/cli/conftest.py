"""A gateway with canned answers over real gRPC, and launchers of stub services."""

from __future__ import annotations

import os
import threading
from concurrent import futures
from pathlib import Path

import grpc
import pytest

from forebay.cli import plan
from forebay.errors import InvalidArgument
from forebay.rpc.interceptor import STATUS_DETAILS_KEY, to_status
from forebay.v1 import admin_pb2, admin_pb2_grpc, common_pb2, inference_pb2_grpc
from forebay.v1 import inference_pb2 as pb


class CannedGateway(inference_pb2_grpc.InferenceServiceServicer, admin_pb2_grpc.AdminServiceServicer):
    """Records requests; answers "héllo" in two pieces per choice, or fails for the prompt "fail"."""

    def __init__(self) -> None:
        self.requests: list = []
        self.cancelled = threading.Event()

    def ListModels(self, request, context):
        info = common_pb2.ModelInfo(model="canned", dtype="float32", max_context=128, vocab_size=99)
        return pb.ListModelsResponse(models=[info])

    def Explain(self, request, context):
        story = pb.ExplainResponse(outcome="OK", operation="chat", model="canned", usage={"prompt_tokens": 4})
        story.receipt.request_id = request.request_id
        story.receipt.stages.add(name="decode", ms=31.5)
        return story

    def ListWorkers(self, request, context):
        load = admin_pb2.GetLoadResponse(num_running=3, num_used_blocks=25, num_blocks=100)
        worker = admin_pb2.WorkerStatus(
            role="decode", address="d:1", is_alive=True, model="canned", load=load
        )
        traffic = admin_pb2.Traffic(num_prompt_tokens=10, num_cached_tokens=4, ttft_p99_ms=70)
        return admin_pb2.ListWorkersResponse(workers=[worker], traffic=traffic)

    def Generate(self, request, context):
        self.requests.append(request)
        if request.text == "fail":
            error = InvalidArgument("out of range", field="sampling.n", limit="[1, 16]", got=99)
            context.set_trailing_metadata(((STATUS_DETAILS_KEY, to_status(error).SerializeToString()),))
            context.abort(error.status, error.message)
        yield from self._answer(pb.GenerateResponse, max(request.sampling.n, 1))

    def Chat(self, request, context):
        self.requests.append(request)
        yield from self._answer(pb.ChatResponse, 1)

    @staticmethod
    def _answer(kind, num_choices):
        for choice in range(num_choices):
            logprobs = [
                common_pb2.TokenLogprobs(token_id=5, logprob=-0.5, top_token_ids=[5], top_logprobs=[-0.5])
            ]
            yield kind(
                choice=choice, token_ids=[5], text="h\N{LATIN SMALL LETTER E WITH ACUTE}", logprobs=logprobs
            )
            last = kind(
                choice=choice, token_ids=[6, 7], text="llo", finish_reason=common_pb2.FINISH_REASON_STOP
            )
            if choice == num_choices - 1:
                last.usage.CopyFrom(pb.Usage(prompt_tokens=4, completion_tokens=3, cached_tokens=2))
                last.receipt.request_id = "r-1"
                last.receipt.seed = 2**63 + 1
                last.receipt.stages.add(name="prefill", ms=12.5)
                last.receipt.placement.reason = "least loaded"
            yield last


@pytest.fixture
def gateway():
    """The servicer, with `address`."""
    servicer = CannedGateway()
    with futures.ThreadPoolExecutor(4) as threads:
        server = grpc.server(threads)
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(servicer, server)
        admin_pb2_grpc.add_AdminServiceServicer_to_server(servicer, server)
        servicer.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        yield servicer
        server.stop(None).wait()


@pytest.fixture
def stub_services(monkeypatch):
    """Every role is the stub; its modules are found by the children."""
    monkeypatch.setattr(plan, "MODULES", dict.fromkeys(plan.MODULES, "stub_service"))
    root = Path(__file__).parents[2]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(Path(__file__).parent), str(root)]))
