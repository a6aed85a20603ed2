"""Presence step by step: one rule a test, with the numbers worked out by hand (docs/presence.md)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from engine.definitions import CellTable, Fence, Shape
from engine.locate import FenceIndex
from engine.model import EVENT, Drop, Method, TransitionKind, TransitionReason
from engine.presence import Presence
from engine.presence.presence import no_events
from engine.settings import FeedSettings, FeedTable

START = 1_700_000_000_000
LON, LAT = 1_164_000_000, 399_000_000
METRE_E7 = 1e7 / 111_034.6  # of latitude, at 39.9 degrees north
CELLS = CellTable(
    ("a", "b", "c"),
    np.array([LON, LON + 40_000, LON + 80_000], np.int32),
    np.full(3, LAT, np.int32),
    np.full(3, 800.0),
    np.zeros(3, bool),
)
FEEDS = FeedTable(
    {
        "app": FeedSettings(),
        "limited": FeedSettings(max_accuracy_m=100),
        "signalling": FeedSettings(period_s=1800, expected_delay_s=30, signalling=True),
    }
)


def disc(fence_id: str = "a/hall", radius_m: float = 300.0, **more: Any) -> Fence:
    parts = ((np.array([[LON, LAT]], np.int64),),)
    return Fence(fence_id, "", "mall", Shape.CIRCLE, parts, radius_m=radius_m, **more)


def ping(at_s: float, north_m: float = 0.0, accuracy_m: float = 10.0, **more: Any) -> dict[str, Any]:
    """A GPS fix so many metres north of the fence's centre, so many seconds after the start."""
    at_ms = START + round(at_s * 1000)
    lat_e7 = LAT + round(north_m * METRE_E7)
    return {
        "at_ms": at_ms, "now_ms": at_ms, "lon_e7": LON, "lat_e7": lat_e7, "accuracy_m": accuracy_m, "cell": -1,
        "method": Method.GPS, "id_hash": hash((at_s, north_m)) & 0x7FFFFFFF | 1, "type": 1, **more,
    }  # fmt: skip


def in_cell(at_s: float, cell: int) -> dict[str, Any]:
    place = {
        "lon_e7": int(CELLS.lon_e7[cell]),
        "lat_e7": int(CELLS.lat_e7[cell]),
        "id_hash": round(at_s * 8) + cell + 1,
    }
    return ping(at_s, accuracy_m=800.0, cell=cell, method=Method.CELL, feed=2, **place)


class Town:
    """Some fences and whoever walks through them."""

    def __init__(self, *fences: Fence, dwell: tuple[int, ...] = (), hours: Any = None) -> None:
        self.index = FenceIndex.build(fences, CELLS)
        thresholds = dict.fromkeys(range(len(fences)), dwell)
        self.presence = Presence(self.index.fences, self.index.arrays, FEEDS, thresholds, hours)
        self.drops: list[Drop] = []

    def walk(self, *pings: dict[str, Any], end_s: float | None = None) -> list[tuple[str, str, float, float]]:
        """(kind, reason, crossed, confirmed) with seconds after the start."""
        events = np.zeros(len(pings), EVENT)
        for row, one in enumerate(pings):
            for name, value in one.items():
                events[row][name] = value
        now_ms = int(events["now_ms"][-1]) if len(pings) else START
        if end_s is not None:
            now_ms = START + round(end_s * 1000)
        self.last = self.presence.advance(events, *self.index.locate(events), now_ms)
        self.drops = [Drop(drop) for drop in events["drop"]]
        return brief(self.last)


def brief(transitions: np.ndarray) -> list[tuple[str, str, float, float]]:
    return [
        (
            TransitionKind(one["kind"]).name.lower(),
            TransitionReason(one["reason"]).name.lower(),
            (one["crossed_ms"] - START) / 1000,
            (one["confirmed_ms"] - START) / 1000,
        )
        for one in transitions
    ]


def test_the_widened_edge_lies_a_tenth_of_the_size_and_the_accuracy_outside() -> None:  # P3: 300 + 30 + 10
    town = Town(disc())
    assert town.walk(ping(0, 500), ping(60), ping(120, 339.9), ping(130, 339.9))[1:] == []
    assert town.walk(ping(140, 340.2), ping(150, 340.2)) == [("exit", "fix", 120, 150)]


def test_exit_is_crossed_at_the_first_fix_outside_the_true_edge() -> None:  # P5
    town = Town(disc())
    given = town.walk(ping(0, 500), ping(60), ping(120, 320), ping(180, 400), ping(240, 400))
    assert given == [("enter", "fix", 60, 60), ("exit", "fix", 120, 240)]
    assert town.last["duration_ms"].tolist() == [-1, 60_000]
    assert town.last["gap_ms"].tolist() == [60_000, -1]
    assert town.last["distance_m"][0] == pytest.approx(300.0, abs=0.01)


def test_a_user_first_seen_inside_enters_as_initial() -> None:  # P2
    town = Town(disc())
    assert town.walk(ping(0)) == [("enter", "fix", 0, 0)]
    assert town.last["initial"].tolist() == [1]


def test_a_gap_above_an_hour_is_marked() -> None:  # P2
    town = Town(disc())
    town.walk(ping(0, 5000), ping(3600), ping(3700, 5000), ping(3710, 5000), ping(7311))
    assert town.last["wide_gap"].tolist() == [0, 0, 1]
    assert town.last["gap_ms"].tolist() == [3_600_000, -1, 3_601_000]


def test_dwell_fires_by_timer_only_while_the_last_fix_is_sure_and_young() -> None:  # P4, T8
    sure = Town(disc(), dwell=(300, 900))
    assert sure.walk(ping(0), ping(20), end_s=301)[1:] == []
    assert sure.walk(end_s=302) == [("dwell", "timer", 0, 300)]
    assert sure.walk(end_s=1200) == []  # 900 is more than 10 min after the last fix
    unsure = Town(disc(), dwell=(300,))
    assert unsure.walk(ping(0, 295, 20.0), end_s=600)[1:] == []
    assert unsure.walk(ping(601)) == [("dwell", "fix", 0, 601)]


def test_two_thresholds_passed_in_silence_come_with_one_fix_shortest_first() -> None:  # P4, P6
    town = Town(disc(), dwell=(700, 660))
    town.walk(ping(0), ping(10), ping(1000))
    assert town.last["threshold_s"].tolist() == [-1, 660, 700]


def test_more_than_eight_thresholds_of_a_fence_are_refused() -> None:  # P4
    with pytest.raises(ValueError, match="at most 8"):
        Town(disc(), dwell=tuple(range(60, 69)))


def test_silence_suspends_and_a_fix_outside_then_ends_the_visit_as_a_gap() -> None:  # P7
    town = Town(disc())
    town.walk(ping(0), end_s=1801)
    assert town.presence.occupancy.tolist() == [1]
    town.walk(end_s=1802)
    assert town.presence.occupancy.tolist() == [0]
    assert not town.presence.is_inside(0, 0, START + 1_802_000)
    assert town.walk(ping(4000, 320)) == []  # between the edges: still suspended
    assert town.presence.open_visits(0)[0]["state"] == "SUSPENDED"
    assert town.walk(ping(4100, 400)) == [("exit", "gap", 0, 4100)]


def test_silence_suspends_and_a_fix_inside_resumes_without_a_word() -> None:  # P7
    town = Town(disc())
    assert town.walk(ping(0), ping(7200))[1:] == []
    assert town.presence.is_inside(0, 0, START + 7_300_000)


def test_a_day_of_silence_ends_the_visit_by_timer() -> None:  # P7
    town = Town(disc())
    town.walk(ping(0), ping(60))
    assert town.walk(end_s=86_461) == []
    assert town.walk(end_s=86_462) == [("exit", "expired", 60, 86_460)]
    town.walk(ping(90_000, 500))
    assert town.presence.counts()["pairs"] == 0


def test_forty_nested_fences_are_all_entered_and_left_in_order_of_their_ids() -> None:  # L4, P6
    town = Town(*(disc(f"n/{number:02}", 100.0 + 5 * number) for number in range(40)))
    town.walk(ping(0, 5000), ping(60), ping(120, 5000))
    assert town.last["fence"].tolist() == [*range(40), *range(40)]
    assert town.last["kind"].tolist() == [1] * 40 + [3] * 40


def test_pings_that_do_not_count_say_why() -> None:  # L8, T5, T7
    town = Town(disc())
    again = ping(60)
    town.walk(
        ping(0),
        again,
        again,
        ping(59),
        ping(61, lon_e7=0, lat_e7=0),
        ping(62, lat_e7=900_000_001),
        ping(63, accuracy_m=101.0, feed=1),
        ping(64, 2_000.0),
    )
    assert [drop.name for drop in town.drops] == [
        *("NONE", "NONE", "DUPLICATE", "LATE", "NULL_ISLAND", "OUT_OF_RANGE", "TOO_COARSE", "TOO_FAST"),
    ]
    counts = town.presence.counts()
    assert (counts["drop_duplicate"], counts["drop_late"], counts["held"]) == (1, 1, 1)


def test_distinct_pings_of_one_instant_all_count_and_each_once() -> None:  # T7
    town = Town(disc())
    first, second, third = (ping(60, 1.0 * number) for number in range(3))
    town.walk(first, second, third, second, first, third, ping(61), first)
    assert [drop.name for drop in town.drops] == ["NONE"] * 3 + ["DUPLICATE"] * 3 + ["NONE", "LATE"]


def test_a_fix_that_is_too_fast_waits_for_the_next_to_prove_it() -> None:  # L8
    town = Town(disc())
    assert town.walk(ping(0, 90_000), ping(60)) == []
    assert town.walk(ping(120, 5)) == [("enter", "fix", 60, 120 - 60)]
    assert town.last["now_ms"].tolist() == [START + 120_000]
    other = Town(disc())
    assert other.walk(ping(0, 90_000), ping(60), ping(120, 90_000), ping(180, 90_000)) == []
    assert other.presence.counts()["drop_too_fast"] == 1


def test_a_first_coarse_cell_fix_enters_a_drawn_fence_only_after_two_minutes() -> None:  # L8
    town = Town(disc(radius_m=1500.0))
    assert town.walk(in_cell(0, 0), end_s=149) == []
    assert town.walk(end_s=150) == [("enter", "timer", 0, 120)]


def test_a_cell_set_is_entered_at_once_and_left_by_two_fixes_in_other_cells() -> None:  # L2, L8, P3
    town = Town(Fence("c/mall", "", "mall", Shape.CELLS, cells=("a",)))
    assert town.walk(in_cell(0, 1), in_cell(600, 0)) == [("enter", "fix", 600, 600)]
    given = town.walk(in_cell(1200, 1), ping(1300, 10), in_cell(1800, 1))
    assert given == [("exit", "fix", 1200, 1800)]


def test_a_return_to_a_cell_takes_back_the_exit_that_the_hop_gave() -> None:  # L8
    town = Town(Fence("c/mall", "", "mall", Shape.CELLS, cells=("a",)))
    town.walk(in_cell(0, 2), in_cell(600, 0))
    assert town.walk(in_cell(700, 1), in_cell(720, 1)) == [("exit", "fix", 700, 720)]
    assert town.walk(in_cell(999, 0)) == [("enter", "returned", 600, 999)]
    assert town.last["initial"].tolist() == [1]


def test_a_return_after_five_minutes_is_a_new_visit() -> None:  # L8
    town = Town(Fence("c/mall", "", "mall", Shape.CELLS, cells=("a",)))
    town.walk(in_cell(0, 2), in_cell(600, 0), in_cell(700, 1), in_cell(720, 1))
    assert town.walk(in_cell(1000, 0)) == [("enter", "fix", 1000, 1000)]


def test_closing_ends_visits_and_opening_finds_who_stayed() -> None:  # L9
    hours = {0: np.array([(START, START + 600_000), (START + 900_000, START + 10**9)], np.int64)}
    town = Town(disc(), hours=hours)
    town.walk(ping(0, 500), ping(60), ping(590), end_s=601)
    assert town.walk(end_s=602) == [("exit", "closed", 600, 600)]
    assert town.walk(ping(700), ping(899)) == []
    assert town.walk(ping(905)) == [("enter", "opened", 905, 905)]


def test_validity_is_an_opening_hour_too() -> None:  # L9
    town = Town(disc(valid_from_ms=START + 100_000, valid_until_ms=START + 200_000))
    assert town.walk(ping(0, 500), ping(50, 500), ping(100)) == [("enter", "fix", 100, 100)]
    assert town.walk(end_s=300) == [("exit", "closed", 200, 200)]


def test_a_removed_fence_is_left_and_an_added_one_finds_users_inside() -> None:  # L10
    town = Town(disc("a/old", state_hash="1"), disc("b/kept", state_hash="2"))
    town.walk(ping(0, 500), ping(60))
    town.index = FenceIndex.build([disc("b/kept", state_hash="2"), disc("c/new", state_hash="3")], CELLS)
    gone = town.presence.activate(town.index.fences, town.index.arrays)
    assert brief(gone) == [("exit", "removed", 60, 60)]
    assert town.walk(ping(120)) == [("enter", "fix", 120, 120)]
    assert (town.last["fence"].tolist(), town.last["initial"].tolist()) == ([1], [1])
    assert town.walk(ping(180, 500), ping(240, 500)) == [("exit", "fix", 180, 240), ("exit", "fix", 180, 240)]


def test_a_user_whose_pings_come_late_lives_in_his_own_time() -> None:  # T8, P9
    town = Town(disc(exit_delay_s=60), dwell=(300,))
    late = {"now_ms": START + 5_000_000}
    town.walk(ping(0, **late), ping(10, **late), end_s=90_000)
    assert town.presence.occupancy.tolist() == [0]
    late["now_ms"] = START + 90_000_000
    assert town.walk(ping(330, **late)) == [("dwell", "timer", 0, 300)]
    assert town.walk(ping(400, 500, **late), ping(500, 500, **late)) == [("exit", "timer", 400, 460)]


def test_a_way_through_a_fence_is_a_crossing() -> None:  # P8
    town = Town(disc())
    assert town.walk(ping(0, -900), ping(600, 900)) == [("cross", "fix", 600, 600)]
    assert town.walk(ping(700, 900), ping(2501, -900)) == []  # more than 30 min apart


def test_a_closed_user_is_forgotten_without_a_transition() -> None:  # A4
    town = Town(disc())
    town.walk(ping(0))
    town.presence.reset_user(0)
    assert town.presence.occupancy.tolist() == [0]
    assert town.presence.open_visits(0) == []
    assert town.walk(ping(0)) == [("enter", "fix", 0, 0)]


def test_pools_grow_with_the_crowd_and_lose_nobody() -> None:
    town = Town(disc(), dwell=(60,))
    count = 30_000
    town.walk(*(ping(0, user=user) for user in range(count)), end_s=62)
    assert np.bincount(town.last["kind"]).tolist() == [0, count, count]
    assert town.presence.occupancy.tolist() == [count]
    assert town.last["user"][:count].tolist() == list(range(count))
    assert town.last["user"][count:].tolist() == list(range(count))  # timers of one instant: by user


def test_a_tick_needs_no_events() -> None:  # T2
    town = Town(disc())
    assert len(town.presence.advance(*no_events(), START)) == 0


def test_what_is_explained_holds_no_coordinates() -> None:  # I2
    town = Town(disc())
    town.walk(ping(0, 500), ping(60))
    visit = town.presence.open_visits(0)[0]
    assert visit["crossed_at"] == START + 60_000
    assert not [value for value in visit.values() if value in (LON, LAT)]
