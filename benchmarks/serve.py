"""The platform through its gateway beside transformers, on the demo model, in one run with the same threads.

    python benchmarks/serve.py --dtype bfloat16 --out benchmarks/results/serve_cpu_bf16.json

Rows: load to first token, prefill tokens/s at 512 tokens, decode tokens/s at batch 1, 8 and 32, and time to
first token of a prompt with a 1,000-token prefix, cold and cached. Medians of --repeats.
"""

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import grpc

from forebay.cli.launcher import Launcher
from forebay.v1 import common_pb2, inference_pb2, inference_pb2_grpc

VOCAB = range(100, 40_000)
PREFILL_TOKENS, PREFIX_TOKENS, NOVEL_TOKENS = 512, 1000, 16
DECODE_PROMPT, DECODE_TOKENS = 64, 128
BATCHES = (1, 8, 32)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--mode", default="disaggregated", choices=["disaggregated", "aggregated"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--peer", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.peer:
        print(json.dumps(measure_transformers(args.dtype, args.repeats)))
        return
    rows = {"transformers": run_peer(args), "forebay": measure_platform(args)}
    report = {"machine": machine(), "arguments": vars(args) | {"out": str(args.out)}, "rows": rows}
    show(rows)
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")


def machine() -> dict[str, object]:
    return {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version()}


def cpu_name() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), "unknown")


def show(rows: dict[str, dict[str, float]]) -> None:
    print(f"{'measure':28} {'transformers':>14} {'forebay':>14} {'ratio':>8}")
    for name, peer in rows["transformers"].items():
        ours = rows["forebay"][name]
        ratio = ours / peer if name.endswith("per_s") else peer / ours
        print(f"{name:28} {peer:14.2f} {ours:14.2f} {ratio:8.2f}")


def random_ids(num: int, seed: int) -> list[int]:
    return random.Random(seed).choices(VOCAB, k=num)


# --- the platform ---


def measure_platform(args: argparse.Namespace) -> dict[str, float]:
    started = time.monotonic()
    with (
        tempfile.TemporaryDirectory() as logs,
        Launcher(model="demo", dtype=args.dtype, mode=args.mode, log_dir=Path(logs)) as launcher,
    ):
        launcher.wait_ready()
        client = Client(launcher.gateway_address)
        client.run(random_ids(4, 0), 1)
        rows = {"load_to_first_token_s": time.monotonic() - started}
        client.run(random_ids(PREFILL_TOKENS, 1), 8)
        prefill = [
            PREFILL_TOKENS / client.run(random_ids(PREFILL_TOKENS, 10 + i), 1)[0] for i in range(args.repeats)
        ]
        rows["prefill_512_tokens_per_s"] = statistics.median(prefill)
        for batch in BATCHES:
            speeds = [client.decode_speed(batch, 100 * batch + i) for i in range(max(2, args.repeats - 2))]
            rows[f"decode_batch_{batch}_tokens_per_s"] = statistics.median(speeds)
        return rows | client.ttft(args.repeats)


class Client:
    def __init__(self, address: str) -> None:
        self.stub = inference_pb2_grpc.InferenceServiceStub(grpc.insecure_channel(address))

    def run(self, token_ids: list[int], num_tokens: int) -> list[float]:
        """Arrival time of each token since the request was sent, seconds."""
        sampling = common_pb2.SamplingParams(temperature=0, max_tokens=num_tokens, ignore_eos=True)
        prompt = inference_pb2.TokenIds(ids=token_ids)
        request = inference_pb2.GenerateRequest(token_ids=prompt, sampling=sampling)
        started, times = time.monotonic(), []
        for piece in self.stub.Generate(request, timeout=600):
            times += [time.monotonic() - started] * len(piece.token_ids)
        return times

    def decode_speed(self, batch: int, seed: int) -> float:
        """Tokens/s between the moment when all streams have a first token and the first stream's end."""
        started = time.monotonic()
        times: list[list[float]] = [[] for _ in range(batch)]

        def one(i: int) -> None:
            offset = time.monotonic() - started
            times[i] = [
                offset + t for t in self.run(random_ids(DECODE_PROMPT, seed * 1000 + i), DECODE_TOKENS)
            ]

        threads = [threading.Thread(target=one, args=(i,)) for i in range(batch)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        begin, end = max(t[1] for t in times), min(t[-1] for t in times)
        num = sum(sum(begin < moment <= end for moment in t) for t in times)
        return num / (end - begin)

    def ttft(self, repeats: int) -> dict[str, float]:
        cold, cached = [], []
        for i in range(repeats):
            prefix = random_ids(PREFIX_TOKENS, 7000 + i)
            cold.append(self.run(prefix + random_ids(NOVEL_TOKENS, 2 * i), 1)[0])
            time.sleep(0.2)
            cached.append(self.run(prefix + random_ids(NOVEL_TOKENS, 2 * i + 1), 1)[0])
        return {
            "ttft_prefix_1000_cold_ms": 1e3 * statistics.median(cold),
            "ttft_prefix_1000_cached_ms": 1e3 * statistics.median(cached),
        }


# --- transformers, in its own process ---


def run_peer(args: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, __file__, "--peer", "--dtype", args.dtype, "--repeats", str(args.repeats)]
    started = time.monotonic()
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    rows: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    rows["load_to_first_token_s"] -= started
    return rows


def measure_transformers(dtype: str, repeats: int) -> dict[str, float]:
    import torch
    from transformers import AutoModelForCausalLM

    from forebay.model.hub import resolve_model

    model = AutoModelForCausalLM.from_pretrained(resolve_model("demo"), dtype=getattr(torch, dtype)).eval()

    def generate(ids: list[list[int]], num: int) -> float:
        started = time.monotonic()
        tokens = torch.tensor(ids)
        model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=num,
            min_new_tokens=num,
            do_sample=False,
        )
        return time.monotonic() - started

    with torch.inference_mode():
        generate([random_ids(4, 0)], 1)
        rows = {"load_to_first_token_s": time.monotonic()}
        generate([random_ids(PREFILL_TOKENS, 1)], 1)
        prefill = [PREFILL_TOKENS / generate([random_ids(PREFILL_TOKENS, 10 + i)], 1) for i in range(repeats)]
        rows["prefill_512_tokens_per_s"] = statistics.median(prefill)
        for batch in BATCHES:
            speeds = []
            for i in range(max(2, repeats - 2)):
                ids = [random_ids(DECODE_PROMPT, (100 * batch + i) * 1000 + j) for j in range(batch)]
                seconds = generate(ids, DECODE_TOKENS) - generate(ids, 1)
                speeds.append(batch * (DECODE_TOKENS - 1) / seconds)
            rows[f"decode_batch_{batch}_tokens_per_s"] = statistics.median(speeds)
        cold = [generate([random_ids(PREFIX_TOKENS + NOVEL_TOKENS, 7000 + i)], 1) for i in range(repeats)]
        # generate() keeps no prefix between calls: what it pays cold it pays each time.
        rows["ttft_prefix_1000_cold_ms"] = rows["ttft_prefix_1000_cached_ms"] = 1e3 * statistics.median(cold)
    return rows


if __name__ == "__main__":
    main()
