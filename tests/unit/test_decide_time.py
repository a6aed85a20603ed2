"""Local time at its edges: clock changes, days without midnight, leap days, ISO weeks (rules C1, C5)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from engine.decide.local_time import LocalTime, calendar_window, is_zone

HOUR_MS = 3_600_000


def ms(text: str) -> int:
    return int(datetime.fromisoformat(text).replace(tzinfo=UTC).timestamp()) * 1000


WINDOWS = [
    # window, zone, instant (UTC), start (UTC), length in hours
    ("day", "Asia/Shanghai", "2026-01-05T04:00", "2026-01-04T16:00", 24),
    ("week", "Asia/Shanghai", "2026-01-04T15:59", "2025-12-28T16:00", 168),  # Sunday belongs to ISO week 1
    ("week", "Asia/Shanghai", "2026-01-04T16:00", "2026-01-04T16:00", 168),  # Monday starts week 2
    ("week", "UTC", "2027-01-01T00:00", "2026-12-28T00:00", 168),  # ISO week 53 of 2026
    ("month", "UTC", "2028-02-29T12:00", "2028-02-01T00:00", 29 * 24),  # leap year
    ("month", "UTC", "2026-02-28T23:59", "2026-02-01T00:00", 28 * 24),
    ("month", "Asia/Shanghai", "2026-12-31T16:00", "2026-12-31T16:00", 31 * 24),  # already January there
    ("day", "America/New_York", "2026-03-08T12:00", "2026-03-08T05:00", 23),  # clocks go forward
    ("day", "America/New_York", "2026-11-01T12:00", "2026-11-01T04:00", 25),  # clocks go back
    ("week", "America/New_York", "2026-03-08T12:00", "2026-03-02T05:00", 167),
    ("month", "America/New_York", "2026-11-15T12:00", "2026-11-01T04:00", 721),
    ("day", "Africa/Cairo", "2026-04-24T12:00", "2026-04-23T22:00", 23),  # no midnight: the day starts at 01:00
    ("day", "America/Havana", "2026-11-01T12:00", "2026-11-01T04:00", 25),  # midnight twice: the first counts
    ("day", "Asia/Kathmandu", "2026-05-01T18:14", "2026-04-30T18:15", 24),
]


@pytest.mark.parametrize(("window", "zone", "at", "start", "hours"), WINDOWS, ids=lambda one: str(one))
def test_a_calendar_window_starts_and_ends_where_the_local_one_does(
    window: str, zone: str, at: str, start: str, hours: int
) -> None:
    assert calendar_window(window, zone, ms(at)) == (ms(start), ms(start) + hours * HOUR_MS)


HOURS = [
    ("Asia/Kathmandu", "2026-05-01T18:14", "2026-05-01T17:15"),  # offset of 5:45
    ("America/New_York", "2026-11-01T05:30", "2026-11-01T05:00"),  # 01:30, first pass
    ("America/New_York", "2026-11-01T06:30", "2026-11-01T06:00"),  # 01:30, second pass
    ("America/New_York", "2026-03-08T07:10", "2026-03-08T07:00"),  # 03:10, right after the jump
    ("Australia/Lord_Howe", "2026-10-03T15:40", "2026-10-03T15:30"),  # 02:30 to 03:00 is all there is of that hour
]


@pytest.mark.parametrize(("zone", "at", "start"), HOURS, ids=lambda one: str(one))
def test_an_hour_is_the_local_one(zone: str, at: str, start: str) -> None:
    assert calendar_window("hour", zone, ms(at))[0] == ms(start)


QUIET = [
    # zones, from, to, instant, end
    (("Asia/Shanghai",), 21 * 60, 8 * 60, "2026-01-05T13:00", "2026-01-06T00:00"),
    (("Asia/Shanghai",), 21 * 60, 8 * 60, "2026-01-05T23:59", "2026-01-06T00:00"),
    (("Asia/Shanghai",), 21 * 60, 8 * 60, "2026-01-06T00:00", "2026-01-06T00:00"),  # no longer quiet
    (("Asia/Shanghai",), 12 * 60, 14 * 60, "2026-01-05T04:00", "2026-01-05T06:00"),
    (("Asia/Shanghai", "Asia/Tokyo"), 21 * 60, 8 * 60, "2026-01-05T12:00", "2026-01-06T00:00"),  # quiet in one is quiet
    (("Asia/Shanghai", "Europe/Berlin"), 21 * 60, 8 * 60, "2026-01-05T13:00", "2026-01-06T07:00"),
    (("America/New_York",), 22 * 60, 2 * 60 + 30, "2026-03-08T06:00", "2026-03-08T07:30"),  # 02:30 is skipped
    (("America/New_York",), 22 * 60, 90, "2026-11-01T04:00", "2026-11-01T05:30"),  # the first 01:30 ends it
    (("America/New_York",), 22 * 60, 90, "2026-11-01T06:10", "2026-11-01T06:30"),  # 01:10 again is quiet again
    (("UTC",), 0, 1440, "2026-01-05T13:20", "2026-01-06T00:00"),
]


@pytest.mark.parametrize(("zones", "start", "end", "at", "expected"), QUIET, ids=lambda one: str(one))
def test_quiet_hours_end_at_the_first_instant_that_is_quiet_in_no_zone(
    zones: tuple[str, ...], start: int, end: int, at: str, expected: str
) -> None:
    if (start, end) == (0, 1440):
        # Quiet all day never ends; the search stops, and the deadline decides.
        assert LocalTime("UTC").end_of_quiet(start, end, zones, ms(at)) > ms(at)
    else:
        assert LocalTime("UTC").end_of_quiet(start, end, zones, ms(at)) == ms(expected)


def test_an_unknown_zone_is_the_deployments() -> None:  # C5
    clock = LocalTime("Asia/Shanghai")
    assert [clock.known(zone) for zone in ("Mars/Base", None, "UTC", "../etc/passwd", "")] == [
        "Asia/Shanghai",
        "Asia/Shanghai",
        "UTC",
        "Asia/Shanghai",
        "Asia/Shanghai",
    ]
    assert not is_zone("Asia")


def test_what_is_remembered_of_a_zone_changes_no_answer() -> None:
    clock = LocalTime("UTC")
    times = [ms("2026-03-08T05:00") + step * 17 * 60_000 for step in range(-200, 200)]
    for at_ms in [*times, *reversed(times)]:
        for window in ("hour", "day", "week", "month"):
            assert (
                clock.window_start(window, "America/New_York", at_ms)
                == calendar_window(window, "America/New_York", at_ms)[0]
            )
