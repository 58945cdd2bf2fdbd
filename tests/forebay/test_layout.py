"""Block layout: sizes, identity, refusals."""

from __future__ import annotations

import dataclasses

import pytest

from forebay.kv.layout import BlockLayout

LAYOUT = BlockLayout(num_layers=3, block_size=16, num_kv_heads=2, head_dim=8, dtype="bfloat16")


def test_sizes():
    assert LAYOUT.shape == (3, 2, 2, 16, 8)
    assert LAYOUT.token_bytes == 3 * 2 * 2 * 8 * 2
    assert LAYOUT.block_bytes == 3 * 2 * 2 * 16 * 8 * 2


@pytest.mark.parametrize(
    "change",
    [{"num_layers": 4}, {"block_size": 32}, {"num_kv_heads": 1}, {"head_dim": 16}, {"dtype": "float16"}],
)
def test_every_field_is_part_of_the_identity(change):
    assert dataclasses.replace(LAYOUT, **change).layout_id != LAYOUT.layout_id


@pytest.mark.parametrize("block_size", [0, 8, 17, 24, -16])
def test_block_size_is_a_power_of_two_of_at_least_16(block_size):
    with pytest.raises(ValueError, match=f"power of two.*got {block_size}"):
        dataclasses.replace(LAYOUT, block_size=block_size)


def test_unknown_dtype():
    with pytest.raises(ValueError, match="float64"):
        dataclasses.replace(LAYOUT, dtype="float64")
