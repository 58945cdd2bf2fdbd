"""In-process memory instead of a store, for tests of whatever uses a transport."""

from __future__ import annotations

from collections.abc import Sequence

from forebay.transport.base import Grant, Transport, TransportError, check_fits


class FakeTransport(Transport):
    """Slots live in `slots`, by handle; set `is_broken` to make every call fail."""

    scheme = "fake"

    def __init__(self, arena_bytes: int) -> None:
        self.arena_bytes = arena_bytes
        self.slots: dict[bytes, bytes] = {}
        self.is_broken = False

    async def put(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        """Remember each buffer's bytes under its handle."""
        for grant, buffer in blocks:
            self._check(grant, buffer)
            self.slots[grant.handle] = bytes(buffer)

    async def get(self, blocks: Sequence[tuple[Grant, memoryview]]) -> None:
        """Fill each buffer with what was put under its handle."""
        for grant, buffer in blocks:
            self._check(grant, buffer)
            if grant.handle not in self.slots:
                raise TransportError("unknown handle")
            buffer[:] = self.slots[grant.handle][: buffer.nbytes]

    async def close(self) -> None:
        """Nothing to let go of."""

    def _check(self, grant: Grant, buffer: memoryview) -> None:
        if self.is_broken:
            raise TransportError("the fake is broken")
        check_fits(grant, buffer, self.arena_bytes)
