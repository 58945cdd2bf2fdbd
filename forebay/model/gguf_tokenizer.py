"""A Hugging Face tokenizer built from GGUF metadata (byte-level BPE only). Torch-free."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors

from forebay.errors import UnsupportedModel

CONTROL_TOKEN, USER_TOKEN = 3, 4  # token types of the GGUF specification
# Split patterns of the models' own tokenizer.json files.
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_PATTERN = LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}")


def write_tokenizer(fields: Mapping[str, Any], folder: Path) -> None:
    """Write tokenizer.json and tokenizer_config.json with the chat template."""
    build_tokenizer(fields).save(str(folder / "tokenizer.json"))
    tokens = fields["tokenizer.ggml.tokens"]
    config: dict[str, Any] = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "add_bos_token": bool(fields.get("tokenizer.ggml.add_bos_token", False)),
        "clean_up_tokenization_spaces": False,
        "chat_template": fields.get("tokenizer.chat_template"),
    }
    names = {"bos": "bos_token", "eos": "eos_token", "unknown": "unk_token", "padding": "pad_token"}
    for kind, name in names.items():
        token_id = fields.get(f"tokenizer.ggml.{kind}_token_id")
        config[name] = None if token_id is None else tokens[token_id]
    (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2, ensure_ascii=False))


def build_tokenizer(fields: Mapping[str, Any]) -> Tokenizer:
    """Byte-level BPE with the pre-tokenizer that `tokenizer.ggml.pre` names."""
    if (kind := fields.get("tokenizer.ggml.model")) != "gpt2":
        raise UnsupportedModel(f"GGUF tokenizer {kind!r} is not supported; only byte-level BPE ('gpt2') is")
    tokens = fields["tokenizer.ggml.tokens"]
    merges = [tuple(merge.split(" ")) for merge in fields["tokenizer.ggml.merges"]]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=merges, fuse_unk=False, byte_fallback=False))
    tokenizer.pre_tokenizer = _pre_tokenizer(fields.get("tokenizer.ggml.pre", "default"))
    tokenizer.decoder = decoders.ByteLevel()
    if fields.get("tokenizer.ggml.pre") == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    _add_special_tokens(tokenizer, tokens, fields["tokenizer.ggml.token_type"])
    if fields.get("tokenizer.ggml.add_bos_token", False):
        tokenizer.post_processor = _bos_processor(tokens, fields["tokenizer.ggml.bos_token_id"])
    return tokenizer


def _pre_tokenizer(name: str) -> pre_tokenizers.PreTokenizer:
    if name == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        return pre_tokenizers.Sequence(
            [digits, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)]
        )
    if name in ("gpt-2", "default"):
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    patterns = {"llama-bpe": LLAMA3_PATTERN, "qwen2": QWEN2_PATTERN}
    if name not in patterns:
        raise UnsupportedModel(f"GGUF pre-tokenizer {name!r} is not supported")
    split = pre_tokenizers.Split(Regex(patterns[name]), behavior="isolated")
    return pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def _add_special_tokens(tokenizer: Tokenizer, tokens: list[str], types: list[int]) -> None:
    """Control tokens are matched whole and skipped in decoding; user-defined ones are only matched whole."""
    for token, kind in zip(tokens, types, strict=True):
        if kind == CONTROL_TOKEN:
            tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False)])
        elif kind == USER_TOKEN:
            tokenizer.add_tokens([AddedToken(token, normalized=False)])


def _bos_processor(tokens: list[str], bos_token_id: int) -> processors.PostProcessor:
    bos = tokens[bos_token_id]
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, bos_token_id)]
    )
