"""Linear layers on a GPU: few tokens read the weight, many are a matrix product."""

from torch import Tensor
from torch.nn import functional


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return x Wᵀ + b for x [T, K], weight [N, K]; a token's bits are the same with 1 to 64 tokens."""
    if x.is_cuda:
        from forebay.kernels import gluon_decode_linear  # importing Triton costs 0.5 s: only where it runs

        if gluon_decode_linear.supports(x, weight):
            return gluon_decode_linear.decode_linear(x, weight, bias)
    return functional.linear(x, weight, bias)
