"""Stop strings over streamed text: no text that is or may become part of a stop string gets out."""

from __future__ import annotations

from collections.abc import Sequence


class StopFilter:
    """Holds back the longest tail that could begin a stop string.

    Where several match, the one that is complete first wins, and of those the longest; so the result does
    not depend on how the text was cut into chunks.
    """

    def __init__(self, stop: Sequence[str]) -> None:
        self._stop = stop
        self._held = ""

    def push(self, text: str) -> tuple[str, bool]:
        """(text that may go out, whether a stop string was found); after a find nothing may be pushed."""
        text = self._held + text
        matches = [(at + len(stop), at) for stop in self._stop if (at := text.find(stop)) >= 0]
        if matches:
            self._held = ""
            return text[: min(matches)[1]], True
        cut = len(text) - max((_overlap(text, stop) for stop in self._stop), default=0)
        self._held = text[cut:]
        return text[:cut], False

    def flush(self) -> str:
        """What was held back, once it is known that nothing follows."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Length of the longest proper prefix of `stop` that ends `text`."""
    at = text.find(stop[0], max(0, len(text) - len(stop) + 1))
    while at >= 0:
        if stop.startswith(text[at:]):
            return len(text) - at
        at = text.find(stop[0], at + 1)
    return 0
