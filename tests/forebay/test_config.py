"""Configuration: precedence, parsing, refusals that help."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import pytest

from forebay.config import load, load_or_exit, option, to_flags
from forebay.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ExampleConfig:
    """An example."""

    listen: str = option("127.0.0.1:0", help="100 % of the address")
    max_streams: int = 8
    ratio: float = 0.5
    is_fast: bool = False
    mode: Literal["auto", "shm"] = "auto"
    stores: tuple[str, ...] = ()
    limit: int | None = None


@dataclass(frozen=True)
class NeedyConfig:
    """A required field."""

    model: str


def example(*argv: str, **env: str) -> ExampleConfig:
    return load(ExampleConfig, "example", argv, env)


def test_defaults():
    assert example() == ExampleConfig()


def test_flags_of_every_kind():
    flags = ["--max-streams=4", "--ratio", "0.25", "--is-fast", "yes", "--mode", "shm"]
    flags += ["--stores", "a:1,b:2,", "--limit", "7"]
    expected = ExampleConfig(
        max_streams=4, ratio=0.25, is_fast=True, mode="shm", stores=("a:1", "b:2"), limit=7
    )
    assert example(*flags) == expected
    assert example("--limit=").limit is None


def test_flag_beats_own_variable_beats_shared_variable():
    env = {"FOREBAY_MAX_STREAMS": "1", "FOREBAY_EXAMPLE_MAX_STREAMS": "2"}
    assert example(FOREBAY_MAX_STREAMS="1").max_streams == 1
    assert example(**env).max_streams == 2
    assert example("--max-streams", "3", **env).max_streams == 3


def test_another_services_variables_are_not_ours():
    assert example(FOREBAY_OTHER_THING="1") == ExampleConfig()


@pytest.mark.parametrize("config", [ExampleConfig(), ExampleConfig(stores=("a", "b"), limit=3, is_fast=True)])
def test_to_flags_round_trip(config):
    assert example(*to_flags(config)) == config


def test_unknown_flag_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"unknown flag --max-stream=3 \(did you mean 'max_streams'\?\)"):
        example("--max-stream=3")


def test_unknown_variable_suggests_the_nearest():
    with pytest.raises(ConfigError, match=r"FOREBAY_EXAMPLE_RATO \(did you mean 'ratio'\?\)"):
        example(FOREBAY_EXAMPLE_RATO="1")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--max-streams=many", "max_streams: 'many' is not a valid int"),
        ("--is-fast=maybe", "is_fast: 'maybe' is not a valid bool"),
        ("--mode=shn", r"mode: 'shn' is not one of .*did you mean 'shm'"),
    ],
)
def test_bad_values_name_the_key(flag, message):
    with pytest.raises(ConfigError, match=message):
        example(flag)


def test_a_missing_required_field_is_named():
    with pytest.raises(ConfigError, match="missing configuration.*model"):
        load(NeedyConfig, "needy", [], {})


def test_load_or_exit_prints_one_line(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["example", "--max-stream", "3"])
    with pytest.raises(SystemExit) as stop:
        load_or_exit(ExampleConfig, "example")
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("example: unknown flag --max-stream") and error.count("\n") == 1


def test_help_shows_every_field(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["example", "--help"])
    with pytest.raises(SystemExit) as stop:
        load_or_exit(ExampleConfig, "example")
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert "--max-streams" in text and "100 % of the address" in text
