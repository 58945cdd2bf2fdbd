"""Every kernel, its wrapper and its reference agree with a float64 oracle on odd shapes."""

from collections.abc import Callable

import pytest
import torch
from cases import Case, attention_cases, launcher, parity_cases
from cases import PagedShape as Shape

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
CASES = parity_cases()


def _to_float64(value):
    return value.double() if isinstance(value, torch.Tensor) and value.is_floating_point() else value


def _relative_rms(actual: torch.Tensor, expected: torch.Tensor) -> float:
    actual, expected = actual.double(), expected.double()
    return float((actual - expected).norm() / expected.norm().clamp_min(1e-12))


def _check(case: Case, implementation: Callable) -> None:
    expected = case.run(case.oracle, tuple(map(_to_float64, case.make(DEVICE))))
    actual = case.run(implementation, case.make(DEVICE))
    assert len(actual) == len(expected)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        keep = ~e.isnan()  # unused pool memory stays poisoned and must not leak into results
        assert torch.equal(a.isnan(), e.isnan()), f"{case.id}: output {i} is NaN elsewhere than the oracle"
        error = _relative_rms(a[keep], e[keep])
        assert error <= case.tolerance, f"{case.id}: output {i} is off by {error:.2e}"


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_reference(case: Case) -> None:
    _check(case, case.reference)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_wrapper(case: Case) -> None:
    _check(case, case.wrapper)


@pytest.mark.filterwarnings(
    "ignore:Conversion of an array with ndim > 0:DeprecationWarning"
)  # Triton's own loop
@pytest.mark.parametrize("case", [case for case in CASES if case.triton], ids=lambda case: case.id)
def test_triton(case: Case) -> None:
    """In the interpreter on a CPU, compiled on a GPU."""
    _check(case, launcher(case))


@pytest.mark.gpu
@pytest.mark.parametrize("batch", [1, 8, 64])
@pytest.mark.parametrize("kv", [(8, 4, 128, 64), (3, 3, 64, 64), (8, 1, 128, 16)], ids=str)
def test_decode_at_serving_shapes(batch: int, kv: tuple[int, int, int, int]) -> None:
    contexts = tuple(1 + 61 * i % 4096 for i in range(1, batch + 1))
    shape = Shape((1,) * batch, contexts, *kv)
    for case in attention_cases("paged_decode_attention", [shape], [torch.bfloat16]):
        _check(case, case.wrapper)
