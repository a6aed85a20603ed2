"""The gates of rule D1, one by one (A1-A4, B5, C5-C7, D1, D6, D8)."""

from __future__ import annotations

import pytest

from engine.definitions import (
    Compare,
    Every,
    HasTag,
    InOrganisation,
    Limits,
    Neither,
    QuietHours,
    Reentry,
    Schedule,
    Some,
)
from engine.model import Mode
from tests.oracle.decide_world import (
    DAY_MS,
    HOUR_MS,
    NOON_MS,
    World,
    candidate,
    consent,
    content,
    presence,
    profile,
    scenario,
)


def test_a_candidate_with_nothing_in_its_way_becomes_an_offer() -> None:
    decision = World(scenario()).one()
    assert (decision.outcome, decision.reason) == ("offer", "granted")
    assert decision.offer is not None
    assert decision.offer.offer_id == decision.decision_id
    assert decision.offer.text == "您有一张电影票五折券。"
    assert decision.offer.channel == "sms"
    assert decision.offer.deadline_ms == NOON_MS + DAY_MS  # D6


@pytest.mark.parametrize(
    ("mode", "outcome", "reason", "is_sent"),
    [
        (Mode.LIVE, "offer", "granted", True),
        (Mode.SHADOW, "offer", "granted", False),
        (Mode.PAUSED, "refused", "paused", False),
        (Mode.DRAFT, "refused", "not_live", False),
    ],
)
def test_the_mode_says_whether_anything_is_sent(mode: Mode, outcome: str, reason: str, is_sent: bool) -> None:  # D8
    world = World(scenario(mode=mode))
    decision = world.one()
    assert (decision.outcome, decision.reason, decision.offer is not None) == (outcome, reason, is_sent)
    assert len(world.ledger.grants) == is_sent


def test_a_pause_of_one_or_all_refuses_until_resumed() -> None:  # D8
    world = World(scenario("a/a"), scenario("a/b"))
    world.decider.pause("a/a", True)
    assert [world.one(row=row).reason for row in (0, 1)] == ["paused", "granted"]
    world.decider.pause("*", True)
    assert world.one(1, row=1).reason == "paused"
    world.decider.pause("*", False)
    assert [world.one(2, row=row).reason for row in (0, 1)] == ["paused", "granted"]  # its own pause stays
    world.decider.pause("a/a", False)
    assert world.one(3).reason == "granted"


@pytest.mark.parametrize(
    ("schedule", "reason"),
    [
        (Schedule(), "granted"),
        (Schedule(from_ms=NOON_MS), "granted"),
        (Schedule(from_ms=NOON_MS + 1), "not_live"),
        (Schedule(until_ms=NOON_MS), "not_live"),
        (Schedule(until_ms=NOON_MS + 1), "granted"),
        (Schedule(weekdays=frozenset({0})), "granted"),
        (Schedule(weekdays=frozenset({1, 2})), "not_live"),
        (Schedule(windows=((720, 721),)), "granted"),
        (Schedule(windows=((600, 720),)), "not_live"),
        (Schedule(windows=((1320, 780),), weekdays=frozenset({6})), "granted"),  # Sunday 22:00 to Monday 13:00
        (Schedule(windows=((1320, 780),), weekdays=frozenset({0})), "not_live"),
        (Schedule(windows=((720, 780),), time_zone="UTC"), "not_live"),
    ],
)
def test_a_schedule_is_judged_in_its_own_zone_and_half_open(schedule: Schedule, reason: str) -> None:
    assert World(scenario(schedule=schedule)).one().reason == reason


@pytest.mark.parametrize(
    ("age_ms", "reason"),
    [(0, "granted"), (600_000, "granted"), (600_001, "too_old")],
)
def test_an_event_older_than_the_limit_makes_no_offer(age_ms: int, reason: str) -> None:  # T6
    assert World(scenario()).one(at_ms=NOON_MS - age_ms).reason == reason


def test_a_trigger_past_its_deadline_is_expired() -> None:  # D6
    world = World(scenario(max_event_age_ms=10**12, offer__deadline_s=60))
    assert world.one(at_ms=NOON_MS - 60_000).outcome == "offer"
    late = world.one(at_ms=NOON_MS - 60_001)
    assert (late.outcome, late.reason) == ("expired", "deadline")


@pytest.mark.parametrize(
    ("kind", "values", "reason"),
    [
        ("enter", {"gap_s": 3600}, "granted"),
        ("enter", {"gap_s": 3601}, "stale_presence"),
        ("enter", {"gap_s": 3601, "method": "cell"}, "granted"),
        ("enter", {"gap_s": 10_801, "method": "cell"}, "stale_presence"),
        ("enter", {"initial": True}, "stale_presence"),
        ("dwell", {"initial": True, "gap_s": 9999}, "granted"),
        ("exit", {"reason": "gap"}, "stale_presence"),
        ("exit", {"reason": "fix"}, "granted"),
    ],
)
def test_uncertain_presence_makes_no_immediate_offer(kind: str, values: dict, reason: str) -> None:  # P2, P7
    world = World(presence(kind=kind))
    assert world.one(kind=kind, fence="national/fence", values=values).reason == reason


AUDIENCES = [
    (HasTag("vip"), "granted"),
    (HasTag("other"), "audience"),
    (Compare("arpu", ">=", 50), "granted"),
    (Compare("arpu", "<", 50), "audience"),
    (Compare("plan", "==", "5G"), "granted"),
    (Compare("plan", "!=", "5G"), "audience"),
    (Compare("plan", "in", ("4G", "5G")), "granted"),
    (Compare("arpu", "in", (88, 99)), "granted"),
    (Compare("plan", "prefix", "5"), "granted"),
    (Compare("plan", "exists", True), "granted"),
    (Compare("nothing", "exists", True), "audience"),
    (Compare("nothing", "exists", False), "granted"),
    (Compare("nothing", "!=", 3), "audience"),  # what is not there compares with nothing
    (Neither((Compare("nothing", "==", 3),)), "granted"),
    (Every((HasTag("vip"), Compare("member", "==", True))), "granted"),
    (Every((HasTag("vip"), HasTag("other"))), "audience"),
    (Some((HasTag("other"), HasTag("vip"))), "granted"),
    (Neither((HasTag("other"), HasTag("vip"))), "audience"),
    (InOrganisation("bj/haidian"), "granted"),
    (InOrganisation("bj/hai"), "audience"),
]


@pytest.mark.parametrize(("audience", "reason"), AUDIENCES, ids=lambda one: str(one)[:40])
def test_an_audience_is_read_from_the_profile(audience: object, reason: str) -> None:  # A1
    world = World(scenario(audience=audience))
    facts = profile(tags=("vip",), attributes={"arpu": 88, "plan": "5G", "member": True}, organisation="bj/haidian/zgc")
    world.profiles.apply_profile(0, facts, NOON_MS)
    assert world.one().reason == reason
    assert World(scenario(audience=audience), known=False).one().reason == "no_profile"


def test_a_refusal_names_what_was_compared() -> None:  # D5
    world = World(scenario(audience=Every((HasTag("vip"), Compare("arpu", ">=", 50)))))
    world.profiles.apply_profile(0, profile(attributes={"arpu": 30}), NOON_MS)
    decision = world.one()
    assert decision.values == {"wanted": "all(tag vip, arpu >= 50)", "tag vip": False, "arpu >= 50": 30.0}
    assert decision.content_version == "v1"


def test_send_only_to_keeps_a_trial_among_the_tagged() -> None:  # C7
    world = World(scenario(limits=Limits(send_only_to="staff")))
    world.profiles.set_tag(1, "staff", NOON_MS + 1)
    assert [world.one(user).reason for user in (0, 1)] == ["audience", "granted"]
    assert world.one(1, NOON_MS + 1).reason == "audience"  # a dynamic tag ends at its instant (A1)


def test_without_consent_or_with_do_not_disturb_nothing_is_sent() -> None:  # A2
    world = World(scenario(), assumed_consent=frozenset())
    assert world.one().reason == "no_consent"
    world.profiles.apply_consent(0, consent("marketing.sms", True))
    assert world.one().reason == "granted"
    world.profiles.apply_consent(0, consent("marketing.sms", False, NOON_MS + 1))
    assert world.one(now_ms=NOON_MS + 2).reason == "opted_out"
    world.profiles.apply_consent(1, consent("marketing.sms", True))
    world.profiles.apply_profile(1, profile(dnd=True), NOON_MS)
    assert world.one(1).reason == "dnd"


def test_service_offers_skip_consent_quiet_hours_and_caps_but_not_do_not_disturb() -> None:  # A2
    service = scenario(offer__offer_class="service", quiet_hours=QuietHours(0, 1440), limits=Limits(min_gap_ms=DAY_MS))
    world = World(service, assumed_consent=frozenset())
    assert [world.one(now_ms=NOON_MS + step).reason for step in (0, 1)] == ["granted", "granted"]
    assert not world.ledger.grants[0].option.counts
    world.profiles.apply_profile(1, profile(dnd=True), NOON_MS)
    assert world.one(1).reason == "dnd"


def test_the_first_channel_with_consent_is_taken() -> None:  # A2
    world = World(scenario(offer__channels=("push", "sms")), assumed_consent=frozenset())
    world.profiles.apply_consent(0, consent("marketing.sms", True))
    assert world.one().offer.channel == "sms"
    world.profiles.apply_consent(0, consent("marketing.push", True))
    assert world.one(now_ms=NOON_MS + 1).offer.channel == "push"


def test_a_suppressed_user_gets_nothing_on_that_channel() -> None:
    world = World(scenario(offer__channels=("push", "sms")))
    world.profiles.set_tag(0, "suppressed.push", NOON_MS + DAY_MS)
    assert world.one().offer.channel == "sms"
    world.profiles.apply_profile(0, profile(tags=("suppressed",)), NOON_MS)
    assert world.one(now_ms=NOON_MS + 1).reason == "suppressed"


@pytest.mark.parametrize(
    ("reentry", "reasons"),
    [
        (Reentry("every"), ["granted", "granted", "granted"]),
        (Reentry("once"), ["granted", "reentry"]),
        (Reentry("cooldown", HOUR_MS), ["granted", "reentry", "granted"]),
    ],
)
def test_reentry_counts_from_the_reservation(reentry: Reentry, reasons: list[str]) -> None:  # B5
    world = World(scenario(reentry=reentry))
    steps = (0, HOUR_MS - 1, HOUR_MS)[: len(reasons)]
    assert [world.one(now_ms=NOON_MS + step).reason for step in steps] == reasons


def test_a_released_reservation_no_longer_bars_reentry() -> None:  # C2
    world = World(scenario(reentry=Reentry("once")))
    first = world.one()
    world.ledger.release(first.decision_id)
    world.decider.released(0, first.decision_id)
    assert world.one(now_ms=NOON_MS + 1).reason == "granted"


def test_the_ledger_refuses_reentry_where_nothing_is_remembered() -> None:  # B5
    world = World(scenario(reentry=Reentry("once")))
    world.one()
    world.decider.restore(world.decider.state() | {"reserved": []})
    assert world.one(now_ms=NOON_MS + 1).reason == "reentry"


NIGHT_MS = NOON_MS + 10 * HOUR_MS  # 22:00 in Shanghai


def test_presence_at_night_is_discarded_and_other_triggers_wait() -> None:  # C5
    world = World(presence(quiet_hours=QuietHours()), scenario(quiet_hours=QuietHours()))
    assert (world.one(now_ms=NIGHT_MS, kind="enter").outcome) == "refused"
    held = world.one(1, NIGHT_MS, row=1)
    assert (held.outcome, held.reason) == ("held", "quiet_hours")
    assert not world.ledger.grants  # C6


def test_quiet_in_the_fences_zone_is_quiet_too() -> None:  # C5
    world = World(presence(quiet_hours=QuietHours()))
    assert world.one(time_zone="Asia/Shanghai", kind="enter").reason == "granted"
    assert world.one(1, time_zone="America/New_York", kind="enter").reason == "quiet_hours"  # 23:00 there
    world.profiles.apply_profile(2, profile(time_zone="America/New_York"), NOON_MS)
    assert world.one(2, kind="enter").reason == "quiet_hours"
    world.profiles.apply_profile(3, profile(time_zone="Mars/Base"), NOON_MS)
    assert world.one(3, NIGHT_MS, kind="enter").reason == "quiet_hours"  # unknown: the deployment's


def test_quiet_hours_may_switch_to_another_channel_that_has_consent() -> None:  # C5
    switch = QuietHours(policy="switch", switch_to="push")
    world = World(scenario(quiet_hours=switch), assumed_consent=frozenset())
    for purpose in ("marketing.sms", "marketing.push"):
        world.profiles.apply_consent(0, consent(purpose, True))
    world.profiles.apply_consent(1, consent("marketing.sms", True))
    world.profiles.apply_consent(2, consent("marketing.push", True))
    assert world.one(0, NIGHT_MS).offer.channel == "push"
    assert world.one(1, NIGHT_MS).reason == "quiet_hours"
    assert world.one(0, NOON_MS).offer.channel == "sms"
    assert world.one(2, NOON_MS).reason == "no_consent"


def test_a_hold_that_could_not_end_in_time_is_expired_at_once() -> None:  # D6
    world = World(scenario(quiet_hours=QuietHours(), offer__deadline_s=3600))
    decision = world.one(now_ms=NIGHT_MS)
    assert (decision.outcome, decision.reason) == ("expired", "deadline")


def test_new_content_decides_from_the_next_candidate_on() -> None:  # L10
    world = World(scenario("a/a"), scenario("a/b"))
    world.decider.activate(content(scenario("a/b", mode=Mode.PAUSED), version="v2"))
    decision = world.one(row=0)
    assert (decision.scenario, decision.reason, decision.content_version) == ("a/b", "paused", "v2")


def test_a_slot_beyond_the_table_is_an_unknown_user() -> None:
    world = World(scenario())
    assert world.one(99).reason == "granted"
    assert World(scenario(audience=HasTag("vip"))).decide(candidate(99))[0].reason == "no_profile"


def test_minutes_are_half_open_at_both_ends_of_quiet_hours() -> None:  # C5
    world = World(presence(quiet_hours=QuietHours()))
    nine_ms = NOON_MS + 9 * HOUR_MS
    eight_ms = NOON_MS + 20 * HOUR_MS
    times = (nine_ms - 1, nine_ms, eight_ms - 1, eight_ms)
    reasons = [world.one(user, now_ms, kind="enter").reason for user, now_ms in enumerate(times)]
    assert reasons == ["granted", "quiet_hours", "quiet_hours", "granted"]
