"""Log-probabilities in OpenAI's two shapes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from forebay.v1.common_pb2 import TokenLogprobs

from ..tokenizer import Tokenizer

# JSON has no infinity; the value is vLLM's.
LEAST = -9999.0


def chat_logprobs(entries: Sequence[TokenLogprobs], tokenizer: Tokenizer) -> dict[str, Any]:
    """One entry for each token, the one that ended the output included."""
    return {"content": [_chat_entry(entry, tokenizer) for entry in entries], "refusal": None}


def completion_logprobs(
    entries: Sequence[TokenLogprobs], tokenizer: Tokenizer, offset: int
) -> tuple[dict[str, Any], int]:
    """(parallel lists, offset of the next token); offsets are characters of the output."""
    tokens = [tokenizer.token_text(entry.token_id) for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    shape = {
        "tokens": tokens,
        "token_logprobs": [max(entry.logprob, LEAST) for entry in entries],
        "top_logprobs": [_top(entry, tokenizer) for entry in entries],
        "text_offset": offsets,
    }
    return shape, offset


def _chat_entry(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, Any]:
    pairs = zip(entry.top_token_ids, entry.top_logprobs, strict=True)
    top = [_token(token_id, logprob, tokenizer) for token_id, logprob in pairs]
    return _token(entry.token_id, entry.logprob, tokenizer) | {"top_logprobs": top}


def _token(token_id: int, logprob: float, tokenizer: Tokenizer) -> dict[str, Any]:
    spelt = tokenizer.token_bytes(token_id)
    return {"token": spelt.decode("utf-8", "replace"), "logprob": max(logprob, LEAST), "bytes": list(spelt)}


def _top(entry: TokenLogprobs, tokenizer: Tokenizer) -> dict[str, float]:
    """Best first, the chosen token among them; of tokens that look alike the likelier one stays."""
    ids, values = [*entry.top_token_ids, entry.token_id], [*entry.top_logprobs, entry.logprob]
    top: dict[str, float] = {}
    for token_id, logprob in zip(ids, values, strict=True):
        top.setdefault(tokenizer.token_text(token_id), max(logprob, LEAST))
    return top
