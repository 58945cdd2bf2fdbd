"""RMSNorm with an optional residual add in front."""

from torch import Tensor

from forebay.kernels import native, reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x [..., N] divided by its root mean square per row and scaled by weight [N], in x's dtype."""
    if x.is_cuda:
        from forebay.kernels import triton_rms_norm  # importing Triton costs 0.5 s: only where it runs

        return triton_rms_norm.rms_norm(x, weight, eps)
    if native.handles(x, weight.shape[0]):
        return native.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (rms_norm(x + residual), x + residual), both of x's shape and dtype."""
    if x.is_cuda:
        from forebay.kernels import triton_rms_norm

        return triton_rms_norm.add_rms_norm(x, residual, weight, eps)
    if native.handles(x, weight.shape[0]):
        return native.add_rms_norm(x, residual, weight, eps)
    return reference.add_rms_norm(x, residual, weight, eps)
