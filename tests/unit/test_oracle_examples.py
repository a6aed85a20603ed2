"""The oracle itself, against examples worked by hand. What the engine is compared with must be right first."""

from __future__ import annotations

import math
from typing import Any

import pytest

from engine.definitions import Fence
from engine.model import Confidence
from tests.oracle.locate_oracle import FenceShape, accuracy_of, metres_per_degree
from tests.oracle.presence_oracle import PresenceOracle
from tests.oracle.visit_oracle import Feed
from tests.real.places import box, cell_set, circle, corridor, polygon

LON, LAT = 116.4, 39.9
METRES_LON, METRES_LAT = metres_per_degree(LAT)
START = 1_700_000_000_000
FEEDS = {"app": Feed(), "signalling": Feed(period_ms=1_800_000, expected_delay_ms=30_000, signalling=True)}
HALL = circle("hall", LON, LAT, 200.0)


def ping(at_s: float, east_m: float, **more: Any) -> dict[str, Any]:
    """A GPS fix of 10 m, so many metres east of the hall's centre, so many seconds after the start."""
    at_ms = START + round(at_s * 1000)
    return {
        "user": "u",
        "at_ms": at_ms,
        "now_ms": at_ms,
        "lon_e7": round((LON + east_m / METRES_LON) * 1e7),
        "lat_e7": round(LAT * 1e7),
        "accuracy_m": 10.0,
        "method": "gps",
        "cell": None,
        "feed": "app",
        "id": None,
        **more,
    }


def in_cell(at_s: float, cell: str) -> dict[str, Any]:
    return ping(at_s, 5_000.0, cell=cell, method="cell", feed="signalling", accuracy_m=800.0)


def run(fences: list[Fence], pings: list[dict[str, Any]], end_s: float | None = None, dwell: Any = None) -> list[Any]:
    """What happened, as (kind, reason, crossed, confirmed) with seconds after the start."""
    oracle = PresenceOracle(fences, FEEDS, dwell, (START - 86_400_000, START + 3 * 86_400_000))
    oracle.run(pings, None if end_s is None else START + round(end_s * 1000))
    return [
        (one["kind"], one["reason"], (one["crossed_at"] - START) / 1000, (one["confirmed_at"] - START) / 1000)
        for one in oracle.transitions
    ]


def test_a_fix_without_accuracy_takes_the_default_of_its_method() -> None:  # L6
    assert [accuracy_of(None, method) for method in ("gps", "wifi", "cell", None)] == [20.0, 60.0, 1000.0, 1000.0]
    assert accuracy_of(0.0, "wifi") == 60.0
    assert accuracy_of(33.0, "wifi") == 33.0


@pytest.mark.parametrize(
    ("east_m", "accuracy_m", "expected"),
    [
        (0.0, 200.0, Confidence.HIGH),  # s = 200 = a
        (0.0, 201.0, Confidence.MEDIUM),
        (0.0, 256.0, Confidence.MEDIUM),  # 200 / 0.78 = 256.4
        (0.0, 257.0, Confidence.LOW),
        (150.0, 49.9, Confidence.HIGH),
        (150.0, 50.2, Confidence.MEDIUM),
        (250.0, 60.0, Confidence.LOW),  # s = -50 > -60
        (250.0, 49.9, Confidence.OUT),
    ],
)
def test_confidence_follows_the_bounds_of_l7(east_m: float, accuracy_m: float, expected: Confidence) -> None:
    one = ping(0, east_m)
    evidence = FenceShape(HALL).evidence(one["lon_e7"], one["lat_e7"], accuracy_m, None)
    assert evidence is not None
    assert evidence.confidence is expected


def test_a_point_on_an_edge_or_on_the_edge_of_a_hole_is_inside() -> None:  # L5
    shape = FenceShape(polygon("ring", box(116.0, 39.0, 116.4, 39.4), box(116.1, 39.1, 116.2, 39.2)))
    assert shape.covers(1_160_000_000, 391_234_567)
    assert shape.covers(1_161_000_000, 391_500_000)
    assert not shape.covers(1_161_000_001, 391_500_000)


def test_a_corridor_is_measured_from_its_line() -> None:  # L4, L7
    street = corridor("street", [(LON - 0.01, LAT), (LON + 0.01, LAT)], 50.0)
    north = round((LAT + 30.0 / METRES_LAT) * 1e7)
    assert FenceShape(street).signed_m(round(LON * 1e7), north) == pytest.approx(20.0, abs=0.05)
    evidence = FenceShape(street).evidence(round(LON * 1e7), north, 111.0, None)
    assert evidence is not None
    assert evidence.confidence is Confidence.MEDIUM  # 50 / 0.45 = 111.1


def test_a_cell_set_knows_members_others_and_nothing_else() -> None:  # L2, P3
    shape = FenceShape(cell_set("mall", ["a", "b"]))
    member, other = shape.evidence(0, 0, 1000.0, "a"), shape.evidence(0, 0, 1000.0, "z")
    assert member is not None
    assert (member.confidence, member.distance_m) == (Confidence.HIGH, math.inf)
    assert other is not None
    assert other.confidence is Confidence.OUT
    assert shape.evidence(0, 0, 5.0, None) is None


def test_a_walk_through_gives_enter_at_the_first_fix_inside_and_exit_at_the_second_beyond() -> None:  # P2, P3, P5
    walk = [ping(0, 400), ping(60, 100), ping(120, 0), ping(180, 210), ping(240, 300), ping(300, 400)]
    assert run([HALL], walk) == [("enter", "fix", 60, 60), ("exit", "fix", 180, 300)]


def test_a_fix_between_the_edges_breaks_the_run_of_fixes_beyond() -> None:  # P3: 200 + 20 + 10 is the widened edge
    walk = [ping(0, 400), ping(60, 0), ping(120, 240), ping(180, 225), ping(240, 240), ping(300, 240)]
    assert run([HALL], walk) == [("enter", "fix", 60, 60), ("exit", "fix", 120, 300)]


def test_one_fix_far_away_or_ten_minutes_later_ends_a_visit() -> None:  # P3
    assert run([HALL], [ping(0, 400), ping(60, 0), ping(120, 1250)])[1:] == [("exit", "fix", 120, 120)]
    assert run([HALL], [ping(0, 400), ping(60, 0), ping(660, 300)])[1:] == [("exit", "fix", 660, 660)]
    assert run([HALL], [ping(0, 400), ping(60, 0), ping(659, 300)])[1:] == []


def test_an_exit_delay_ends_a_visit_by_timer() -> None:  # P3, T8
    hall = circle("hall", LON, LAT, 200.0, exit_delay_s=120.0)
    walk = [ping(0, 400), ping(60, 0), ping(120, 300), ping(180, 300)]
    assert run([hall], walk, end_s=241) == [("enter", "fix", 60, 60)]
    assert run([hall], walk, end_s=242)[1:] == [("exit", "timer", 120, 240)]
    assert run([hall], [*walk, ping(200, 0)], end_s=400)[1:] == []


def test_an_enter_delay_ends_by_the_next_fix_or_by_timer() -> None:  # P2
    hall = circle("hall", LON, LAT, 200.0, enter_delay_s=120.0)
    assert run([hall], [ping(0, 400), ping(60, 0), ping(181, 10)]) == [("enter", "fix", 60, 181)]
    assert run([hall], [ping(0, 400), ping(60, 0)], end_s=182) == [("enter", "timer", 60, 180)]
    assert run([hall], [ping(0, 400), ping(60, 0), ping(120, 400)], end_s=400) == []


def test_enter_is_initial_without_a_witness_of_at_most_a_day() -> None:  # P2
    def flags(*pings: dict[str, Any]) -> Any:
        oracle = PresenceOracle([HALL], FEEDS)
        return [(one["initial"], one["gap_s"]) for one in oracle.run(pings) if one["kind"] == "enter"]

    assert flags(ping(0, 0)) == [(True, None)]
    assert flags(ping(0, 400), ping(90, 0)) == [(False, 90.0)]
    assert flags(ping(0, 400), ping(86_400, 0)) == [(True, None)]
    assert flags(ping(0, 400), ping(60, 208), ping(90, 0)) == [(False, 90.0)]  # a LOW fix is no witness


def test_dwell_fires_by_fix_or_for_a_sure_and_fresh_fix_by_timer() -> None:  # P4
    arrived = [ping(0, 400), ping(60, 0)]
    dwell = {HALL.id: (300,)}
    assert run([HALL], [*arrived, ping(370, 10)], dwell=dwell)[-1] == ("dwell", "timer", 60, 360)
    assert run([HALL], [*arrived, ping(361, 10)], dwell=dwell)[-1] == ("dwell", "fix", 60, 361)
    unsure = [ping(0, 400), ping(60, 195)]
    assert run([HALL], [*unsure, ping(370, 0)], dwell=dwell)[-1] == ("dwell", "fix", 60, 370)
    assert run([HALL], arrived, end_s=5_000, dwell={HALL.id: (660,)})[1:] == []  # silent for 10 min: not presence


def test_silence_suspends_and_then_expires_at_the_last_fix_inside() -> None:  # P7
    walk = [ping(0, 400), ping(60, 0)]
    assert run([HALL], [*walk, ping(7_200, 0)], end_s=7_300)[1:] == []
    assert run([HALL], [*walk, ping(7_200, 400)])[1:] == [("exit", "gap", 60, 7_200)]
    assert run([HALL], [*walk, ping(7_200, 225)])[1:] == []
    assert run([HALL], walk, end_s=86_463)[1:] == [("exit", "expired", 60, 86_460)]


def test_a_cell_set_needs_two_fixes_elsewhere_and_none_without_a_cell_counts() -> None:  # P3
    mall = cell_set("mall", ["a"])
    walk = [in_cell(0, "x"), in_cell(1_800, "a"), in_cell(3_600, "x"), in_cell(5_400, "y")]
    assert run([mall], walk) == [("enter", "fix", 1_800, 1_800), ("exit", "fix", 3_600, 5_400)]
    gps = ping(3_700, 50_000, accuracy_m=5.0)
    assert run([mall], [*walk[:3], gps]) == [("enter", "fix", 1_800, 1_800)]


def test_a_late_a_repeated_and_a_null_fix_change_nothing() -> None:  # T5, T7, L8
    oracle = PresenceOracle([HALL], FEEDS)
    oracle.run([ping(60, 400), ping(0, 0), ping(60, 400), ping(70, 0, lon_e7=0, lat_e7=0), ping(80, 400_000)])
    assert oracle.drops == [None, "late", "duplicate", "null_island", "too_fast"]
    assert oracle.transitions == []


def test_closing_ends_a_visit_at_the_closing_instant_and_opening_waits_for_a_fix() -> None:  # L9
    # The start is 2023-11-15 06:13:20 in Shanghai.
    hall = circle("hall", LON, LAT, 200.0, opening_hours="Mo-Su 06:00-06:30", time_zone="Asia/Shanghai")
    walk = [ping(0, 400), ping(60, 0), ping(1_200, 0)]
    assert run([hall], walk) == [("enter", "fix", 60, 60), ("exit", "closed", 1_000, 1_000)]
    late = [ping(86_400 - 900, 0), ping(86_400, 0)]
    assert run([hall], [*walk, *late])[2:] == [("enter", "opened", 86_400, 86_400)]


def test_one_fix_gives_exits_then_enters_then_dwells_each_by_fence() -> None:  # P6
    fences = [
        circle("a", LON, LAT, 50.0),
        circle("z", LON, LAT, 60.0),
        circle("b", LON + 2_000 / METRES_LON, LAT, 50.0),
    ]
    oracle = PresenceOracle(fences, FEEDS)
    oracle.run([ping(0, 1_000), ping(60, 0), ping(400, 2_000)])
    assert [(one["kind"], one["fence"]) for one in oracle.transitions[2:]] == [
        ("exit", "real/a"),
        ("exit", "real/z"),
        ("enter", "real/b"),
    ]
