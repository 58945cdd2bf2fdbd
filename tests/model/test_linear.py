"""The packed linear layer: right values, and a row's bits free of the rows around it."""

import pytest
import torch
from torch.nn import functional

from forebay.model.linear import Linear

# (K, N): odd sizes, a small model's projections, and a K long enough for oneDNN to sum in blocks.
SHAPES = [(64, 96), (97, 33), (576, 960), (1536, 576), (4096, 256)]
DTYPES = {"float32": (torch.float32, 1e-5), "bfloat16": (torch.bfloat16, 1e-2)}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_rows_keep_their_bits_in_any_batch(shape: tuple[int, int], dtype: str) -> None:
    torch.manual_seed(0)
    kind, _ = DTYPES[dtype]
    linear = Linear(torch.randn(shape[1], shape[0]).to(kind), torch.randn(shape[1]).to(kind))
    x = torch.randn(300, shape[0]).to(kind)
    whole = linear(x)
    for num_rows in (1, 2, 3, 7, 8, 17, 33, 64, 129, 256):
        part = slice(5, 5 + num_rows)
        assert torch.equal(linear(x[part]), whole[part]), f"{num_rows} rows"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("num_rows", [1, 2, 19])
@pytest.mark.parametrize("has_bias", [False, True], ids=["plain", "bias"])
def test_values(has_bias: bool, num_rows: int, dtype: str) -> None:
    torch.manual_seed(0)
    kind, tolerance = DTYPES[dtype]
    weight, x = (torch.randn(*size).to(kind) for size in ((96, 64), (num_rows, 64)))
    bias = torch.randn(96).to(kind) if has_bias else None
    expected = functional.linear(x.double(), weight.double(), bias.double() if bias is not None else None)
    error = (Linear(weight, bias)(x).double() - expected).norm() / expected.norm()
    assert error < tolerance
