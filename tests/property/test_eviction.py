"""Users silent for `state_ttl_days` are forgotten and their slots used again: nobody can tell (T3, T4)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.definitions import FieldTest, PatternTrigger, UsageTrigger
from engine.pipeline import Pipeline
from engine.settings import Settings
from tests.world import (
    NOON_MS,
    block_of,
    consent,
    make_pipeline,
    ping,
    profile,
    restarted,
    scenario,
    small_content,
    told,
    usage,
)

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
TTL = Settings(state_ttl_days=2)
NEVER = Settings(state_ttl_days=10_000)


def make_month(seed: int, users: int = 40) -> list[tuple[dict[str, Any], int]]:
    """Events and append times: users come for a day or two, fall silent for days, some come back; few have profiles."""
    dice = random.Random(seed)
    made: list[tuple[int, dict[str, Any]]] = []
    for number in range(users):
        user = f"u{number}"
        at_ms = NOON_MS + dice.randrange(10 * DAY_MS)
        if dice.random() < 0.3:
            made.append((at_ms, profile(user, at_ms, time_zone="Asia/Shanghai")))
        if dice.random() < 0.3:
            made.append((at_ms, consent(user, at_ms, granted=dice.random() < 0.8)))
        for visit in range(dice.randrange(1, 4)):
            for step in range(dice.randrange(1, 9)):
                at_ms += dice.choice((60_000, 60_000, 600_000, HOUR_MS, 8 * HOUR_MS))
                lon = 116.4 + dice.choice((0, 0, 0.0004, 0.0011, 0.01, 0.0112, 0.05))
                event = ping(user, at_ms, lon, 39.9, accuracy_m=dice.choice((5, 15, 80)))
                if dice.random() < 0.3:
                    name = {"app": "iqiyi"} if dice.random() < 0.5 else {"category": "ecommerce"}
                    event = usage(user, at_ms, id=f"e{number}-{visit}-{step}", props={"amount_fen": 1500}, **name)
                made.append((at_ms, event))
            at_ms += dice.choice((0, DAY_MS, 3 * DAY_MS, 9 * DAY_MS))
    made.sort(key=lambda one: one[0])
    return [(event, at_ms + 200) for at_ms, event in made]


def run(
    records: list[tuple[dict[str, Any], int]], cuts: list[int], chosen: Settings, *, restarts: bool = False
) -> tuple[list[bytes], int, Pipeline]:
    pipeline, lines, evicted = make_pipeline(settings=chosen), [], 0
    for first, last in itertools.pairwise([0, *cuts, len(records)]):
        part = records[first:last]
        effects = pipeline.process(
            block_of([event for event, _ in part], position=first, append_ms=[now_ms for _, now_ms in part])
        )
        lines += told(pipeline, effects)
        evicted += effects.evicted
        if restarts:
            pipeline = restarted(pipeline)
    return lines, evicted, pipeline


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_forgetting_the_silent_changes_no_transition_and_no_decision(seed: int) -> None:
    records = make_month(seed)
    kept, nobody, _ = run(records, [], NEVER)
    forgot, evicted, pipeline = run(records, [], TTL)
    # Timers of one instant go by slot, so lines may stand in another order; they are the same lines.
    assert sorted(forgot) == sorted(kept)
    assert nobody == 0
    assert evicted > 0
    assert pipeline.users.live < 40


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_t4_the_same_users_are_forgotten_however_the_records_are_cut(seed: int, data: st.DataObject) -> None:
    records = make_month(seed)
    cuts = sorted(set(data.draw(st.lists(st.integers(1, len(records) - 1), max_size=30))))
    whole, evicted, pipeline = run(records, [], TTL)
    cut, cut_evicted, other = run(records, cuts, TTL)
    one_by_one, singly_evicted, _ = run(records, list(range(1, len(records))), TTL, restarts=True)
    assert sorted(cut) == sorted(whole) == sorted(one_by_one)
    assert evicted == cut_evicted == singly_evicted
    for name, array in pipeline.users.arrays().items():
        assert np.array_equal(array, other.users.arrays()[name]) or name in ("arena", "offset"), name
    assert {pipeline.users.slot_of(f"u{n}", intern=False) for n in range(40)} == {
        other.users.slot_of(f"u{n}", intern=False) for n in range(40)
    }


def test_who_has_a_profile_a_consent_or_an_open_visit_is_never_forgotten() -> None:  # A2, A4
    at_ms = NOON_MS
    first = [
        (profile("known", at_ms), at_ms),
        (consent("asked", at_ms, granted=False), at_ms),
        (consent("left", at_ms, granted=False), at_ms),
        ({"type": "user-closed", "user": "left", "at": at_ms + 1}, at_ms + 1),
        (ping("stranger", at_ms, 116.5, 39.9), at_ms + 2),
        (ping("visitor", at_ms, 116.4, 39.9), at_ms + 2),
    ]
    later = [
        (usage("someone", at_ms + day * DAY_MS, app="iqiyi", id=f"e{day}"), at_ms + day * DAY_MS)
        for day in range(1, 40)
    ]
    lines, evicted, pipeline = run([*first, *later], [], TTL)
    assert evicted == 2  # the stranger, and the visitor once the visit had expired
    assert sum(b'"expired"' in line for line in lines) == 2  # mall and cinema: written though the slot is free by then
    assert all(b'"visitor"' in line for line in lines if b'"expired"' in line)
    assert all(pipeline.users.slot_of(user, intern=False) >= 0 for user in ("known", "asked", "left", "someone"))
    assert all(pipeline.users.slot_of(user, intern=False) < 0 for user in ("stranger", "visitor"))
    assert pipeline.users.slot_of("fresh") in (3, 4)
    assert pipeline.users.generation[3:5].tolist() == [1, 1]
    assert not pipeline.profiles.allows("marketing.sms", np.array([pipeline.users.slot_of("asked")]))[0]


def test_a_pattern_that_still_counts_keeps_its_user() -> None:  # B2
    opened = UsageTrigger((FieldTest("app", "==", "iqiyi"),))
    often = scenario("often", PatternTrigger("count", (opened,), 20 * DAY_MS, 2, state_hash="often"))
    pipeline = make_pipeline(small_content(scenarios=(often,)), TTL)
    records = [(usage("slow", NOON_MS, app="iqiyi", id="first"), NOON_MS)]
    records += [
        (usage("clock", NOON_MS + day * DAY_MS, app="other", id=f"e{day}"), NOON_MS + day * DAY_MS)
        for day in range(1, 30)
    ]
    kept_days = 0
    for event, now_ms in records:
        pipeline.process(block_of([event], append_ms=now_ms))
        kept_days += pipeline.users.slot_of("slow", intern=False) >= 0
    assert 19 <= kept_days <= 22
    assert pipeline.users.slot_of("slow", intern=False) < 0


def test_a_file_without_append_times_forgets_nobody() -> None:
    # Its `now` is known only once its events are read, so nobody's slot may be given away before.
    pipeline = make_pipeline(settings=TTL)
    events = [usage(f"u{day}", NOON_MS + day * DAY_MS, app="iqiyi", id=f"e{day}") for day in range(40)]
    for event in events:
        assert pipeline.process(block_of([event])).evicted == 0
    assert pipeline.users.live == 40
