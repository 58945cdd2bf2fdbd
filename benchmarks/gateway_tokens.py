"""CPU time of the gateway per streamed token: real gateway process, a decode worker that only counts.

    python benchmarks/gateway_tokens.py --streams 64 --step-ms 20 --steps 300

Prints one JSON line: CPU microseconds of the gateway process per token, tokens per second, messages per
token (below 1 when the gateway coalesces), and inter-token latency seen by the client process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import platform
import subprocess
import sys
import time
from pathlib import Path

import grpc
import psutil
import uvloop
from grpc_health.v1 import health_pb2, health_pb2_grpc

from forebay.model.hub import resolve_model
from forebay.rpc.admin import AdminServicer
from forebay.rpc.channel import INTERNAL_SERVER_ARGS
from forebay.v1 import (
    admin_pb2,
    admin_pb2_grpc,
    common_pb2,
    decode_pb2,
    decode_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
)


class CountingDecode(decode_pb2_grpc.DecodeServiceServicer):
    """One frame a step for all slots; token ids run through the vocabulary's plain words."""

    def __init__(self, step_s: float, num_tokens: int) -> None:
        self._step_s, self._num_tokens = step_s, num_tokens

    async def Mux(self, request_iterator, context):
        left: dict[int, int] = {}
        reader = asyncio.create_task(self._read(request_iterator, left))
        due = time.perf_counter()
        try:
            while True:
                due += self._step_s
                await asyncio.sleep(max(0.0, due - time.perf_counter()))
                if left:
                    yield self._frame(left)
        finally:
            reader.cancel()

    async def _read(self, commands, left: dict[int, int]) -> None:
        async for command in commands:
            if command.HasField("start"):
                left[command.slot] = self._num_tokens
            elif command.HasField("cancel"):
                left.pop(command.slot, None)

    def _frame(self, left: dict[int, int]) -> decode_pb2.StepFrame:
        slots = list(left)
        frame = decode_pb2.StepFrame(slots=slots, choices=bytes(len(slots)))
        frame.token_ids.extend([1000 + left[slot] for slot in slots])
        for slot in slots:
            left[slot] -= 1
            if not left[slot]:
                del left[slot]
                frame.spills.append(decode_pb2.Spill(slot=slot, finished=decode_pb2.Finished(reason=2)))
        return frame


def run_decode(pipe, folder: str, step_s: float, num_tokens: int) -> None:
    uvloop.run(_decode(pipe, folder, step_s, num_tokens))


async def _decode(pipe, folder: str, step_s: float, num_tokens: int) -> None:
    info = common_pb2.ModelInfo(
        model="demo",
        fingerprint=b"b" * 32,
        block_size=16,
        max_context=1 << 20,
        vocab_size=49152,
        folder=folder,
    )
    server = grpc.aio.server(options=INTERNAL_SERVER_ARGS)
    decode_pb2_grpc.add_DecodeServiceServicer_to_server(CountingDecode(step_s, num_tokens), server)

    async def check(idle: bool) -> None:
        return None

    admin = AdminServicer("decode", 1, info, admin_pb2.GetLoadResponse, check)
    admin_pb2_grpc.add_AdminServiceServicer_to_server(admin, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    pipe.send(port)
    await server.wait_for_termination()


async def stream(stub, gaps: list[float]) -> tuple[int, int]:
    """(tokens, messages) of one request."""
    request = inference_pb2.GenerateRequest(text="hello", sampling=common_pb2.SamplingParams(temperature=0))
    num_tokens, num_messages, last = 0, 0, 0.0
    async for message in stub.Generate(request):
        now = time.perf_counter()
        if last:
            gaps.append(now - last)
        last = now
        num_tokens += len(message.token_ids)
        num_messages += 1
    return num_tokens, num_messages


async def is_serving(channel: grpc.aio.Channel) -> bool:
    reply = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
    return reply.status == health_pb2.HealthCheckResponse.SERVING


async def measure(address: str, num_streams: int, gateway: psutil.Process) -> dict:
    gaps: list[float] = []
    async with grpc.aio.insecure_channel(address) as channel:
        await asyncio.wait_for(channel.channel_ready(), 30)
        stub = inference_pb2_grpc.InferenceServiceStub(channel)
        while not await is_serving(channel):
            await asyncio.sleep(0.1)
        before, start = gateway.cpu_times(), time.perf_counter()
        counts = await asyncio.gather(*(stream(stub, gaps) for _ in range(num_streams)))
        after, wall_s = gateway.cpu_times(), time.perf_counter() - start
    num_tokens, num_messages = (sum(column) for column in zip(*counts, strict=True))
    cpu_s = after.user + after.system - before.user - before.system
    gaps.sort()
    return {
        "streams": num_streams,
        "tokens": num_tokens,
        "gateway_cpu_us_per_token": round(cpu_s / num_tokens * 1e6, 1),
        "gateway_cpu_busy": round(cpu_s / wall_s, 2),
        "tokens_per_s": round(num_tokens / wall_s),
        "messages_per_token": round(num_messages / num_tokens, 2),
        "itl_p50_ms": round(gaps[len(gaps) // 2] * 1e3, 2),
        "itl_p99_ms": round(gaps[int(len(gaps) * 0.99)] * 1e3, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=64)
    parser.add_argument("--step-ms", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    ours, theirs = multiprocessing.get_context("spawn").Pipe()
    worker = multiprocessing.get_context("spawn").Process(
        target=run_decode,
        args=(theirs, str(resolve_model("demo")), args.step_ms / 1e3, args.steps),
        daemon=True,
    )
    worker.start()
    decode_address, address = f"127.0.0.1:{ours.recv()}", "127.0.0.1:50959"
    gateway = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "gateway",
            f"--listen={address}",
            f"--decode={decode_address}",
            "--log-level=warning",
        ],
        cwd=Path(__file__).parent.parent,
    )
    try:
        row = asyncio.run(measure(address, args.streams, psutil.Process(gateway.pid)))
        print(json.dumps(row))
        if args.out:
            machine = {"cores": psutil.cpu_count(), "python": platform.python_version()}
            args.out.write_text(json.dumps({"machine": machine, "row": row}, indent=1) + "\n")
    finally:
        gateway.terminate()
        gateway.wait(10)
        worker.terminate()


if __name__ == "__main__":
    main()
