"""Whether somebody is surely inside a place, surely not, or neither can be told from the pings alone (rules B4, P7)."""

from __future__ import annotations

from dataclasses import dataclass
from math import hypot
from typing import Any

from tests.simulation.plan import LAT, LON, M_PER_DEGREE_LAT, M_PER_DEGREE_LON, Place

TTL_MS = 1_800_000
LONGEST_TTL_MS = 3 * 3_600_000
SPEEDY_M = 15_000
"""Two pings in a row so far apart may be held as too fast."""


@dataclass
class Seen:
    """The newest ping with coordinates."""

    at_ms: int
    east_m: float
    north_m: float
    accuracy_m: float
    is_doubtful: bool


class Whereabouts:
    """Of every user the newest ping, and when there was any."""

    def __init__(self) -> None:
        self._seen: dict[str, Seen] = {}
        self._heard: dict[str, int] = {}

    def ping(self, event: dict[str, Any]) -> None:
        """A ping of somebody who lets himself be located, in log order."""
        user, at_ms = event["user"], event["at"]
        self._heard[user] = max(at_ms, self._heard.get(user, 0))
        old = self._seen.get(user)
        if old is not None and at_ms <= old.at_ms:
            return
        if "lon" not in event:
            # A cell fix may be held, or make one that follows be held.
            if old is not None:
                old.is_doubtful = True
            return
        east_m, north_m = (event["lon"] - LON) * M_PER_DEGREE_LON, (event["lat"] - LAT) * M_PER_DEGREE_LAT
        is_far = old is None or hypot(east_m - old.east_m, north_m - old.north_m) > SPEEDY_M
        self._seen[user] = Seen(at_ms, east_m, north_m, event["accuracy_m"] or 1e6, is_far)

    def is_inside(self, user: str, places: list[Place], at_ms: int) -> bool | None:
        """Say of somebody with an open visit to these places whether he was heard of there lately; None: unknown."""
        if not places or at_ms - self._heard.get(user, 0) > LONGEST_TTL_MS:
            return False
        seen = self._seen.get(user)
        if seen is None or seen.is_doubtful or not 0 <= at_ms - seen.at_ms < TTL_MS:
            return None
        away_m = (hypot(one.east_m - seen.east_m, one.north_m - seen.north_m) for one in places)
        sure = any(away + seen.accuracy_m <= one.radius_m for away, one in zip(away_m, places, strict=True))
        return True if sure else None

    def forget(self, user: str) -> None:
        self._seen.pop(user, None)
        self._heard.pop(user, None)
