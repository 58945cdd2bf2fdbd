"""Log lines of services, for people: `event key=value ...` instead of JSON."""

from __future__ import annotations

import json
from typing import Any

# Known to whoever reads the line: it stands behind the service's name.
_HIDDEN = ("event", "level", "pid", "service", "ts", "exception")


def event_of(line: str) -> dict[str, Any]:
    """The JSON object in a line; empty for anything else."""
    try:
        event = json.loads(line)
    except ValueError:
        return {}
    return event if isinstance(event, dict) else {}


def readable(line: str) -> str:
    """A JSON line as words, with its traceback below; any other line as it is."""
    event = event_of(line)
    if not event:
        return line
    words = [f"{key}={value}" for key, value in event.items() if key not in _HIDDEN and value != ""]
    text = " ".join([str(event.get("event", "")), *words])
    return f"{text}\n{event['exception']}" if "exception" in event else text
