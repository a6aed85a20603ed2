"""Opening hours and validity as intervals of event time (rule L9)."""

from __future__ import annotations

import time
from datetime import datetime, timedelta
from zoneinfo import ZoneInfo

import numpy as np
import pytest

from engine.content.hours import CHUNK_MS, open_intervals
from engine.content.spans import instant_ms, span_ms
from engine.definitions import Fence, Shape

DAY_MS = 86_400_000


def place(hours: str | None, zone: str = "Asia/Shanghai", **more: object) -> Fence:
    return Fence("a/b", "b", "mall", Shape.CIRCLE, opening_hours=hours, time_zone=zone, **more)  # type: ignore[arg-type]


def at(text: str, zone: str = "Asia/Shanghai") -> int:
    return instant_ms(text, zone)


def spans(fence: Fence, start: str, end: str) -> list[tuple[str, str]]:
    zone = ZoneInfo(fence.time_zone or "UTC")
    rows = open_intervals(fence, at(start, str(zone)), at(end, str(zone)))
    assert rows.dtype == np.int64
    return [tuple(datetime.fromtimestamp(x / 1000, zone).strftime("%d %H:%M") for x in row) for row in rows]  # type: ignore[misc]


def test_daily_hours_are_read_in_the_zone_of_the_fence() -> None:
    fence = place("Mo-Su 10:00-22:00")
    assert spans(fence, "2026-11-20", "2026-11-22") == [("20 10:00", "20 22:00"), ("21 10:00", "21 22:00")]


def test_the_range_asked_for_cuts_the_intervals() -> None:
    assert spans(place("10:00-22:00"), "2026-11-20T12:00", "2026-11-20T13:00") == [("20 12:00", "20 13:00")]
    assert spans(place("10:00-22:00"), "2026-11-20T22:00", "2026-11-20T23:00") == []
    assert spans(place("10:00-22:00"), "2026-11-20T21:59", "2026-11-20T22:00") == [("20 21:59", "20 22:00")]
    assert spans(place("10:00-22:00"), "2026-11-20", "2026-11-20") == []


def test_hours_past_midnight_are_one_interval() -> None:
    assert spans(place("Mo-Su 18:00-26:00"), "2026-11-20T12:00", "2026-11-21T12:00") == [("20 18:00", "21 02:00")]


def test_a_fence_without_hours_is_always_open() -> None:
    for hours in (None, "24/7"):
        assert spans(place(hours), "2026-11-20", "2026-11-23") == [("20 00:00", "23 00:00")]


def test_validity_cuts_hours() -> None:
    fence = place("10:00-22:00", valid_from_ms=at("2026-11-20T15:00"), valid_until_ms=at("2026-11-21T11:00"))
    assert spans(fence, "2026-11-01", "2026-12-01") == [("20 15:00", "20 22:00"), ("21 10:00", "21 11:00")]
    assert spans(fence, "2026-12-01", "2026-12-02") == []


def test_what_is_unknown_counts_as_closed() -> None:
    assert spans(place("Fr 10:00-12:00; Sa 10:00-12:00 unknown"), "2026-11-20", "2026-11-22") == [
        ("20 10:00", "20 12:00")
    ]


def test_a_change_of_the_clocks_lengthens_and_shortens_the_night() -> None:
    fence = place("22:00-26:00", "Europe/Helsinki")
    autumn = open_intervals(fence, at("2026-10-24T12:00", "Europe/Helsinki"), at("2026-10-25T12:00", "Europe/Helsinki"))
    assert (autumn[:, 1] - autumn[:, 0]).tolist() == [4 * 3_600_000]
    late = place("02:00-06:00", "Europe/Helsinki")
    for day, hours in (("2026-10-25", 5), ("2026-03-29", 3), ("2026-03-30", 4)):
        rows = open_intervals(late, at(day, "Europe/Helsinki"), at(day, "Europe/Helsinki") + DAY_MS)
        assert (rows[:, 1] - rows[:, 0]).tolist() == [hours * 3_600_000], day


def test_chunks_leave_no_seam() -> None:
    seam = 700 * CHUNK_MS
    rows = open_intervals(place("00:00-24:00"), seam - 5 * DAY_MS, seam + 5 * DAY_MS)
    assert rows.tolist() == [[seam - 5 * DAY_MS, seam + 5 * DAY_MS]]
    night = open_intervals(place("18:00-32:00", "UTC"), seam - DAY_MS, seam + DAY_MS)
    assert (np.diff(night, axis=1) > 0).all()
    assert (night[1:, 0] > night[:-1, 1]).all()


@pytest.mark.parametrize(
    "hours", ["Mo-Fr 10:00-22:00; Sa,Su 09:30-24:00", "Mo-Su 21:00-02:30", "Tu-Su 08:00-12:00,13:00-17:00"]
)
@pytest.mark.parametrize("zone", ["Asia/Shanghai", "America/New_York", "Asia/Kathmandu"])
def test_every_quarter_of_an_hour_of_a_fortnight_agrees_with_the_library_asked_directly(hours: str, zone: str) -> None:
    from opening_hours import OpeningHours  # type: ignore[attr-defined]

    direct = OpeningHours(hours, timezone=ZoneInfo(zone))
    start = datetime(2026, 10, 28, tzinfo=ZoneInfo("UTC"))  # holds the end of summer time in New York
    first = round(start.timestamp() * 1000)
    rows = open_intervals(place(hours, zone), first, first + 14 * DAY_MS)
    for quarter in range(14 * 96):
        moment = start + timedelta(minutes=15 * quarter)
        now = round(moment.timestamp() * 1000)
        is_open = bool(((rows[:, 0] <= now) & (now < rows[:, 1])).any())
        assert is_open == direct.is_open(moment.astimezone(ZoneInfo(zone))), moment


def test_a_cached_answer_takes_microseconds() -> None:
    fence = place("Mo-Su 10:00-22:00")
    start = at("2026-11-20")
    open_intervals(fence, start, start + DAY_MS)
    began = time.process_time()
    for _ in range(1000):
        open_intervals(fence, start, start + DAY_MS)
    assert (time.process_time() - began) / 1000 < 200e-6


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90 s", 90_000),
        ("10 min", 600_000),
        ("2h", 7_200_000),
        ("1 day", DAY_MS),
        ("1 h 30 min", 5_400_000),
        ("1.5 h", 5_400_000),
        ("2 weeks", 14 * DAY_MS),
    ],
)
def test_spans_are_read_as_people_write_them(text: str, expected: int) -> None:
    assert span_ms(text) == expected
