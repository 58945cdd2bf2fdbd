"""Bit-for-bit properties that closeness cannot show: no result depends on what else is in the batch."""

from collections.abc import Callable

import pytest
import torch
from cases import PagedShape as Shape

from decode_service.attention import DecodeAttention
from decode_service.kernels import paged_decode, verify
from draft_service.attention import DraftAttention
from forebay.kernels.rms_norm import rms_norm
from forebay.model.rope import RopeTable
from prefill_service.attention import PrefillAttention

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
DTYPES = [torch.float32, torch.bfloat16]
MIXED = Shape((1,) * 6, (1, 700, 256, 257, 17, 1000), 3, 3, 64, 16)


def _decode_implementations() -> list[Callable]:
    from decode_service.kernels import triton_paged_decode

    return [paged_decode.paged_decode_attention, triton_paged_decode.paged_decode_attention]


@pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("is_triton", [False, True], ids=["wrapper", "triton"])
def test_decode_alone_equals_decode_in_a_batch(dtype: torch.dtype, is_triton: bool) -> None:
    attend = _decode_implementations()[is_triton]
    q, kv_layer, tables, _, lens = MIXED.inputs(dtype, DEVICE).values()
    together = attend(q, kv_layer, tables, lens, 0.125)
    for s in range(len(q)):
        row = slice(s, s + 1)
        assert torch.equal(attend(q[row], kv_layer, tables[row], lens[row], 0.125), together[row]), s


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_verified_run_equals_decode_token_by_token(dtype: torch.dtype) -> None:
    shape = Shape((5, 1, 4), (259, 40, 1000), 3, 3, 64, 16)
    q, kv_layer, tables, ends, lens = shape.inputs(dtype, DEVICE).values()
    verified = verify.verify_attention(q, kv_layer, tables, ends, lens, 0.125)
    row = 0
    for s, (query_len, context_len) in enumerate(zip(shape.query_lens, shape.context_lens, strict=True)):
        for i in range(query_len):
            seen = torch.tensor([context_len - query_len + i + 1], dtype=torch.int32, device=DEVICE)
            one = paged_decode.paged_decode_attention(
                q[row : row + 1], kv_layer, tables[s : s + 1], seen, 0.125
            )
            assert torch.equal(one[0], verified[row]), (s, i)
            row += 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_norm_of_one_row_equals_norm_in_a_batch(dtype: torch.dtype) -> None:
    x, weight = torch.randn(63, 576, dtype=dtype, device=DEVICE), torch.randn(576, dtype=dtype, device=DEVICE)
    together = rms_norm(x, weight, 1e-5)
    assert all(torch.equal(rms_norm(x[i : i + 1], weight, 1e-5)[0], together[i]) for i in range(63))


@pytest.mark.parametrize("attention_type", [PrefillAttention, DecodeAttention, DraftAttention])
def test_attention_objects_write_then_attend(attention_type: type) -> None:
    """Two chunks of a prompt give what the whole gives, and each layer is announced once it is written."""
    torch.manual_seed(0)
    num_tokens, num_heads, num_kv_heads, head_dim, block_size = 40, 4, 2, 64, 16
    angles = torch.rand(64, head_dim // 2)
    rope = RopeTable(angles.cos().to(DEVICE), angles.sin().to(DEVICE))
    qkv = torch.randn(num_tokens, (num_heads + 2 * num_kv_heads) * head_dim, device=DEVICE)
    table = torch.tensor([[3, 1, 4]], dtype=torch.int32, device=DEVICE)
    layers: list[int] = []

    def run(kv: torch.Tensor, first: int, end: int) -> torch.Tensor:
        positions = torch.arange(first, end, device=DEVICE)
        attention = attention_type(
            kv,
            rope,
            positions,
            table[0].long()[positions // block_size] * block_size + positions % block_size,
            table,
            torch.tensor([0, end - first], dtype=torch.int32, device=DEVICE),
            torch.tensor([end], dtype=torch.int32, device=DEVICE),
            layers.append,
        )
        return attention(1, qkv[first:end].clone())

    whole, parts = (torch.zeros(2, 6, 2, num_kv_heads, block_size, head_dim, device=DEVICE) for _ in range(2))
    expected = run(whole, 0, num_tokens)
    actual = torch.cat([run(parts, 0, 23), run(parts, 23, num_tokens)])
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(parts, whole)
    assert layers == [1, 1, 1]
    assert not whole[0].any()
