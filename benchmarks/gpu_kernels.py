"""Kernels of the GPU path beside their peers, at Llama-3.1-8B shapes: attention, decode linears, sampling.

python benchmarks/gpu_kernels.py [--out benchmarks/results/gpu_kernels.json] [--only PART]

Every row is checked against float64 or the reference before it is timed. Times are medians of CUDA graph
replays over inputs rotated out of the L2 cache.
"""
# ruff: noqa: B023, E731 - calls are timed before their loop goes on

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from forebay.kernels import gluon_decode_linear, sample_reference, triton_sample  # noqa: E402
from forebay.kernels.split_attention import plan_items, split_attention  # noqa: E402
from prefill_service.kernels.gluon_paged_prefill import paged_prefill_attention  # noqa: E402

HEADS, KV_HEADS, BLOCK = 32, 8, 64
WARM_S = 0.03  # right after a float64 check the first calls ran 10% slower
ROTATED_BYTES = 400e6  # several times the L2 cache
LINEARS = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (28672, 4096), "down": (4096, 14336)}
LINEARS |= {"lm_head": (128256, 4096)}
SAMPLED = {
    "greedy": (0.0, 0, 1.0, 0.0),
    "temperature": (1.0, 0, 1.0, 0.0),
    "top_k 50, top_p 0.9": (1.0, 50, 0.9, 0.0),
    "top_p 0.9": (1.0, 0, 0.9, 0.0),
    "min_p 0.02": (1.0, 0, 1.0, 0.02),
}


def microseconds(calls: list[Callable[[], object]], repeats: int = 15) -> float:
    """Time of one call: a graph of all of them, replayed."""
    for call in calls[:2]:
        call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    warm = time.perf_counter() + WARM_S
    while time.perf_counter() < warm:
        graph.replay()
        torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3 / len(calls))
    return statistics.median(times)


def error(actual: Tensor, expected: Tensor) -> float:
    """Relative RMS; NaN where an output was not written."""
    return float((actual.double() - expected.double()).norm() / expected.double().norm())


def bf16(*shape: int) -> Tensor:
    """Random normal values."""
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def paged(num_seqs: int, length: int, head_dim: int) -> tuple[Tensor, Tensor, Tensor]:
    """A pool layer, shuffled block tables and context lengths."""
    width = -(-length // BLOCK)
    tables = (torch.randperm(num_seqs * width, device="cuda") + 1).view(num_seqs, width).int()
    lengths = torch.full((num_seqs,), length, device="cuda", dtype=torch.int32)
    return bf16(num_seqs * width + 1, 2, KV_HEADS, BLOCK, head_dim), tables, lengths


def dense(pool: Tensor, tables: Tensor) -> tuple[Tensor, Tensor]:
    """Keys and values [S, Hkv, C, D] of a pool, contiguous, for peers."""
    pages = pool[tables.long()].permute(2, 0, 3, 1, 4, 5)
    keys, values = pages.reshape(2, len(tables), KV_HEADS, -1, pool.shape[-1]).contiguous()
    return keys, values


def exact(q: Tensor, keys: Tensor, values: Tensor, length: int) -> Tensor:
    """Float64 attention of the last rows of one sequence: q [Q, Hq, D] at positions length - Q and up."""
    group = q.shape[1] // keys.shape[0]
    k, v = (x[:, :length].double().repeat_interleave(group, 0) for x in (keys, values))
    scores = torch.einsum("qhd,hkd->hqk", q.double(), k) * q.shape[2] ** -0.5
    hidden = (
        torch.arange(length, device="cuda") > torch.arange(length - len(q), length, device="cuda")[:, None]
    )
    return torch.einsum("hqk,hkd->qhd", scores.masked_fill_(hidden, -torch.inf).softmax(-1), v)


def prefill_rows() -> list[dict[str, Any]]:
    """Causal prompts, whole and with a cached prefix; peer cuDNN SDPA on contiguous, unpaged KV."""
    rows = []
    shapes = [
        (d, s, c, c) for d in (128, 64) for s, c in ((1, 2048), (8, 2048), (1, 8192), (2, 8192), (1, 32768))
    ]
    for head_dim, num_seqs, length, run in [*shapes, (128, 1, 8192, 2048), (128, 1, 32768, 4096)]:
        pool, tables, lengths = paged(num_seqs, length, head_dim)
        q = bf16(num_seqs * run, HEADS, head_dim)
        ends = torch.arange(num_seqs + 1, device="cuda", dtype=torch.int32) * run
        call = lambda: paged_prefill_attention(q, pool, tables, ends, lengths, head_dim**-0.5)
        keys, values = dense(pool, tables)
        out, tail = call(), min(64, run)
        wrong = error(out[-tail:], exact(q[-tail:], keys[-1], values[-1], length))
        part = paged_prefill_attention(
            q[-100:], pool, tables[-1:], ends[:2].clamp_max(100), lengths[-1:], head_dim**-0.5
        )
        flops = 4 * num_seqs * HEADS * head_dim * run * (length - run / 2)
        row = {"head_dim": head_dim, "sequences": num_seqs, "context": length, "queries": run, "error": wrong}
        row |= {
            "bits of a chunk": torch.equal(part, out[-100:]),
            "TFLOP/s": flops / microseconds([call] * 3, 7) / 1e6,
        }
        if run == length:
            dense_q = q.view(num_seqs, run, HEADS, head_dim).transpose(1, 2).contiguous()
            with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                peer = lambda: functional.scaled_dot_product_attention(
                    dense_q,
                    keys,
                    values,
                    is_causal=True,
                    enable_gqa=True,
                )
                row["cuDNN TFLOP/s"] = flops / microseconds([peer] * 3, 7) / 1e6
            row["ratio"] = row["TFLOP/s"] / row["cuDNN TFLOP/s"]
        rows.append(row)
    return rows


def linear_rows() -> list[dict[str, Any]]:
    """Decode linears; peer cuBLAS."""
    rows = []
    for name, (num_outputs, num_inputs) in LINEARS.items():
        copies = max(2, int(ROTATED_BYTES // (num_outputs * num_inputs * 2)) + 1)
        weights = [bf16(num_outputs, num_inputs) * 0.02 for _ in range(copies)]
        tokens, bits = bf16(512, num_inputs), []
        for num_tokens in (1, 8, 16, 32, 64):
            x = tokens[:num_tokens].contiguous()
            out = gluon_decode_linear.decode_linear(x, weights[-1])
            wrong = error(out, x.double() @ weights[-1].double().T)
            bits.append(out[0].clone())
            ours = microseconds([lambda w=w: gluon_decode_linear.decode_linear(x, w) for w in weights])
            peer = microseconds([lambda w=w: functional.linear(x, w) for w in weights])
            row = {"linear": name, "tokens": num_tokens, "error": wrong, "us": ours, "cuBLAS us": peer}
            rows.append(row | {"ratio": peer / ours, "TB/s": weights[0].nbytes / ours / 1e6})
        rows[-1]["same bits at all sizes"] = all(torch.equal(bits[0], other) for other in bits)
        rows[-1]["bits of cuBLAS at 512"] = torch.equal(bits[0], functional.linear(tokens, weights[-1])[0])
    return rows


def split_rows() -> list[dict[str, Any]]:
    """Decode and verification; peer cuDNN SDPA with one query on contiguous KV."""
    rows = []
    for num_seqs, length in ((1, 1024), (1, 8192), (8, 1024), (32, 2048), (128, 2048), (8, 32768)):
        pool, tables, lengths = paged(num_seqs, length, 128)
        num_bytes = num_seqs * length * 2 * KV_HEADS * 128 * 2
        pools = [pool, *(pool.clone() for _ in range(max(1, int(ROTATED_BYTES / 2 // num_bytes))))]
        pairs = [dense(p, tables) for p in pools]
        for run in (1, 4, 8, 16):
            q = bf16(num_seqs * run, HEADS, 128)
            ends = torch.arange(num_seqs + 1, device="cuda", dtype=torch.int32) * run
            items = plan_items(pool, HEADS, tables, ends, lengths, len(q))
            calls = [
                lambda p=p: split_attention(q, p, tables, ends, lengths, 128**-0.5, None, items)
                for p in pools
            ]
            wrong = error(calls[0]()[:run], exact(q[:run], *(x[0] for x in pairs[0]), length))
            ours = microseconds(calls)
            row = {"sequences": num_seqs, "context": length, "queries": run, "error": wrong, "us": ours}
            row["TB/s"] = num_bytes / ours / 1e6
            if run == 1:
                dense_q = q[:, :, None]
                with sdpa_kernel(SDPBackend.CUDNN_ATTENTION):
                    peers = [
                        lambda k=k, v=v: functional.scaled_dot_product_attention(
                            dense_q, k, v, enable_gqa=True
                        )
                        for k, v in pairs
                    ]
                    row["cuDNN us"] = microseconds(peers)
                row["ratio"] = row["cuDNN us"] / ours
            rows.append(row)
        for row in rows[-3:]:
            row["times one query"] = row["us"] / rows[-4]["us"]
    return rows


def sampling_state(num_rows: int, num_ids: int, parameters: tuple[float, int, float, float]) -> Any:
    """One kind of row."""
    full = lambda value: torch.full((num_rows,), float(value), device="cuda")
    ints = lambda value: torch.full((num_rows,), value, device="cuda", dtype=torch.int32)
    temperature, top_k, top_p, min_p = parameters
    order = torch.arange(num_rows, device="cuda")
    edits = torch.zeros(num_rows, 4, device="cuda")
    return triton_sample.SamplingState(
        *(full(temperature), ints(top_k), full(top_p), full(min_p), full(1), full(0), full(0)),
        *(order * 7919 + 1, order, ints(0), edits.int(), edits, ints(-1)),
        torch.zeros(1, num_ids, dtype=torch.int32, device="cuda"),
    )


def sorted_sample(logits: Tensor) -> Tensor:
    """The peer: sort, top-k 50, top-p 0.9, multinomial."""
    values, ids = logits.sort(-1, descending=True)
    values[:, 50:] = -torch.inf
    weights = values.softmax(-1)
    weights = torch.where(weights.cumsum(-1) - weights > 0.9, 0, weights)
    return ids.gather(1, torch.multinomial(weights, 1))


def sample_rows() -> list[dict[str, Any]]:
    """Sampling of 128256 ids; peer a sort in torch. scale: standard deviation of the logits (1 is flat)."""
    rows = []
    for num_rows in (1, 32, 256):
        for scale in (1.0, 4.0):
            logits = scale * torch.randn(num_rows, 128256, device="cuda")
            peer = microseconds([lambda: sorted_sample(logits)] * 2)
            for name, parameters in SAMPLED.items():
                state = sampling_state(num_rows, 128256, parameters)
                tokens, _ = triton_sample.sample(logits, state)
                ours = microseconds([lambda: triton_sample.sample(logits, state)] * 4)
                row = {
                    "rows": num_rows,
                    "scale": scale,
                    "parameters": name,
                    "us": ours,
                    "torch sort us": peer,
                }
                row |= {
                    "ratio": peer / ours,
                    "equal to the reference": _is_reference(tokens[:8], logits[:8], state),
                }
                rows.append(row)
    return rows


def _is_reference(tokens: Tensor, logits: Tensor, state: Any) -> bool:
    num_rows = len(tokens)
    if state.temperature[0] == 0:
        return torch.equal(tokens, logits.argmax(-1))
    scaled = logits.cpu() / state.temperature[:num_rows, None].cpu()
    limits = (state.top_k.long(), state.top_p.double(), state.min_p.double())
    # The parameters were rounded to float32 on the GPU.
    threshold = sample_reference.truncation_threshold(scaled, *(limit[:num_rows].cpu() for limit in limits))
    noise = state.seeds[:num_rows].cpu(), state.positions[:num_rows].cpu()
    return torch.equal(tokens.cpu(), sample_reference.gumbel_argmax(scaled, threshold, *noise))


PARTS = {"prefill": prefill_rows, "linear": linear_rows, "split": split_rows, "sample": sample_rows}


def main() -> None:
    """Print a line per row and write all as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "gpu_kernels.json")
    parser.add_argument("--only", choices=PARTS)
    arguments = parser.parse_args()
    torch.manual_seed(0)
    report: dict[str, Any] = {"device": torch.cuda.get_device_name(), "torch": torch.__version__}
    for name in [arguments.only] if arguments.only else PARTS:
        report[name] = PARTS[name]()
        for row in report[name]:
            shown = {
                k: round(v, 5 if k == "error" else 3) if isinstance(v, float) else v for k, v in row.items()
            }
            print(name, json.dumps(shown), flush=True)
        torch.cuda.empty_cache()
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
