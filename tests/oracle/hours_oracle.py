"""Opening hours by brute force, for the few plain forms the tests use: `Mo-Fr 08:30-19:00`, `Mo-Su 22:00-02:00`."""

from __future__ import annotations

import re
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo

from engine.definitions import Fence

DAYS = ("Mo", "Tu", "We", "Th", "Fr", "Sa", "Su")
FORM = re.compile(r"(\w\w)(?:-(\w\w))? (\d\d):(\d\d)-(\d\d):(\d\d)")


def _utc_ms(day: date, hour: int, minute: int, zone: ZoneInfo) -> int:
    at = datetime.combine(day, time(0), zone) + timedelta(hours=hour, minutes=minute)
    return round(at.astimezone(UTC).timestamp() * 1000)


def open_spans(fence: Fence, from_ms: int, until_ms: int, default_zone: str = "Asia/Shanghai") -> list[tuple[int, int]]:
    """Half-open spans in which the fence is open and valid (L9), merged, within the days around [from_ms, until_ms)."""
    low = from_ms if fence.valid_from_ms is None else max(from_ms, fence.valid_from_ms)
    high = until_ms if fence.valid_until_ms is None else min(until_ms, fence.valid_until_ms)
    if fence.opening_hours is None:
        return [(low, high)] if low < high else []
    match = FORM.fullmatch(fence.opening_hours)
    assert match is not None, f"the oracle reads only plain forms, not {fence.opening_hours}"
    first, last = DAYS.index(match[1]), DAYS.index(match[2] or match[1])
    start_hour, start_minute, end_hour, end_minute = (int(part) for part in match.groups()[2:])
    if (end_hour, end_minute) <= (start_hour, start_minute):
        end_hour += 24
    zone = ZoneInfo(fence.time_zone or default_zone)
    day = datetime.fromtimestamp(from_ms / 1000, zone).date() - timedelta(days=2)
    spans: list[tuple[int, int]] = []
    while _utc_ms(day, 0, 0, zone) < until_ms:
        if first <= day.weekday() <= last:
            start = max(low, _utc_ms(day, start_hour, start_minute, zone))
            end = min(high, _utc_ms(day, end_hour, end_minute, zone))
            if start < end and spans and spans[-1][1] >= start:
                spans[-1] = (spans[-1][0], max(end, spans[-1][1]))
            elif start < end:
                spans.append((start, end))
        day += timedelta(days=1)
    return spans
