"""The store's RAM: one shared-memory file cut into slabs, each slab into slots of one size class.

    arena   [ slab 0 | slab 1 | slab 2 | ... ]            fixed-size slabs
    slab    [ slot | slot | slot | ... | unused tail ]    slots of one class; a whole free slab changes class

`SlabAllocator` is pure accounting; `Arena` adds the memory behind it (a sealed memfd, so that a process that
maps it can neither shrink nor grow it).
"""

from __future__ import annotations

import fcntl
import mmap
import os
from dataclasses import dataclass, field

ALIGNMENT_BYTES = 4096


def slot_bytes(num_bytes: int) -> int:
    """The size class of a block: `num_bytes` rounded up to whole memory pages."""
    return -(-num_bytes // ALIGNMENT_BYTES) * ALIGNMENT_BYTES


@dataclass
class _Slab:
    """One slab in use: offsets of its free slots."""

    slot_bytes: int
    num_slots: int
    free: list[int] = field(default_factory=list)


class SlabAllocator:
    """Hands out slots by byte offset; constant time, no memory touched."""

    def __init__(self, num_bytes: int, slab_bytes: int) -> None:
        if slab_bytes % ALIGNMENT_BYTES or slab_bytes < ALIGNMENT_BYTES or num_bytes < slab_bytes:
            raise ValueError(f"{num_bytes} bytes cannot be cut into slabs of {slab_bytes} bytes")
        self.slab_bytes, self.num_slabs = slab_bytes, num_bytes // slab_bytes
        self._empty = list(reversed(range(self.num_slabs)))
        self._slabs: dict[int, _Slab] = {}
        self._partial: dict[int, dict[int, None]] = {}
        self.num_used = 0

    @property
    def num_carved(self) -> int:
        """Slots cut so far, free or used."""
        return sum(slab.num_slots for slab in self._slabs.values())

    @property
    def num_free(self) -> int:
        """Free slots in slabs that are cut already."""
        return sum(len(slab.free) for slab in self._slabs.values())

    def allocate(self, num_bytes: int) -> int | None:
        """Offset of a free slot of at least `num_bytes`, or None where the class is full."""
        size = slot_bytes(num_bytes)
        partial = self._partial.setdefault(size, {})
        if not partial and not self._carve(size):
            return None
        index = next(iter(partial))
        slab = self._slabs[index]
        offset = slab.free.pop()
        if not slab.free:
            del partial[index]
        self.num_used += 1
        return offset

    def free(self, offset: int) -> None:
        """Give a slot back; a slab without used slots may change its class."""
        index = offset // self.slab_bytes
        slab = self._slabs[index]
        slab.free.append(offset)
        self._partial[slab.slot_bytes][index] = None
        if len(slab.free) == slab.num_slots:
            del self._partial[slab.slot_bytes][index], self._slabs[index]
            self._empty.append(index)
        self.num_used -= 1

    def capacity(self, offset: int) -> int:
        """Bytes of the slot at `offset`."""
        return self._slabs[offset // self.slab_bytes].slot_bytes

    def check_integrity(self) -> None:
        """Raise AssertionError unless free + used == carved and every slab is empty or cut, not both."""
        assert self.num_free + self.num_used == self.num_carved, "a slot is lost"
        assert len(self._empty) + len(self._slabs) == self.num_slabs, "a slab is lost"
        assert not set(self._empty) & self._slabs.keys(), "a slab is empty and cut"
        for index, slab in self._slabs.items():
            start = index * self.slab_bytes
            slots = {start + slot * slab.slot_bytes for slot in range(slab.num_slots)}
            assert len(set(slab.free)) == len(slab.free) and slots >= set(slab.free), "a slot is free twice"
            assert (index in self._partial[slab.slot_bytes]) == bool(slab.free), "partial list is wrong"

    def _carve(self, size: int) -> bool:
        num_slots = self.slab_bytes // size
        if not self._empty or not num_slots:
            return False
        index = self._empty.pop()
        start = index * self.slab_bytes
        offsets = [start + slot * size for slot in reversed(range(num_slots))]
        self._slabs[index] = _Slab(size, num_slots, offsets)
        self._partial[size][index] = None
        return True


class Arena(SlabAllocator):
    """Slots backed by a sealed memfd that same-host peers map."""

    def __init__(self, num_bytes: int, slab_bytes: int, *, prefault: bool = False) -> None:
        super().__init__(num_bytes, slab_bytes)
        self.num_bytes, self.is_prefaulted = self.num_slabs * slab_bytes, prefault
        self.fd = os.memfd_create("forebay-kv", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, self.num_bytes)
        fcntl.fcntl(self.fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        # First touch of 256 MiB costs about 170 ms: better paid at start than inside the first requests.
        populate = mmap.MAP_POPULATE if prefault else 0
        self._map = mmap.mmap(self.fd, self.num_bytes, flags=mmap.MAP_SHARED | populate)
        self._memory = memoryview(self._map)

    def view(self, offset: int, num_bytes: int) -> memoryview:
        """The memory of a slot; raises ValueError outside of the arena."""
        if offset < 0 or num_bytes < 0 or offset + num_bytes > self.num_bytes:
            raise ValueError(f"bytes {offset} to {offset + num_bytes} are outside the arena")
        return self._memory[offset : offset + num_bytes]

    def close(self) -> None:
        """Unmap and close; views handed out must be gone."""
        self._memory.release()
        self._map.close()
        os.close(self.fd)
