"""Same host: the store's arena mapped into this process. Blocks are read and written in place.

The store hands out its memfd over a Unix socket (SCM_RIGHTS), once per connection, to whoever shows a token
from Hello. A lease keeps a slot from being used for anything else meanwhile; the generation in the block's
header tells a reader whose lease ran out.
"""

from __future__ import annotations

import asyncio
import mmap
import os
import socket
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from forebay.transport.base import Grant, Transport, TransportError, check_fits

_CONNECT_TIMEOUT_S = 1.0
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def host_id() -> str:
    """Identity of this host's running kernel; containers on one host share it."""
    return _BOOT_ID.read_text().strip() if _BOOT_ID.exists() else socket.gethostname()


async def attach(
    socket_path: str, token: bytes, arena_bytes: int, is_prefaulted: bool = False
) -> ShmTransport:
    """Map the store's arena; raises TransportError if the socket cannot be reached or refuses."""
    # One call maps all pages now; otherwise the first use of each 4 KiB costs a fault.
    flags = mmap.MAP_SHARED | (mmap.MAP_POPULATE if is_prefaulted else 0)
    return ShmTransport(await asyncio.to_thread(_receive_map, socket_path, token, arena_bytes, flags))


class ShmTransport(Transport):
    """A mapped arena."""

    scheme = "shm"

    def __init__(self, memory: mmap.mmap) -> None:
        # Through an array, so that whoever pins the memory for a device can tie that to the array's life.
        self._arena: memoryview | None = np.frombuffer(memory, np.uint8).data

    @property
    def arena(self) -> memoryview | None:
        """The whole arena; None once closed."""
        return self._arena

    async def put(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        """One copy, in a thread."""
        await asyncio.to_thread(self._copy, blocks, True)

    async def get(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        """One copy, in a thread."""
        await asyncio.to_thread(self._copy, blocks, False)

    async def close(self) -> None:
        """Forget the mapping; it goes when the last view of it does."""
        self._arena = None

    def _copy(self, blocks: Sequence[tuple[Grant, memoryview]], is_put: bool) -> None:
        arena = self._arena
        if arena is None:
            raise TransportError("the arena is no longer mapped")
        for grant, buffer in blocks:
            check_fits(grant, buffer, arena.nbytes)
            slot = np.frombuffer(arena, np.uint8, buffer.nbytes, grant.offset)
            mine = np.frombuffer(buffer, np.uint8)
            # numpy copies without the GIL, memoryview assignment with it
            np.copyto(*((slot, mine) if is_put else (mine, slot)))


def _receive_map(socket_path: str, token: bytes, arena_bytes: int, flags: int) -> mmap.mmap:
    descriptors: list[int] = []
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(_CONNECT_TIMEOUT_S)
            client.connect(socket_path)
            client.sendall(token)
            _, descriptors, _, _ = socket.recv_fds(client, 16, 1)
        if len(descriptors) != 1 or os.fstat(descriptors[0]).st_size != arena_bytes:
            raise TransportError("the store's socket did not hand out its arena")
        return mmap.mmap(descriptors[0], arena_bytes, flags)
    except OSError as error:
        raise TransportError(f"the store's socket cannot be reached: {type(error).__name__}") from error
    finally:
        for descriptor in descriptors:
            os.close(descriptor)
