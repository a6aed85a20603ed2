"""Which transitions become which candidates (P8)."""

from __future__ import annotations

import numpy as np

from engine.definitions import PresenceTrigger
from engine.model import TRANSITION, TransitionKind
from engine.pipeline.candidates import CandidateMaker
from tests.world import circle, scenario, small_content

CINEMA, MALL = 0, 1
SIZES_M = np.array([60.0, 200.0])


def transitions(*rows: dict[str, int]) -> np.ndarray:
    made = np.zeros(len(rows), TRANSITION)
    made["threshold_s"] = made["gap_ms"] = made["duration_ms"] = -1
    for row, columns in zip(made, rows, strict=True):
        for name, value in columns.items():
            row[name] = value
    return made


def candidates(rows: np.ndarray) -> list[tuple[str, str, tuple[str, ...]]]:
    fences = (circle("cinema", 116.4, 39.9, 60), circle("mall", 116.4, 39.9, 200))
    names = tuple(fence.id for fence in fences)
    scenarios = (
        scenario("arrive", PresenceTrigger("enter", names)),
        scenario("linger", PresenceTrigger("dwell", names, 300)),
    )
    maker = CandidateMaker(small_content(fences=fences, scenarios=scenarios), SIZES_M)
    _, made = maker.from_transitions(
        rows, lambda slots: [f"u{slot}" for slot in slots], lambda events: (events, np.zeros_like(events))
    )
    return [(scenarios[one.scenario].id.partition("/")[2], one.trigger.key, one.trigger.also_fences) for one in made]


ENTER_MALL = {"kind": TransitionKind.ENTER, "fence": MALL, "crossed_ms": 1_000, "now_ms": 900_000}
ENTER_CINEMA = {"kind": TransitionKind.ENTER, "fence": CINEMA, "crossed_ms": 890_000, "now_ms": 900_000}
DWELL_MALL = {
    "kind": TransitionKind.DWELL,
    "fence": MALL,
    "crossed_ms": 1_000,
    "threshold_s": 300,
    "by_timer": 1,
    "now_ms": 900_000,
}


def test_p8_of_nested_fences_the_smallest_wins_and_names_the_other():
    found = candidates(transitions(ENTER_MALL, ENTER_CINEMA))
    assert found == [("arrive", "national/cinema|enter|890000|0", ("national/mall",))]


def test_p8_a_timer_between_a_held_fix_and_the_one_that_confirmed_it_does_not_make_two_events_of_one():
    found = candidates(transitions(ENTER_MALL, DWELL_MALL, ENTER_CINEMA))
    assert found == [
        ("arrive", "national/cinema|enter|890000|0", ("national/mall",)),
        ("linger", "national/mall|dwell|1000|300", ()),
    ]


def test_p8_two_users_at_one_instant_have_a_candidate_each():
    found = candidates(transitions(ENTER_MALL, {**ENTER_CINEMA, "user": 1, "event": 1}))
    assert [key for _, key, _ in found] == ["national/mall|enter|1000|0", "national/cinema|enter|890000|0"]
