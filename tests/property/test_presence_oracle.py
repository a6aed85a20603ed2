"""Presence against the brute-force oracle, over seeded worlds that look for trouble (rules L2, L5-L9, P1-P8, T4-T8)."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from engine.definitions import CellTable
from tests.oracle.adversarial import START_MS, world
from tests.real.drive import differences, not_alternating, run_engine, run_oracle
from tests.real.places import circle, in_row_order

SHORT = range(30)
LONG = [range(start, start + 57) for start in range(30, 600, 57)]


def check(seed: int) -> Counter[tuple[str, str]]:
    """Compare one world, whole and cut into batches at random; answer what occurred."""
    one = world(seed)
    engine = run_engine(one.fences, one.pings, one.thresholds, one.end_now_ms, one.cells)
    oracle = run_oracle(one.fences, one.pings, one.thresholds, one.end_now_ms)
    found = differences(engine, oracle)
    assert not found, f"seed {seed}: the engine (first) and the oracle differ\n" + "\n".join(found)
    assert not_alternating(engine) == 0, f"seed {seed}: ENTER and EXIT do not take turns (P6)"
    dice = random.Random(seed)
    cuts = dice.sample(range(1, len(one.pings)), dice.randint(1, 60))
    cut = run_engine(one.fences, one.pings, one.thresholds, one.end_now_ms, one.cells, cuts)
    assert cut == engine, f"seed {seed}: cutting before rows {sorted(cuts)} changed the transitions (T4)"
    return Counter((transition["kind"], transition["reason"]) for transition in engine)


def test_every_transition_of_troubled_traces_equals_the_oracle_however_they_are_cut() -> None:  # P1-P8, T4
    seen: Counter[tuple[str, str]] = Counter()
    for seed in SHORT:
        seen += check(seed)
    expected = {
        *((kind, "fix") for kind in ("enter", "exit", "dwell", "cross")),
        *((kind, "timer") for kind in ("enter", "exit", "dwell")),
        *(("exit", reason) for reason in ("gap", "expired", "closed")),
        ("enter", "opened"),
        ("enter", "returned"),
    }
    assert set(seen) == expected, "every kind and reason occurs, so that nothing is equal for being absent"


@pytest.mark.long
@pytest.mark.parametrize("seeds", LONG, ids=str)
def test_every_transition_of_many_more_troubled_traces_equals_the_oracle(seeds: range) -> None:  # P1-P8, T4
    for seed in seeds:
        check(seed)


def test_no_visit_is_dropped_for_lack_of_a_slot_in_40_nested_fences() -> None:  # L4
    nested = in_row_order(circle(f"n{i:02d}", 116.4, 39.9, 50.0 * 1.1**i) for i in range(40))
    eastward = [*range(30_000, -1, -1_500), *range(0, 30_001, 1_500)]
    fixes = [
        _fix(at_ms := START_MS + i * 60_000, at_ms, lon_e7=1_164_000_000 + east * 10, method="gps", accuracy_m=5.0)
        for i, east in enumerate(eastward)
    ]
    thresholds = {fence.id: (120,) for fence in nested}
    engine = run_engine(nested, fixes, thresholds, fixes[-1]["now_ms"] + 1)
    assert not differences(engine, run_oracle(nested, fixes, thresholds, fixes[-1]["now_ms"] + 1))
    assert Counter(one["kind"] for one in engine)["enter"] == 40
    assert Counter(one["kind"] for one in engine)["exit"] == 40


def test_a_fix_inside_is_no_witness_however_late_the_next_fix_comes() -> None:  # P2, to the letter
    hall = circle("hall", 116.4, 39.9, 500.0)
    at_ms = START_MS + 86_400_000
    fixes = [
        _fix(START_MS, START_MS, method="gps", accuracy_m=10.0),
        # `now` has passed the day after which the visit expires; the fix was made a minute before it.
        _fix(at_ms - 60_000, at_ms + 10_000, method="gps", accuracy_m=10.0),
    ]
    entered = run_engine([hall], fixes, {}, at_ms + 20_000)[-1]
    assert (entered["kind"], entered["initial"], entered["gap_s"]) == ("enter", True, None)


def test_a_return_to_a_member_cell_is_no_witness_of_having_been_outside() -> None:  # P2, L8
    cells = CellTable(
        ("a", "b"),
        np.array([1_164_500_000, 1_165_500_000], np.int32),
        np.array([399_000_000, 399_000_000], np.int32),
        np.array([300.0, 300.0]),
        np.zeros(2, bool),
    )
    hall = circle("hall", 116.4, 39.9, 500.0, cells=("a",))
    in_cell = {"method": "cell", "accuracy_m": 300.0, "lon_e7": 1_164_500_000}
    away = {"method": "gps", "accuracy_m": 10.0, "lon_e7": 1_164_500_000}
    seen = [(0, {"cell": "a", **in_cell}), (300, away), (420, away)]
    seen += [(430, {"cell": "b", **in_cell}), (440, {"cell": "a", **in_cell}), (500, {"cell": "a", **in_cell})]
    fixes = [_fix(START_MS + at_s * 1000, START_MS + at_s * 1000, **more) for at_s, more in seen]
    entered = [one for one in run_engine([hall], fixes, {}, START_MS + 510_000, cells) if one["kind"] == "enter"][-1]
    assert entered["crossed_at"] == START_MS + 500_000
    assert entered["gap_s"] == 70.0, "the fix 60 s before was in the member cell, the one 70 s before elsewhere"


def _fix(at_ms: int, now_ms: int, **more: Any) -> dict[str, Any]:
    plain = {"user": "u", "lon_e7": 1_164_000_000, "lat_e7": 399_000_000, "cell": None, "feed": "app", "id": None}
    return {**plain, "at_ms": at_ms, "now_ms": now_ms, **more}
