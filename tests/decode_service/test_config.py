"""Configurations that cannot work are refused before anything is loaded."""

from __future__ import annotations

import pytest

from decode_service.config import DecodeConfig
from draft_service.config import DraftConfig
from forebay.config import load
from forebay.errors import ConfigError


@pytest.mark.parametrize(
    "flags",
    [
        ["--max-batch-size=0"],
        ["--max-batch-tokens=-1"],
        ["--max-chunk-tokens=-1"],
        ["--speculate=model"],
        ["--speculate=yes"],
        ["--num-draft-tokens=0"],
        ["--num-draft-tokens=17"],
    ],
)
def test_decode_refuses(flags: list[str]) -> None:
    with pytest.raises(ConfigError):
        load(DecodeConfig, "decode", flags, {})


@pytest.mark.parametrize(
    "flags", [["--min-ngram=0"], ["--min-ngram=5"], ["--max-batch-tokens=0"], ["--method=eagle"]]
)
def test_draft_refuses(flags: list[str]) -> None:
    with pytest.raises(ConfigError):
        load(DraftConfig, "draft", flags, {})


def test_budgets_follow_the_device() -> None:
    config = load(DecodeConfig, "decode", [], {})
    assert config.batch_tokens("cpu") < config.batch_tokens("cuda")
    assert config.chunk_tokens("cpu") < config.batch_tokens("cpu")
    assert load(DecodeConfig, "decode", ["--max-chunk-tokens=7"], {}).chunk_tokens("cuda") == 7
