"""What every transport does: move whole blocks between a caller's buffers and the store's slots."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar


class TransportError(Exception):
    """Blocks could not be moved; the message says why. The caller does without the store."""


@dataclass(frozen=True, slots=True)
class Grant:
    """One slot that the store lets us use: capability, place in the arena, use count."""

    handle: bytes
    offset: int
    num_bytes: int
    generation: int


class Transport(ABC):
    """One connection to one store. Buffers are the caller's, at most `num_bytes` of the grant long."""

    scheme: ClassVar[str]

    @property
    def arena(self) -> memoryview | None:
        """The store's memory where this transport maps it: blocks can be used in place, without a copy."""
        return None

    @abstractmethod
    async def put(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        """Copy each buffer into its slot; raises TransportError."""

    @abstractmethod
    async def get(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        """Fill each buffer from its slot; raises TransportError."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of the connection."""


def check_fits(grant: Grant, buffer: memoryview, arena_bytes: int) -> None:
    """Raise TransportError if a buffer or its slot is out of bounds."""
    if buffer.nbytes > grant.num_bytes:
        raise TransportError(f"a buffer of {buffer.nbytes} bytes does not fit a slot of {grant.num_bytes}")
    if grant.offset < 0 or grant.offset + grant.num_bytes > arena_bytes:
        raise TransportError(f"slot {grant.offset}+{grant.num_bytes} is outside of {arena_bytes} bytes")
