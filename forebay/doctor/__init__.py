"""What this machine needs, looked at: each finding has a state and, unless it is good, a fix."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["good", "poor", "bad"]


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that was looked at."""

    name: str
    state: State
    found: str
    fix: str = ""
