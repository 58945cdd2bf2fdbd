"""What one StepFrame costs at a batch size: built at decode, parsed and demultiplexed at the gateway.

    python benchmarks/step_frame.py --sequences 256 --out benchmarks/results/step_frame.json

CPU microseconds, medians; no sockets. Beside it the cheapest thing that could carry the same columns:
two uint32 arrays and a byte string, packed and unpacked.
"""

import argparse
import json
import os
import platform
import statistics
import time
from array import array
from pathlib import Path

import grpc

from decode_service.outputs import StepOutput
from decode_service.servicer import to_frame
from forebay.v1 import decode_pb2
from gateway.buffer import TokenBuffer
from gateway.decode_link import DecodeLink
from gateway.router import WorkerState


def median_us(work, repeats: int) -> float:
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return 1e6 * statistics.median(times)


def output_of(num_sequences: int) -> StepOutput:
    ids = list(range(1000, 1000 + num_sequences))
    return StepOutput(7, list(range(1, num_sequences + 1)), bytearray(num_sequences), ids)


def raw_packed(output: StepOutput) -> bytes:
    slots, token_ids = array("I", output.slots), array("I", output.token_ids)
    return slots.tobytes() + token_ids.tobytes() + bytes(output.choices)


def raw_unpacked(packed: bytes, num: int) -> list[tuple[int, int, int]]:
    columns = array("I", packed[: 8 * num])
    return list(zip(columns[:num], columns[num:], packed[8 * num :], strict=True))


def link_with(num_sequences: int) -> DecodeLink:
    """A link with `num_sequences` open slots; its channel is never used."""
    link = DecodeLink(grpc.aio.insecure_channel("127.0.0.1:1"), WorkerState("worker"))
    link._buffers = {slot: TokenBuffer(1, 1 << 30, lambda: None) for slot in range(1, num_sequences + 1)}
    return link


def measure(num_sequences: int, repeats: int) -> dict[str, float]:
    output = output_of(num_sequences)
    packed, frame = to_frame(output).SerializeToString(), to_frame(output)
    raw, link = raw_packed(output), link_with(num_sequences)
    rows = {
        "build_and_serialise_us": median_us(lambda: to_frame(output).SerializeToString(), repeats),
        "parse_us": median_us(lambda: decode_pb2.StepFrame.FromString(packed), repeats),
        "demultiplex_us": median_us(lambda: link._on_frame(frame), repeats),
        "raw_columns_us": median_us(lambda: raw_unpacked(raw_packed(output), num_sequences), repeats),
        "frame_bytes": float(len(packed)),
        "raw_bytes": float(len(raw)),
    }
    both = rows["build_and_serialise_us"] + rows["parse_us"] + rows["demultiplex_us"]
    return rows | {"per_token_us": both / num_sequences}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sequences", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=2001)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    rows = measure(args.sequences, args.repeats)
    machine = {"cores": os.cpu_count(), "python": platform.python_version(), "processor": platform.machine()}
    for name, value in rows.items():
        print(f"{name:28} {value:10.2f}")
    if args.out:
        report = {"machine": machine, "sequences": args.sequences, "rows": rows}
        args.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
