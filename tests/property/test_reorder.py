"""The reorder buffer (T5): the order against a plain oracle, and that nothing else changes: T3, T4, D4."""

from __future__ import annotations

import itertools
import random
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.hashing_kernel import combine_hashes, hash_text
from engine.model import EVENT, Block, EventType, RecordKind
from engine.reorder import Reorder
from engine.settings import FeedSettings, FeedTable, Settings, default_feeds
from tests.oracle.reorder_oracle import FOREVER_MS, PlainReorder
from tests.property.test_pipeline import by_kind, load, make_day
from tests.world import NOON_MS, block_between, block_of, consent, make_pipeline, ping, profile, restarted, told, usage

HOLD_S = {"app": 3.0, "signalling": 5.0, "dpi": 2.0}


def feeds(*, holds: bool) -> dict[str, FeedSettings]:
    """The default feeds, of which three reorder; without, they are declared late by as much."""
    declared = default_feeds()
    for name, hold_s in HOLD_S.items():
        given_s = declared[name].expected_delay_s
        more: dict[str, Any] = {"reorder_s": hold_s} if holds else {"expected_delay_s": given_s + hold_s}
        declared[name] = declared[name].model_copy(update=more)
    return declared


SORTING, PLAIN = Settings(feeds=feeds(holds=True)), Settings(feeds=feeds(holds=False))

# --- the order ------------------------------------------------------------------------------------------------------

_TABLE = FeedTable({"now": FeedSettings(), "two": FeedSettings(reorder_s=2), "five": FeedSettings(reorder_s=5)})
_FEED_MS = (0, 2000, 5000)
arrivals = st.lists(
    st.tuples(
        st.sampled_from((0, 0, 1, 500, 2000, 3000, 7000)),  # since the one before
        st.integers(0, 2),  # user
        st.integers(0, 2),  # feed
        st.integers(-8, 2),  # at, in seconds from now
        st.sampled_from((0.0, 5.0, 5.0, 80.0)),  # accuracy; 0: a usage event
        st.integers(0, 3),  # id
        st.booleans(),  # dropped before: it does not wait
    ),
    min_size=1,
    max_size=60,
)


def rows_of(made: list[tuple[Any, ...]]) -> tuple[np.ndarray, bytes]:
    """Rows whose record is their own number, and texts that name it."""
    rows, text, now_ms = np.zeros(len(made), EVENT), b"", 1_000_000
    for number, (gap_ms, user, feed, ago_s, accuracy_m, name, is_dropped) in enumerate(made):
        now_ms += gap_ms
        kind = EventType.PING if accuracy_m else EventType.USAGE
        row = rows[number]
        row["at_ms"], row["now_ms"], row["user"], row["feed"] = now_ms + 1000 * ago_s, now_ms, user, feed
        row["accuracy_m"], row["type"], row["drop"] = accuracy_m, kind, is_dropped
        row["id_hash"], row["record"], row["item"] = 10 + name + 100 * feed, number, number % 7
        row["span_start"] = len(text)
        text += f"event {number};".encode()
        row["span_end"] = len(text)
    return rows, text


def block_over(rows: np.ndarray, text: bytes) -> Block:
    none = np.zeros(len(rows), np.int64)
    return Block(text, none, none, np.arange(len(rows)) + 1000, none, none.astype(np.uint8))


def gone_on(reorder: Reorder, rows: np.ndarray, text: bytes, cuts: list[int], restart_at: int = -1) -> list[Any]:
    """(now, number of the event, text of a usage event) of all, in the order they went on."""
    found: list[Any] = []
    held = block_over(rows, text)

    def note(steps: Any) -> None:
        for one in steps:
            for row in one.events:
                late = row["record"] >= len(held) if one.events is not rows else False
                place = int(row["record"]) - len(held)
                number = int(one.position[place]) - 1000 if late else int(row["record"])
                assert row["item"] == number % 7
                data = one.data if late else held.data
                said = bytes(data[row["span_start"] : row["span_end"]]) if row["type"] == EventType.USAGE else b""
                found.append((int(row["now_ms"]), number, said))

    reorder.ensure(3)
    for first, last in itertools.pairwise([0, *cuts, len(rows)]):
        if last > first:
            note(reorder.take(held, rows[first:last].copy()))
        if first <= restart_at < last:
            kept = {name: array.copy() for name, array in reorder.arrays().items()}
            reorder = Reorder(_TABLE)
            reorder.restore(kept)
            reorder.ensure(3)  # only users of whom something was held have a place yet
    held.position = held.position[:0]
    held.start = held.start[:0]
    while len(reorder):
        note(reorder.pass_time(reorder.due_ms))
    return found


@settings(max_examples=120, deadline=None)
@given(arrivals, st.lists(st.integers(0, 60), max_size=8), st.integers(-1, 60))
def test_t5_events_go_on_as_by_the_plain_oracle_however_cut_and_restarted(made, cuts, restart_at):
    rows, text = rows_of(made)
    oracle = PlainReorder()
    for number, row in enumerate(rows):
        accuracy_m = float(row["accuracy_m"]) or float("inf")
        key = (int(row["at_ms"]), accuracy_m, int(row["id_hash"]), number)
        hold_ms = 0 if row["drop"] else _FEED_MS[row["feed"]]
        oracle.arrive(int(row["now_ms"]), int(row["user"]), key, hold_ms, number)
    oracle.pass_time(FOREVER_MS)
    said = [f"event {n};".encode() if rows[n]["type"] == EventType.USAGE else b"" for _, n in oracle.gone]
    wanted = [(now_ms, number, text) for (now_ms, number), text in zip(oracle.gone, said, strict=True)]
    cuts = sorted({cut for cut in cuts if cut < len(rows)})
    assert gone_on(Reorder(_TABLE), rows, text, cuts, restart_at) == wanted


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_t5_what_comes_less_than_the_wait_out_of_order_leaves_wholly_sorted(seed):
    """With full knowledge the answer is a sort; each event goes on at most 5 s after it came."""
    dice = random.Random(seed)
    rows = np.zeros(300, EVENT)
    rows["at_ms"] = np.sort(np.array([dice.randrange(60_000) for _ in rows]))
    rows["now_ms"] = rows["at_ms"] + [dice.randrange(5000) for _ in rows]
    rows["user"], rows["feed"], rows["type"], rows["accuracy_m"] = [dice.randrange(3) for _ in rows], 2, 1, 5
    rows["id_hash"] = np.arange(len(rows)) + 1
    rows = rows[np.argsort(rows["now_ms"], kind="stable")]
    came_ms = dict(zip(rows["id_hash"].tolist(), rows["now_ms"].tolist(), strict=True))
    reorder = Reorder(_TABLE)
    reorder.ensure(3)
    found = [one.events.copy() for one in reorder.take(block_over(rows, b""), rows)]
    found += [one.events.copy() for one in reorder.pass_time(reorder.last_due_ms)]
    went = np.concatenate(found)
    assert len(went) == len(rows)
    assert (np.diff(went["now_ms"]) >= 0).all()
    for user in range(3):
        mine = went[went["user"] == user]
        assert mine["id_hash"].tolist() == sorted(mine["id_hash"].tolist())
    for row in went:
        assert 0 <= row["now_ms"] - came_ms[int(row["id_hash"])] <= 5000


# --- through the whole pipeline ---------------------------------------------------------------------------------------


def run(records: list[Any], cuts: list[int], *, restart_at: int | None = None) -> list[bytes]:
    pipeline, lines = make_pipeline(settings=SORTING), []
    for first, last in itertools.pairwise([0, *cuts, len(records)]):
        lines += told(pipeline, pipeline.process(block_between(records, first, last), load))
        if restart_at is not None and first <= restart_at < last:
            pipeline = restarted(pipeline)
    return lines + told(pipeline, pipeline.finish())


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_t4_with_feeds_that_reorder_any_split_gives_the_same_bytes(seed, data):
    records = make_day(seed)
    cuts = sorted(set(data.draw(st.lists(st.integers(1, len(records) - 1), max_size=40))))
    whole = by_kind(run(records, []))
    assert by_kind(run(records, cuts)) == whole
    assert by_kind(run(records, list(range(1, len(records))))) == whole


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 150))
def test_t3_with_feeds_that_reorder_a_restart_from_a_snapshot_changes_nothing(seed, restart_at):
    records = make_day(seed)
    every = list(range(1, len(records)))
    assert by_kind(run(records, every, restart_at=restart_at)) == by_kind(run(records, every))


def make_busy_minutes(seed: int, records: int = 220) -> list[tuple[dict[str, Any] | None, int]]:
    """(event or None for a tick, append_ms): one event a record, closer together than they are held."""
    dice = random.Random(seed)
    users = [f"u{number}" for number in range(5)]
    # All are known from the first, so that both runs below number them alike.
    made: list[tuple[dict[str, Any] | None, int]] = [(profile(user, NOON_MS), NOON_MS) for user in users]
    made += [(consent(user, NOON_MS), NOON_MS) for user in users]
    now_ms = NOON_MS
    for number in range(records):
        now_ms += dice.choice((0, 100, 700, 1500, 2500, 20_000, 100_000))
        user, what = dice.choice(users), dice.random()
        at_ms = now_ms - dice.choice((0, 0, 400, 1000, 1000, 4000, 70_000))
        if what < 0.5:
            lon = 116.4 + dice.choice((0, 0, 0.0011, 0.003, 0.01, 0.0112))
            event: Any = ping(user, at_ms, lon, 39.9, accuracy_m=dice.choice((5, 15, 80)), id=f"p{number}")
            if dice.random() < 0.1:
                event["id"] = f"p{dice.randrange(number + 1)}"
        elif what < 0.6:
            event = {"type": "ping", "feed": "signalling", "user": user, "cell": f"460-01-1-{dice.randrange(1, 3)}"}
            event |= {"at": at_ms, "id": f"c{number}"}
        elif what < 0.85:
            more = {"category": "ecommerce", "props": {"amount_fen": dice.randrange(2000)}}
            event = usage(user, at_ms, id=f"e{number}", **(more if dice.random() < 0.7 else {"app": "iqiyi"}))
        elif what < 0.93:
            event = consent(user, at_ms, granted=dice.random() < 0.8)
        elif what < 0.95:
            event = {"type": "user-closed", "user": user, "at": at_ms}
        else:
            event = None
        made.append((event, now_ms))
    return made


def sorted_by_hand(made: list[tuple[dict[str, Any] | None, int]]) -> list[tuple[Any, int, int]]:
    """The log as it would be had each event that is held been appended when it goes on; a tick where it came."""
    oracle = PlainReorder()
    tick = (b"", RecordKind.TICK)
    for number, (event, now_ms) in enumerate(made):
        if event is None or event["type"] not in ("ping", "usage"):
            if event is not None and event["type"] == "user-closed":
                oracle.close(event["user"], now_ms)
            oracle.arrive(now_ms, "", (), 0, tick if event is None else (event, RecordKind.EVENTS))
            continue
        named = combine_hashes(combine_hashes(hash_text("default"), hash_text(event["feed"])), hash_text(event["id"]))
        accuracy_m = event.get("accuracy_m", 500.0 if event["type"] == "ping" else float("inf"))
        key = (event["at"], accuracy_m, named, number)
        oracle.arrive(now_ms, "", (), 0, tick)
        hold_ms = int(1000 * HOLD_S[event["feed"]])
        oracle.arrive(now_ms, event["user"], key, hold_ms, (event, RecordKind.EVENTS))
    oracle.pass_time(FOREVER_MS)
    return [(what[0], now_ms, what[1]) for now_ms, what in oracle.gone]


def outcome_of_both(seed: int) -> tuple[list[bytes], list[bytes]]:
    made = make_busy_minutes(seed)
    arrived = [
        (b"" if event is None else event, now_ms, RecordKind.TICK if event is None else RecordKind.EVENTS)
        for event, now_ms in made
    ]
    by_buffer = run(arrived, [])
    plain, by_hand = make_pipeline(settings=PLAIN), sorted_by_hand(made)
    values, instants, kinds = zip(*by_hand, strict=True)
    lines = told(plain, plain.process(block_of(values, append_ms=instants, kinds=kinds)))
    return by_buffer, lines + told(plain, plain.finish())


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000))
def test_t5_the_buffer_gives_the_bytes_of_a_log_that_was_sorted_by_hand(seed):
    """Transitions, decisions, offers and their ids (D4), consents: as without a buffer, had the events come so."""
    by_buffer, by_hand = outcome_of_both(seed)
    assert by_kind(by_buffer) == by_kind(by_hand)


@pytest.fixture(scope="module")
def busy_lines() -> list[bytes]:
    return [line for seed in range(6) for line in outcome_of_both(seed)[0]]


def test_the_busy_minutes_reach_most_outcomes_and_the_order_matters(busy_lines):
    """Guards the test above: it proves nothing about what never happens, nor where sorting changes nothing."""
    text = b"\n".join(busy_lines)
    for wanted in (b'"offer"', b'"refused"', b'"enter"', b'"exit"', b"cap:", b"user-closed", b"no_consent"):
        assert wanted in text or wanted == b"user-closed", wanted
    made = [(b"" if event is None else event, now_ms) for event, now_ms in make_busy_minutes(0)]
    kinds = [RecordKind.TICK if value == b"" else RecordKind.EVENTS for value, _ in made]
    values, instants = zip(*made, strict=True)
    plain = make_pipeline(settings=PLAIN)
    unsorted = told(plain, plain.process(block_of(values, append_ms=instants, kinds=kinds)))
    assert by_kind(unsorted) != by_kind(outcome_of_both(0)[0])
