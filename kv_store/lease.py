"""Leases and capabilities: who may read or write which block, and until when.

A handle is 128 random bits: it names one block, one purpose and one lease, and cannot be guessed or reused.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from enum import Enum

HANDLE_BYTES = 16


class Purpose(Enum):
    """What a handle allows."""

    READ = "read"
    WRITE = "write"


@dataclass(eq=False, slots=True)
class Entry:
    """One resident block. Only BlockStore changes it."""

    key: bytes
    root: bytes
    parent: Entry | None
    depth: int
    offset: int
    num_bytes: int
    generation: int
    is_committed: bool = False
    is_detached: bool = False
    num_leases: int = 0
    last_use: int = 0
    children: set[bytes] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Grant:
    """A block that its holder may read or write in place until the lease ends."""

    handle: bytes
    entry: Entry
    offset: int
    num_bytes: int
    generation: int


@dataclass(eq=False, slots=True)
class Lease:
    """Grants that live and die together; `expires_at` on the store's monotonic clock, seconds."""

    lease_id: bytes
    purpose: Purpose
    expires_at: float
    grants: dict[bytes, Grant]


def make_grants(entries: list[Entry]) -> dict[bytes, Grant]:
    """A fresh handle for each entry, in order."""
    noise = secrets.token_bytes(HANDLE_BYTES * len(entries))
    handles = [noise[at : at + HANDLE_BYTES] for at in range(0, len(noise), HANDLE_BYTES)]
    return {
        h: Grant(h, e, e.offset, e.num_bytes, e.generation) for h, e in zip(handles, entries, strict=True)
    }
