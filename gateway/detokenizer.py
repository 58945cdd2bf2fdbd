"""Token ids to text, piece by piece: incomplete UTF-8 is held back, the pieces add up to the full decode."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

REPLACEMENT = "\ufffd"


class Detokenizer(Protocol):
    """State of one choice."""

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that became complete with these tokens."""
        ...

    def flush(self) -> str:
        """The rest, incomplete UTF-8 as U+FFFD; ends the choice."""
        ...


class ByteDetokenizer:
    """For byte-level BPE: one table lookup a token, about ten times cheaper than decoding a window."""

    def __init__(self, table: Sequence[bytes]) -> None:
        self._table = table
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that became complete with these tokens."""
        table = self._table
        return self._decode(b"".join([table[token_id] for token_id in token_ids]))

    def flush(self) -> str:
        """The rest, incomplete UTF-8 as U+FFFD."""
        return self._decode(b"", True)


class WindowDetokenizer:
    """For any other tokenizer: decode a short window and emit what it has more than the window before.

    ids:  [ ... emitted ... | prefix .. read | read .. end ]   the window starts at `prefix`, so that rules
    for the first token of a text (stripping its space) act alike on both decodes.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str]) -> None:
        self._decode_ids = decode
        self._ids: list[int] = []
        self._read = 0

    def push(self, token_ids: Sequence[int]) -> str:
        """Text that became complete with these tokens."""
        self._ids.extend(token_ids)
        text = self._novel()
        if not text or text.endswith(REPLACEMENT):
            return ""
        del self._ids[: self._read]
        self._read = len(self._ids)
        return text

    def flush(self) -> str:
        """The rest, incomplete UTF-8 as U+FFFD."""
        text = self._novel()
        self._ids.clear()
        self._read = 0
        return text

    def _novel(self) -> str:
        seen = self._decode_ids(self._ids[: self._read]) if self._read else ""
        return self._decode_ids(self._ids)[len(seen) :]


def byte_table(vocab: Mapping[str, int], size: int) -> list[bytes]:
    """Bytes of each token id of a byte-level vocabulary, at least `size` entries; unknown ids are empty."""
    alphabet = _byte_alphabet()
    table = [b""] * max(size, max(vocab.values(), default=0) + 1)
    for token, token_id in vocab.items():
        table[token_id] = _token_bytes(token, alphabet)
    return table


def _token_bytes(token: str, alphabet: Mapping[str, int]) -> bytes:
    try:
        return bytes([alphabet[char] for char in token])
    except KeyError:  # an added token spelt outside of the alphabet stands for itself
        return token.encode()


def _byte_alphabet() -> dict[str, int]:
    """GPT-2's printable character of each byte (`bytes_to_unicode` in openai/gpt-2's encoder.py)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}
