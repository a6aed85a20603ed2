"""Patterns against the oracle of the rules (B2, B3, B5, T5, T8), however cut into batches (T4), and restored (T3)."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.behavior import Behavior, compile_plan
from engine.behavior.filters import value_hash
from engine.decode.events import UsageFacts
from engine.definitions import FieldTest, PatternTrigger, PresenceTrigger, UsageTrigger
from engine.hashing_kernel import hash_text
from engine.model import EVENT, TRANSITION, Confidence, Drop, EventType, TransitionKind, TransitionReason
from engine.settings import FeedSettings, FeedTable
from tests.oracle.pattern_oracle import Completed, PatternOracle
from tests.world import scenario, small_content

FEEDS = {
    "app": FeedSettings(period_s=60, expected_delay_s=2, allowed_lateness_s=60),
    "dpi": FeedSettings(period_s=300, expected_delay_s=5, allowed_lateness_s=60),
}
TABLE = FeedTable(FEEDS)
CONTENT = small_content()
FENCES = tuple(fence.id for fence in CONTENT.fences)
START_MS = 1_767_326_400_000


def usage(**fields: Any) -> UsageTrigger:
    return UsageTrigger(tuple(FieldTest(name.replace("__", "."), "==", value) for name, value in fields.items()))


OPEN, PAY = usage(category="shop"), usage(category="pay")
BIG = UsageTrigger((FieldTest("category", "==", "pay"), FieldTest("props.fen", "range", (50, None))))
IN, OUT = PresenceTrigger("enter", FENCES[:2]), PresenceTrigger("exit", FENCES[:2])
SURE = PresenceTrigger("enter", FENCES, 0, Confidence.HIGH)
S = 1000
PATTERNS = {
    "count": [
        PatternTrigger("count", (OPEN,), 60 * S, 1),
        PatternTrigger("count", (OPEN,), 100 * S, 2),
        PatternTrigger("count", (OPEN,), 90 * S, 4),
        PatternTrigger("count", (BIG,), 300 * S, 3),
        PatternTrigger("count", (IN,), 600 * S, 2),
        PatternTrigger("count", (SURE,), 600 * S, 2, same="fence"),
        PatternTrigger("count", (PAY,), 120 * S, 2, same="app"),
        PatternTrigger("count", (PAY,), 500 * S, 2, same="props.order"),
    ],
    "sum": [
        PatternTrigger("sum", (PAY,), 100 * S, 150.5, "props.fen"),
        PatternTrigger("sum", (PAY,), 300 * S, 200, "props.fen", "app"),
        PatternTrigger("sum", (BIG,), 30 * S, 60, "props.fen"),
    ],
    "distinct": [
        PatternTrigger("distinct", (OPEN,), 100 * S, 3, "app"),
        PatternTrigger("distinct", (PAY,), 200 * S, 2, "props.order"),
        PatternTrigger("distinct", (IN,), 600 * S, 2, "fence"),
        PatternTrigger("distinct", (OPEN,), 60 * S, 1, "action"),
    ],
    "sequence": [
        PatternTrigger("sequence", (OPEN, PAY), 60 * S),
        PatternTrigger("sequence", (OPEN, PAY, OPEN), 150 * S),
        PatternTrigger("sequence", (OPEN, OPEN), 50 * S),
        PatternTrigger("sequence", (IN, PAY, OUT), 900 * S),
        PatternTrigger("sequence", (OPEN, PAY), 100 * S, same="app"),
    ],
    "absence": [
        PatternTrigger("absence", (OPEN, PAY), 30 * S),
        PatternTrigger("absence", (OUT, PAY), 60 * S),
        PatternTrigger("absence", (OPEN, PAY), 200 * S, same="app"),
        PatternTrigger("absence", (PAY, OUT), 100 * S),
        PatternTrigger("absence", (OPEN, OPEN), 45 * S),
    ],
}
for _kind, _patterns in PATTERNS.items():
    PATTERNS[_kind] = [
        PatternTrigger(one.kind, one.steps, one.within_ms, one.at_least, one.field, one.same, f"{_kind}{number}")
        for number, one in enumerate(_patterns)
    ]


@dataclass
class Day:
    """Rows of events with what is behind them, and transitions in the order they happened."""

    events: np.ndarray
    facts: list[dict[str, Any]]
    transitions: list[dict[str, Any]] = field(default_factory=list)


def make_day(seed: int, length: int, *, calm: bool = False) -> Day:
    """An eventful hour of three users; calm: nobody's clock lags, no feed falls silent."""
    dice = random.Random(seed)
    now_ms = START_MS
    rows, facts, moves = np.zeros(length, EVENT), [], []
    ids = 1
    for row in range(length):
        leaps = (0, 0, 1, 2, 5, 17, 30) if calm else (0, 0, 1, 2, 5, 17, 30, 45, 61, 700)
        before_ms = now_ms
        now_ms += dice.choice(leaps) * S + dice.choice((0, 0, 500))
        user = dice.randrange(3)
        is_usage = (row >= 2 and dice.random() < 0.75) or row == 0
        lag = (
            dice.choice((0, 0, 0, 1, 3, 20, 58, 60)) if calm else dice.choice((0, 0, 0, 0, 1, 3, 20, 59, 90, 650, 900))
        )
        one: dict[str, Any] = {}
        if is_usage:
            one = {
                "category": dice.choice(("shop", "shop", "pay", "pay", "chat")),
                "app": dice.choice(("a", "b", "c", "d")),
            }
            if dice.random() < 0.5:
                one["action"] = dice.choice(("open", "close"))
            if dice.random() < 0.85:
                one["props.fen"] = dice.choice((0, 10, 49.5, 60, 100, 151, True, "60", -5))
            if dice.random() < 0.8:
                one["props.order"] = dice.choice((1, 1.0, 2, "1", "x", True, 7, 8, 9, 10, 11, 12, 13))
            ids += dice.random() < 0.95
        else:
            ids += 1
        event = rows[row]
        event["at_ms"], event["now_ms"], event["user"] = now_ms - lag * S, now_ms, user
        event["id_hash"], event["feed"] = ids, int(is_usage)
        event["type"] = EventType.USAGE if is_usage else EventType.PING
        for name in ("app", "category", "action"):
            event[f"{name}_hash"] = hash_text(one[name]) if name in one else 0
        facts.append(one)
        for by_timer in (True, False):
            if dice.random() < (0.08 if by_timer else 0.0 if is_usage else 0.7):
                moment_ms = dice.randint(before_ms, now_ms) if by_timer else now_ms
                lately = [each["now_ms"] for each in moves[-1:]]
                moment_ms = max([moment_ms, *lately])
                moves.append(
                    {
                        "row": row,
                        "user": dice.randrange(3) if by_timer else user,
                        "fence": dice.randrange(len(FENCES)),
                        "kind": dice.choice((TransitionKind.ENTER, TransitionKind.EXIT)),
                        "crossed_ms": moment_ms - dice.choice((0, 0, 1, 15, 40, 130)) * S,
                        "now_ms": moment_ms,
                        "by_timer": by_timer,
                        "confidence": dice.choice((Confidence.MEDIUM, Confidence.HIGH)),
                        "reason": TransitionReason.GAP if dice.random() < 0.1 else TransitionReason.FIX,
                        "initial": dice.random() < 0.1,
                    }
                )
    return Day(rows, facts, moves)


def engine(patterns: list[PatternTrigger]) -> Behavior:
    content = small_content(scenarios=tuple(scenario(f"p{at}", one) for at, one in enumerate(patterns)))
    behavior = Behavior((), TABLE, hash_text)
    behavior.activate((), compile_plan(content, TABLE, hash_text))
    behavior.ensure(3)
    return behavior


def run_engine(
    behavior: Behavior, day: Day, cuts: list[int], end_ms: int, *, renew: Any = None
) -> tuple[list[tuple[Any, ...]], np.ndarray]:
    """Completions as (pattern, user, at, now, by timer, evidence, silent), in order, and the events' drops."""
    events = day.events.copy()
    found: list[tuple[Any, ...]] = []
    edges = [0, *cuts, len(events)]
    for first, last in itertools.pairwise(edges):
        part = events[first:last]
        moves = [move for move in day.transitions if first <= move["row"] < last]
        transitions = np.zeros(len(moves), TRANSITION)
        for one, move in zip(transitions, moves, strict=True):
            one["event"], one["user"], one["fence"] = move["row"] - first, move["user"], move["fence"]
            one["kind"], one["reason"], one["initial"] = move["kind"], move["reason"], move["initial"]
            one["crossed_ms"] = move["crossed_ms"]
            one["confirmed_ms"] = one["now_ms"] = move["now_ms"]
            one["by_timer"], one["confidence"] = move["by_timer"], move["confidence"]
        places = {id_of(event): first + at for at, event in enumerate(part)}

        def read(event: Any, places: dict[Any, int] = places) -> UsageFacts:
            facts = day.facts[places[id_of(event)]]
            props = {name[6:]: value for name, value in facts.items() if name.startswith("props.")}
            names = {name: facts.get(name) for name in ("app", "category", "action")}
            return UsageFacts(type="usage", props=props, **names)

        matches = behavior.match(part)
        now_ms = int(part["now_ms"][-1]) if len(part) else end_ms
        fired = behavior.advance(part, matches, transitions, now_ms, read)
        found += [told(behavior, one) for one in fired]
        if renew is not None:
            behavior = renew(behavior)
    fired = behavior.advance(events[:0], (np.zeros(0, np.int32),) * 2, np.zeros(0, TRANSITION), end_ms, None)
    return found + [told(behavior, one) for one in fired], events["drop"]


def id_of(event: Any) -> tuple[int, ...]:
    return tuple(
        int(event[name]) for name in ("at_ms", "now_ms", "id_hash", "user", "feed", "app_hash", "category_hash")
    )


def told(behavior: Behavior, one: Any) -> tuple[Any, ...]:
    assert behavior.plan is not None
    kind = behavior.plan.patterns[one["pattern"]].kind
    evidence: Any = {
        "count": int(one["number"]),
        "distinct": int(one["number"]),
        "sum": float(one["total"]),
        "sequence": int(one["first_ms"]),
        "absence": int(one["identity"]),
    }[kind]
    return (
        int(one["pattern"]),
        int(one["user"]),
        int(one["at_ms"]),
        int(one["now_ms"]),
        bool(one["by_timer"]),
        evidence,
        bool(one["silent_ms"] >= 0),
    )


def run_oracle(patterns: list[PatternTrigger], day: Day, drops: np.ndarray, end_ms: int) -> list[tuple[Any, ...]]:
    declared = {name: (int(feed.period_s * S), int(feed.expected_delay_s * S)) for name, feed in FEEDS.items()}
    oracle = PatternOracle(patterns, declared, 60 * S, rank)
    moves = list(day.transitions)

    def move(one: dict[str, Any]) -> None:
        oracle.pass_time(one["now_ms"])
        if one["reason"] == TransitionReason.FIX and not one["initial"]:
            oracle.move(
                one["user"],
                {
                    "fence": FENCES[one["fence"]],
                    "kind": one["kind"].name.lower(),
                    "crossed_ms": one["crossed_ms"],
                    "sure": one["confidence"],
                },
                one["now_ms"],
                by_timer=one["by_timer"],
            )

    for row, event in enumerate(day.events):
        while moves and moves[0]["row"] == row and moves[0]["by_timer"]:
            move(moves.pop(0))
        kind = "usage" if event["type"] == EventType.USAGE else "ping"
        at_ms, now_ms, user = int(event["at_ms"]), int(event["now_ms"]), int(event["user"])
        oracle.hear(kind, user, TABLE.names[event["feed"]], at_ms, now_ms)
        while moves and moves[0]["row"] == row:
            move(moves.pop(0))
        if kind == "usage" and drops[row] == Drop.NONE:
            oracle.usage(user, at_ms, now_ms, str(int(event["id_hash"])), day.facts[row])
    oracle.pass_time(end_ms)
    return [as_told(one) for one in oracle.completed]


def rank(key: Any) -> int:
    return value_hash(key if isinstance(key, str) else key[1], hash_text)


def as_told(one: Completed) -> tuple[Any, ...]:
    evidence = one.evidence
    if isinstance(evidence, str):
        evidence = int(evidence) if evidence.isdigit() else "a transition"
    return one.pattern, one.user, one.at_ms, one.now_ms, one.by_timer, evidence, one.silent


def by_instant(found: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Patterns that one event completes have no order among them."""
    return sorted(found, key=lambda one: (one[3], one[4], one[1], one[0], one[2], str(one[5])))


def same_as_oracle(found: list[tuple[Any, ...]], expected: list[tuple[Any, ...]]) -> None:
    found, expected = by_instant(found), by_instant(expected)
    assert len(found) == len(expected)
    for mine, right in zip(found, expected, strict=True):
        if right[5] == "a transition":
            assert mine[5] != 0
            mine = (*mine[:5], right[5], mine[6])
        assert mine == right


@pytest.mark.parametrize("kind", PATTERNS)
@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), calm=st.booleans(), length=st.integers(1, 150))
def test_b2_b3_b5_t8_patterns_complete_just_where_the_oracle_says(kind: str, seed: int, calm: bool, length: int):
    day = make_day(seed, length, calm=calm)
    end_ms = int(day.events["now_ms"][-1]) + 600 * S
    found, drops = run_engine(engine(PATTERNS[kind]), day, [], end_ms)
    same_as_oracle(found, run_oracle(PATTERNS[kind], day, drops, end_ms))


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10**6), data=st.data())
def test_t4_any_cut_into_batches_completes_the_same_patterns_in_the_same_order(seed: int, data: Any):
    day = make_day(seed, 120)
    everything = [one for patterns in PATTERNS.values() for one in patterns]
    end_ms = int(day.events["now_ms"][-1]) + 600 * S
    whole, _ = run_engine(engine(everything), day, [], end_ms)
    cuts = sorted(set(data.draw(st.lists(st.integers(1, 119), max_size=30))))
    assert run_engine(engine(everything), day, cuts, end_ms)[0] == whole
    assert run_engine(engine(everything), day, list(range(1, 120)), end_ms)[0] == whole


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_t3_l10_a_checkpoint_or_unchanged_patterns_in_other_places_change_nothing(seed: int):
    day = make_day(seed, 100)
    everything = [one for patterns in PATTERNS.values() for one in patterns]
    end_ms = int(day.events["now_ms"][-1]) + 600 * S
    whole, _ = run_engine(engine(everything), day, [], end_ms)

    def restored(old: Behavior) -> Behavior:
        fresh = engine(everything)
        fresh.restore({name: array.copy() for name, array in old.arrays().items()})
        return fresh

    assert run_engine(engine(everything), day, list(range(5, 100, 5)), end_ms, renew=restored)[0] == whole

    other = PatternTrigger("count", (OPEN,), 77 * S, 3, state_hash="another")
    contents = [
        small_content(scenarios=tuple(scenario(f"p{at}", one) for at, one in enumerate(patterns)))
        for patterns in (everything, [other, *everything])
    ]

    def reactivated(old: Behavior) -> Behavior:
        for content in reversed(contents):
            old.activate((), compile_plan(content, TABLE, hash_text))
        return old

    assert run_engine(engine(everything), day, list(range(5, 100, 5)), end_ms, renew=reactivated)[0] == whole


BOUNDED = [
    PatternTrigger("count", (PAY,), 3600 * S, 128, state_hash="b0"),
    PatternTrigger("sum", (PAY,), 7200 * S, 24_000, "props.fen", state_hash="b1"),
    PatternTrigger("distinct", (PAY,), 3600 * S, 12, "props.order", state_hash="b2"),
    PatternTrigger("count", (PAY,), 3600 * S, 20, same="props.order", state_hash="b3"),
]


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), one_in=st.integers(2, 40))
def test_b2_b3_bounds_hold_what_they_say_and_are_counted(seed: int, one_in: int):
    dice = random.Random(seed)
    length = 700
    day = Day(np.zeros(length, EVENT), [])
    now_ms = START_MS
    for row, event in enumerate(day.events):
        now_ms += dice.choice((0, 1, 2, 15)) * S
        event["at_ms"] = now_ms - (dice.choice((5, 30, 59)) * S if dice.randrange(one_in) == 0 else 0)
        event["now_ms"], event["id_hash"], event["feed"], event["type"] = now_ms, row + 1, 1, EventType.USAGE
        event["category_hash"] = hash_text("pay")
        day.facts.append(
            {"category": "pay", "props.fen": dice.choice((0, 50, 99.5, 120)), "props.order": dice.randrange(14)}
        )
    end_ms = now_ms + 600 * S
    behavior = engine(BOUNDED)
    found, drops = run_engine(behavior, day, [100, 333], end_ms)
    oracle_found = run_oracle(BOUNDED, day, drops, end_ms)
    same_as_oracle(found, oracle_found)
    counts = behavior.counts()
    assert counts["states"] <= 3 + 8
    assert counts["keys_evicted"] > 0
    assert counts["sums_merged"] > 0


def test_a_state_is_forgotten_a_day_after_its_window_and_its_place_is_given_away():
    pattern = PatternTrigger("count", (OPEN,), 60 * S, 2, state_hash="x")
    behavior = engine([pattern])
    users = 1000
    behavior.ensure(4 * users)
    events = np.zeros(users, EVENT)
    events["type"], events["id_hash"] = EventType.USAGE, np.arange(1, users + 1)
    events["category_hash"] = hash_text("shop")
    for day in range(4):
        events["user"] = np.arange(users) + day * users
        events["at_ms"] = events["now_ms"] = START_MS + day * 2 * 86_400_000 + np.arange(users)
        fired = behavior.advance(
            events, behavior.match(events), np.zeros(0, TRANSITION), int(events["now_ms"][-1]), None
        )
        assert not len(fired)
    arrays = behavior.arrays()
    assert len(arrays["pattern_state"]) < 2 * users
    assert behavior.counts()["states_forgotten"] > 0
