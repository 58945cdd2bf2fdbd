"""BlockCodec: any placement of slots, and slots that change hands while they are read."""

from __future__ import annotations

import hashlib
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from forebay.kv.codec import BlockCodec, Slot
from forebay.kv.hashing import BlockKey, block_keys
from forebay.kv.layout import BlockLayout
from forebay.kv.payload import stamp_generation

FINGERPRINT = hashlib.sha256(b"model").digest()


NEEDS_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
DEVICES = ["cpu", pytest.param("cuda", marks=[pytest.mark.gpu, NEEDS_CUDA])]


def make(dtype: str, device: str = "cpu") -> tuple[BlockLayout, Tensor, BlockCodec, list[BlockKey]]:
    layout = BlockLayout(2, 16, 3, 8, dtype)
    kv = torch.randn((2, 40, 2, 3, 16, 8)).to(device, getattr(torch, dtype))
    return layout, kv, BlockCodec(kv, layout, FINGERPRINT), block_keys(b"r" * 32, range(16 * 16), 16)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("places", [[0, 1, 2, 3, 4], [4, 3, 2, 1, 0], [0, 2, 4, 7, 8], [5], [0, 1, 9, 10, 3]])
def test_blocks_survive_any_placement(device: str, dtype: str, places: list[int]) -> None:
    _, kv, codec, keys = make(dtype, device)
    stride = -(-codec.slot_bytes // 4096) * 4096
    memory = memoryview(bytearray(11 * stride))
    slots = [Slot(place * stride, place + 7) for place in places]
    num = len(slots)
    before = kv.clone()
    codec.seal(memory, slots, keys[:num], list(range(1, num + 1)))
    assert codec.open(memory, slots, keys[:num], list(range(21, 21 + num))) == (num, "")
    assert torch.equal(kv[:, 21 : 21 + num], before[:, 1 : num + 1])
    untouched = [b for b in range(40) if not 21 <= b < 21 + num]
    assert torch.equal(kv[:, untouched], before[:, untouched])


def test_a_slot_that_changes_hands_while_it_is_read_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    _, _, codec, keys = make("float32")
    memory = memoryview(bytearray(4 * 16384))
    slots = [Slot(index * 16384, 1) for index in range(4)]
    codec.seal(memory, slots, keys[:4], [1, 2, 3, 4])

    def unpack(payload: Tensor, kv: Tensor, block_ids: Tensor) -> None:
        stamp_generation(memory[slots[2].offset :], 2)

    monkeypatch.setattr(codec, "_kernels", SimpleNamespace(unpack_blocks=unpack))
    num_good, reason = codec.open(memory, slots, keys[:4], [5, 6, 7, 8])
    assert (num_good, reason) == (2, "lease ended while reading")
