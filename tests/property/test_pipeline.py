"""Same records, same effects: however they are cut into blocks (T4), and after a restart from a snapshot (T3)."""

from __future__ import annotations

import itertools
import random
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.model import RecordKind
from tests.world import (
    NOON_MS,
    block_between,
    consent,
    make_pipeline,
    ping,
    profile,
    restarted,
    small_content,
    told,
    usage,
)


def make_day(seed: int, records: int = 160) -> list[tuple[Any, int, int]]:
    """Records (value, append_ms, kind) of an eventful hour of eight users."""
    dice = random.Random(seed)
    now_ms, made = NOON_MS, []
    for number in range(records):
        now_ms += dice.choice((0, 200, 1000, 5000, 30_000, 90_000))
        user = f"u{dice.randrange(8)}"
        at_ms = now_ms - dice.choice((0, 0, 0, 500, 3000, 70_000, 700_000))
        what = dice.random()
        if what < 0.45:
            lon = 116.4 + dice.choice((0, 0, 0.0004, 0.0011, 0.003, 0.01, 0.0112))
            value: Any = ping(user, at_ms, lon, 39.9 + dice.choice((0, 0.0001)), accuracy_m=dice.choice((5, 15, 80)))
            value["id"] = f"p{dice.randrange(number + 1)}" if dice.random() < 0.1 else f"p{number}"
        elif what < 0.55:
            value = {
                "type": "ping",
                "feed": "signalling",
                "user": user,
                "cell": f"460-01-1-{dice.randrange(1, 4)}",
                "at": at_ms,
            }
        elif what < 0.75:
            value = usage(
                user, at_ms, id=f"e{number}", category="ecommerce", props={"amount_fen": dice.randrange(2000)}
            )
        elif what < 0.80:
            value = usage(user, at_ms, id=f"e{number}", app="iqiyi")
        elif what < 0.88:
            value = consent(user, at_ms, granted=dice.random() < 0.8)
        elif what < 0.92:
            value = profile(user, at_ms, tags=["member"] if dice.random() < 0.5 else [], time_zone="Asia/Shanghai")
        elif what < 0.94:
            value = {"type": "inbound-message", "user": user, "at": at_ms, "channel": "sms", "text": "TD"}
        elif what < 0.95:
            value = {"type": "user-closed", "user": user, "at": at_ms}
        elif what < 0.97:
            value = dice.choice((b"{broken", b'{"type":"ping","user":"u1","at":1}', b"[1]"))
        else:
            made.append((b"", now_ms, RecordKind.TICK))
            continue
        if dice.random() < 0.1 and isinstance(value, dict):
            value = orjson.dumps(value) + b"\n" + orjson.dumps(usage("u7", at_ms, id=f"x{number}", app="iqiyi"))
        made.append((value, now_ms, RecordKind.EVENTS))
    middle = len(made) // 2
    made.insert(middle, (b'{"version":"v2"}', made[middle][1], RecordKind.CONTENT))
    made.insert(middle // 2, (b'{"pause":"national/shop","paused":true}', made[middle // 2][1], RecordKind.CONTROL))
    made.insert(
        middle // 2 + 9, (b'{"pause":"national/shop","paused":false}', made[middle // 2 + 9][1], RecordKind.CONTROL)
    )
    return made


def load(payload: bytes) -> Any:
    version = orjson.loads(payload)["version"]
    content = small_content(version)
    return small_content(version, fences=content.fences, scenarios=content.scenarios[:-1])


def run(records: list[tuple[Any, int, int]], cuts: list[int], *, restart_at: int | None = None) -> list[bytes]:
    pipeline, lines = make_pipeline(), []
    edges = [0, *cuts, len(records)]
    for first, last in itertools.pairwise(edges):
        effects = pipeline.process(block_between(records, first, last), load)
        lines += told(pipeline, effects)
        if restart_at is not None and first <= restart_at < last:
            pipeline = restarted(pipeline)
    return lines


def by_kind(lines: list[bytes]) -> list[list[bytes]]:
    """Transitions, decisions, ... each in their own order: blocks interleave the kinds."""
    kinds: dict[bytes, list[bytes]] = {}
    for line in lines:
        key = (
            b"t"
            if b'"crossed_at"' in line and b"decision_id" not in line
            else b"d"
            if b"decision_id" in line
            else line[:6]
        )
        kinds.setdefault(key, []).append(line)
    return [kinds[key] for key in sorted(kinds)]


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.data())
def test_t4_any_split_of_the_same_records_gives_the_same_bytes(seed, data):
    records = make_day(seed)
    cuts = sorted(set(data.draw(st.lists(st.integers(1, len(records) - 1), max_size=40))))
    whole = run(records, [])
    assert by_kind(run(records, cuts)) == by_kind(whole)
    assert by_kind(run(records, list(range(1, len(records))))) == by_kind(whole)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10_000), st.integers(0, 150))
def test_t3_a_restart_from_a_snapshot_changes_nothing(seed, restart_at):
    records = make_day(seed)
    every = list(range(1, len(records)))
    assert by_kind(run(records, every, restart_at=restart_at)) == by_kind(run(records, every))


@pytest.fixture(scope="module")
def ten_days() -> list[bytes]:
    return [line for seed in range(10) for line in run(make_day(seed), [])]


def test_the_made_up_days_reach_most_outcomes(ten_days):
    """Guards the tests above: they prove nothing about what never happens."""
    text = b"\n".join(ten_days)
    for wanted in (
        b'"offer"',
        b'"refused"',
        b'"withheld"',
        b'"held"',
        b"cap:all",
        b"audience",
        b"no_consent",
        b"opted_out",
    ):
        assert wanted in text, wanted
    for wanted in (b'"enter"', b'"exit"', b'"dwell"', b"bad_json", b"unknown_cell"):
        assert wanted in text, wanted
