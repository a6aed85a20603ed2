"""What explain promises holds: at the instant it names an offer is made, a millisecond earlier none is (B5, C1, C5)."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.definitions import Cap, HasTag, Limits, QuietHours, Reentry, Schedule
from engine.model import Scope
from tests.oracle.decide_world import DAY_MS, HOUR_MS, NO_QUIET, NOON_MS, World, candidate, scenario

CAPS = st.builds(
    Cap,
    st.sampled_from([Scope.ALL, Scope.SCENARIO, Scope.CHANNEL, Scope.CATEGORY, Scope.PARTNER]),
    st.integers(1, 2),
    st.sampled_from(["rolling", "hour", "day", "week", "month"]),
    st.sampled_from([5_000, HOUR_MS, 7 * HOUR_MS + 1, 3 * DAY_MS]),
)
LIMITS = st.builds(
    Limits, caps=st.lists(CAPS, max_size=3).map(tuple), min_gap_ms=st.sampled_from([0, 1, 90_000, DAY_MS])
)
REENTRY = st.sampled_from([Reentry(), Reentry("cooldown", 45_000), Reentry("cooldown", 2 * DAY_MS)])
SCHEDULES = st.sampled_from(
    [
        Schedule(),
        Schedule(weekdays=frozenset({2, 5}), windows=((9 * 60, 11 * 60 + 17),)),
        Schedule(from_ms=NOON_MS + 3 * DAY_MS + 7),
        Schedule(windows=((22 * 60, 2 * 60),)),
    ]
)
QUIET = st.sampled_from(
    [NO_QUIET, QuietHours(11 * 60, 15 * 60 + 30), QuietHours(21 * 60, 8 * 60), QuietHours(600, 1020, "discard")]
)


@st.composite
def worlds(draw: Any) -> dict[str, Any]:
    return {
        "limits": draw(LIMITS),
        "reentry": draw(REENTRY),
        "schedule": draw(SCHEDULES),
        "quiet_hours": draw(QUIET),
        "max_event_age_ms": 1_000,
        "offer__deadline_s": draw(st.sampled_from([60, 86_400])),
    }


@settings(max_examples=120, deadline=None)
@given(one=worlds(), earlier=st.lists(st.integers(0, 2 * DAY_MS), max_size=4))
def test_an_offer_is_possible_from_the_instant_named_and_not_before(one: dict[str, Any], earlier: list[int]) -> None:
    def at_that_time() -> World:
        world = World(scenario("a/other"), scenario("a/asked", **one), users=1)
        for step, before_ms in enumerate(sorted(earlier, reverse=True)):
            world.decide(candidate(0, NOON_MS - before_ms, step % 2))
        return world

    (trace,) = at_that_time().decider.explain_user(0, "u0", NOON_MS, [1])
    again = trace.again
    assert again is not None
    if again.at is None:
        assert again.until is not None
        return
    assert (again.at == NOON_MS) == (trace.outcome == "offer") == (not again.after)
    assert outcome(at_that_time(), again.at) == "offer"
    if again.at > NOON_MS:
        assert outcome(at_that_time(), again.at - 1) != "offer"


def outcome(world: World, at_ms: int) -> str:
    """How a candidate of that instant ends; what was held before it comes out first and is not asked about."""
    world.decider.recorder.held.take_user(0)
    decisions = world.decide(candidate(0, at_ms, 1))
    found = [one.outcome for one in decisions if one.trigger.at == at_ms]
    # An equal refusal of before is one row with this one (D5), which is told when it ends; so it may not be told yet.
    return found[-1] if found else "refused"


@pytest.mark.parametrize(
    ("change", "until"),
    [
        ({"audience": HasTag("vip")}, "audience"),
        ({"reentry": Reentry("once")}, "reentry"),
        ({"limits": Limits(caps=(Cap(Scope.ALL, 0, "day"),))}, "cap:all"),
        ({"schedule": Schedule(until_ms=NOON_MS - 1)}, "not_live"),
    ],
)
def test_what_no_lapse_of_time_lifts_is_named(change: dict[str, Any], until: str) -> None:
    world = World(scenario(**change))
    world.decide(candidate(0, NOON_MS - HOUR_MS))
    (trace,) = world.decider.explain_user(0, "u0", NOON_MS)
    assert trace.again is not None
    assert (trace.again.at, trace.again.until) == (None, until)


def test_asking_changes_nothing() -> None:
    world = World(scenario(limits=Limits(caps=(Cap(Scope.ALL, 1, "rolling", DAY_MS),))))
    world.one()
    grants, state = len(world.ledger.grants), world.decider.state()
    world.decider.explain_user(0, "u0", NOON_MS + 1)
    assert (len(world.ledger.grants), world.decider.state()) == (grants, state)
