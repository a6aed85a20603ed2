"""Say once what goes on happening: a disk that is full must not be filled with complaints of it."""

from __future__ import annotations

from engine.clock import monotonic_s

AGAIN_S = 60.0


class Repeated:
    """Remembers what was said lately; for one thread."""

    def __init__(self) -> None:
        self._said_s: dict[str, float] = {}

    def is_news(self, what: str) -> bool:
        """Say whether this was not said within the last minute; from now on it was."""
        now_s = monotonic_s()
        if now_s < self._said_s.get(what, 0.0):
            return False
        self._said_s = {said: until_s for said, until_s in self._said_s.items() if until_s > now_s}
        self._said_s[what] = now_s + AGAIN_S
        return True
