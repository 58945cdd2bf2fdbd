"""Split attention: trees, padding, the work list, and a query's bits alone against in a run."""

import pytest
import torch
from torch import Tensor

pytestmark = [
    pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:invalid value encountered:RuntimeWarning"),
]
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _batch(contexts: tuple[int, ...], kv_heads: int, head_dim: int, block_size: int) -> tuple[Tensor, Tensor]:
    """A pool and shuffled block tables; tokens after a context are NaN."""
    width = max(-(-length // block_size) for length in contexts) + 1
    num_blocks = len(contexts) * width + 1
    pool = torch.randn(num_blocks, 2, kv_heads, block_size, head_dim)
    tables = (torch.randperm(num_blocks - 1) + 1).view(len(contexts), width).int()
    for table, length in zip(tables, contexts, strict=True):
        if length % block_size:
            pool[int(table[length // block_size]), :, :, length % block_size :] = torch.nan
    return pool.to(DEVICE), tables.to(DEVICE)


def _tree(q: Tensor, pool: Tensor, table: Tensor, length: int, scale: float, ancestors: Tensor) -> Tensor:
    """Definition of tree attention for one sequence, float64."""
    num_queries, group = len(q), q.shape[1] // pool.shape[2]
    pages = pool[table[: -(-length // pool.shape[3])].long()].double().permute(1, 2, 0, 3, 4)
    keys, values = pages.reshape(2, pool.shape[2], -1, q.shape[2])[:, :, :length].repeat_interleave(group, 1)
    scores = torch.einsum("qhd,hkd->hqk", q.double(), keys) * scale
    tokens, first = torch.arange(length, device=q.device), length - num_queries
    bits = ancestors[:, None] >> (tokens - first).clamp_min(0) & 1
    scores.masked_fill_(~((tokens < first) | (bits == 1)), -torch.inf)
    return torch.einsum("hqk,hkd->qhd", scores.softmax(-1), values)


def test_tree() -> None:
    """Each query sees the context and its ancestors in a binary tree of drafts."""
    from forebay.kernels.triton_split_attention import split_attention

    lens, contexts = (7, 1, 16), (20, 600, 1040)
    pool, tables = _batch(contexts, 2, 64, 64)
    ends = torch.tensor([0, *lens]).cumsum(0).int().to(DEVICE)
    q = torch.randn(sum(lens), 8, 64, device=DEVICE)
    ancestors = torch.zeros(len(q), dtype=torch.int64)
    for start, count in zip(ends.tolist(), lens, strict=False):
        for i in range(count):
            ancestors[start + i] = 1 << i | (int(ancestors[start + (i - 1) // 2]) if i else 0)
    ancestors = ancestors.to(DEVICE)
    context_lens = torch.tensor(contexts, dtype=torch.int32, device=DEVICE)
    out = split_attention(q, pool, tables, ends, context_lens, 0.125, ancestors)
    for s, (count, length) in enumerate(zip(lens, contexts, strict=True)):
        rows = slice(int(ends[s]), int(ends[s]) + count)
        expected = _tree(q[rows], pool, tables[s], length, 0.125, ancestors[rows])
        assert (out[rows].double() - expected).norm() <= 1e-5 * expected.norm()


@pytest.mark.gpu
@pytest.mark.parametrize("block_size", [16, 64])
def test_same_bits_alone_and_in_a_run(block_size: int) -> None:
    """A query of a run that crosses a split has the bits of one-by-one decode (NumPy's products differ)."""
    from forebay.kernels.split_attention import split_attention

    length, count = 1030, 16
    pool, tables = _batch((length,), 2, 128, block_size)
    pool, q = pool.bfloat16(), torch.randn(count, 8, 128, device=DEVICE, dtype=torch.bfloat16)

    def attend(first: int, end: int) -> Tensor:
        ends = torch.tensor([0, end - first], dtype=torch.int32, device=DEVICE)
        context = torch.tensor([length - count + end], dtype=torch.int32, device=DEVICE)
        return split_attention(q[first:end], pool, tables, ends, context, 0.125)

    run = attend(0, count)
    for i in range(count):
        assert torch.equal(attend(i, i + 1)[0], run[i])


def test_padding_row_is_zero() -> None:
    """A sequence without context fills a bucket and gets zeros."""
    from forebay.kernels.triton_split_attention import split_attention

    pool, tables = _batch((70, 64), 1, 64, 64)
    ends = torch.tensor([0, 1, 2], dtype=torch.int32, device=DEVICE)
    context_lens = torch.tensor([70, 0], dtype=torch.int32, device=DEVICE)
    out = split_attention(torch.randn(2, 4, 64, device=DEVICE), pool, tables, ends, context_lens, 0.125)
    assert out[0].isfinite().all() and not out[1].any()


def test_work_list_covers_every_tile_and_split_once() -> None:
    """Items are the product of query tiles and splits, sequence by sequence."""
    from forebay.kernels.triton_split_items import SPLIT, build_items

    lens, contexts = (1, 8, 3, 1), (700, 300, SPLIT, 0)
    ends = torch.tensor([0, *lens]).cumsum(0).int().to(DEVICE)
    items = build_items(ends, torch.tensor(contexts, dtype=torch.int32, device=DEVICE), sum(lens), 4, 4)
    queries = items.num_rows // 4
    expected = []
    for s, (count, length) in enumerate(zip(lens, contexts, strict=True)):
        start, end = int(ends[s]), int(ends[s + 1])
        for first in range(start, end, queries):
            for split in range(-(-length // SPLIT)):
                span = [split * SPLIT, min(length, (split + 1) * SPLIT)]
                expected.append(
                    [s, first, min(first + queries, end), split, *span, length - end, length - count]
                )
    assert items.table[: int(items.count)].tolist() == expected
