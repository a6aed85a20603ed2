"""Tags that scenarios set, arbitration windows, ignored offers, factors of the score (A1, D2, C)."""

from __future__ import annotations

from typing import Any

import pytest

from engine.definitions import (
    TAG_CLASS,
    BenefitDefinition,
    Cap,
    GrantTag,
    HasTag,
    Limits,
    OfferDefinition,
    PauseAfter,
    QuietHours,
    Reentry,
    Scenario,
    UsageTrigger,
)
from engine.errors import StoreUnavailable
from engine.model import Mode, Scope
from tests.oracle.decide_world import (
    DAY_MS,
    HOUR_MS,
    MINUTE_MS,
    NO_QUIET,
    NOON_MS,
    World,
    candidate,
    presence,
    profile,
    scenario,
)

WEEK_MS = 7 * DAY_MS
MARK = GrantTag("film-goer", HOUR_MS)


def tagging(name: str = "a/tag", **change: Any) -> Scenario:
    """A scenario that sets a tag and makes no offer."""
    offer = OfferDefinition("", "", "", TAG_CLASS, ("none",), "", on_grant=MARK)
    fields: dict[str, Any] = {"mode": Mode.LIVE, "trigger": UsageTrigger(()), "quiet_hours": NO_QUIET}
    return Scenario(id=name, name=name, offer=offer, **(fields | change))


# --- tags ------------------------------------------------------------------------------------------------------------


def test_a_granted_offer_sets_its_tag_for_the_very_next_candidate_until_it_ends() -> None:  # A1
    world = World(scenario("a/first", offer__on_grant=MARK), scenario("a/second", audience=HasTag("film-goer")))
    batch = [candidate(0, NOON_MS, 0), candidate(0, NOON_MS + 1, 1), candidate(0, NOON_MS + HOUR_MS, 1)]
    decisions = world.decide(*batch)
    assert [one.reason for one in decisions] == ["granted", "granted", "audience"]
    assert decisions[0].values["tag"] == "film-goer"
    assert decisions[0].values["tag_until"] == NOON_MS + HOUR_MS
    assert world.one(1, row=1).reason == "audience", "nobody else bears it"


def test_no_tag_comes_of_an_offer_that_is_withheld_refused_or_in_shadow() -> None:  # A1, D3, D8
    held_out = scenario("a/first", offer__on_grant=MARK, holdout_percent=99.999999)
    shadow = scenario("a/first", offer__on_grant=MARK, mode=Mode.SHADOW)
    refused = scenario("a/first", offer__on_grant=MARK, audience=HasTag("nobody"))
    for first in (held_out, shadow, refused):
        world = World(first, scenario("a/second", audience=HasTag("film-goer")))
        world.one()
        assert world.one(now_ms=NOON_MS + 1, row=1).reason == "audience"


def test_a_tag_alone_hands_nothing_over_and_asks_for_no_consent() -> None:  # A1, A2, C5
    asks = scenario("a/then", audience=HasTag("film-goer"))
    world = World(
        tagging(quiet_hours=QuietHours(0, 1439, "discard")), asks, assumed_consent=frozenset({"marketing.sms"})
    )
    world.profiles.apply_profile(1, profile(dnd=True), NOON_MS)
    for user in (0, 1):
        decision = world.one(user)
        assert (decision.outcome, decision.reason, decision.offer) == ("offer", "granted", None)
        assert "channel" not in decision.values
        assert world.profiles.has_tag(user, "film-goer", NOON_MS + 1)
    assert [world.one(user, NOON_MS + 1, 1).reason for user in (0, 1)] == ["granted", "dnd"]


def test_a_tag_neither_competes_nor_counts_toward_caps() -> None:  # C1, D1
    world = World(tagging(), scenario("a/offer"), min_gap_ms=HOUR_MS)
    both = [candidate(0, NOON_MS, row, key="app|1", position=1) for row in (0, 1)]
    assert [(one.scenario, one.reason) for one in world.decide(*both)] == [("a/tag", "granted"), ("a/offer", "granted")]


def test_re_entry_binds_a_tag_as_it_does_an_offer() -> None:  # B5
    world = World(tagging(reentry=Reentry("cooldown", HOUR_MS)))
    assert [world.one(now_ms=NOON_MS + at).reason for at in (0, 1, HOUR_MS)] == ["granted", "reentry", "granted"]


# --- arbitration window ---------------------------------------------------------------------------------------------


def gathering(*scenarios: Scenario, **policy: Any) -> World:
    return World(*scenarios, arbitration_window_ms=2000, **policy)


def test_competitors_are_gathered_for_the_window_and_the_best_wins_whenever_it_came() -> None:  # D2
    world = gathering(scenario("a/low"), scenario("a/high", priority=5))
    assert world.decide(candidate(0, NOON_MS, 0)) == []
    assert world.decide(candidate(0, NOON_MS + 1999, 1)) == []
    decisions = world.decider.release_due(NOON_MS + 2000)
    assert [(one.scenario, one.reason, one.at) for one in decisions] == [
        ("a/low", "outscored", NOON_MS + 2000),
        ("a/high", "granted", NOON_MS + 2000),
    ]
    assert decisions[0].values["winner"] == "a/high"


def test_a_window_is_the_users_own_and_opens_anew_after_it_ended() -> None:  # D2
    world = gathering(scenario("a/low"), scenario("a/high", priority=5))
    decisions = world.decide(
        candidate(0, NOON_MS, 0), candidate(1, NOON_MS + 500, 1), candidate(0, NOON_MS + 2000, 1, key="late")
    )
    assert [(one.user, one.scenario, one.reason) for one in decisions] == [("u0", "a/low", "granted")]
    rest = world.decider.release_due(NOON_MS + DAY_MS)
    assert [(one.user, one.reason, one.at - NOON_MS) for one in rest] == [
        ("u1", "granted", 2500),
        ("u0", "granted", 4000),
    ]


def test_what_changes_while_competitors_gather_counts() -> None:  # D2, A2
    world = gathering(scenario("a/low"), scenario("a/high", priority=5, audience=HasTag("vip")))
    world.profiles.apply_profile(0, profile(tags=("vip",)), NOON_MS)
    world.decide(candidate(0, NOON_MS, 0), candidate(0, NOON_MS + 1, 1))
    world.profiles.apply_profile(0, profile(tags=()), NOON_MS + 2)
    reasons = {one.scenario: one.reason for one in world.decider.release_due(NOON_MS + 2000)}
    assert reasons == {"a/low": "granted", "a/high": "audience"}


def test_a_second_candidate_of_a_scenario_that_waits_is_outscored() -> None:  # D2
    world = gathering(scenario("a/low"))
    (second,) = world.decide(candidate(0, NOON_MS, 0), candidate(0, NOON_MS + 1, 0))
    (first,) = world.decider.release_due(NOON_MS + 2000)
    assert (second.reason, second.values["held"], first.reason) == ("outscored", first.decision_id, "granted")


def test_refusals_and_tags_do_not_wait() -> None:  # D2, A1
    world = gathering(scenario("a/vip", audience=HasTag("vip")), tagging(), scenario("a/plain"))
    decisions = world.decide(*(candidate(0, NOON_MS, row, key="app|1", position=1) for row in range(3)))
    assert [(one.scenario, one.reason) for one in decisions] == [("a/vip", "audience"), ("a/tag", "granted")]
    assert [one.scenario for one in world.decider.release_due(NOON_MS + 2000)] == ["a/plain"]


def test_a_window_that_ends_in_the_night_leaves_its_candidates_to_the_quiet_hours() -> None:  # C5, D2
    evening_ms = NOON_MS + 9 * HOUR_MS - 1000
    usage, fence = scenario("a/usage", quiet_hours=QuietHours()), presence("a/fence", quiet_hours=QuietHours())
    world = gathering(usage, fence)
    enter = candidate(0, evening_ms, 1, kind="enter", fence="national/fence")
    assert world.decide(candidate(0, evening_ms, 0), enter) == []
    found = world.decider.release_due(evening_ms + 2000)
    assert {(one.scenario, one.outcome, one.reason) for one in found} == {
        ("a/usage", "held", "quiet_hours"),
        ("a/fence", "refused", "quiet_hours"),
    }
    (later,) = world.decider.release_due(evening_ms + DAY_MS)
    assert (later.scenario, later.reason) == ("a/usage", "granted")


# --- ignored offers -------------------------------------------------------------------------------------------------

PAUSE = Limits(pause_after=PauseAfter(ignores=2, within_ms=30 * DAY_MS, pause_ms=60 * DAY_MS))


def watched(**change: Any) -> World:
    return World(scenario("a/watched", limits=PAUSE, offer__deadline_s=3600, **change), scenario("a/other"))


def ignore(world: World, now_ms: int, *, state: str | None = "delivered", used_ms: int | None = None) -> str:
    """Offer once, with a receipt a minute later; redeemed after `used_ms`; return the reason of the decision."""
    decision = world.one(0, now_ms)
    answers = world.decider.responses
    if decision.outcome == "offer" and state is not None:
        answers.received(0, decision.decision_id, now_ms + MINUTE_MS)
    if used_ms is not None:
        answers.answered(0, decision.decision_id, None, now_ms + used_ms)
    return str(decision.reason)


def test_the_second_ignore_within_the_span_pauses_the_scenario_for_that_user() -> None:
    world = watched()
    assert [ignore(world, NOON_MS), ignore(world, NOON_MS + 29 * DAY_MS)] == ["granted", "granted"]
    second_ms = NOON_MS + 29 * DAY_MS + HOUR_MS
    assert ignore(world, second_ms - 1) == "granted", "it has not ended yet"
    refused = world.one(0, second_ms)
    assert (refused.outcome, refused.reason) == ("refused", "suppressed")
    assert refused.values == {"ignores": 2, "within_ms": 30 * DAY_MS, "until": second_ms + 60 * DAY_MS}
    assert world.one(1, second_ms).reason == "granted", "another user"
    assert world.one(0, second_ms, row=1).reason == "granted", "another scenario"
    # The offer of a millisecond before the pause was ignored too, and is the first of a new count.
    assert [ignore(world, second_ms + 60 * DAY_MS - 1), ignore(world, second_ms + 60 * DAY_MS)] == [
        "suppressed",
        "granted",
    ]


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ({"now_ms": NOON_MS + 30 * DAY_MS}, "granted"),  # the first is just too old
        ({"now_ms": NOON_MS + 30 * DAY_MS - 1}, "suppressed"),
        ({"now_ms": NOON_MS + DAY_MS, "state": None}, "granted"),  # perhaps never seen
        ({"now_ms": NOON_MS + DAY_MS, "used_ms": HOUR_MS - 1}, "granted"),
        ({"now_ms": NOON_MS + DAY_MS, "used_ms": HOUR_MS}, "suppressed"),  # too late to be an answer
    ],
    ids=["too far apart", "near enough", "no receipt", "redeemed", "redeemed too late"],
)
def test_what_is_an_ignore_and_what_is_not(second: dict[str, Any], expected: str) -> None:
    world = watched()
    ignore(world, NOON_MS)
    ignore(world, **second)
    assert world.one(0, second["now_ms"] + HOUR_MS).reason == expected


def test_a_benefit_may_be_used_as_long_as_it_is_valid() -> None:
    terms = (BenefitDefinition("b", "b", "video", "p", valid_for_ms=WEEK_MS),)
    world = watched(offer__terms=terms)
    ignore(world, NOON_MS)
    ignore(world, NOON_MS + DAY_MS)
    assert world.one(0, NOON_MS + DAY_MS + WEEK_MS - 1).reason == "granted"
    assert world.one(0, NOON_MS + DAY_MS + WEEK_MS).reason == "suppressed"


def test_a_redemption_that_names_only_the_benefit_answers_every_offer_of_it() -> None:
    world = watched()
    ignore(world, NOON_MS)
    ignore(world, NOON_MS + 1)
    world.decider.responses.answered(0, None, "another", NOON_MS + 2)
    world.decider.responses.answered(0, None, "电影票五折券", NOON_MS + 3)
    assert world.one(0, NOON_MS + DAY_MS).reason == "granted"


def test_who_starts_anew_on_a_number_is_not_paused() -> None:  # A4
    world = watched()
    ignore(world, NOON_MS)
    ignore(world, NOON_MS + DAY_MS)
    world.decider.close(0, NOON_MS + 2 * DAY_MS)
    world.profiles.apply_profile(0, profile(), NOON_MS + 2 * DAY_MS)
    assert world.one(0, NOON_MS + 3 * DAY_MS).reason == "granted"


def test_tidying_up_changes_no_answer() -> None:
    plain, tidy = watched(), watched()
    for at_ms in range(NOON_MS, NOON_MS + 100 * DAY_MS, 5 * DAY_MS):
        tidy.decider.responses.drop_settled(at_ms)
        assert ignore(plain, at_ms) == ignore(tidy, at_ms)
    tidy.decider.responses.drop_settled(NOON_MS + 400 * DAY_MS)
    assert tidy.decider.responses.known == {}


# --- the score ------------------------------------------------------------------------------------------------------


def test_a_factor_that_the_policy_leaves_out_is_one() -> None:  # D2
    fancy = scenario("a/fancy", priority=3, offer__value=2)
    factors = {"priority": 3.0, "propensity": 4.0, "context": 1.0, "value": 2.0}
    for left_out in (None, *factors):
        world = World(fancy, score_factors=frozenset(factors) - {left_out})
        world.profiles.apply_profile(0, profile(attributes={"propensity.entertainment": 4}), NOON_MS)
        expected = {name: 1.0 if name == left_out else weight for name, weight in factors.items()}
        product = expected["priority"] * expected["propensity"] * expected["value"]
        assert world.one().values["factors"] == expected
        assert world.one(1).values["factors"]["propensity"] == 1.0
        assert world.one(0, NOON_MS + 1).values["score"] == product


@pytest.mark.parametrize(
    ("told", "expected"), [(7.0, 7.0), (99.0, 10.0), (-1.0, 0.0), (None, 4.0), (float("nan"), 1.0)]
)
def test_a_model_is_asked_before_the_profile_and_kept_within_its_bounds(
    told: float | None, expected: float
) -> None:  # D2
    world = World(scenario())
    world.profiles.apply_profile(0, profile(attributes={"propensity.entertainment": 4}), NOON_MS)
    world.decider.propensity = lambda slot, asked: told if asked.id == "national/cinema" and slot == 0 else None
    world.decider._compile()
    assert world.one().values["factors"]["propensity"] == expected


# --- who would win, explained ----------------------------------------------------------------------------------------


def contest(world: World, user: int = 0, now_ms: int = NOON_MS) -> Any:
    rows = range(len(world.decider.content.scenarios))
    return world.decider.contest(user, world.decider.contenders(user, f"u{user}", now_ms, rows), now_ms)


def test_explain_names_those_that_would_compete_and_who_would_win_and_writes_nothing() -> None:  # D2
    world = gathering(
        scenario("a/low"),
        scenario("a/high", priority=5),
        scenario("a/capped", priority=9, limits=Limits(caps=(Cap(Scope.SCENARIO, 1, "day"),))),
        scenario("a/vip", audience=HasTag("vip"), priority=99),
        scenario("a/shadow", mode=Mode.SHADOW, priority=99),
        tagging(),
    )
    world.decide(candidate(0, NOON_MS - HOUR_MS, 2))
    world.decider.release_due(NOON_MS)
    before = (world.decider.state(), len(world.ledger.grants))
    told = contest(world)
    assert (told.winner, told.window_ms, told.closes, told.waiting) == ("a/high", 2000, None, [])
    assert [(one.scenario, one.outcome, one.reason, one.waits) for one in told.competitors] == [
        ("a/capped", "refused", "cap:scenario", False),
        ("a/high", "offer", "granted", False),
        ("a/low", "lost", "outscored", False),
    ]
    assert told.competitors[1].score == 5
    assert told.competitors[1].factors["priority"] == 5
    assert (world.decider.state(), len(world.ledger.grants)) == before


def test_explain_names_what_waits_already_and_when_the_users_window_closes() -> None:  # D2, C6
    quiet = QuietHours(12 * 60, 13 * 60, "hold")
    world = gathering(scenario("a/low"), scenario("a/high", priority=5), scenario("a/held", quiet_hours=quiet))
    world.decide(candidate(0, NOON_MS, 0), candidate(0, NOON_MS + 1, 2))
    told = contest(world, now_ms=NOON_MS + 500)
    assert told.closes == NOON_MS + 2000
    assert [(one.scenario, one.why) for one in told.waiting] == [("a/low", "arbitration"), ("a/held", "quiet_hours")]
    assert [(one.scenario, one.waits) for one in told.competitors] == [("a/high", False), ("a/low", True)]
    assert contest(world, user=1).closes is None


def test_a_withheld_winner_leaves_the_slot_empty_or_to_the_next_as_it_would_then() -> None:  # D3
    for substitutes, expected in ((False, "lost"), (True, "offer")):
        held_out = scenario("a/high", priority=5, holdout_percent=99.999999, substitute=substitutes)
        world = gathering(scenario("a/low"), held_out)
        told = contest(world)
        assert [(one.scenario, one.outcome) for one in told.competitors] == [
            ("a/high", "withheld"),
            ("a/low", expected),
        ]
        assert told.winner == "a/high"
        assert world.ledger.grants == []


def test_without_a_ledger_nobody_would_win() -> None:  # C4
    world = World(scenario("a/one"))

    def fail(requests: Any) -> Any:
        raise StoreUnavailable("gone")

    world.decider.reserve = fail
    told = contest(world)
    assert (told.winner, told.window_ms) == (None, 0)
    assert [(one.outcome, one.reason) for one in told.competitors] == [("refused", "store_unavailable")]
