"""Decode's side of the model-attention seam: one step's batch over the paged pool."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from torch import Tensor

from forebay.kernels import native
from forebay.kernels.paged_reference import RunPlan
from forebay.kernels.rope_write import rope_write_kv
from forebay.kernels.split_attention import plan_items
from forebay.model.rope import RopeTable

from .kernels.verify import verify_attention

if TYPE_CHECKING:
    from forebay.kernels.triton_split_items import SplitItems


@dataclass(frozen=True)
class DecodeAttention:
    """Attention of one decode step; one or more query tokens per sequence.

    kv [L, blocks, 2, Hkv, bs, D]; positions, slots int64 [T]; block_tables int32 [S, max_blocks];
    cu_query_lens int32 [S + 1]; context_lens int32 [S], counted after this step's tokens.
    on_layer(layer) is called once a layer's keys and values are in the pool.
    """

    kv: Tensor
    rope: RopeTable
    positions: Tensor
    slots: Tensor
    block_tables: Tensor
    cu_query_lens: Tensor
    context_lens: Tensor
    on_layer: Callable[[int], None] | None = None

    def __call__(self, layer: int, qkv: Tensor) -> Tensor:
        """Map qkv [T, (Hq + 2 Hkv) D] before rope to [T, Hq D], writing k and v on the way."""
        kv_layer = self.kv[layer]
        _, _, num_kv_heads, _, head_dim = kv_layer.shape
        num_heads = qkv.shape[1] // head_dim - 2 * num_kv_heads
        q = rope_write_kv(qkv, self.rope.cos, self.rope.sin, self.positions, self.slots, kv_layer, num_heads)
        if self.on_layer is not None:
            self.on_layer(layer)
        out = verify_attention(
            q,
            kv_layer,
            self.block_tables,
            self.cu_query_lens,
            self.context_lens,
            head_dim**-0.5,
            self._items(num_heads) if kv_layer.is_cuda else self._run_plan,
        )
        return out.reshape(len(qkv), num_heads * head_dim)

    @cached_property
    def _run_plan(self) -> RunPlan | None:
        """Index tensors of the step for the torch reference; the native kernels need none."""
        if native.handles_heads(self.kv, self.kv.shape[5]):
            return None
        return RunPlan.build(self.block_tables, self.cu_query_lens, self.context_lens, *self.kv.shape[3:5])

    def _items(self, num_heads: int) -> SplitItems:
        """Work list of the step on a GPU."""
        if num_heads not in self._items_by_heads:
            self._items_by_heads[num_heads] = plan_items(
                self.kv[0],
                num_heads,
                self.block_tables,
                self.cu_query_lens,
                self.context_lens,
                len(self.positions),
            )
        return self._items_by_heads[num_heads]

    @cached_property
    def _items_by_heads(self) -> dict[int, SplitItems]:
        return {}
