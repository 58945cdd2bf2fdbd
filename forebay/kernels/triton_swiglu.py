# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""Triton SwiGLU: one pass over the fused gate and up projections.

Names: p_ pointer, b_ block in registers, i_ program index, o_ offsets, m_ mask.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

_BLOCK = 1024


@triton.jit
def swiglu_kernel(p_gate_up, p_out, num_columns, BLOCK: tl.constexpr, PDL: tl.constexpr):
    """out [T, F] = silu(gate) * up, computed in float32; gate_up is [T, 2F]."""
    if PDL:
        gdc_launch_dependents()
        gdc_wait()
    i_row = tl.program_id(0).to(tl.int64)
    o_column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    m_column = o_column < num_columns
    p_gate = p_gate_up + i_row * (2 * num_columns) + o_column
    b_gate = tl.load(p_gate, mask=m_column, other=0.0).to(tl.float32)
    b_up = tl.load(p_gate + num_columns, mask=m_column, other=0.0).to(tl.float32)
    b_out = b_gate / (1.0 + tl.exp(-b_gate)) * b_up
    tl.store(p_out + i_row * num_columns + o_column, b_out.to(p_out.dtype.element_ty), mask=m_column)


def swiglu(gate_up: Tensor) -> Tensor:
    """Launch: [T, 2F] -> [T, F]."""
    num_rows, num_columns = len(gate_up), gate_up.shape[1] // 2
    out = torch.empty(num_rows, num_columns, dtype=gate_up.dtype, device=gate_up.device)
    if num_rows:
        grid = (num_rows, triton.cdiv(num_columns, _BLOCK))
        swiglu_kernel[grid](
            gate_up.contiguous(),
            out,
            num_columns,
            _BLOCK,
            gate_up.is_cuda,
            num_warps=4,
            launch_pdl=gate_up.is_cuda,
        )
    return out
