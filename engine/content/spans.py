"""Spans, times of day and instants as ops write them: `10 min`, `21:00`, `2026-12-24 18:00`."""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema

from engine.content.faults import refuse

_UNITS_MS = {
    **dict.fromkeys(("s", "sec", "second", "seconds"), 1_000),
    **dict.fromkeys(("min", "minute", "minutes"), 60_000),
    **dict.fromkeys(("h", "hour", "hours"), 3_600_000),
    **dict.fromkeys(("d", "day", "days"), 86_400_000),
    **dict.fromkeys(("week", "weeks"), 7 * 86_400_000),
}
_PART = r"(\d{1,9}(?:\.\d{1,3})?)\s*([a-z]+)"
_SPAN = re.compile(rf"{_PART}(?:\s+{_PART})?(?:\s+{_PART})?")
_CLOCK = re.compile(r"([01]?\d|2[0-4]):([0-5]\d)")


def span_ms(value: Any) -> int:
    """Read `90 s`, `10 min`, `2 h`, `1 day` or `1 h 30 min` as milliseconds."""
    wanted = "a span such as '90 s', '10 min', '2 h' or '1 day'"
    if isinstance(value, int | float) and not isinstance(value, bool):
        raise refuse(wanted, "write the unit behind the number")
    match = _SPAN.fullmatch(value.strip().lower()) if isinstance(value, str) else None
    if match is None:
        raise refuse(wanted)
    total = 0.0
    for number, unit in zip(match.groups()[::2], match.groups()[1::2], strict=True):
        if number is None:
            continue
        if unit not in _UNITS_MS:
            raise refuse(wanted, f"{unit!r} is no unit; units are s, min, h, day, week")
        total += float(number) * _UNITS_MS[unit]
    return round(total)


def minute_of_day(value: Any) -> int:
    """Read `21:00` as minutes after midnight, 0 to 1440 (24:00)."""
    match = _CLOCK.fullmatch(value.strip()) if isinstance(value, str) else None
    minute = int(match[1]) * 60 + int(match[2]) if match else -1
    if not 0 <= minute <= 1440:
        raise refuse("a time of day such as '21:00'")
    return minute


def hours_window(value: Any) -> tuple[int, int]:
    """Read `10:00-22:00` as minutes after midnight, half-open."""
    start, dash, end = value.partition("-") if isinstance(value, str) else ("", "", "")
    if not dash:
        raise refuse("hours such as '10:00-22:00'")
    window = minute_of_day(start), minute_of_day(end)
    if window[0] == window[1]:
        raise refuse("hours that begin and end at different times", "leave `hours` out for the whole day")
    return window


def zone_name(value: str) -> str:
    """Check the name of a time zone."""
    try:
        ZoneInfo(value)
    except (ZoneInfoNotFoundError, ValueError, OSError):
        raise refuse("an IANA time zone such as 'Asia/Shanghai'") from None
    return value


def instant_text(value: Any) -> str:
    """Check that this can be an instant; `instant_ms` turns it into one when the zone is known."""
    if isinstance(value, str):
        try:
            datetime.fromisoformat(value)
            return value
        except ValueError:
            pass
    raise refuse("a date or an instant such as '2026-12-24' or '2026-12-24T18:00:00+08:00'")


def instant_ms(text: str, zone: str) -> int:
    """Turn a checked instant into epoch milliseconds; without offset it is local to `zone`, a date its midnight."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=ZoneInfo(zone))
    return round(moment.timestamp() * 1000)


Span = Annotated[
    int,
    BeforeValidator(span_ms),
    WithJsonSchema({"type": "string", "pattern": r"^\d+(\.\d+)? *[a-z]+", "examples": ["10 min", "2 h", "1 day"]}),
]
ClockTime = Annotated[
    int,
    BeforeValidator(minute_of_day),
    WithJsonSchema({"type": "string", "pattern": r"^([01]?\d|2[0-4]):[0-5]\d$", "examples": ["21:00"]}),
]
HoursWindow = Annotated[
    tuple[int, int],
    BeforeValidator(hours_window),
    WithJsonSchema({"type": "string", "pattern": r"^\d{1,2}:\d{2}-\d{1,2}:\d{2}$", "examples": ["10:00-22:00"]}),
]
ZoneName = Annotated[str, AfterValidator(zone_name)]
InstantText = Annotated[
    str,
    BeforeValidator(instant_text),
    WithJsonSchema({"type": "string", "examples": ["2026-12-24", "2026-12-24T18:00:00+08:00"]}),
]
