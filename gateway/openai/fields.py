"""Typed reading of a JSON object that a caller wrote; every complaint names the field and what was got."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from forebay.errors import InvalidArgument, MalformedMessage

SEEDS, UINT32 = (-(2**63), 2**64 - 1), (0, 2**32 - 1)


class Fields:
    """One object of a request's body. A field that is null is as good as absent, as with OpenAI."""

    def __init__(self, values: dict[str, Any], path: str = "") -> None:
        self._values, self._path = values, path

    @classmethod
    def parse(cls, body: bytes | str, what: str = "the body") -> Fields:
        """The only object in a text; raises MalformedMessage where it is anything else."""
        try:
            values = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise MalformedMessage(f"{what} is not valid JSON: {error}") from error
        if not isinstance(values, dict):
            raise MalformedMessage(f"{what} must be a JSON object")
        return cls(values)

    def names(self) -> set[str]:
        """Fields that are set."""
        return {name for name, value in self._values.items() if value is not None}

    def values(self) -> dict[str, Any]:
        """All fields, those that are null included; a copy."""
        return dict(self._values)

    def get(self, name: str) -> Any:
        """Whatever is there."""
        return self._values.get(name)

    def text(self, name: str) -> str | None:
        """A string that UTF-8 can hold."""
        value = self._typed(name, str, "a string")
        return None if value is None else _encodable(value, self._path + name)

    def flag(self, name: str) -> bool:
        """true or false; false where absent."""
        return bool(self._typed(name, bool, "true or false"))

    def number(self, name: str) -> float | None:
        """Any number; ranges are checked where all dialects' are."""
        value = self.get(name)
        return None if value is None else _number(value, self._path + name)

    def integer(self, name: str, limits: tuple[int, int] = UINT32) -> int | None:
        """A whole number within `limits`."""
        value = self.get(name)
        return None if value is None else _integer(value, self._path + name, limits)

    def integers(self, name: str) -> list[int]:
        """A list of unsigned 32-bit numbers; empty where absent."""
        return unsigned(self._typed(name, list, "a list of integers") or [], self._path + name)

    def texts(self, name: str) -> list[str]:
        """A string or a list of them; empty where absent."""
        value = self.get(name)
        values = (
            [value] if isinstance(value, str) else self._typed(name, list, "a string or a list of strings")
        )
        return [_text(value, self._path + name) for value in values or []]

    def objects(self, name: str) -> list[Fields]:
        """A list of objects; raises where absent."""
        values = self._typed(name, list, "a list of objects")
        if values is None:
            raise InvalidArgument("must be given", field=self._path + name)
        return [self._wrap(value, f"{self._path}{name}[{i}].") for i, value in enumerate(values)]

    def nested(self, name: str) -> Fields:
        """An object; an empty one where absent."""
        return self._wrap(self.get(name) or {}, f"{self._path}{name}.")

    def error(self, name: str, message: str, **details: object) -> InvalidArgument:
        """A complaint about one field."""
        return InvalidArgument(message, field=self._path + name, **details)  # type: ignore[arg-type]

    def _wrap(self, value: Any, path: str) -> Fields:
        if not isinstance(value, dict):
            raise wrong_type(path.rstrip("."), "an object", value)
        return Fields(value, path)

    def _typed(self, name: str, kind: type, what: str) -> Any:
        value = self.get(name)
        if value is not None and not isinstance(value, kind):
            raise wrong_type(self._path + name, what, value)
        return value


def wrong_type(field: str, what: str, value: object) -> InvalidArgument:
    """The complaint about a JSON type."""
    return InvalidArgument(
        f"must be {what}", field=field, limit=what, got=_JSON_NAMES.get(type(value), "null")
    )


def unsigned(values: Sequence[Any], field: str) -> list[int]:
    """Unsigned 32-bit numbers; a prompt may have a million, so the good case is one quick look at each."""
    is_plain = all(type(value) is int for value in values)
    if is_plain and min(values, default=0) >= 0 and max(values, default=0) <= UINT32[1]:
        return list(values)
    return [_integer(value, field, UINT32) for value in values]


_JSON_NAMES = {str: "string", bool: "boolean", int: "number", float: "number", list: "array", dict: "object"}


def _integer(value: Any, field: str, limits: tuple[int, int]) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int):
        raise wrong_type(field, "an integer", value)
    if not limits[0] <= value <= limits[1]:
        raise InvalidArgument("out of range", field=field, limit=list(limits), got=str(value)[:32])
    return value


def _number(value: Any, field: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise wrong_type(field, "a number", value)
    try:
        return float(value)
    except OverflowError as error:
        raise InvalidArgument("out of range", field=field, got="a huge integer") from error


def _text(value: Any, field: str) -> str:
    if not isinstance(value, str):
        raise wrong_type(field, "a string", value)
    return _encodable(value, field)


def _encodable(text: str, field: str) -> str:
    r"""JSON may carry half a surrogate pair ("\ud800"), which is no text."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("has a lone surrogate", field=field) from error
    return text
