"""RMSNorm with an optional residual add in front."""

from torch import Tensor

from forebay.kernels import reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x [T, N] divided by its root mean square per row and scaled by weight [N], in x's dtype."""
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(x + residual), x + residual), both [T, N] in x's dtype."""
    return reference.add_rms_norm(x, residual, weight, eps)
