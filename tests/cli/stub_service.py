"""Stands in for any service: `python -m stub_service --listen=... [--die-after=S] [--load-s=S]`."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time

import grpc

from forebay.rpc.server import Service, serve
from forebay.v1 import common_pb2, inference_pb2_grpc
from forebay.v1 import inference_pb2 as pb

FLAGS = dict(flag.removeprefix("--").split("=", 1) for flag in sys.argv[1:])
MODEL = common_pb2.ModelInfo(model="stub", dtype="float32", max_context=64, vocab_size=9, block_size=16)


class StubServicer(inference_pb2_grpc.InferenceServiceServicer):
    """A gateway that knows one model and says one word."""

    async def ListModels(self, request, context):
        return pb.ListModelsResponse(models=[MODEL])

    async def Chat(self, request, context):
        yield pb.ChatResponse(text="hello", token_ids=[1])


async def close():
    sys.stderr.write(f"closed at {time.monotonic()}\n")


async def build():
    await asyncio.sleep(float(FLAGS.get("load-s", 0)))
    if "die-after" in FLAGS:
        asyncio.get_running_loop().call_later(float(FLAGS["die-after"]), os.kill, os.getpid(), signal.SIGKILL)

    def add(server: grpc.aio.Server) -> None:
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(StubServicer(), server)

    return Service(add=add, names=["forebay.v1.InferenceService"], close=close)


if __name__ == "__main__":
    sys.stderr.write(f"flags {sorted(FLAGS)}\nthe last words\n")
    if "refuse" in FLAGS:
        sys.exit(2)
    serve("stub", build, listen=FLAGS["listen"], metrics_port=-1, log_level="info", grace_s=2)
