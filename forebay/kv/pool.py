"""Accounting of the block pool: which block is free, referenced or cached. No tensors, no I/O.

Every block but block 0 (the padding block) is in exactly one state:

    free        on the free list; contents are garbage
    referenced  ref_count > 0; possibly published under a key as well
    cached      ref_count == 0 and published: reusable, evicted in least-recently-used order

Only the engine thread may call this class.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterable, Sequence

from forebay.errors import PoolExhausted

PADDING_BLOCK = 0


class BlockPool:
    """Reference counts and the local prefix cache over `num_blocks` blocks of `block_size` tokens."""

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 2:
            raise ValueError(f"a pool needs at least 2 blocks (one is padding), got {num_blocks}")
        self.num_blocks, self.block_size = num_blocks, block_size
        self._free: deque[int] = deque(range(1, num_blocks))
        self._ref_counts = [0] * num_blocks
        self._keys: dict[int, bytes] = {}
        self._by_key: dict[bytes, int] = {}
        self._evictable: OrderedDict[int, None] = OrderedDict()
        self.num_evictions = 0

    @property
    def num_free(self) -> int:
        """Blocks that `allocate` can hand out, cached ones included."""
        return len(self._free) + len(self._evictable)

    @property
    def num_used(self) -> int:
        """Blocks that somebody holds a reference to."""
        return self.num_blocks - 1 - self.num_free

    @property
    def num_cached(self) -> int:
        """Blocks published under a key, referenced or not."""
        return len(self._by_key)

    def allocate(self, num_blocks: int) -> list[int]:
        """Take `num_blocks` with one reference each; raises PoolExhausted and takes none if too few."""
        if num_blocks > self.num_free:
            raise PoolExhausted(f"block pool: {num_blocks} blocks asked for, {self.num_free} free")
        blocks = [self._take() for _ in range(num_blocks)]
        for block in blocks:
            self._ref_counts[block] = 1
        return blocks

    def match(self, keys: Iterable[bytes]) -> list[int]:
        """Blocks of the longest cached prefix of `keys`, a reference taken on each."""
        blocks: list[int] = []
        for key in keys:
            block = self._by_key.get(key)
            if block is None:
                break
            blocks.append(block)
        self.share(blocks)
        return blocks

    def num_matching(self, keys: Iterable[bytes]) -> int:
        """Length of the longest cached prefix of `keys`; takes no reference."""
        num = 0
        for key in keys:
            if key not in self._by_key:
                break
            num += 1
        return num

    def cache(self, block: int, key: bytes) -> int:
        """Publish a full, referenced block; returns the block that holds `key` (an older one may win)."""
        if self._ref_counts[block] < 1:
            raise ValueError(f"block {block} is published without a reference")
        if block in self._keys:
            return block
        holder = self._by_key.setdefault(key, block)
        if holder == block:
            self._keys[block] = key
        return holder

    def share(self, blocks: Sequence[int]) -> None:
        """One more reference on each block, which must be referenced or cached."""
        for block in blocks:
            if self._ref_counts[block] < 1 and block not in self._evictable:
                raise ValueError(f"block {block} is shared but free")
            self._ref_counts[block] += 1
            self._evictable.pop(block, None)

    def release(self, blocks: Sequence[int]) -> None:
        """One reference less on each, leaves first so that a prefix outlives what hangs on it."""
        for block in reversed(blocks):
            if self._ref_counts[block] < 1:
                raise ValueError(f"block {block} is released without a reference")
            self._ref_counts[block] -= 1
            if self._ref_counts[block] == 0:
                if block in self._keys:
                    self._evictable[block] = None
                else:
                    self._free.append(block)

    def evict_all(self) -> int:
        """Drop every cached block without a reference; returns how many."""
        num = len(self._evictable)
        for _ in range(num):
            self._free.append(self._evict())
        return num

    def check_integrity(self) -> None:
        """Raise AssertionError unless every block is in exactly one state."""
        free, evictable = set(self._free), set(self._evictable)
        referenced = {b for b in range(1, self.num_blocks) if self._ref_counts[b] > 0}
        assert len(free) == len(self._free), "a block is free twice"
        assert not (free & evictable) and not (free & referenced) and not (evictable & referenced)
        assert len(free) + len(evictable) + len(referenced) == self.num_blocks - 1, "a block is lost"
        assert all(count >= 0 for count in self._ref_counts) and self._ref_counts[PADDING_BLOCK] == 0
        assert {block: key for key, block in self._by_key.items()} == self._keys, "key maps disagree"
        assert evictable <= self._keys.keys() and not (free & self._keys.keys())

    def _take(self) -> int:
        return self._free.popleft() if self._free else self._evict()

    def _evict(self) -> int:
        block, _ = self._evictable.popitem(last=False)
        del self._by_key[self._keys.pop(block)]
        self.num_evictions += 1
        return block
