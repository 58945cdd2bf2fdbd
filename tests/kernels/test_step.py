"""The ends of a resident step: Triton against torch, over random rows."""

from dataclasses import fields

import pytest
import torch

from decode_service.kernels import reference, triton_step
from decode_service.kernels.step import HostRows, StepRows

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
ROWS, WIDTH, BLOCK = 16, 5, 16


def random_rows(seed: int) -> tuple[HostRows, StepRows]:
    generator = torch.Generator().manual_seed(seed)

    def ints(low: int, high: int) -> torch.Tensor:
        return torch.randint(low, high, (ROWS,), generator=generator, dtype=torch.int32)

    host, steps = HostRows.build(ROWS, torch.device("cpu")), StepRows.build(ROWS, WIDTH, torch.device("cpu"))
    ranges = {"generation": (0, 2), "token": (0, 99), "position": (0, 70), "limit": (0, 81)}
    ranges |= {"written_from": (0, 70), "num_bias": (0, 3), "num_edits": (3, 6), "free_from": (0, 70)}
    for name, limits in ranges.items():
        getattr(host, name).copy_(ints(*limits))
    host.grown_at.copy_(torch.where(ints(0, 2) > 0, ints(0, WIDTH), -1))
    host.grown_block.copy_(ints(90, 99))
    steps.tokens.copy_(ints(0, 99))
    steps.positions.copy_(ints(0, 70))
    steps.generations.copy_(ints(0, 2))
    steps.tables.copy_(torch.randint(1, 90, (ROWS, WIDTH), generator=generator, dtype=torch.int32))
    steps.clock.fill_(seed)
    steps.contexts.copy_(ints(0, 2))
    return host, steps


def moved(rows: HostRows | StepRows) -> dict[str, torch.Tensor]:
    return {f.name: getattr(rows, f.name).to(DEVICE).clone() for f in fields(rows)}


@pytest.mark.parametrize("num_rows", [1, 2, 8, 16])
@pytest.mark.parametrize("seed", range(3))
def test_begin_step(num_rows: int, seed: int) -> None:
    host, steps = random_rows(seed)
    ours = StepRows(**moved(steps))
    triton_step.begin_step(HostRows(**moved(host)), ours, num_rows, BLOCK)
    reference.begin_step(host, steps, num_rows, BLOCK)
    for f in fields(steps):
        assert torch.equal(getattr(ours, f.name).cpu(), getattr(steps, f.name)), f.name


@pytest.mark.parametrize("num_rows", [1, 4, 16])
@pytest.mark.parametrize("seed", range(5))
def test_end_step(num_rows: int, seed: int) -> None:
    _, steps = random_rows(seed)
    ours = StepRows(**moved(steps))
    token_ids, logprobs = torch.arange(num_rows) + 7, -torch.rand(num_rows)
    triton_step.end_step(ours, token_ids.to(DEVICE), logprobs.to(DEVICE), num_rows)
    reference.end_step(steps, token_ids, logprobs, num_rows)
    for f in fields(steps):
        assert torch.equal(getattr(ours, f.name).cpu(), getattr(steps, f.name)), f.name
    read = steps.results[seed % len(steps.results), 1, :num_rows].int().view(torch.float32)
    assert torch.equal(read, logprobs)
