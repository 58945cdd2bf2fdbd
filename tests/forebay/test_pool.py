"""The block pool against a plain model, and the rules that a model does not show."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from forebay.errors import PoolExhausted
from forebay.kv.pool import PADDING_BLOCK, BlockPool

NUM_BLOCKS = 9
KEYS = [bytes([i]) for i in range(12)]


class PoolMachine(RuleBasedStateMachine):
    """References are a list of block lists; whatever happens, held blocks are neither lost nor reused."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = BlockPool(NUM_BLOCKS, 16)
        self.held: list[list[int]] = []
        self.key_of: dict[int, bytes] = {}

    @rule(num=st.integers(0, NUM_BLOCKS))
    def allocate(self, num):
        num_free, in_use = self.pool.num_free, {b for blocks in self.held for b in blocks}
        if num > num_free:
            with pytest.raises(PoolExhausted):
                self.pool.allocate(num)
            assert self.pool.num_free == num_free
            return
        blocks = self.pool.allocate(num)
        assert len(set(blocks)) == num and not set(blocks) & in_use and PADDING_BLOCK not in blocks
        for block in blocks:
            self.key_of.pop(block, None)
        self.held.append(blocks)

    @precondition(lambda self: any(self.held))
    @rule(data=st.data(), key=st.sampled_from(KEYS))
    def cache(self, data, key):
        block = data.draw(st.sampled_from([b for blocks in self.held for b in blocks]))
        holder = self.pool.cache(block, key)
        if block not in self.key_of and holder == block:
            self.key_of[block] = key
        assert self.key_of[holder] in (key, self.key_of.get(block))

    @rule(keys=st.lists(st.sampled_from(KEYS), unique=True))
    def match(self, keys):
        num = self.pool.num_matching(keys)
        blocks = self.pool.match(keys)
        assert len(blocks) == num
        assert [self.key_of[b] for b in blocks] == keys[:num]
        self.held.append(blocks)

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def share(self, data):
        blocks = data.draw(st.sampled_from(self.held))
        self.pool.share(blocks)
        self.held.append(list(blocks))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def release(self, data):
        index = data.draw(st.integers(0, len(self.held) - 1))
        self.pool.release(self.held.pop(index))

    @rule()
    def evict_all(self):
        num_free = self.pool.num_free
        self.pool.evict_all()
        assert self.pool.num_free == num_free

    @invariant()
    def accounts_agree(self):
        counts = Counter(b for blocks in self.held for b in blocks)
        self.pool.check_integrity()
        assert self.pool.num_used == len(counts)
        assert self.pool.num_used + self.pool.num_free == NUM_BLOCKS - 1
        assert self.pool._ref_counts == [counts[b] for b in range(NUM_BLOCKS)]


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def cached(pool: BlockPool, *keys: bytes) -> list[int]:
    blocks = pool.allocate(len(keys))
    for block, key in zip(blocks, keys, strict=True):
        pool.cache(block, key)
    return blocks


def test_too_small():
    with pytest.raises(ValueError, match="at least 2"):
        BlockPool(1, 16)


def test_leaves_are_evicted_before_the_prefix_they_hang_on():
    pool = BlockPool(4, 16)
    pool.release(cached(pool, b"root", b"middle", b"leaf"))
    pool.release(pool.allocate(1))
    assert pool.num_matching([b"root", b"middle", b"leaf"]) == 2
    pool.allocate(2)
    assert pool.num_matching([b"root"]) == 1
    assert pool.num_evictions == 2


def test_the_least_recently_released_chain_goes_first():
    pool = BlockPool(3, 16)
    old, new = cached(pool, b"old"), cached(pool, b"new")
    pool.release(old)
    pool.release(new)
    pool.release(pool.match([b"old"]))
    pool.allocate(1)
    assert pool.num_matching([b"new"]) == 0 and pool.num_matching([b"old"]) == 1


def test_the_first_holder_of_a_key_wins():
    pool = BlockPool(4, 16)
    first, second = pool.allocate(2)
    assert pool.cache(first, b"k") == first
    assert pool.cache(second, b"k") == first
    pool.release([second])
    assert pool.num_cached == 1 and pool.match([b"k"]) == [first]


def test_misuse_is_refused():
    pool = BlockPool(4, 16)
    (block,) = pool.allocate(1)
    pool.release([block])
    with pytest.raises(ValueError, match="released without"):
        pool.release([block])
    with pytest.raises(ValueError, match="published without"):
        pool.cache(block, b"k")
    with pytest.raises(ValueError, match="shared but free"):
        pool.share([block])
    pool.check_integrity()
