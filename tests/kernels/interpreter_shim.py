"""Make Triton's interpreter compute bf16: upstream holds it as raw uint16, on which arithmetic is garbage."""

import ml_dtypes
import numpy as np
import triton.language as tl
from triton.runtime import interpreter

BF16 = np.dtype(ml_dtypes.bfloat16)
_upstream_np_dtype = interpreter._get_np_dtype
_upstream_cast = interpreter.InterpreterBuilder.cast_impl


def _is_bf16(dtype) -> bool:
    return not isinstance(dtype, tl.pointer_type) and dtype.scalar == tl.bfloat16


def _np_dtype(dtype):
    return BF16 if _is_bf16(dtype) else _upstream_np_dtype(dtype)


def _cast(builder, source, target):
    """Numpy rounds casts to ml_dtypes.bfloat16 to nearest even, as the hardware does."""
    if _is_bf16(source.dtype) or _is_bf16(target):
        return interpreter.TensorHandle(source.data.astype(_np_dtype(target)), target.scalar)
    return _upstream_cast(builder, source, target)


def _dot(builder, a, b, d, input_precision, max_num_imprecise_acc):
    """Multiply in the accumulator's type: products of two bf16 are exact in float32, as in an MMA."""
    product = np.matmul(a.data.astype(d.data.dtype), b.data.astype(d.data.dtype))
    return interpreter.TensorHandle(product + d.data, d.dtype.scalar)


def install() -> None:
    """Patch the interpreter; calling it again changes nothing."""
    interpreter._get_np_dtype = _np_dtype
    builder = interpreter.InterpreterBuilder
    builder.cast_impl, builder.create_dot = _cast, _dot
    builder.create_fp_to_fp = lambda self, source, target, rounding: _cast(self, source, target)
