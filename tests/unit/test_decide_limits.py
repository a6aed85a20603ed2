"""Caps as rules, arms, arbitration, deployment limits (rules C1-C4, C7, D2, D3, D5)."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from engine.decide.ids import arm_maker
from engine.definitions import Cap, Limits, QuietHours, Reentry
from engine.errors import StoreUnavailable
from engine.model import Mode, ReserveAnswer, ReserveRequest, Scope
from tests.oracle.decide_world import DAY_MS, HOUR_MS, NOON_MS, World, candidate, presence, profile, scenario


def group(user: int = 0, now_ms: int = NOON_MS, rows: Sequence[int] = (0, 1), **change: object) -> list:
    return [candidate(user, now_ms, row, position=now_ms, **change) for row in rows]


def outcomes(decisions: list) -> list[tuple[str, str]]:
    return [(one.outcome, one.reason) for one in decisions]


@pytest.mark.parametrize(
    ("cap", "step_ms", "reasons"),
    [
        (Cap(Scope.ALL, 1, "rolling", HOUR_MS), HOUR_MS - 1, ["granted", "cap:all"]),
        (Cap(Scope.ALL, 1, "rolling", HOUR_MS), HOUR_MS, ["granted", "granted"]),
        (Cap(Scope.CHANNEL, 1, "day"), 12 * HOUR_MS - 1, ["granted", "cap:channel"]),
        (Cap(Scope.CHANNEL, 1, "day"), 12 * HOUR_MS, ["granted", "granted"]),  # midnight in Shanghai
        (Cap(Scope.SCENARIO, 1, "week"), 6 * DAY_MS, ["granted", "cap:scenario"]),  # Monday to Sunday
        (Cap(Scope.SCENARIO, 1, "week"), 7 * DAY_MS, ["granted", "granted"]),
        (Cap(Scope.CATEGORY, 1, "month"), 26 * DAY_MS, ["granted", "cap:category"]),
        (Cap(Scope.CATEGORY, 1, "month"), 27 * DAY_MS, ["granted", "granted"]),
        (Cap(Scope.PARTNER, 1, "hour"), HOUR_MS - 1, ["granted", "cap:partner"]),
        (Cap(Scope.PARTNER, 1, "hour"), HOUR_MS, ["granted", "granted"]),
        (Cap(Scope.ALL, 0, "day"), 1, ["cap:all"]),
    ],
)
def test_a_cap_refuses_from_its_count_on_until_its_window_ends(
    cap: Cap, step_ms: int, reasons: list[str]
) -> None:  # C1
    world = World(scenario(limits=Limits(caps=(cap,))))
    assert [world.one(now_ms=NOON_MS + step * step_ms).reason for step in range(len(reasons))] == reasons


def test_a_calendar_day_is_the_profiles_own() -> None:  # C1
    world = World(scenario(), caps=(Cap(Scope.ALL, 1, "day"),))
    world.profiles.apply_profile(0, profile(time_zone="America/New_York"), NOON_MS)  # 23:00 on Sunday there
    assert [world.one(now_ms=NOON_MS + step).reason for step in (0, HOUR_MS - 1, HOUR_MS)] == [
        "granted",
        "cap:all",
        "granted",
    ]


def test_caps_count_per_person_where_one_is_given() -> None:  # A4
    world = World(scenario(), caps=(Cap(Scope.ALL, 1, "day"),))
    for slot in (0, 1):
        world.profiles.apply_profile(slot, profile(person="p1"), NOON_MS)
    assert [world.one(user).reason for user in (0, 1, 2)] == ["granted", "cap:all", "granted"]
    assert world.ledger.grants[0].subject == "person:p1"


def test_bypassing_and_counting_are_two_flags() -> None:  # C2
    free = scenario("a/free", limits=Limits(bypass=True))
    silent = scenario("a/silent", limits=Limits(counts=False))
    plain = scenario("a/plain")
    world = World(free, silent, plain, caps=(Cap(Scope.ALL, 1, "day"),), min_gap_ms=HOUR_MS)
    steps = [(1, "granted"), (0, "granted"), (2, "cap:all"), (0, "granted")]
    for step, (row, reason) in enumerate(steps):
        assert world.one(now_ms=NOON_MS + step, row=row).reason == reason


def test_a_minimum_gap_is_a_rule_of_its_own() -> None:  # C1
    world = World(scenario(), min_gap_ms=HOUR_MS)
    assert [world.one(now_ms=NOON_MS + step).reason for step in (0, HOUR_MS - 1, HOUR_MS)] == [
        "granted",
        "min_gap",
        "granted",
    ]


def test_where_a_channel_is_full_the_next_one_is_tried() -> None:  # C1
    world = World(scenario(offer__channels=("sms", "push"), limits=Limits(caps=(Cap(Scope.CHANNEL, 1, "day"),))))
    channels = [world.one(now_ms=NOON_MS + step).offer.channel for step in (0, 1)]
    assert channels == ["sms", "push"]
    assert world.one(now_ms=NOON_MS + 2).reason == "cap:channel"


def test_the_highest_score_wins_and_the_rest_are_outscored() -> None:  # D2
    world = World(scenario("a/low", priority=1.0), scenario("a/high", priority=2.0))
    decisions = world.decide(*group())
    assert outcomes(decisions) == [("lost", "outscored"), ("offer", "granted")]
    assert decisions[0].values["winner"] == "a/high"
    assert decisions[1].values["score"] == 2.0


def test_score_is_the_product_of_visible_factors() -> None:  # D2
    world = World(presence(priority=3.0, offer__value=2.0))
    world.profiles.apply_profile(0, profile(attributes={"propensity.entertainment": 0.5}), NOON_MS)
    decision = world.one(kind="enter", values={"confidence": "MEDIUM"})
    assert decision.values["factors"] == {"priority": 3.0, "propensity": 0.5, "context": 0.8, "value": 2.0}
    assert decision.values["score"] == pytest.approx(2.4)


def test_ties_go_to_the_earliest_trigger_then_to_the_scenario_id() -> None:  # D2
    world = World(scenario("a/b"), scenario("a/a"))
    assert [one.scenario for one in world.decide(*group()) if one.offer] == ["a/a"]
    early = [candidate(1, NOON_MS, 0, at_ms=NOON_MS - 1), candidate(1, NOON_MS, 1)]
    assert [one.scenario for one in world.decide(*early) if one.offer] == ["a/b"]


def test_a_refused_favourite_gives_way_to_the_next() -> None:  # D1
    world = World(scenario("a/a", priority=9, limits=Limits(caps=(Cap(Scope.SCENARIO, 0, "day"),))), scenario("a/b"))
    assert outcomes(world.decide(*group())) == [("refused", "cap:scenario"), ("offer", "granted")]


def test_candidates_of_different_events_do_not_compete() -> None:  # D1
    world = World(scenario("a/a"), scenario("a/b"))
    decisions = world.decide(candidate(0, NOON_MS, 0, position=1), candidate(0, NOON_MS, 1, position=2))
    assert outcomes(decisions) == [("offer", "granted")] * 2


def withheld_user(percent: float = 50, name: str = "scenario/a/a") -> tuple[int, int]:
    arm = arm_maker("opportune", name, percent)
    assert arm is not None
    users = {arm(f"u{user}"): user for user in range(40)}
    return users[True], users[False]


def test_a_withheld_winner_leaves_its_slot_empty() -> None:  # D3
    out, treated = withheld_user()
    world = World(scenario("a/a", holdout_percent=50, priority=2), scenario("a/b"), users=40)
    assert outcomes(world.decide(*group(out))) == [("withheld", "holdout"), ("lost", "outscored")]
    assert outcomes(world.decide(*group(treated))) == [("offer", "granted"), ("lost", "outscored")]
    assert world.ledger.grants[0].option.withheld


def test_a_withheld_winner_with_a_substitute_gives_its_slot_to_the_next() -> None:  # D3
    out, _ = withheld_user()
    first = scenario("a/a", holdout_percent=50, priority=2, substitute=True)
    world = World(first, scenario("a/b"), scenario("a/c"), users=40, min_gap_ms=HOUR_MS)
    decisions = world.decide(*group(out, rows=(0, 1, 2)))
    assert outcomes(decisions) == [("withheld", "holdout"), ("offer", "granted"), ("lost", "outscored")]


def test_withheld_users_keep_the_same_caps_and_reentry() -> None:  # D3, B5
    out, _ = withheld_user()
    capped = scenario("a/a", holdout_percent=50, limits=Limits(caps=(Cap(Scope.SCENARIO, 1, "day"),)))
    world = World(capped, users=40)
    assert [world.one(out, NOON_MS + step).reason for step in (0, 1)] == ["holdout", "cap:scenario"]
    world = World(scenario("a/a", holdout_percent=50, reentry=Reentry("once")), users=40)
    assert [world.one(out, NOON_MS + step).reason for step in (0, 1)] == ["holdout", "reentry"]


def test_the_universal_holdout_spares_service_offers() -> None:  # D3
    out, _ = withheld_user(50, "universal")
    world = World(
        scenario("a/a"), scenario("a/s", offer__offer_class="service"), users=40, universal_holdout_percent=50
    )
    assert world.one(out).reason == "holdout"
    assert world.one(out, row=1).reason == "granted"


def test_arms_are_stable_near_their_share_and_independent() -> None:  # D3
    users = [f"user-{number}" for number in range(4000)]
    arms = [arm_maker("salt", name, 10) for name in ("universal", "scenario/a/a")]
    assert all(arms)
    marked = [[arm(user) for user in users] for arm in arms if arm]
    assert all(320 < sum(row) < 480 for row in marked)
    assert 15 < sum(one and other for one, other in zip(*marked, strict=True)) < 70
    assert marked[0] == [arm_maker("salt", "universal", 10)(user) for user in users]  # type: ignore[misc]
    assert arm_maker("salt", "universal", 0) is None


def test_shadow_scenarios_compete_among_themselves_and_take_nothing() -> None:  # D8
    world = World(scenario("a/live"), scenario("a/shadow", mode=Mode.SHADOW, priority=9), min_gap_ms=HOUR_MS)
    live, shadow = world.decide(*group())
    assert (live.outcome, live.offer is None) == ("offer", False)
    assert (shadow.outcome, shadow.offer, shadow.values["shadow"]) == ("offer", None, True)
    assert len(world.ledger.grants) == 1


def test_a_scenario_over_its_hourly_limit_pauses_itself_and_raises_one_alarm() -> None:  # C7
    world = World(scenario("a/a", limits=Limits(hourly_limit=2)), users=9)
    reasons = [world.one(user, NOON_MS + user).reason for user in range(5)]
    assert reasons == ["granted", "granted", "paused", "paused", "paused"]
    assert [alarm.scenario for alarm in world.decider.take_alarms()] == ["a/a"]
    assert world.decider.take_alarms() == []
    assert world.one(5, NOON_MS + HOUR_MS).reason == "paused"  # until somebody resumes it
    world.decider.pause("a/a", False)
    assert world.one(6, NOON_MS + HOUR_MS).reason == "granted"


def test_a_store_that_cannot_answer_means_no_send() -> None:  # C4
    def unavailable(requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
        raise StoreUnavailable("down")

    world = World(scenario(), scenario("a/b"))
    world.decider.reserve = unavailable
    assert outcomes(world.decide(*group())) == [("refused", "store_unavailable")] * 2


def test_a_second_reservation_of_the_same_offer_is_a_duplicate() -> None:  # D4
    world = World(scenario())
    first, second = world.one(key="app|1"), world.one(key="app|1")
    assert first.decision_id == second.decision_id
    assert (second.outcome, second.reason, second.offer) == ("refused", "duplicate", None)


def test_many_users_are_asked_for_at_once() -> None:
    world = World(scenario(reentry=Reentry("once")), users=100)
    world.decide(*(candidate(user) for user in range(100)))
    assert world.ledger.calls == 1
    world.decide(candidate(0, NOON_MS + 1), candidate(0, NOON_MS + 2))
    assert len(world.ledger.grants) == 100


def test_who_travels_is_counted_by_the_day_of_the_place_the_profile_names_now() -> None:  # C1
    world = World(scenario(limits=Limits(caps=(Cap(Scope.SCENARIO, 1, "day"),))))
    world.profiles.apply_profile(0, profile(time_zone="Asia/Shanghai"), NOON_MS)
    assert world.one(0, NOON_MS).reason == "granted"  # 12:00 there, 23:00 of the day before in New York
    assert world.one(0, NOON_MS + 2 * HOUR_MS).reason == "cap:scenario"
    world.profiles.apply_profile(0, profile(time_zone="America/New_York"), NOON_MS)
    assert world.one(0, NOON_MS + 2 * HOUR_MS + 1).reason == "granted", "a new day has begun where the user is now"
    world.profiles.apply_profile(0, profile(time_zone="Asia/Shanghai"), NOON_MS)
    assert world.one(0, NOON_MS + 3 * HOUR_MS).reason == "cap:scenario"


def test_who_travels_sleeps_by_the_clocks_of_the_place_the_profile_names_now() -> None:  # C5
    world = World(scenario(quiet_hours=QuietHours(policy="discard")))
    places = (("Asia/Shanghai", "granted"), ("America/New_York", "quiet_hours"), (None, "granted"))
    for number, (zone, reason) in enumerate(places):
        world.profiles.apply_profile(0, profile(time_zone=zone), NOON_MS)
        assert world.one(0, NOON_MS + number).reason == reason
