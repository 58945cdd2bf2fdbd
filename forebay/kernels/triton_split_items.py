# mypy: disable-error-code="untyped-decorator, no-untyped-def"
# (Triton reads parameter annotations as its own types, so kernels carry only tl.constexpr.)
"""The work list of split attention, built on the GPU once a step and shared by all layers.

Names: p_ pointer, b_ block in registers, i_ index, o_ offsets, m_ mask. S sequences, I items.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

SPLIT = 256  # context tokens of one item


@dataclass(frozen=True)
class SplitItems:
    """table int32 [I, 8], of which the first count[0] are in use; num_rows is the size of a query tile.

    Columns: sequence, first query, end query, split, first token, end token, position minus index of a
    query of the sequence, position of its run's first query.
    """

    table: Tensor
    count: Tensor
    num_rows: int


@triton.jit(do_not_specialize=["num_seqs"])
def items_kernel(
    p_cu, p_lens, p_table, p_count, num_seqs, SPLIT: tl.constexpr, QUERIES: tl.constexpr, SEQS: tl.constexpr
):
    """Write the items of sequence i_seq: its tiles of QUERIES queries over every split of its context."""
    i_seq = tl.program_id(0)
    o_seq = tl.arange(0, SEQS)
    m_seq = o_seq < num_seqs
    b_queries = tl.load(p_cu + o_seq + 1, mask=m_seq, other=0) - tl.load(p_cu + o_seq, mask=m_seq, other=0)
    b_items = tl.cdiv(b_queries, QUERIES) * tl.cdiv(tl.load(p_lens + o_seq, mask=m_seq, other=0), SPLIT)
    i_base = tl.sum(tl.where(o_seq < i_seq, b_items, 0), 0)
    num_items = tl.sum(tl.where(o_seq == i_seq, b_items, 0), 0)
    tl.store(p_count, tl.sum(b_items, 0))  # every program stores the same
    i_start, i_end = tl.load(p_cu + i_seq), tl.load(p_cu + i_seq + 1)
    context_len = tl.load(p_lens + i_seq)
    num_splits = tl.maximum(tl.cdiv(context_len, SPLIT), 1)
    for i_first in range(0, num_items, 64):
        o_item = i_first + tl.arange(0, 64)
        m_item = o_item < num_items
        p_item = p_table + (i_base + o_item) * 8
        b_query = i_start + o_item // num_splits * QUERIES
        b_split = o_item % num_splits
        tl.store(p_item, i_seq, mask=m_item)
        tl.store(p_item + 1, b_query, mask=m_item)
        tl.store(p_item + 2, tl.minimum(b_query + QUERIES, i_end), mask=m_item)
        tl.store(p_item + 3, b_split, mask=m_item)
        tl.store(p_item + 4, b_split * SPLIT, mask=m_item)
        tl.store(p_item + 5, tl.minimum(b_split * SPLIT + SPLIT, context_len), mask=m_item)
        tl.store(p_item + 6, context_len - i_end, mask=m_item)
        tl.store(p_item + 7, context_len - i_end + i_start, mask=m_item)


def build_items(
    cu_query_lens: Tensor, context_lens: Tensor, num_queries: int, group: int, max_splits: int
) -> SplitItems:
    """List the items of query runs cu_query_lens [S + 1] over contexts [S] (0 is padding) of up to
    max_splits splits.

    group query heads share a KV head. A tile has rows for the average run, so that its KV is read once.
    """
    num_seqs = len(context_lens)
    num_rows = min(64, max(16, triton.next_power_of_2(triton.cdiv(num_queries, num_seqs) * group)))
    queries = num_rows // group
    max_items = (num_queries // queries + num_seqs) * max_splits
    table = torch.empty(max_items, 8, dtype=torch.int32, device=cu_query_lens.device)
    count = torch.empty(1, dtype=torch.int32, device=cu_query_lens.device)
    seqs = triton.next_power_of_2(num_seqs)
    items_kernel[(num_seqs,)](
        cu_query_lens, context_lens, table, count, num_seqs, SPLIT, queries, seqs, num_warps=1
    )
    return SplitItems(table, count, num_rows)
