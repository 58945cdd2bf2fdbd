"""Compile every Triton kernel for sm_90 without a GPU and print its resources as JSON; run as a script."""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from triton.runtime import JITFunction

from decode_service.kernels import triton_paged_decode as decode
from forebay.kernels import triton_rms_norm as norm

CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


def compile_kernel(
    fn: JITFunction,
    types: dict[str, str],
    constants: dict,
    num_warps: int,
    num_stages: int,
    by_16: tuple = (),
) -> dict:
    """Return registers, stack bytes, shared memory bytes and counts of the instructions that matter."""
    names = fn.arg_names
    source = ASTSource(
        fn,
        {name: "constexpr" if name in constants else types[name] for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        # A launch sees that pointers and the integers in by_16 are multiples of 16; that vectorises loads.
        {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if name not in constants and (types[name].startswith("*") or name in by_16)
        },
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    kernel = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage, sass = (_dump(flag, cubin.name) for flag in ("--dump-resource-usage", "--dump-sass"))
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared_bytes": kernel.metadata.shared,
        "spills": len(re.findall(r"\b(?:LDL|STL)", sass)),
        "async_copies": len(re.findall(r"\bLDGSTS", sass)),
        "mma": len(re.findall(r"\bHMMA", sass)),
    }


def _dump(flag: str, path: str) -> str:
    return subprocess.run([CUOBJDUMP, flag, path], capture_output=True, text=True, check=True).stdout


def compile_split(kv_heads: int, group: int, head_dim: int, block_size: int) -> dict:
    """The split kernel of paged decode in bf16."""
    pointers = {"p_q": "*bf16", "p_kv": "*bf16", "p_tables": "*i32", "p_lens": "*i32"}
    partials = {"p_acc": "*fp32", "p_top": "*fp32", "p_total": "*fp32"}
    scalars = {"scale_log2": "fp32", "table_stride": "i32", "num_splits": "i32"}
    constants = {
        "NUM_KV_HEADS": kv_heads,
        "GROUP": group,
        "HEAD_DIM": head_dim,
        "BLOCK_SIZE": block_size,
        "SPLIT": decode.SPLIT_SIZE,
        "ROWS": 16,
        "TILE": 64,
    }
    return compile_kernel(decode.split_kernel, pointers | partials | scalars, constants, 4, 3)


def compile_combine(num_heads: int, head_dim: int) -> dict:
    """The combine kernel of paged decode."""
    partials = {"p_acc": "*fp32", "p_top": "*fp32", "p_total": "*fp32"}
    types = partials | {"p_lens": "*i32", "p_out": "*bf16", "num_splits": "i32"}
    constants = {"NUM_HEADS": num_heads, "HEAD_DIM": head_dim, "SPLIT": decode.SPLIT_SIZE}
    return compile_kernel(decode.combine_kernel, types, constants, 1, 3)


def compile_norm(columns: int, has_residual: bool) -> dict:
    """RMSNorm in bf16."""
    types = {
        "p_x": "*bf16",
        "p_residual": "*bf16",
        "p_weight": "*bf16",
        "p_out": "*bf16",
        "p_new_residual": "*bf16",
    }
    types |= {"num_columns": "i32", "row_stride": "i32", "eps": "fp32"}
    constants = {"HAS_RESIDUAL": has_residual, "BLOCK": triton.next_power_of_2(columns)}
    if not has_residual:
        constants |= {"p_residual": None, "p_new_residual": None}
    num_warps = 8 if columns > 2048 else 4
    return compile_kernel(norm.rms_norm_kernel, types, constants, num_warps, 3, ("num_columns", "row_stride"))


def main() -> None:
    """Compile the serving shapes: Llama-3.1-8B, SmolLM2-135M, Qwen3-0.6B."""
    results = {
        "split Llama-8B block 64": compile_split(8, 4, 128, 64),
        "split Llama-8B block 16": compile_split(8, 4, 128, 16),
        "split SmolLM2 block 64": compile_split(3, 3, 64, 64),
        "split Qwen3 block 64": compile_split(8, 2, 128, 64),
        "combine Llama-8B": compile_combine(32, 128),
        "combine SmolLM2": compile_combine(9, 64),
        "rms_norm 4096": compile_norm(4096, False),
        "add_rms_norm 4096": compile_norm(4096, True),
        "add_rms_norm 576": compile_norm(576, True),
    }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
