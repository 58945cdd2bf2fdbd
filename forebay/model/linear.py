"""A linear layer whose rows do not depend on the batch around them, fast at few rows on CPU."""

import torch
from torch import Tensor

from forebay.kernels.linear import linear

# The rows that oneDNN is told to expect when it lays out a packed weight. Of 1, 64 and unset, 64 was the
# fastest at each row count from 1 to 512. 2 cores with AVX-512, all linear layers of a 135 M-parameter model
# for 1 / 8 / 512 rows: bfloat16 7.4 / 8.5 / 118 ms (plain linear 11.4 / 12.3 / 126), float32 14.2 / 15.7 /
# 233 ms (plain 30.9 / 42.3 / 547).
PACK_ROWS = 64


class Linear:
    """y = x Wᵀ + b, with W [N, K] packed once for oneDNN on CPU and kept as it is elsewhere."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None) -> None:
        """Packing copies the weight; the caller may then drop it."""
        self.bias = bias
        self.is_packed = weight.device.type == "cpu" and _can_pack(weight.dtype)
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS) if self.is_packed else weight

    def __call__(self, x: Tensor) -> Tensor:
        """[T, K] -> [T, N]."""
        if not self.is_packed:
            return linear(x, self.weight, self.bias)
        if x.shape[0] > 1:
            return self._packed(x)
        # oneDNN sums a lone row of a long K in another order than the same row among others. A pair costs the
        # same time (reading the weight bounds both) and has the bits of every larger batch.
        return self._packed(torch.cat((x, x)))[:1]

    def _packed(self, x: Tensor) -> Tensor:
        y: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")
        return y


def _can_pack(dtype: torch.dtype) -> bool:
    if not torch._C._has_mkldnn:
        return False
    has_bfloat16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return dtype == torch.float32 or (dtype == torch.bfloat16 and has_bfloat16)
