"""Sampling noise has the bits of Triton's own Philox, so a sampling kernel can replace the reference."""

import pytest
import torch
import triton
import triton.language as tl

from forebay.kernels import sample_reference
from forebay.kernels.sample import philox_uniform

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
SEEDS = [0, 1, 0xDEADBEEF, (1 << 63) - 1, -1, -(1 << 63), 0x1234_5678_9ABC_DEF0]


@triton.jit
def _philox_kernel(p_seed, p_words, p_uniform, position, BLOCK: tl.constexpr):
    o_block = tl.arange(0, BLOCK)
    zero = o_block * 0
    words = tl.philox(tl.load(p_seed), o_block, zero + position, zero, zero)
    for lane in tl.static_range(4):
        tl.store(p_words + o_block * 4 + lane, words[lane].to(tl.int64))
        uniform = tl.random.uint_to_uniform_float(words[lane])
        tl.store(p_uniform + o_block * 4 + lane, uniform)


@pytest.mark.filterwarnings(
    "ignore:overflow encountered:RuntimeWarning"
)  # the interpreter's keys wrap, as they must
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("position", [0, 1, 131_071])
def test_uniforms_equal_tritons(seed: int, position: int) -> None:
    num_blocks = 64
    words = torch.empty(num_blocks * 4, dtype=torch.int64, device=DEVICE)
    uniform = torch.empty(num_blocks * 4, dtype=torch.float32, device=DEVICE)
    seeds = torch.tensor([seed], device=DEVICE)
    _philox_kernel[(1,)](seeds, words, uniform, position, BLOCK=num_blocks)
    ids = torch.arange(num_blocks * 4, device=DEVICE)
    assert torch.equal(philox_uniform(seeds, torch.tensor([position], device=DEVICE), ids), uniform)
    lanes = sample_reference._philox(seeds, torch.tensor([position], device=DEVICE), ids[:num_blocks])
    assert torch.equal(torch.stack(lanes, dim=-1).view(-1), words & 0xFFFFFFFF)


def test_known_answer() -> None:
    """Random123's vector for a zero counter and a zero key."""
    zero = torch.zeros(1, dtype=torch.int64)
    words = [int(word) for word in sample_reference._philox(zero, zero, zero)]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
