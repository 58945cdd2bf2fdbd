"""SwiGLU activation of the gated MLP."""

from torch import Tensor

from forebay.kernels import native, reference


def swiglu(gate_up: Tensor) -> Tensor:
    """Map [T, 2F] (gate, then up) to silu(gate) * up, [T, F]."""
    if gate_up.is_cuda:
        from forebay.kernels import triton_swiglu  # importing Triton costs 0.5 s: only where it runs

        return triton_swiglu.swiglu(gate_up)
    if native.handles(gate_up, gate_up.shape[1] // 2):
        return native.swiglu(gate_up)
    return reference.swiglu(gate_up)
