"""Block keys: known vectors, independence of chunking, sensitivity to everything they cover."""

from __future__ import annotations

import hashlib
import struct

from hypothesis import given
from hypothesis import strategies as st

from forebay.kv.hashing import BlockHasher, block_keys, prefix_root, token_bytes

ROOT = prefix_root(b"fingerprint", b"salt")
token_lists = st.lists(st.integers(0, 2**32 - 1), max_size=200)


def test_root_by_hand():
    prefixed = struct.pack("<I", 11) + b"fingerprint" + b"salt"
    assert hashlib.sha256(b"forebay.prefix.v1" + prefixed).digest() == ROOT


def test_root_separates_fingerprint_from_salt():
    assert prefix_root(b"ab", b"c") != prefix_root(b"a", b"bc")


def test_keys_by_hand():
    tokens = list(range(40))
    data = ROOT + struct.pack("<40I", *tokens)
    keys = block_keys(ROOT, tokens, 16)
    assert len(keys) == 2
    for i, (key, check) in enumerate(keys):
        covered = data[: len(ROOT) + 4 * 16 * (i + 1)]
        assert key == hashlib.sha256(covered).digest()[:16]
        assert check == hashlib.blake2b(covered, digest_size=16).digest()


def test_known_vector():
    """Changing this value orphans every stored block: bump LAYOUT_VERSION with it."""
    (key,) = block_keys(prefix_root(b"", b""), range(16), 16)
    assert key.key.hex() == "9cf0dfd6f83a9aa52a46407e5c619b92"
    assert key.check.hex() == "91e50235b72607a5b568c541299e318b"


def test_token_bytes_are_little_endian():
    assert token_bytes([1, 2**32 - 1]) == b"\x01\x00\x00\x00\xff\xff\xff\xff"


@given(token_lists, st.lists(st.integers(0, 50)))
def test_chunking_does_not_matter(tokens, chunk_lens):
    hasher, keys, start = BlockHasher(ROOT, 16), [], 0
    for length in [*chunk_lens, len(tokens)]:
        keys += hasher.extend(tokens[start : start + length])
        start += length
    assert keys == block_keys(ROOT, tokens, 16)
    assert len(keys) == len(tokens) // 16


@given(st.lists(st.integers(0, 2**32 - 1), min_size=64, max_size=64), st.integers(0, 63))
def test_a_changed_token_changes_its_block_and_all_after_it(tokens, index):
    changed = list(tokens)
    changed[index] ^= 1
    before, after = block_keys(ROOT, tokens, 16), block_keys(ROOT, changed, 16)
    is_equal = [a == b for a, b in zip(before, after, strict=True)]
    assert is_equal == [block < index // 16 for block in range(4)]


def test_block_size_and_root_are_part_of_identity():
    tokens = list(range(32))
    assert block_keys(ROOT, tokens, 32)[0] == block_keys(ROOT, tokens, 16)[1], "same tokens, same key"
    assert block_keys(ROOT, tokens, 16) != block_keys(prefix_root(b"other", b"salt"), tokens, 16)
