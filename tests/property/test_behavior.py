"""Usage events: counted once (T7), none too late (T5), matched as a plain reading of the filters says (B1)."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.behavior import Behavior
from engine.definitions import FieldTest, UsageTrigger
from engine.model import EVENT, Drop, EventType
from engine.settings import FeedSettings, FeedTable

FEEDS = FeedTable({"dpi": FeedSettings(allowed_lateness_s=60), "slow": FeedSettings(allowed_lateness_s=5)})
LATENESS_MS = (60_000, 5_000)


def hash_text(text: str) -> int:
    return sum((index + 1) * ord(letter) for index, letter in enumerate(text)) or 1


def row(user: int, at_ms: int, identity: int, feed: int = 0, **fields: str) -> tuple:
    event = np.zeros((), EVENT)
    event["user"], event["at_ms"], event["id_hash"], event["feed"] = user, at_ms, identity, feed
    event["type"] = EventType.USAGE
    for name, text in fields.items():
        event[f"{name}_hash"] = hash_text(text)
    return event


usage = st.tuples(
    st.integers(0, 3), st.integers(0, 200).map(lambda second: second * 1000), st.integers(1, 12), st.integers(0, 1)
)


@settings(max_examples=150, deadline=None)
@given(st.lists(usage, max_size=60), st.data())
def test_t5_t7_each_event_counts_once_and_none_too_late_however_the_batch_is_cut(steps, data):
    events = np.array([row(user, at_ms, identity, feed) for user, at_ms, identity, feed in steps], EVENT)
    newest: dict[int, int] = {}
    seen: dict[int, dict[int, int]] = {}
    expected = []
    for user, at_ms, identity, feed in steps:
        line = newest.get(user, -(10**15))
        if at_ms < line - LATENESS_MS[feed]:
            expected.append(Drop.LATE)
            continue
        mine = {known: when for known, when in seen.get(user, {}).items() if when >= line - 60_000}
        if identity in mine:
            expected.append(Drop.DUPLICATE)
            continue
        mine[identity] = at_ms
        seen[user] = mine
        newest[user] = max(line, at_ms)
        expected.append(Drop.NONE)
    behavior = Behavior([], FEEDS, hash_text)
    behavior.ensure(4)
    start = 0
    while start < len(events):
        end = data.draw(st.integers(start + 1, len(events)))
        behavior.match(events[start:end])
        start = end
    assert events["drop"].tolist() == expected


TRIGGERS = [
    UsageTrigger((FieldTest("app", "==", "taobao"),)),
    UsageTrigger((FieldTest("category", "==", "video"), FieldTest("action", "in", ("open", "play")))),
    UsageTrigger((FieldTest("category", "in", ("video", "game")),)),
    UsageTrigger((FieldTest("action", "==", "open"),)),
]


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["taobao", "iqiyi", ""]),
            st.sampled_from(["video", "game", "ecommerce", ""]),
            st.sampled_from(["open", "play", "close", ""]),
        ),
        max_size=40,
    )
)
def test_b1_a_trigger_matches_just_the_events_that_pass_all_its_tests(steps):
    events = np.array(
        [
            row(0, 1000, index + 1, **{k: v for k, v in zip(("app", "category", "action"), texts, strict=True) if v})
            for index, texts in enumerate(steps)
        ],
        EVENT,
    )
    behavior = Behavior(TRIGGERS, FEEDS, hash_text)
    behavior.ensure(1)
    rows, triggers = behavior.match(events)
    expected = set()
    for index, (app, category, action) in enumerate(steps):
        for number, holds in enumerate(
            (
                app == "taobao",
                category == "video" and action in ("open", "play"),
                category in ("video", "game"),
                action == "open",
            )
        ):
            if holds:
                expected.add((index, number))
    assert sorted(zip(rows.tolist(), triggers.tolist(), strict=True)) == sorted(expected)
    assert rows.tolist() == sorted(rows.tolist())


def test_t7_the_table_of_seen_ids_forgets_what_can_no_longer_matter():
    behavior = Behavior([], FEEDS, hash_text)
    behavior.ensure(10)
    for second in range(0, 40_000, 50):
        events = np.array([row(second % 10, second * 1000 + n, second * 100 + n + 1) for n in range(50)], EVENT)
        behavior.match(events)
    assert len(behavior.arrays()["table"]) <= 1 << 13


def test_b1_properties_are_tested_on_the_whole_event():
    trigger = UsageTrigger(
        (
            FieldTest("category", "==", "ecommerce"),
            FieldTest("props.amount_fen", "range", (1000, None)),
            FieldTest("props.page", "prefix", "cart"),
        )
    )
    behavior = Behavior([trigger], FEEDS, hash_text)

    assert behavior.needs_event(0)
    assert behavior.passes(0, SimpleNamespace(props={"amount_fen": 1500, "page": "cart/pay"}))
    assert not behavior.passes(0, SimpleNamespace(props={"amount_fen": 999, "page": "cart/pay"}))
    assert not behavior.passes(0, SimpleNamespace(props={"amount_fen": True, "page": "cart"}))
