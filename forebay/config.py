"""Typed configuration: one frozen dataclass per service, filled from flags, environment, defaults.

`load(GatewayConfig, "gateway")` reads `--max-streams 64` or `FOREBAY_GATEWAY_MAX_STREAMS=64`; the shared
form `FOREBAY_MAX_STREAMS` reaches every service that has the field. A flag wins over the service's own
variable, which wins over the shared one. Unknown flags and unknown `FOREBAY_<SERVICE>_*` variables are
refused with a suggestion.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, Union, get_args, get_origin

from forebay.errors import ConfigError, suggest

T = TypeVar("T")
ENV_PREFIX = "FOREBAY_"


def load(
    cls: type[T], service: str, argv: Sequence[str] | None = None, env: Mapping[str, str] | None = None
) -> T:
    """Build `cls` from `argv` and `env`; raises ConfigError naming the key and the nearest known one."""
    env = os.environ if env is None else env
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    values = _from_env(fields, service, env) | _from_flags(cls, fields, service, argv)
    parsed = {name: _parse(name, raw, hints[name]) for name, raw in values.items()}
    try:
        return cls(**parsed)
    except TypeError as error:
        missing = [n for n, f in fields.items() if n not in parsed and _is_required(f)]
        raise ConfigError(f"{service}: missing configuration {missing}") from error


def load_or_exit(cls: type[T], service: str) -> T:
    """`load` for a process: a configuration error is one line on standard error and exit code 2."""
    try:
        return load(cls, service)
    except ConfigError as error:
        sys.stderr.write(f"{service}: {error.message}\n")
        raise SystemExit(2) from error


def to_flags(config: Any) -> list[str]:
    """The command line that `load` turns back into `config` (fields at their default are left out)."""
    flags: list[str] = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if _is_required(field) or value != _default(field):
            text = ",".join(map(str, value)) if isinstance(value, tuple) else str(value)
            flags.append(f"--{field.name.replace('_', '-')}={text}")
    return flags


def _is_required(field: dataclasses.Field[Any]) -> bool:
    return field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _from_env(
    fields: Mapping[str, dataclasses.Field[Any]], service: str, env: Mapping[str, str]
) -> dict[str, str]:
    own = f"{ENV_PREFIX}{service.upper()}_"
    values = {n: env[ENV_PREFIX + n.upper()] for n in fields if ENV_PREFIX + n.upper() in env}
    for key in env:
        if key.startswith(own):
            name = key[len(own) :].lower()
            if name not in fields:
                raise ConfigError(f"unknown variable {key}{suggest(name, fields)}")
            values[name] = env[key]
    return values


def _from_flags(
    cls: type[Any], fields: Mapping[str, dataclasses.Field[Any]], service: str, argv: Sequence[str] | None
) -> dict[str, str]:
    parser = argparse.ArgumentParser(
        prog=f"python -m {cls.__module__.partition('.')[0]}",
        description=cls.__doc__,
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
    )
    for name, field in fields.items():
        flag = f"--{name.replace('_', '-')}"
        text = field.metadata.get("help", "")
        default = "required" if _is_required(field) else f"default: {_default(field)!r}"
        parser.add_argument(flag, dest=name, metavar="VALUE", help=f"{text} ({default})".replace("%", "%%"))
    known, unknown = parser.parse_known_args(argv)
    if unknown:
        name = unknown[0].lstrip("-").split("=")[0].replace("-", "_")
        raise ConfigError(f"unknown flag {unknown[0]}{suggest(name, fields)}")
    return dict(vars(known))


def _parse(name: str, raw: str, hint: Any) -> Any:
    origin, args = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        inner = next(a for a in args if a is not type(None))
        return None if raw == "" else _parse(name, raw, inner)
    if origin is tuple:
        return tuple(_parse(name, part.strip(), args[0]) for part in raw.split(",") if part.strip())
    if origin is typing.Literal:
        return _choice(name, raw, [str(a) for a in args])
    try:
        return _SCALARS[hint](raw)
    except (ValueError, KeyError) as error:
        raise ConfigError(f"{name}: {raw!r} is not a valid {getattr(hint, '__name__', hint)}") from error


def _choice(name: str, raw: str, choices: list[str]) -> str:
    if raw not in choices:
        raise ConfigError(f"{name}: {raw!r} is not one of {choices}{suggest(raw, choices)}")
    return raw


_BOOLS = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
_SCALARS: dict[Any, Any] = {str: str, int: int, float: float, bool: lambda raw: _BOOLS[raw.lower()]}


def option(default: Any = dataclasses.MISSING, *, help: str) -> Any:  # noqa: A002
    """A dataclass field with a help line for `--help`."""
    return dataclasses.field(default=default, metadata={"help": help})
