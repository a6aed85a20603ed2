"""Read an instant the typed way (rules T1, T9); the scanner's compiled twin is in `text_kernel`."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone
from functools import lru_cache
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from engine.errors import EventError
from engine.model import DeadReason

SMALLEST_MS = 100_000_000_000
"""A number below this is taken for seconds (T9)."""
LARGEST_MS = 7_258_118_399_999
"""The last millisecond of the year 2199. Where time is the events' own, one bad clock must not lead to instants that
no calendar can reckon with."""

_STAMP = re.compile(
    r"(\d{4})-(\d{2})-(\d{2})[Tt ](\d{2}):(\d{2}):(\d{2})(?:\.(\d{1,12}))?(?:([Zz])|([+-])(\d{2}):(\d{2}))?", re.ASCII
)
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)


def read_instant(value: object, zone: str | None, field: str = "at") -> int:
    """Return epoch milliseconds of an RFC 3339 text or an integer; raise EventError naming `field`.

    zone   IANA name for texts without an offset, or None: they are no_zone. In a repeated local hour the first counts.
    Fractions beyond the millisecond are cut off. Leap seconds and years before 1970 are bad_time.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise EventError(DeadReason.WRONG_TYPE, field)
    if isinstance(value, int):
        if value < SMALLEST_MS:
            raise EventError(DeadReason.SECONDS_NOT_MS, field)
        if value > LARGEST_MS:
            raise EventError(DeadReason.BAD_TIME, field)
        return value
    return _read_stamp(value, zone, field)


def _read_stamp(text: str, zone: str | None, field: str) -> int:
    match = _STAMP.fullmatch(text)
    if match is None:
        raise EventError(DeadReason.BAD_TIME, field)
    year, month, day, hour, minute, second = (int(part) for part in match.groups()[:6])
    try:
        stamp = datetime(year, month, day, hour, minute, second)
    except ValueError:
        raise EventError(DeadReason.BAD_TIME, field) from None
    if match[8]:
        stamp = stamp.replace(tzinfo=UTC)
    elif match[9]:
        hours, minutes = int(match[10]), int(match[11])
        if hours > 23 or minutes > 59:
            raise EventError(DeadReason.BAD_TIME, field)
        ahead = timedelta(hours=hours, minutes=minutes)
        stamp = stamp.replace(tzinfo=timezone(ahead if match[9] == "+" else -ahead))
    elif zone is None:
        raise EventError(DeadReason.NO_ZONE, field)
    else:
        stamp = stamp.replace(tzinfo=zone_named(zone))
    milliseconds = int((match[7] or "0").ljust(3, "0")[:3])
    instant = (stamp - _EPOCH) // _MILLISECOND + milliseconds
    if not 0 <= instant <= LARGEST_MS:
        raise EventError(DeadReason.BAD_TIME, field)
    return instant


@lru_cache(maxsize=1024)
def zone_named(name: str) -> ZoneInfo:
    """Return the zone; raise EventError (bad_value) where there is none of that name."""
    try:
        return ZoneInfo(name)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise EventError(DeadReason.BAD_VALUE, "time_zone") from None
