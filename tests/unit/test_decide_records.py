"""Ids, decisions as stored, runs of refusals, held candidates, explain, checkpoints (C6, D4, D5)."""

from __future__ import annotations

import json
from hashlib import blake2b

import msgspec
import pytest

from engine.decide import encode
from engine.decide.ids import offer_id
from engine.decide.records import decode
from engine.decide.runs import MOST_RUNS, Runs
from engine.decide.timing_gates import HOLD_JITTER_MS
from engine.definitions import Cap, HasTag, Limits, QuietHours, Reentry
from engine.model import Mode, Scope
from tests.oracle.decide_world import (
    DAY_MS,
    HOUR_MS,
    KEY,
    NOON_MS,
    World,
    candidate,
    consent,
    content,
    message,
    profile,
    scenario,
)

NIGHT_MS = NOON_MS + 10 * HOUR_MS
MORNING_MS = NOON_MS + 20 * HOUR_MS


def test_an_offer_id_is_the_triggers_instant_and_a_keyed_hash() -> None:  # D4
    made = offer_id(KEY, "default", "national/cinema", "u0", "app|1", NOON_MS)
    digest = blake2b(b"default\0national/cinema\0u0\0app|1", key=KEY, digest_size=10).hexdigest()
    assert made == f"{NOON_MS:012x}{digest}"
    assert len(made) == 32
    assert World(scenario()).one(key="app|1").decision_id == made


def test_an_offer_id_knows_neither_version_nor_arrival() -> None:  # D4
    early, late = World(scenario()), World(scenario(), version="v2")
    first = early.one(key="k", at_ms=NOON_MS)
    second = late.one(now_ms=NOON_MS + 500, key="k", at_ms=NOON_MS, position=99)
    assert first.decision_id == second.decision_id


def test_a_decision_is_written_as_the_contract_says() -> None:  # D5
    world = World(scenario(limits=Limits(caps=(Cap(Scope.ALL, 0, "rolling", HOUR_MS),))))
    decision = world.one(key="app|1", values={"app": "影院"})
    assert json.loads(encode(decision)) == {
        "v": 1,
        "tenant": "default",
        "decision_id": decision.decision_id,
        "outcome": "refused",
        "reason": "cap:all",
        "user": "u0",
        "scenario": "national/cinema",
        "trigger": {"kind": "usage", "key": "app|1", "at": NOON_MS, "fence": None, "values": {"app": "影院"}},
        "at": NOON_MS,
        "content_version": "v1",
        "values": {"rules": [{"most": 0, "since": NOON_MS - HOUR_MS}]},
        "count": 1,
        "first": NOON_MS,
        "last": NOON_MS,
    }
    assert decode(encode(decision)) == decision


def refusing(users: int = 4) -> World:
    return World(scenario(audience=HasTag("vip")), users=users)


def test_equal_refusals_within_an_hour_are_one_row_with_count_first_and_last() -> None:  # D5
    world = refusing()
    first = world.one()
    assert world.decide(*(candidate(0, NOON_MS + step) for step in (10, 20))) == []
    assert world.decider.release_due(NOON_MS + HOUR_MS - 1) == []
    (closed,) = world.decider.release_due(NOON_MS + HOUR_MS)
    assert closed.decision_id == first.decision_id
    assert (closed.count, closed.first, closed.last) == (3, NOON_MS, NOON_MS + 20)
    assert world.one(now_ms=NOON_MS + HOUR_MS + 1).count == 1


def test_a_run_ends_with_another_outcome_and_a_single_refusal_needs_no_closing() -> None:  # D5
    world = refusing()
    world.decide(candidate(0, NOON_MS), candidate(0, NOON_MS + 1))
    world.profiles.set_tag(0, "vip", NOON_MS + DAY_MS)
    closed, offer = world.decide(candidate(0, NOON_MS + 2))
    assert (closed.reason, closed.count, offer.outcome) == ("audience", 2, "offer")
    world.one(1)
    assert world.decider.finish() == []


def test_runs_are_bounded_and_the_oldest_closes_early() -> None:  # D5
    world = refusing(8)
    world.decider.recorder.runs = Runs(most=2)
    world.decide(candidate(0), candidate(0, NOON_MS + 1), candidate(1, NOON_MS + 2))
    closed, opened = world.decide(candidate(2, NOON_MS + 3))
    assert (closed.user, closed.count, opened.user) == ("u0", 2, "u2")
    assert len(world.decider.recorder.runs.open) == 2 < MOST_RUNS


def night_world(**change: object) -> World:
    return World(scenario("a/a", quiet_hours=QuietHours(), **change), scenario("a/b", quiet_hours=QuietHours()))


def test_a_held_candidate_is_released_after_quiet_hours_under_the_same_id() -> None:  # C6
    world = night_world()
    held = world.one(now_ms=NIGHT_MS)
    release_ms = held.values["release"]
    assert MORNING_MS <= release_ms <= MORNING_MS + HOLD_JITTER_MS
    assert world.decider.release_due(release_ms - 1) == []
    (decision,) = world.decider.release_due(release_ms + 5000)
    assert decision.decision_id == held.decision_id
    assert (decision.outcome, decision.at) == ("offer", release_ms)  # at its own instant
    assert decision.offer.deadline_ms == NIGHT_MS + DAY_MS
    assert world.decider.release_due(release_ms + DAY_MS) == []


def test_the_jitter_is_the_hash_of_the_offer_id() -> None:  # C6
    world = night_world()
    held = world.one(now_ms=NIGHT_MS)
    assert held.values["release"] - MORNING_MS == int(held.decision_id[12:], 16) % (HOLD_JITTER_MS + 1)


def test_a_held_candidate_passes_all_gates_again_and_competes_with_the_users_others() -> None:  # C6
    world = night_world(priority=2.0)
    world.decide(candidate(0, NIGHT_MS, 0), candidate(0, NIGHT_MS + 1, 1), candidate(1, NIGHT_MS + 2, 0))
    world.profiles.apply_inbound(1, message(" ｔｄ ", at_ms=NIGHT_MS + 3))
    decisions = world.decider.release_due(NOON_MS + DAY_MS)
    assert sorted((one.user, one.scenario, one.outcome, one.reason) for one in decisions) == [
        ("u0", "a/a", "offer", "granted"),
        ("u0", "a/b", "lost", "outscored"),
        ("u1", "a/a", "refused", "opted_out"),
    ]


def test_one_candidate_of_a_scenario_waits_at_a_time() -> None:
    world = night_world()
    first = world.one(now_ms=NIGHT_MS)
    second = world.one(now_ms=NIGHT_MS + 1)
    assert (second.outcome, second.values) == ("lost", {"held": first.decision_id})


def test_due_releases_come_out_before_later_candidates() -> None:  # T4
    world = night_world(reentry=Reentry("once"))
    held = world.one(now_ms=NIGHT_MS)
    released, refused = world.decide(candidate(0, NOON_MS + DAY_MS))
    assert (released.decision_id, released.outcome) == (held.decision_id, "offer")
    assert refused.reason == "reentry"


def test_closing_a_user_voids_consent_and_cancels_what_waits() -> None:  # A4
    world = night_world()
    held = world.one(now_ms=NIGHT_MS)
    world.profiles.apply_consent(0, consent("marketing.sms", True, NIGHT_MS))
    (cancelled,) = world.decider.close(0, NIGHT_MS + 10)
    assert (cancelled.decision_id, cancelled.outcome, cancelled.reason) == (held.decision_id, "refused", "opted_out")
    assert not world.profiles.apply_consent(0, consent("marketing.sms", True, NIGHT_MS + 9))
    assert world.profiles.evidence(0, "marketing.sms") is None
    assert world.profiles.subject(0, "u0") == "u0#1"
    assert world.decider.release_due(NOON_MS + DAY_MS) == []


def test_a_held_candidate_whose_scenario_is_gone_is_not_live() -> None:  # L10
    world = night_world()
    held = world.one(now_ms=NIGHT_MS)
    world.decider.activate(content(scenario("a/b"), version="v2"))
    (decision,) = world.decider.release_due(NOON_MS + DAY_MS)
    assert (decision.decision_id, decision.reason) == (held.decision_id, "not_live")


def test_runs_and_held_candidates_follow_their_scenario_to_new_content() -> None:  # L10
    world = World(scenario("a/a"), scenario("a/b", audience=HasTag("vip"), quiet_hours=QuietHours()))
    world.decide(candidate(0, NOON_MS, 1), candidate(0, NOON_MS + 1, 1))
    world.decider.activate(content(scenario("a/b", audience=HasTag("vip"))))
    assert world.decide(candidate(0, NOON_MS + 2, 0)) == []
    assert world.decider.finish()[0].count == 3


def test_a_restored_decider_goes_on_as_if_nothing_had_happened() -> None:  # T3
    def play(restart: bool) -> list[bytes]:
        world = night_world(reentry=Reentry("once"), audience=HasTag("vip"))
        world.profiles.apply_profile(0, profile(tags=("vip",), attributes={"plan": "5G", "arpu": 8}), NOON_MS)
        world.profiles.set_tag(2, "vip", NOON_MS + 3 * DAY_MS)
        lines = [
            encode(one)
            for one in world.decide(
                candidate(0, NOON_MS), candidate(1, NOON_MS), candidate(1, NOON_MS + 1), candidate(2, NIGHT_MS)
            )
        ]
        if restart:
            state = json.loads(json.dumps(world.decider.state()))
            objects = json.loads(json.dumps(world.profiles.objects()))
            arrays = {name: array.copy() for name, array in world.profiles.arrays().items()}
            ledger = world.ledger
            world = night_world(reentry=Reentry("once"), audience=HasTag("vip"))
            world.ledger.grants = ledger.grants
            world.profiles.restore(arrays, objects)
            world.decider.restore(state)
        later = NOON_MS + DAY_MS
        lines += [encode(one) for one in world.decide(candidate(1, later), candidate(0, later + 1))]
        return lines + [encode(one) for one in world.decider.finish()]

    assert play(True) == play(False)
    assert len(play(False)) > 4


def test_explain_tells_gate_by_gate_and_changes_nothing() -> None:
    world = World(scenario(audience=HasTag("vip"), limits=Limits(caps=(Cap(Scope.ALL, 1, "day"),))))
    before = json.dumps(world.decider.state())
    trace = world.decider.explain(candidate(0))
    assert (trace.outcome, trace.reason) == ("refused", "audience")
    step = next(one for one in trace.steps if one.gate == "audience")
    assert step.values == {"wanted": "tag vip", "tag vip": False}
    assert [one.gate for one in trace.steps if not one.asked][-3:] == ["arbitration", "arm", "reservation"]
    world.profiles.set_tag(0, "vip", NOON_MS + DAY_MS)
    assert world.decider.explain(candidate(0)).outcome == "offer"
    assert not world.ledger.grants
    assert json.dumps(world.decider.state()) == before
    world.one()
    again = world.decider.explain(candidate(0, NOON_MS + 1))
    assert again.reason == "cap:all"
    assert again.steps[-1].values["rules"][0]["most"] == 1
    assert msgspec.json.encode(again)


def test_explain_agrees_with_the_decision() -> None:
    modes = [scenario(f"a/{mode}", mode=mode) for mode in (Mode.LIVE, Mode.PAUSED, Mode.DRAFT)]
    world = World(*modes, scenario("a/n", quiet_hours=QuietHours(0, 1439)), scenario("a/t", audience=HasTag("x")))
    for row in range(5):
        trace = world.decider.explain(candidate(row=row))
        decision = world.one(row=row)
        assert (trace.outcome, trace.reason, trace.offer_id) == (
            decision.outcome,
            decision.reason,
            decision.decision_id,
        )


def test_explaining_a_user_covers_every_scenario() -> None:
    world = World(scenario("a/a"), scenario("a/b", audience=HasTag("vip")))
    traces = world.decider.explain_user(0, "u0", NOON_MS)
    assert [(one.scenario, one.reason) for one in traces] == [("a/a", "granted"), ("a/b", "audience")]


@pytest.mark.parametrize("order", [(1, 2), (2, 1)])
def test_the_newest_consent_wins_in_whatever_order_it_comes(order: tuple[int, int]) -> None:  # A2
    world = World(scenario(), assumed_consent=frozenset())
    for step in order:
        world.profiles.apply_consent(0, consent("marketing.sms", step == 2, NOON_MS + step))
    assert world.one(now_ms=NOON_MS + 9).reason == "granted"
    assert world.profiles.evidence(0, "marketing.sms").at_ms == NOON_MS + 2
