"""Decode's engine on a GPU at the Llama-3.1-8B shape: graphs against the plain runner, then time per token.

python benchmarks/gpu_decode.py [--out benchmarks/results/gpu_decode.json] [--seconds 200]

Weights are random and made on the GPU. Tokens are compared with two layers, in any mix of requests; times
are of engine steps (scheduling, graph, read-back) with 32 layers at a context of 1024 tokens.
"""

import argparse
import itertools
import json
import random
import statistics
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from decode_service.admission import Admission, AttachRequest  # noqa: E402
from decode_service.engine import DecodeEngine  # noqa: E402
from decode_service.exchange import BlockExchange  # noqa: E402
from decode_service.graph_runner import GraphRunner  # noqa: E402
from decode_service.kernels.step import NUM_RESULTS  # noqa: E402
from decode_service.mover import BlockMover  # noqa: E402
from decode_service.runner import Runner  # noqa: E402
from decode_service.scheduler import Limits, Scheduler  # noqa: E402
from decode_service.sequence import Owner  # noqa: E402
from forebay.kernels import triton_sample  # noqa: E402
from forebay.kv.pool import BlockPool  # noqa: E402
from forebay.model.config import ModelConfig, RopeConfig  # noqa: E402
from forebay.model.llama import Llama  # noqa: E402
from forebay.transport.local import LocalHandoff  # noqa: E402
from forebay.types import SamplingParams  # noqa: E402
from forebay.v1.common_pb2 import ModelInfo  # noqa: E402

BLOCK, VOCAB, CONTEXT = 64, 128256, 1024
VLLM_MS = {1: 4.95, 8: 5.25, 32: 6.32, 128: 10.55}  # vLLM 0.26.0 on one H200, bf16, same shape and context
SAMPLED = SamplingParams(temperature=0.8, top_k=50, top_p=0.9, ignore_eos=True, seed=7)


class RandomWeights:
    """A checkpoint of random tensors; norms are ones."""

    device = "cuda"

    def load(self, name: str, *shape: int) -> Tensor:
        """One tensor."""
        return self.load_stacked({name: shape[0]}, *shape[1:])

    def load_stacked(self, rows: Mapping[str, int], *columns: int) -> Tensor:
        """Tensors stacked along the first dimension."""
        shape = (sum(rows.values()), *columns)
        if not columns:
            return torch.ones(shape, dtype=torch.bfloat16, device="cuda")
        return torch.randn(shape, dtype=torch.bfloat16, device="cuda").mul_(columns[-1] ** -0.5)


def llama(num_layers: int) -> Llama:
    """The Llama-3.1-8B shape."""
    config = ModelConfig(
        architecture="LlamaForCausalLM",
        num_layers=num_layers,
        hidden_size=4096,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        intermediate_size=14336,
        vocab_size=VOCAB,
        max_positions=16384,
        rms_norm_eps=1e-5,
        rope=RopeConfig(theta=500000.0),
        tie_embeddings=False,
        qkv_bias=False,
        qk_norm=False,
        eos_token_ids=(128001,),
        bos_token_id=128000,
    )
    return Llama(config, RandomWeights())  # type: ignore[arg-type]


def pool_tensor(model: Llama, num_blocks: int) -> Tensor:
    """Random keys and values, block by block."""
    shape = (model.config.num_layers, num_blocks, 2, 8, BLOCK, 128)
    return torch.randn(shape, dtype=torch.bfloat16, device="cuda")


class Rig:
    """An engine stepped by hand; one stream."""

    def __init__(self, runner: Runner, runs_ahead: bool) -> None:
        num_blocks, self.tokens, self.kv = runner.kv.shape[1], dict[int, list[int]](), runner.kv
        self.logprobs: dict[int, list[float]] = {}
        self.pool, self.handoff = BlockPool(num_blocks, BLOCK), LocalHandoff()
        limits = Limits(256, 2048, 1024, 16384, num_ahead_tokens=int(runs_ahead))
        scheduler = Scheduler(self.pool, limits)
        info = ModelInfo(model="random", block_size=BLOCK, max_context=16384, vocab_size=VOCAB)
        self.admission = Admission(info, num_blocks - 1)
        exchange = BlockExchange(scheduler, BlockMover(), 0)
        self.engine = DecodeEngine(scheduler, runner, exchange, self.admission, self.handoff)
        self.engine.publish = self._take

    def submit(self, slot: int, prompt: list[int], params: SamplingParams, prompt_kv: str = "") -> None:
        """Add a request; its prompt is computed or has "any" KV, or "seeded" KV of the slot's own."""
        name = f"request-{slot}"
        request = AttachRequest(name, prompt, len(prompt), params, b"", b"")
        self.engine.attach(name, self.admission.build(Owner(1, slot), request))
        if prompt_kv:
            blocks, shape = self.pool.allocate(-(-len(prompt) // BLOCK)), self.kv.shape
            self.handoff.offer(name, blocks, len(prompt))
            if prompt_kv == "seeded":
                generator, size = (
                    torch.Generator("cuda").manual_seed(slot),
                    (shape[0], len(blocks), *shape[2:]),
                )
                self.kv[:, blocks] = torch.randn(
                    size, generator=generator, dtype=self.kv.dtype, device="cuda"
                )
        self.engine.start(Owner(1, slot), [5] if prompt_kv else [], 0)

    def run(self) -> None:
        """Until nothing is left to do."""
        while self.engine.step():
            pass

    def _take(self, outputs: dict[int, Any]) -> None:
        output = outputs[1]
        for slot, token_id in zip(output.slots, output.token_ids, strict=True):
            self.tokens.setdefault(slot, []).append(token_id)
        for slot, _, event in output.events:
            if hasattr(event, "logprob"):
                self.logprobs.setdefault(slot, []).append(event.logprob)


def params_of(slot: int) -> SamplingParams:
    """A different mix of options for each request."""
    pick = random.Random(slot)
    return SamplingParams(
        temperature=pick.choice([0.0, 0.7, 1.0]),
        top_k=pick.choice([0, 40]),
        top_p=pick.choice([1.0, 0.9]),
        min_p=pick.choice([0.0, 0.0, 0.05]),
        repetition_penalty=pick.choice([1.0, 1.2]),
        presence_penalty=pick.choice([0.0, 0.5]),
        logit_bias=pick.choice([{}, {5: 2.0, 7: -3.0}]),
        seed=pick.getrandbits(64),
        max_tokens=pick.randint(16, 48),
        min_tokens=pick.choice([0, 8]),
        logprobs=pick.choice([None, 0]),
    )


def tokens_of(runner: Runner, width: int, prompt_kv: str = "seeded", num_requests: int = 48) -> Rig:
    """Run requests that come a few steps apart, at most `width` beside each other."""
    rig, pick = Rig(runner, isinstance(runner, GraphRunner)), random.Random(0)
    for slot in range(num_requests):
        while rig.engine.num_slots >= width:
            rig.engine.step()
        prompt = random.Random(slot).choices(range(1000), k=random.Random(slot).randint(1, 400))
        rig.submit(slot, prompt, params_of(slot), prompt_kv)
        for _ in range(pick.choice([0, 0, 1, 2])):
            rig.engine.step()
    rig.run()
    return rig


def equal(ours: Rig, others: Rig) -> dict[str, Any]:
    """How many requests got the same tokens, and the same bits of log-probability."""
    same = [slot for slot, tokens in ours.tokens.items() if others.tokens.get(slot) == tokens]
    bits = [slot for slot, values in ours.logprobs.items() if others.logprobs.get(slot) == values]
    return {
        "requests": len(ours.tokens),
        "tokens": sum(map(len, ours.tokens.values())),
        "same tokens": len(same),
        "different": sorted(set(ours.tokens) - set(same)),
        "with logprobs": len(ours.logprobs),
        "same bits": len(bits),
    }


def check_tokens() -> Iterator[tuple[str, Any]]:
    """Graphs, plain runner, each request alone: the same tokens."""
    model = llama(2)
    kv = pool_tensor(model, 1024)
    started_s = time.perf_counter()
    graphs = GraphRunner(model, kv, 64, 16384, True, triton_sample.sample)
    graphs.warm_up()
    torch.cuda.synchronize()
    yield "warm-up of two layers, compile cache cold, s", time.perf_counter() - started_s
    plain, ahead = Runner(model, kv), tokens_of(graphs, 40)
    yield "graphs twice", equal(tokens_of(graphs, 40), ahead)
    yield "alone against batches of 40", equal(tokens_of(graphs, 1, num_requests=24), ahead)
    yield "batches of 7 against 40", equal(tokens_of(graphs, 7), ahead)
    graphs._runs_ahead = False
    yield "steps that do not overlap against those that do", equal(tokens_of(graphs, 40), ahead)
    graphs._runs_ahead = True
    yield "plain against graphs", equal(tokens_of(plain, 40), ahead)
    yield "plain 7 against plain 40", equal(tokens_of(plain, 7), tokens_of(plain, 40))
    computed = tokens_of(graphs, 40, "")
    yield "prompts computed here: plain against graphs", equal(tokens_of(plain, 40, ""), computed)
    yield "prompts computed here: batches of 7 against 40", equal(tokens_of(graphs, 7, ""), computed)


def time_steps(runner: Runner, num_seqs: int, params: SamplingParams, num_steps: int) -> dict[str, float]:
    """Engine steps in which every sequence gets a token, in ms."""
    rig = Rig(runner, True)
    for slot in range(num_seqs):
        prompt = random.Random(slot).choices(range(VOCAB), k=CONTEXT)
        rig.submit(slot, prompt, params, "any")
    for _ in range(6):
        rig.engine.step()
    torch.cuda.synchronize()
    times, before = [], sum(map(len, rig.tokens.values()))
    for _ in range(num_steps):
        start = time.perf_counter()
        rig.engine.step()
        times.append(1e3 * (time.perf_counter() - start))
    got = (sum(map(len, rig.tokens.values())) - before) / num_seqs
    rig.engine.close_stream(1)
    times.sort()
    return {
        "TPOT ms": sum(times) / got,
        "P50 ms": statistics.median(times),
        "P99 ms": times[int(0.99 * len(times))],
        "tokens each": got,
    }


def graph_ms(runner: GraphRunner, num_seqs: int) -> float:
    """A replay alone, rows as the last steps left them."""
    size, events = runner._bucket(num_seqs), [torch.cuda.Event(enable_timing=True) for _ in range(2)]
    events[0].record()
    for _ in range(20):
        runner._replay[size]()
    events[1].record()
    events[1].synchronize()
    return events[0].elapsed_time(events[1]) / 20


def kernels_of(runner: GraphRunner, num_seqs: int) -> dict[str, float]:
    """Microseconds of a replay by kernel."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
        for _ in range(NUM_RESULTS):  # the host's count of steps goes round with the device's
            runner._replay[runner._bucket(num_seqs)]()
        torch.cuda.synchronize()
    rows = sorted(profile.key_averages(), key=lambda row: -row.device_time_total)
    return {
        f"{row.key[:60]} x{row.count // NUM_RESULTS}": round(row.device_time_total / NUM_RESULTS, 1)
        for row in rows[:14]
    }


def time_tokens() -> Iterator[tuple[str, Any]]:
    """Time per token with 32 layers."""
    greedy = SamplingParams(temperature=0, ignore_eos=True)
    started_s = time.perf_counter()
    model = llama(32)
    kv = pool_tensor(model, 128 * 20 + 1)
    torch.cuda.synchronize()
    yield "weights and pool, s", time.perf_counter() - started_s
    started_s = time.perf_counter()
    graphs = GraphRunner(model, kv, 256, 16384, True, triton_sample.sample)
    graphs.warm_up()
    torch.cuda.synchronize()
    yield "warm-up of 32 layers, s", time.perf_counter() - started_s
    yield "GPU memory, GB", torch.cuda.memory_reserved() / 1e9
    for num_seqs, vllm_ms in VLLM_MS.items():
        row: dict[str, Any] = {"batch": num_seqs, "vLLM ms": vllm_ms}
        row |= time_steps(graphs, num_seqs, greedy, 100)
        row["vLLM / ours"] = vllm_ms / row["TPOT ms"]
        yield f"greedy {num_seqs}", row
        graphs._runs_ahead = False
        yield f"greedy {num_seqs}, steps do not overlap", time_steps(graphs, num_seqs, greedy, 60)
        row = {"graph ms": graph_ms(graphs, num_seqs)}
        yield f"replay {num_seqs}", row
        graphs._runs_ahead = True
        yield f"sampled {num_seqs}", time_steps(graphs, num_seqs, SAMPLED, 60)
    plain = Runner(model, kv)
    for num_seqs in (1, 32):
        yield f"plain runner {num_seqs}", time_steps(plain, num_seqs, greedy, 20)
    for num_seqs in (1, 128):
        time_steps(graphs, num_seqs, greedy, 4)
        yield f"kernels {num_seqs}", kernels_of(graphs, num_seqs)


def main() -> None:
    """Print and write each result as it comes; an error ends its part alone."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_decode.json")
    parser.add_argument("--seconds", type=float, default=600, help="start nothing new after so long")
    arguments = parser.parse_args()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    deadline = time.perf_counter() + arguments.seconds
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name, value in itertools.chain(check_tokens(), time_tokens()):
        report[name] = value
        passed_s = time.perf_counter() - deadline + arguments.seconds
        print(f"{passed_s:6.1f} s  {name}: {value}", flush=True)
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
        if time.perf_counter() > deadline:
            return


if __name__ == "__main__":
    main()
