# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Gluon reads parameter annotations as its own types, so kernels carry only gl.constexpr.)
"""Linear layers of 1 to 64 tokens on Hopper: weights streamed through a deep TMA ring, in Gluon.

The weight is the M operand of wgmma and the tokens are its N operand, so 16 tokens cost no more than one.
Programs are persistent and a producer warp keeps the ring full across tiles. Each output is summed over K in
order by one program: its bits depend neither on the batch nor on the number of programs, and are those of
cuBLAS at 512 tokens and more (Llama-3.1-8B shapes, H200).

Shapes: M tokens, K inputs, N outputs; BN = 64 weight rows a tile, BM tokens, BK inputs a step. Matrices are
loaded as [BK / 64, rows, 64] boxes, the order of wgmma's swizzled operands: one TMA instruction a tile.
"""

from typing import Any

import torch
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma, warpgroup_mma, warpgroup_mma_wait
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

MAX_TOKENS = 64
_BN = 64
_BK = 128
_RING_BYTES = 208 * 1024  # of 227 KiB shared memory; barriers and the output tile take the rest
_BOX_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
_TILE_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)


@gluon.jit
def _stream(w_desc, x_desc, w_bufs, x_bufs, full, empty, num_tiles, num_steps, PDL: gl.constexpr):
    """Producer warp: fetch the weight and token tiles of this program's steps."""
    STAGES: gl.constexpr = w_bufs.type.shape[0]
    CHUNKS: gl.constexpr = w_bufs.type.shape[1]
    BN: gl.constexpr = w_bufs.type.shape[2]
    BYTES: gl.constexpr = (BN + x_bufs.type.shape[2]) * CHUNKS * 128
    program = gl.program_id(0)
    num_programs = gl.num_programs(0)
    total = (num_tiles - program + num_programs - 1) // num_programs * num_steps
    head = gl.minimum(total, STAGES)
    for i in range(head):
        row = (program + i // num_steps * num_programs) * BN
        mbarrier.expect(full.index(i), BYTES)
        tma.async_copy_global_to_shared(
            w_desc, [i % num_steps * CHUNKS, row, 0], full.index(i), w_bufs.index(i)
        )
    if PDL:
        gdc_wait()  # weights are constant; tokens come from the kernel before
    for i in range(head):
        tma.async_copy_global_to_shared(
            x_desc, [i % num_steps * CHUNKS, 0, 0], full.index(i), x_bufs.index(i)
        )
    for i in range(head, total):
        stage = i % STAGES
        row = (program + i // num_steps * num_programs) * BN
        chunk = i % num_steps * CHUNKS
        bar = full.index(stage)
        mbarrier.wait(empty.index(stage), (i // STAGES & 1) ^ 1)
        mbarrier.expect(bar, BYTES)
        tma.async_copy_global_to_shared(w_desc, [chunk, row, 0], bar, w_bufs.index(stage))
        tma.async_copy_global_to_shared(x_desc, [chunk, 0, 0], bar, x_bufs.index(stage))


@gluon.jit
def _multiply(
    out,
    bias,
    w_bufs,
    x_bufs,
    full,
    empty,
    M,
    N,
    num_tiles,
    num_steps,
    HAS_BIAS: gl.constexpr,
    TILE: gl.constexpr,
):
    """Consumer warpgroup: acc [BN, BM] += W Xᵀ, one step in flight while the next is awaited."""
    STAGES: gl.constexpr = w_bufs.type.shape[0]
    BK: gl.constexpr = w_bufs.type.shape[1] * 64
    BN: gl.constexpr = w_bufs.type.shape[2]
    BM: gl.constexpr = x_bufs.type.shape[2]
    ACC: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BM, 16])
    STORE: gl.constexpr = gl.BlockedLayout([2, 1], [32, 1], [1, 4], [0, 1])
    i = 0
    for tile in range(gl.program_id(0), num_tiles, gl.num_programs(0)):
        acc = gl.zeros([BN, BM], gl.float32, ACC)
        for k in range(num_steps):
            stage = i % STAGES
            mbarrier.wait(full.index(stage), i // STAGES & 1)
            w = w_bufs.index(stage)._reinterpret(gl.bfloat16, [BN, BK], TILE)
            x = x_bufs.index(stage)._reinterpret(gl.bfloat16, [BM, BK], TILE)
            acc = warpgroup_mma(w, x.permute((1, 0)), acc, is_async=True)
            acc = warpgroup_mma_wait(1, deps=(acc,))
            mbarrier.arrive(empty.index((i + STAGES - 1) % STAGES), pred=k > 0)
            i += 1
        acc = warpgroup_mma_wait(0, deps=(acc,))
        mbarrier.arrive(empty.index((i + STAGES - 1) % STAGES))
        n = tile * BN + gl.arange(0, BN, layout=gl.SliceLayout(1, STORE))
        m = gl.arange(0, BM, layout=gl.SliceLayout(0, STORE))
        value = gl.convert_layout(acc, STORE)
        if HAS_BIAS:
            value += gl.load(bias + n, mask=n < N, other=0.0).to(gl.float32)[:, None]
        mask = (n < N)[:, None] & (m < M)[None, :]
        gl.store(out + m[None, :] * N + n[:, None], value.to(gl.bfloat16), mask=mask)


@gluon.jit(do_not_specialize=["M"])
def decode_linear_kernel(
    w_desc, x_desc, out, bias, M, N, num_steps, HAS_BIAS: gl.constexpr, BN: gl.constexpr, BM: gl.constexpr,
    CHUNKS: gl.constexpr, STAGES: gl.constexpr, TILE: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """out [M, N] = x [M, K] w [N, K]ᵀ + bias, K in num_steps steps of CHUNKS * 64."""
    w_bufs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, CHUNKS, BN, 64], w_desc.layout)
    x_bufs = gl.allocate_shared_memory(gl.bfloat16, [STAGES, CHUNKS, BM, 64], x_desc.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    empty = gl.allocate_shared_memory(gl.int64, [STAGES, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(STAGES):
        mbarrier.init(full.index(i), count=1)
        mbarrier.init(empty.index(i), count=1)
    if PDL:
        gdc_launch_dependents()
    num_tiles = (N + BN - 1) // BN
    gl.warp_specialize(
        [
            (_multiply, (out, bias, w_bufs, x_bufs, full, empty, M, N, num_tiles, num_steps, HAS_BIAS, TILE)),
            (_stream, (w_desc, x_desc, w_bufs, x_bufs, full, empty, num_tiles, num_steps, PDL)),
        ],
        [1],
        [40],
    )


def supports(x: Tensor, weight: Tensor) -> bool:
    """True for what the kernel takes: 1 to 64 bf16 tokens on Hopper, K a multiple of 64."""
    is_hopper = x.is_cuda and torch.cuda.get_device_capability(x.device)[0] == 9
    is_shape = 1 <= len(x) <= MAX_TOKENS and weight.shape[1] % 64 == 0
    return is_hopper and x.dtype == weight.dtype == torch.bfloat16 and is_shape


def decode_linear(
    x: Tensor, weight: Tensor, bias: Tensor | None = None, num_programs: int | None = None, pdl: bool = True
) -> Tensor:
    """Launch: x [M, K] bf16, weight [N, K] -> [M, N]. num_programs is at most one a multiprocessor by
    default.

    With pdl the kernel may start, and read weights, before the kernel ahead of it has finished.
    """
    num_tokens, num_inputs = x.shape
    num_outputs = len(weight)
    out = torch.empty(num_tokens, num_outputs, dtype=x.dtype, device=x.device)
    tokens = next(size for size in (16, 32, 64) if num_tokens <= size)
    stages = _RING_BYTES // ((_BN + tokens) * _BK * 2)
    programs = num_programs or torch.cuda.get_device_properties(x.device).multi_processor_count
    num_tiles = -(-num_outputs // _BN)
    tiles_each = -(-num_tiles // programs)
    # No more programs than it takes to finish in as many rounds: they end together (gate_up: 112 of 132).
    decode_linear_kernel[(-(-num_tiles // tiles_each),)](
        _boxes(weight, _BN), _boxes(x.contiguous(), tokens), out, out if bias is None else bias, num_tokens,
        num_outputs, -(-num_inputs // _BK), bias is not None, _BN, tokens, _BK // 64, stages, _TILE_LAYOUT,
        pdl,
        num_warps=4, maxnreg=128, launch_pdl=pdl,
    )  # fmt: skip
    return out


def _boxes(matrix: Tensor, rows: int) -> Any:
    """Describe matrix [R, K] as [K / 64, R, 64] in boxes of [BK / 64, rows, 64]."""
    num_rows, num_columns = matrix.shape
    shape, strides = [num_columns // 64, num_rows, 64], [64, num_columns, 1]
    return TensorDescriptor(matrix, shape, strides, [_BK // 64, rows, 64], _BOX_LAYOUT)
