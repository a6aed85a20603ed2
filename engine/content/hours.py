"""When a fence is open: opening hours and validity as intervals of event time (rule L9)."""

from __future__ import annotations

import re
from datetime import datetime
from functools import lru_cache
from zoneinfo import ZoneInfo

import numpy as np
from opening_hours import OpeningHours, State  # type: ignore[attr-defined]

from engine.definitions import Fence

CHUNK_MS = 32 * 86_400_000
_UTC = ZoneInfo("UTC")
_DEPENDS_ON_PLACE = re.compile(r"\b(PH|SH|sunrise|sunset|dawn|dusk)\b")
_NOTHING = np.empty((0, 2), np.int64)


def open_intervals(fence: Fence, from_ms: int, until_ms: int) -> np.ndarray:
    """Return when the fence is open and valid within [from_ms, until_ms).

    Result: int64[K, 2], half-open UTC milliseconds, rising, no two touching. Hours are read in the fence's zone; what
    OpenStreetMap calls `unknown` counts as closed. Public holidays and the sun are those of the fence's place.
    Cost: evaluated once per distinct hours and 32 days (about 0.2 ms), then a clip of cached rows (about 10 us).
    """
    if fence.valid_from_ms is not None:
        from_ms = max(from_ms, fence.valid_from_ms)
    if fence.valid_until_ms is not None:
        until_ms = min(until_ms, fence.valid_until_ms)
    if from_ms >= until_ms:
        return _NOTHING
    if fence.opening_hours is None or fence.opening_hours == "24/7":
        return np.array([[from_ms, until_ms]], np.int64)
    depends = _DEPENDS_ON_PLACE.search(fence.opening_hours) is not None
    place = (fence.lon, fence.lat) if depends else None
    zone = fence.time_zone or "UTC"
    chunks = [
        _chunk(fence.opening_hours, zone, place, number)
        for number in range(from_ms // CHUNK_MS, (until_ms - 1) // CHUNK_MS + 1)
    ]
    rows = chunks[0] if len(chunks) == 1 else _merged(np.concatenate(chunks))
    first = int(np.searchsorted(rows[:, 1], from_ms, "right"))
    last = int(np.searchsorted(rows[:, 0], until_ms, "left"))
    clipped: np.ndarray = np.clip(rows[first:last], from_ms, until_ms)
    return clipped


@lru_cache(maxsize=16_384)
def _chunk(text: str, zone: str, place: tuple[float, float] | None, number: int) -> np.ndarray:
    """Evaluate one span of 32 days, counted from the epoch."""
    start_ms, end_ms = number * CHUNK_MS, (number + 1) * CHUNK_MS
    start = datetime.fromtimestamp(start_ms // 1000, _UTC)
    end = datetime.fromtimestamp(end_ms // 1000, _UTC)
    rows = [
        (max(round(opens.timestamp() * 1000), start_ms), min(round(closes.timestamp() * 1000), end_ms))
        for opens, closes, state, _ in _hours(text, zone, place).intervals(start, end)
        if state == State.OPEN
    ]
    merged = _merged(np.array(rows, np.int64).reshape(-1, 2))
    merged.setflags(write=False)
    return merged


@lru_cache(maxsize=4_096)
def _hours(text: str, zone: str, place: tuple[float, float] | None) -> OpeningHours:
    if place is None:
        return OpeningHours(text, timezone=ZoneInfo(zone))
    lon, lat = place
    return OpeningHours(text, timezone=ZoneInfo(zone), coords=(lat, lon), auto_country=True)


def _merged(rows: np.ndarray) -> np.ndarray:
    """Join intervals that touch; the rows rise."""
    rows = rows[rows[:, 0] < rows[:, 1]]
    if len(rows) < 2:
        return rows
    is_new = np.concatenate(([True], rows[1:, 0] > rows[:-1, 1]))
    starts = np.flatnonzero(is_new)
    ends = np.append(starts[1:], len(rows)) - 1
    return np.column_stack((rows[starts, 0], rows[ends, 1]))
