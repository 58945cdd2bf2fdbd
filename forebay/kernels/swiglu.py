"""SwiGLU activation of the gated MLP."""

from torch import Tensor

from forebay.kernels import reference


def swiglu(gate_up: Tensor) -> Tensor:
    """Map [T, 2F] (gate, then up) to silu(gate) * up, [T, F]."""
    return reference.swiglu(gate_up)
