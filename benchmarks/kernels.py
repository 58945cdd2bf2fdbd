"""Time every kernel of tests/kernels/cases.py against the copy and matmul speed of the same run.

python benchmarks/kernels.py [--out benchmarks/results/kernels.json] [--only NAME] [--reference]
"""

import argparse
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "kernels")]

import torch  # noqa: E402
from cases import Case, benchmark_cases  # noqa: E402

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
MIN_SECONDS = 0.2
ROW = "{case:76} {us:10.1f} us {GB/s:8.1f} GB/s {GFLOP/s:9.1f} GFLOP/s {of_limit:6.2f} of the limit"


@dataclass(frozen=True)
class Limits:
    """What the machine does in this run: bytes/s of a copy (read and written), flop/s of a bf16 matmul."""

    copy: float
    matmul: float

    @classmethod
    def measure(cls) -> "Limits":
        """A copy far larger than any cache, and a large square product."""
        side = 8192 if DEVICE.type == "cuda" else 1024
        source = torch.zeros(2**30 if DEVICE.type == "cuda" else 2**26, dtype=torch.float32, device=DEVICE)
        target, a = torch.empty_like(source), torch.randn(side, side, dtype=torch.bfloat16, device=DEVICE)
        # An elementwise kernel: in a graph, copy_ becomes a memcpy node, at 2.7 of 4.2 TB/s on an H200.
        copy_s = seconds(lambda: torch.neg(source, out=target))
        return cls(2 * source.nbytes / copy_s, 2 * side**3 / seconds(lambda: a @ a))


def seconds(call: Callable[[], object]) -> float:
    """Time of one call: the best on a CPU, where neighbours only add; median of a graph's calls on CUDA."""
    return _graph_seconds(call) if DEVICE.type == "cuda" else _wall_seconds(call)


def _wall_seconds(call: Callable[[], object]) -> float:
    call()
    times: list[float] = []
    while sum(times) < MIN_SECONDS or len(times) < 5:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times)


def _graph_seconds(call: Callable[[], object], calls: int = 20, repeats: int = 15) -> float:
    call()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(calls):
            call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) / 1e3 / calls)
    return statistics.median(times)


def measure(case: Case, limits: Limits, is_reference: bool) -> dict[str, object]:
    """Time one case and relate it to the slower of its two limits."""
    inputs, function = case.make(DEVICE), case.reference if is_reference else case.wrapper
    # References and unported wrappers read lengths on the host, which a graph cannot hold.
    timer = seconds if case.triton and not is_reference else _synchronised_seconds
    elapsed = timer(lambda: function(*inputs))
    floor_s = max(case.num_bytes / limits.copy, case.num_flops / limits.matmul)
    return {
        "case": case.id,
        "us": elapsed * 1e6,
        "GB/s": case.num_bytes / elapsed / 1e9,
        "GFLOP/s": case.num_flops / elapsed / 1e9,
        "of_limit": floor_s / elapsed,
    }


def _synchronised_seconds(call: Callable[[], object]) -> float:
    if DEVICE.type != "cuda":
        return _wall_seconds(call)

    def run() -> None:
        call()
        torch.cuda.synchronize()

    return _wall_seconds(run)


def main() -> None:
    """Print one line per case and write all of them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results" / "kernels.json")
    parser.add_argument("--only", default="", help="run cases whose id contains this")
    parser.add_argument(
        "--reference", action="store_true", help="time the references instead of the wrappers"
    )
    arguments = parser.parse_args()
    limits, rows = Limits.measure(), []
    print(f"copy {limits.copy / 1e9:.1f} GB/s, bf16 matmul {limits.matmul / 1e9:.0f} GFLOP/s, {DEVICE}")
    for case in benchmark_cases(DEVICE):
        if arguments.only in case.id:
            row = measure(case, limits, arguments.reference)
            rows.append(row)
            print(ROW.format(**row))
    device = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{torch.get_num_threads()} threads"
    report = {"device": device, "torch": torch.__version__, "cores": os.cpu_count(), "limits": vars(limits)}
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    arguments.out.write_text(json.dumps(report | {"rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
