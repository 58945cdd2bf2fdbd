"""Block movement kernels: gather pool blocks into payloads and scatter payloads back."""

from .pack import pack_blocks, unpack_blocks

__all__ = ["pack_blocks", "unpack_blocks"]
