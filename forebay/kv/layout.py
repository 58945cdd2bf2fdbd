"""Shape and size of one KV block; part of the fingerprint, so layouts never mix."""

from __future__ import annotations

from dataclasses import dataclass

LAYOUT_VERSION = 1
DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class BlockLayout:
    """One block of `block_size` tokens: [num_layers, 2 (K, V), num_kv_heads, block_size, head_dim]."""

    num_layers: int
    block_size: int
    num_kv_heads: int
    head_dim: int
    dtype: str

    def __post_init__(self) -> None:
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise ValueError(f"block_size must be a power of two of at least 16, got {self.block_size}")
        if self.dtype not in DTYPE_BYTES:
            raise ValueError(f"KV dtype must be one of {sorted(DTYPE_BYTES)}, got {self.dtype!r}")

    @property
    def shape(self) -> tuple[int, int, int, int, int]:
        """Shape of a block's payload."""
        return (self.num_layers, 2, self.num_kv_heads, self.block_size, self.head_dim)

    @property
    def token_bytes(self) -> int:
        """KV bytes of one token in all layers."""
        return self.num_layers * 2 * self.num_kv_heads * self.head_dim * DTYPE_BYTES[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Payload bytes of one block, header not counted."""
        return self.token_bytes * self.block_size

    @property
    def layout_id(self) -> str:
        """Readable identity, compared at the transport handshake."""
        shape = "x".join(map(str, self.shape))
        return f"v{LAYOUT_VERSION}:{self.dtype}:{shape}"
