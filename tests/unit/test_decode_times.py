"""Instants: with zone, in the feed's zone, or refused (T1, T9)."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from decode_blocks import NOW, decode, ping

from engine.decode.times import read_instant
from engine.errors import EventError
from engine.model import DeadReason

READ = [
    (1_760_000_000_000, NOW),
    (100_000_000_000, 100_000_000_000),
    (7_258_118_399_999, 7_258_118_399_999),
    ("2025-10-09T08:53:20Z", NOW),
    ("2025-10-09t08:53:20z", NOW),
    ("2025-10-09 16:53:20+08:00", NOW),
    ("2025-10-09T08:53:20.5Z", NOW + 500),
    ("2025-10-09T08:53:20.0019999Z", NOW + 1),
    ("2025-10-09T03:23:20-05:30", NOW),
    ("2024-02-29T00:00:00Z", int(datetime(2024, 2, 29, tzinfo=UTC).timestamp() * 1000)),
    ("1970-01-01T00:00:00Z", 0),
    ("2199-12-31T23:59:59.999Z", 7_258_118_399_999),
]
REFUSED = [
    (1_760_000_000, DeadReason.SECONDS_NOT_MS),
    (99_999_999_999, DeadReason.SECONDS_NOT_MS),
    (-1, DeadReason.SECONDS_NOT_MS),
    (7_258_118_400_000, DeadReason.BAD_TIME),
    ("9999-12-31T23:59:59.999Z", DeadReason.BAD_TIME),
    (1_760_000_000_000.0, DeadReason.WRONG_TYPE),
    (True, DeadReason.WRONG_TYPE),
    ([], DeadReason.WRONG_TYPE),
    ("2025-10-09T08:53:20", DeadReason.NO_ZONE),
    ("2025-10-09T08:53:20.25", DeadReason.NO_ZONE),
    ("2025-10-09", DeadReason.BAD_TIME),
    ("2025-10-09T08:53Z", DeadReason.BAD_TIME),
    ("2025-13-09T08:53:20Z", DeadReason.BAD_TIME),
    ("2025-02-29T08:53:20Z", DeadReason.BAD_TIME),
    ("2025-10-09T24:00:00Z", DeadReason.BAD_TIME),
    ("2016-12-31T23:59:60Z", DeadReason.BAD_TIME),
    ("2025-10-09T08:53:20+24:00", DeadReason.BAD_TIME),
    ("2025-10-09T08:53:20+0800", DeadReason.BAD_TIME),
    ("1969-12-31T23:59:59Z", DeadReason.BAD_TIME),
    ("９999-12-31T23:59:59Z", DeadReason.BAD_TIME),
    ("1760000000000", DeadReason.BAD_TIME),
    ("", DeadReason.BAD_TIME),
]


@pytest.mark.parametrize(("value", "instant"), READ)
def test_an_instant_with_its_zone_is_read_by_both_readers(value: object, instant: int) -> None:
    assert read_instant(value, None) == instant
    for reader in ("scanner", "typed"):
        decoded = decode(ping(at=value), append_ms=-1, reader=reader)
        assert decoded.events["at_ms"].tolist() == [instant]
        assert decoded.now_ms == instant


@pytest.mark.parametrize(("value", "reason"), REFUSED)
def test_any_other_instant_is_refused_with_its_reason(value: object, reason: DeadReason) -> None:
    with pytest.raises(EventError) as caught:
        read_instant(value, None)
    assert (caught.value.reason, caught.value.detail) == (reason, "at")
    for reader in ("scanner", "typed"):
        decoded = decode(ping(at=value), reader=reader)
        assert [(one.reason, one.detail) for one in decoded.dead] == [(reason, "at")]


def test_a_stamp_without_offset_is_read_in_the_zone_of_its_feed() -> None:
    decoded = decode(ping(feed="app", at="2025-10-09T16:53:20.25"), append_ms=-1)
    assert decoded.events["at_ms"].tolist() == [NOW + 250]


def test_a_repeated_local_hour_counts_as_its_first_pass() -> None:
    first = int(datetime(2025, 10, 26, 0, 30, tzinfo=UTC).timestamp() * 1000)
    assert read_instant("2025-10-26T02:30:00", "Europe/Berlin") == first


def test_now_is_the_largest_append_time_so_far_and_ticks_move_it() -> None:
    """T2: it never falls, whatever the records say."""
    from decode_blocks import block_of, decoder

    raw = [b'{"type":"ping","user":"a","at":%d,"lon":1,"lat":1}' % NOW] * 3
    block = block_of([raw[0], b"", raw[1], raw[2]], [NOW, NOW + 5_000, NOW + 3_000, NOW + 6_000], [1, 2, 1, 1])
    decoded = decoder().decode(block, NOW - 1)
    assert decoded.events["now_ms"].tolist() == [NOW, NOW + 5_000, NOW + 6_000]
    assert decoded.events["record"].tolist() == [0, 2, 3]
    assert decoder().decode(block, NOW + 10_000).now_ms == NOW + 10_000


def test_without_append_times_now_is_the_largest_event_time_and_nothing_is_in_the_future() -> None:
    decoded = decode(ping(at=NOW), ping(at=NOW + 10**9), ping(at=NOW + 5), append_ms=-1)
    assert decoded.events["now_ms"].tolist() == [NOW, NOW + 10**9, NOW + 10**9]
    assert decoded.dead == []


@pytest.mark.parametrize(("ahead_ms", "is_dead"), [(300_000, False), (300_001, True)])
def test_more_than_300_s_ahead_of_now_is_a_letter(ahead_ms: int, is_dead: bool) -> None:
    """T6; and the letter moves nobody's clock."""
    for reader in ("scanner", "typed"):
        decoded = decode(ping(at=NOW + ahead_ms), ping(), append_ms=NOW, reader=reader)
        assert [one.reason for one in decoded.dead] == [DeadReason.FUTURE] * is_dead
        assert decoded.now_ms == NOW
