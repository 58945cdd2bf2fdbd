"""Compile the Gluon kernels, and the Triton ones launched beside them, for sm_90 without a GPU; prints JSON.

Kernels go through `warmup`, as a launch would, on a driver that only names the target.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
import triton
from triton.backends import nvidia
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

CUOBJDUMP = Path(nvidia.__file__).parent / "bin" / "cuobjdump"


class Target:
    """A driver for compiling: no device, no stream."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int | None = None) -> int:
        return 0


driver.set_active(Target())

from decode_service.kernels import triton_step  # noqa: E402
from forebay.kernels import gluon_decode_linear as linear  # noqa: E402
from forebay.kernels import gluon_split_attention as split  # noqa: E402
from forebay.kernels import triton_rope_write, triton_sample, triton_split_attention, triton_split_items  # noqa: E402
from forebay.kernels import triton_swiglu as swiglu  # noqa: E402
from kv_store.kernels import triton_pack  # noqa: E402
from prefill_service.kernels import gluon_paged_prefill as prefill  # noqa: E402
from prefill_service.kernels import triton_paged_prefill  # noqa: E402

F32, BF16 = torch.empty(4096), torch.empty(4096, dtype=torch.bfloat16)
I32, I64 = torch.zeros(4096, dtype=torch.int32), torch.zeros(64, dtype=torch.int64)


def resources(kernel: triton.compiler.CompiledKernel) -> dict[str, int]:
    """Registers, stack bytes, shared memory bytes and counts of the instructions that matter."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as cubin:
        cubin.write(kernel.asm["cubin"])
        cubin.flush()
        usage, sass = (
            subprocess.run([CUOBJDUMP, flag, cubin.name], capture_output=True, text=True, check=True).stdout
            for flag in ("--dump-resource-usage", "--dump-sass")
        )
    return {
        "registers": int(re.search(r"REG:(\d+)", usage)[1]),
        "stack_bytes": int(re.search(r"STACK:(\d+)", usage)[1]),
        "shared_bytes": kernel.metadata.shared,
        "spills": len(re.findall(r"\b(?:LDL|STL)", sass)),
        "wgmma": len(re.findall(r"\bHGMMA", sass)),
        "mma": len(re.findall(r"\bHMMA", sass)),
        "tma_loads": len(re.findall(r"\bUTMALDG", sass)),
    }


def compile_prefill(num_heads: int, num_kv_heads: int, head_dim: int) -> dict[str, int]:
    """Prompt attention with its shipped tiles."""
    q = torch.empty(512, num_heads * head_dim, dtype=torch.bfloat16)
    kv = torch.empty(9 * 2 * num_kv_heads * 64, head_dim, dtype=torch.bfloat16)
    lengths = (64, 17, num_heads, num_kv_heads, 0.1)
    tile = (head_dim, *prefill._TILES[head_dim], prefill._BOX_LAYOUT)
    arguments = (prefill._boxes(q), prefill._boxes(kv), q, I32, I32, I32, *lengths, *tile)
    maxnreg = 168 if tile[1] == 128 else 128
    return resources(prefill._prefill_kernel.warmup(*arguments, num_warps=4, maxnreg=maxnreg, grid=(132,)))


def compile_linear(tokens: int) -> dict[str, int]:
    """A decode linear of 4096 inputs."""
    weight, x = (torch.empty(n, 4096, dtype=torch.bfloat16) for n in (6144, tokens))
    stages = linear._RING_BYTES // ((linear._BN + tokens) * linear._BK * 2)
    shape = (tokens, 6144, 32, False, linear._BN, tokens, linear._BK // 64, stages, linear._TILE_LAYOUT, True)
    arguments = (linear._boxes(weight, linear._BN), linear._boxes(x, tokens), x, x, *shape)
    options = {"num_warps": 4, "maxnreg": 128, "launch_pdl": True}
    return resources(linear.decode_linear_kernel.warmup(*arguments, **options, grid=(132,)))


def compile_split(num_kv_heads: int, group: int, head_dim: int, rows: int) -> dict[str, int]:
    """Split attention with a query tile of `rows`."""
    kv = torch.empty(9, 2, num_kv_heads, 64, head_dim, dtype=torch.bfloat16)
    tensors = (BF16, split._boxes(kv), I32, I32, I32, I32, F32, F32, F32)
    shape = (num_kv_heads, group, head_dim, split._CHUNK, rows, split._SLOTS, split._TILE_LAYOUT, False)
    options = {"num_warps": rows // 16, "launch_pdl": True}
    return resources(split.split_kernel.warmup(*tensors, 0.1, 64, 16, *shape, **options, grid=(528,)))


def compile_sample() -> dict[str, dict[str, int]]:
    """The four sampling kernels over 128256 ids."""
    cut, blocks = (F32, I32, F32, F32), triton.next_power_of_2(triton.cdiv(128256, triton_sample.BLOCK))
    size, num_ids, num_blocks = triton_sample.BLOCK, 128256, triton.cdiv(128256, triton_sample.BLOCK)
    kept, row = triton_sample.CANDIDATES, (F32, F32, F32, I64, I64, I32, I32, F32, I32, I32)
    scores = (F32, F32, I32, F32, F32, F32, num_ids, 16, num_blocks, size)
    picks = (I64, I64, I32, I32, F32, I32, F32, F32, F32, I32, F32, F32, I32, I64, F32)
    kernels = {
        "score": triton_sample.score_kernel.warmup(F32, *cut, *row, *scores, num_warps=4, grid=(1,)),
        "mass": triton_sample.mass_kernel.warmup(
            F32, *cut, F32, I32, F32, num_ids, num_blocks, size, blocks, num_warps=4, grid=(1,)
        ),
        "gather": triton_sample.gather_kernel.warmup(
            F32,
            *cut,
            F32,
            I32,
            F32,
            F32,
            I32,
            num_ids,
            num_blocks,
            size,
            blocks,
            kept,
            num_warps=8,
            grid=(1,),
        ),
        "pick": triton_sample.pick_kernel.warmup(
            F32, F32, *cut, *picks, num_ids, num_blocks, blocks, kept, num_warps=16, grid=(1,)
        ),
    }
    return {f"sample {name}": resources(kernel) for name, kernel in kernels.items()}


def compile_small() -> dict[str, dict[str, int]]:
    """The memory-bound kernels and the portable attention, in bf16."""
    pdl = {"num_warps": 4, "launch_pdl": True, "grid": (1,)}
    rope = (BF16, F32, F32, I64, I64, BF16, BF16, 32, 8, 64, 64, 64, 16, True)
    run = (BF16, BF16, I32, I32, I32, None, F32, F32, F32, 0.1, 64, 5, 16, 8, 4, 128, 64, 512)
    chunk = (BF16, BF16, I32, I32, I32, BF16, 0.1, 64, 5)
    merge = (F32, F32, F32, I32, I32, BF16, 5, 16, 32, 128, 256, 16, 128, True)
    kernels = {
        "rope_write": triton_rope_write.rope_write_kernel.warmup(*rope, **pdl),
        "swiglu": swiglu.swiglu_kernel.warmup(BF16, BF16, 14336, 1024, True, **pdl),
        "pack": triton_pack.move_kernel.warmup(
            I64, I64, I64, 32, 1000, 16384, False, 2048, num_warps=8, grid=(1,)
        ),
        "items": triton_split_items.items_kernel.warmup(
            I32, I32, I32, I32, 5, 256, 4, 128, num_warps=1, grid=(1,)
        ),
        "combine": triton_split_attention.combine_kernel.warmup(*merge, **pdl | {"num_warps": 1}),
        "portable split": triton_split_attention.split_kernel.warmup(
            *run, 4, 16, 32, 128, False, True, 3, **pdl
        ),
        "portable prefill": triton_paged_prefill.prefill_kernel.warmup(
            *chunk, 8, 4, 128, 128, 64, 16, 64, 64, num_warps=4, num_stages=3, grid=(1,)
        ),
    }
    begin = (*(I32,) * 10, I64, I64, I32, I32, I64, I64, I64, I64, I32, I32, 2048, 256, 64, 256)
    end = (I64, F32, I64, I64, I32, I32, I64, 256, 256, 4, 256)
    kernels |= {
        "begin_step": triton_step.begin_kernel.warmup(*begin, num_warps=1, grid=(1,)),
        "end_step": triton_step.end_kernel.warmup(*end, num_warps=1, grid=(1,)),
    }
    return {name: resources(kernel) for name, kernel in kernels.items()}


def main() -> None:
    """Compile the serving shapes: Llama-3.1-8B, SmolLM2-135M."""
    results = {
        "prefill Llama-8B": compile_prefill(32, 8, 128),
        "prefill SmolLM2": compile_prefill(9, 3, 64),
        **{f"linear {tokens} tokens": compile_linear(tokens) for tokens in (16, 32, 64)},
        "split Llama-8B": compile_split(8, 4, 128, 16),
        "split Llama-8B run of 8": compile_split(8, 4, 128, 32),
        "split SmolLM2": compile_split(3, 3, 64, 16),
        **compile_sample(),
        **compile_small(),
    }
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
