"""The C kernels: close to the references, and a row's bits depend on nothing around it."""

import subprocess

import pytest
import torch

from forebay.kernels import native, paged_reference, reference

HEADS, KV_HEADS, BLOCK = 6, 2, 16
DTYPES = [torch.float32, torch.bfloat16]

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler")


def _paged(context: int, head_dim: int, dtype: torch.dtype):
    """(q [context, Hq, D], kv_layer, block_table [1, n]) with poison wherever the context does not reach."""
    generator = torch.Generator().manual_seed(context)
    num_blocks = -(-context // BLOCK)
    kv_layer = torch.randn(num_blocks + 2, 2, KV_HEADS, BLOCK, head_dim, generator=generator).to(dtype)
    table = 1 + torch.randperm(num_blocks, generator=generator)
    kv_layer[[0, -1]] = torch.nan
    if context % BLOCK:
        kv_layer[table[-1], :, :, context % BLOCK :] = torch.nan
    q = torch.randn(context, HEADS, head_dim, generator=generator).to(dtype)
    return q, kv_layer, table.to(torch.int32)[None]


def _attend(q, kv_layer, table, ends, contexts, max_short_run):
    ends, contexts = torch.tensor(ends, dtype=torch.int32), torch.tensor(contexts, dtype=torch.int32)
    return native.paged_attention(q, kv_layer, table, ends, contexts, 0.125, max_short_run)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
@pytest.mark.parametrize("context", [1, 15, 33, 200])
@pytest.mark.parametrize("max_short_run", [0, 1000])
def test_attention_is_close(context: int, head_dim: int, dtype: torch.dtype, max_short_run: int) -> None:
    q, kv_layer, table = _paged(context, head_dim, dtype)
    actual = _attend(q, kv_layer, table, [0, context], [context], max_short_run)
    expected = paged_reference.sequence_attention(
        q.double(), kv_layer.double(), table[0], context, scale=0.125
    )
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("max_short_run", [0, 1000])
def test_chunks_have_the_bits_of_the_whole(head_dim: int, dtype: torch.dtype, max_short_run: int) -> None:
    context = 150
    q, kv_layer, table = _paged(context, head_dim, dtype)
    whole = _attend(q, kv_layer, table, [0, context], [context], max_short_run)
    for size in (1, 7, 64):
        for first in range(0, context, size):
            end = min(context, first + size)
            part = _attend(q[first:end], kv_layer, table, [0, end - first], [end], max_short_run)
            assert torch.equal(part, whole[first:end]), (size, first)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_query_has_the_same_bits_in_any_batch_with_any_threads(dtype: torch.dtype) -> None:
    context, num_threads = 300, torch.get_num_threads()
    q, kv_layer, table = _paged(context, 64, dtype)
    contexts = [1 + 37 * i % context for i in range(40)]
    alone = [_attend(q[c - 1 : c], kv_layer, table, [0, 1], [c], 16) for c in contexts]
    rows = torch.tensor(contexts) - 1
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            batch = _attend(q[rows], kv_layer, table.expand(40, -1).contiguous(), range(41), contexts, 16)
            assert torch.equal(batch, torch.cat(alone))
    finally:
        torch.set_num_threads(num_threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_of_norms_and_activation_stand_alone(dtype: torch.dtype) -> None:
    x, residual = torch.randn(2, 300, 576).to(dtype)
    gate_up, weight = (4 * torch.randn(300, 1152)).to(dtype), torch.randn(576).to(dtype)
    normed, total = native.add_rms_norm(x, residual, weight, 1e-5)
    activated = native.swiglu(gate_up)
    for row in (0, 7, 299):
        one = slice(row, row + 1)
        alone = native.add_rms_norm(x[one], residual[one], weight, 1e-5)
        assert torch.equal(normed[one], alone[0])
        assert torch.equal(total[one], alone[1])
        assert torch.equal(activated[one], native.swiglu(gate_up[one]))


def test_activation_keeps_extremes() -> None:
    gate = torch.tensor([-1e30, -200.0, -90.0, 0.0, 90.0, 200.0, torch.nan, 1e-30] * 2)
    out = native.swiglu(torch.cat((gate, torch.ones(16)))[None])
    expected = reference.swiglu(torch.cat((gate, torch.ones(16)))[None])
    torch.testing.assert_close(out, expected, equal_nan=True, rtol=1e-5, atol=1e-6)


def test_shapes_that_are_not_whole_vectors_are_left_to_the_reference() -> None:
    x = torch.zeros(1, 24)
    assert not native.handles(x, 24)
    assert not native.handles_heads(x, 24)
    assert not native.handles(x.double(), 32)
    assert native.handles_heads(x, 64)


def test_without_a_compiler_the_references_serve(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.library.__wrapped__() is None


def test_a_failed_compilation_is_no_error(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("FOREBAY_CACHE", str(tmp_path))
    monkeypatch.setattr(native, "FLAGS", ("--no-such-flag",))
    with pytest.raises(subprocess.CalledProcessError):
        native._compiled()
    assert native.library.__wrapped__() is None
