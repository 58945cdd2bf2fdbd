"""Draft's side of the model-attention seam: one step's batch over the paged pool."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor

from forebay.kernels import native
from forebay.kernels.paged_reference import RunPlan
from forebay.kernels.rope_write import rope_write_kv
from forebay.model.rope import RopeTable

from .kernels.draft_attention import draft_attention


@dataclass(frozen=True)
class DraftAttention:
    """Attention of one draft step; one or more query tokens per sequence of the draft model.

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
        out = draft_attention(
            q,
            kv_layer,
            self.block_tables,
            self.cu_query_lens,
            self.context_lens,
            head_dim**-0.5,
            self._plan,
        )
        return out.reshape(len(qkv), num_heads * head_dim)

    @cached_property
    def _plan(self) -> RunPlan | None:
        """Index tensors that all layers of the step share; the CUDA and native kernels need none."""
        if self.kv.is_cuda or native.handles_heads(self.kv, self.kv.shape[5]):
            return None
        return RunPlan.build(self.block_tables, self.cu_query_lens, self.context_lens, *self.kv.shape[3:5])
