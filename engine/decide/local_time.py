"""Local time for rules that speak of it: quiet hours, schedules, calendar caps (rules C1, C5).

Every function takes the instant; results depend on it and on the zone database only. What is remembered between calls
only saves time.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

MINUTE_MS = 60_000
DAY_MINUTES = 1440
_EPOCH = datetime(1970, 1, 1)


@lru_cache(maxsize=1024)
def _zone(name: str) -> ZoneInfo | None:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return None


def is_zone(name: str) -> bool:
    """Say whether the zone database knows this name."""
    return _zone(name) is not None


def to_local(zone: str, at_ms: int) -> datetime:
    """Return the wall time of an instant, cut to the minute, with `fold` telling the second of two equal ones."""
    zone_info = _zone(zone)
    assert zone_info is not None, f"unknown zone {zone}"
    return datetime.fromtimestamp(at_ms // MINUTE_MS * 60, UTC).astimezone(zone_info)


def to_instant(local: datetime) -> int:
    """Return the instant of a wall time with zone; one that the clocks skip is the instant they jump at or after."""
    offset = local.utcoffset()
    assert offset is not None
    return (local.replace(tzinfo=None) - _EPOCH - offset) // timedelta(milliseconds=1)


class LocalTime:
    """Wall clocks of the zones in use, remembered for the minute last asked for."""

    def __init__(self, default_zone: str) -> None:
        self.default_zone = default_zone
        self._minute: dict[str, tuple[int, int, int]] = {}
        self._hours: dict[str, tuple[int, int]] = {}
        self._windows: dict[tuple[str, str], tuple[int, int]] = {}

    def known(self, zone: str | None) -> str:
        """Return the zone, or the deployment's where there is none or nobody knows it (C5)."""
        return zone if zone is not None and is_zone(zone) else self.default_zone

    def minute_and_weekday(self, zone: str, at_ms: int) -> tuple[int, int]:
        """Return the minute of the local day and the weekday (Monday is 0)."""
        minute = at_ms // MINUTE_MS
        known = self._minute.get(zone)
        if known is None or known[0] != minute:
            local = to_local(zone, at_ms)
            known = self._minute[zone] = (minute, local.hour * 60 + local.minute, local.weekday())
        return known[1], known[2]

    def is_between(self, start_minute: int, end_minute: int, zone: str, at_ms: int) -> bool:
        """Say whether the local minute lies in [start, end), which may pass midnight; equal ends are no window."""
        minute, _ = self.minute_and_weekday(zone, at_ms)
        if start_minute <= end_minute:
            return start_minute <= minute < end_minute
        return minute >= start_minute or minute < end_minute

    def end_of_quiet(self, start_minute: int, end_minute: int, zones: tuple[str, ...], at_ms: int) -> int:
        """Return the first instant from `at_ms` on that is not quiet in any of the zones (rule C5).

        Two zones may leave no gap between their windows; then the instant after a week of looking.
        """
        now_ms = at_ms
        for _ in range(16):
            for zone in zones:
                if self.is_between(start_minute, end_minute, zone, now_ms):
                    now_ms = self._next_minute_of_day(end_minute, zone, now_ms)
                    break
            else:
                return now_ms
        return now_ms

    @staticmethod
    def _next_minute_of_day(minute_of_day: int, zone: str, at_ms: int) -> int:
        local = to_local(zone, at_ms)
        day = local.replace(hour=0, minute=0, second=0, fold=0)
        for _ in range(3):
            hour, minute = divmod(minute_of_day % DAY_MINUTES, 60)
            for fold in (0, 1):
                instant = to_instant(day.replace(hour=hour, minute=minute, fold=fold))
                if instant > at_ms:
                    return instant
            day += timedelta(days=1)
        raise AssertionError(f"no minute {minute_of_day} after {at_ms} in {zone}")

    def window_start(self, window: str, zone: str, at_ms: int) -> int:
        """Return the first instant of the local hour, day, ISO week or month that `at_ms` lies in (rule C1)."""
        if window == "hour":
            # Clocks may change within an hour, never within a minute.
            minute = at_ms // MINUTE_MS
            hour = self._hours.get(zone)
            if hour is None or hour[0] != minute:
                hour = self._hours[zone] = (minute, calendar_window(window, zone, at_ms)[0])
            return hour[1]
        key = (zone, window)
        known = self._windows.get(key)
        if known is None or not known[0] <= at_ms < known[1]:
            known = self._windows[key] = calendar_window(window, zone, at_ms)
        return known[0]


def calendar_window(window: str, zone: str, at_ms: int) -> tuple[int, int]:
    """Return the half-open span of the local hour | day | week | month around an instant.

    Days are as long as the clocks make them (23, 24, 25 h); a day without midnight starts when the clocks jump. Of an
    hour that the clocks repeat, each pass is an hour of its own.
    """
    local = to_local(zone, at_ms)
    if window == "hour":
        start = local.replace(minute=0)
        # An hour with a change of the clocks inside is shorter than it looks: its end is not told.
        return to_instant(start), at_ms + 1
    midnight = local.replace(hour=0, minute=0, fold=0)
    if window == "day":
        start, end = midnight, midnight + timedelta(days=1)
    elif window == "week":
        start = midnight - timedelta(days=local.weekday())
        end = start + timedelta(days=7)
    elif window == "month":
        start = midnight.replace(day=1)
        end = (start + timedelta(days=31)).replace(day=1)
    else:
        raise AssertionError(f"no such window: {window}")
    return to_instant(start.replace(fold=0)), to_instant(end.replace(fold=0))
