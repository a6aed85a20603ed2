"""Presence against a model of dictionaries written from docs/presence.md (P1-P9, L2, L5, L7-L10, T4, T5, T7, T8)."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engine.definitions import CellTable, Shape
from engine.definitions import Fence as Drawn
from engine.locate.index import FenceIndex
from engine.model import EVENT, Confidence, Drop, Method, TransitionKind, TransitionReason
from engine.presence import Presence
from engine.presence.presence import no_events
from engine.settings import FeedSettings, FeedTable
from tests.property.presence_model import Feed, Fence, Fix, Model

START = 1_700_000_000_000
LAT = 399_000_000
LON = 1_164_000_000
PER_METRE = 117  # e7 of longitude, about, at this latitude
FEED_SETTINGS = {
    "app": FeedSettings(),
    "signalling": FeedSettings(period_s=1800, expected_delay_s=30, signalling=True, max_accuracy_m=2500),
}
FEEDS = {
    "app": Feed(2_000, 1_800_000, 600_000, 3_600_000),
    "signalling": Feed(30_000, 10_800_000, 3_600_000, 10_800_000),
}
FEED_ROWS = {name: row for row, name in enumerate(FEED_SETTINGS)}
CELLS = CellTable(
    ("a", "b", "c"),
    np.array([LON + 100 * PER_METRE, LON + 900 * PER_METRE, LON + 9000 * PER_METRE], np.int32),
    np.full(3, LAT + 2_000, np.int32),
    np.array([800.0, 900.0, 1500.0]),
    np.zeros(3, bool),
)
OPEN = [
    (START + 600_000, START + 3_600_000),
    (START + 3_660_000, START + 90_000_000),
    (START + 90_600_000, START + 10**9),
]


def at_m(metres: int) -> int:
    return LON + metres * PER_METRE


def world() -> list[Fence]:
    """Fences of every kind along one parallel, in id order."""
    return [
        Fence("a/circle", centre=(at_m(0), LAT), radius=100.0, dwells=(120, 600)),
        Fence("b/delays", centre=(at_m(50), LAT), radius=300.0, enter_delay=60_000, exit_delay=90_000),
        Fence("c/big", centre=(at_m(500), LAT), radius=2000.0, dwells=(900,)),
        Fence("d/cells", cells=frozenset({0, 1}), dwells=(300,)),
        Fence("e/mixed", centre=(at_m(700), LAT), radius=150.0, cells=frozenset({1})),
        Fence("f/sure", centre=(at_m(200), LAT), radius=200.0, min_confidence=3),
        Fence("g/hours", centre=(at_m(100), LAT), radius=250.0, spans=OPEN, dwells=(60,), enter_delay=30_000),
        Fence("h/slow", cells=frozenset({2}), enter_delay=600_000, exit_delay=0),
        Fence("t/1", box=(at_m(-500), LAT - 5000, at_m(300), LAT + 5000)),
        Fence("t/2", box=(at_m(300), LAT - 5000, at_m(1200), LAT + 5000), dwells=(60, 61)),
    ]


def drawn(fence: Fence) -> Drawn:
    more: dict[str, Any] = {
        "cells": tuple(CELLS.ids[cell] for cell in sorted(fence.cells)),
        "enter_delay_s": None if fence.enter_delay is None else fence.enter_delay / 1000,
        "exit_delay_s": None if fence.exit_delay is None else fence.exit_delay / 1000,
        "min_confidence": Confidence(fence.min_confidence),
        "state_hash": fence.key,
    }
    if fence.centre is not None:
        parts = ((np.array([fence.centre], np.int64),),)
        return Drawn(fence.id, "", "mall", Shape.CIRCLE, parts, radius_m=fence.radius, **more)
    if fence.box is not None:
        west, south, east, north = fence.box
        ring = np.array([(west, south), (east, south), (east, north), (west, north)], np.int64)
        return Drawn(fence.id, "", "tile", Shape.POLYGON, ((ring,),), tiling=True, **more)
    return Drawn(fence.id, "", "mall", Shape.CELLS, **more)


class Engine:
    """Index and presence, fed with the model's fixes."""

    def __init__(self, fences: list[Fence]) -> None:
        self.index, thresholds, hours = compiled(fences)
        self.presence = Presence(self.index.fences, self.index.arrays, FeedTable(FEED_SETTINGS), thresholds, hours)

    def activate(self, fences: list[Fence], now: int) -> list[dict[str, Any]]:
        self.index, thresholds, hours = compiled(fences)
        return told(self.presence.activate(self.index.fences, self.index.arrays, thresholds, hours, now_ms=now))

    def advance(self, events: np.ndarray, now: int) -> list[dict[str, Any]]:
        return told(self.presence.advance(events, *self.index.locate(events), now))


def compiled(fences: list[Fence]) -> tuple[FenceIndex, dict[int, tuple[int, ...]], dict[int, np.ndarray]]:
    index = FenceIndex.build([drawn(fence) for fence in fences], CELLS)
    thresholds = {row: fence.dwells for row, fence in enumerate(fences)}
    hours = {row: np.array(fence.spans, np.int64) for row, fence in enumerate(fences) if fence.spans is not None}
    return index, thresholds, hours


def told(transitions: np.ndarray) -> list[dict[str, Any]]:
    return [
        {
            "kind": TransitionKind(one["kind"]).name.lower(),
            "user": int(one["user"]),
            "fence": int(one["fence"]),
            "crossed": int(one["crossed_ms"]),
            "confirmed": int(one["confirmed_ms"]),
            "reason": TransitionReason(one["reason"]).name.lower(),
            "confidence": int(one["confidence"]),
            "gap": int(one["gap_ms"]),
            "duration": int(one["duration_ms"]),
            "threshold": int(one["threshold_s"]),
            "initial": bool(one["initial"]),
            "wide": bool(one["wide_gap"]),
            "by_timer": bool(one["by_timer"]),
            "now": int(one["now_ms"]),
            "method": Method(one["method"]).name.lower(),
        }
        for one in transitions
    ]


def event_of(slot: int, fix: Fix) -> np.ndarray:
    event = np.zeros(1, EVENT)
    for name, value in {
        "at_ms": fix.at, "now_ms": fix.now, "id_hash": fix.id, "lon_e7": fix.lon, "lat_e7": fix.lat,
        "accuracy_m": fix.a, "user": slot, "cell": -1 if fix.cell is None else fix.cell, "feed": FEED_ROWS[fix.feed],
        "method": Method[fix.method.upper()], "type": 1,
    }.items():  # fmt: skip
        event[name] = value
    return event


STEPS_S = (
    *(0, 1, 2, 29, 30, 59, 60, 61, 62, 90, 119, 120, 150, 240, 299, 300, 301, 599, 600, 602, 900),
    *(1799, 1800, 1802, 3600, 10_800, 10_830, 43_200, 86_400, 86_401, 90_000),
)
STEP_WEIGHTS = [3, 3, 2, 2, 4, 3, 6, 3, 2, 5, 3, 6, 5, 5, 2, 3, 2, 2, 4, 2, 3, 1, 2, 2, 2, 1, 1, 1, 1, 1, 1]
PLACES_M = (
    *(0, 20, 60, 90, 110, 125, 150, 180, 240, 260, 290, 310, 340, 400, 480, 560, 690, 800, 1000, 1100, 1300, 1500),
    *(2400, 2600, 2700, 3100, 4000, 8000, 60_000, -140, -300, -600),
)
LAGS_S = (0, 0, 0, 0, 0, 1, 2, 3, 31, 300, 601, 700, 4000, -60, -280)


def draw_pings(source: random.Random, count: int, users: int) -> list[tuple[int, Fix]]:
    """Pings in log order: users who stay, hop between cells, jump, repeat themselves, come late or long after."""
    now = START
    clock = dict.fromkeys(range(users), START)
    place = dict.fromkeys(range(users), 0)
    pings: list[tuple[int, Fix]] = []
    for number in range(count):
        slot = source.randrange(users)
        if pings and source.random() < 0.04:
            slot, old = source.choice(pings[-4:])
            fix = Fix(**{**old.__dict__, "now": max(now, old.now)})
        else:
            clock[slot] += source.choices(STEPS_S, STEP_WEIGHTS)[0] * 1000
            at = clock[slot] - (source.random() < 0.03) * source.choice((1, 60, 600)) * 1000
            lag = source.choice(LAGS_S) if source.random() < 0.4 else 0
            now = max(now, at + lag * 1000)
            if source.random() < 0.55:
                place[slot] = source.choice(PLACES_M)
            if source.random() < 0.3:
                cell = source.choice((0, 0, 1, 1, 2))
                accuracy = source.choice((float(CELLS.radius_m[cell]), 50.0, 3000.0))
                feed = source.choice(("signalling", "signalling", "app"))
                lon, lat = int(CELLS.lon_e7[cell]), int(CELLS.lat_e7[cell])
                fix = Fix(at, now, number + 1, lon, LAT, accuracy, cell, "cell", feed)
                fix.lat = lat
            elif source.random() < 0.02:
                fix = Fix(at, now, number + 1, 0, 0, 10.0, None, "gps", "app")
            else:
                accuracy = source.choice((5.0, 10.0, 20.0, 59.0, 60.0, 61.0, 100.0, 250.0, 1000.0))
                method = source.choice(("gps", "gps", "wifi", "cell"))
                feed = source.choice(("app", "app", "app", "signalling"))
                fix = Fix(at, now, number + 1, at_m(place[slot]), LAT, accuracy, None, method, feed)
        pings.append((slot, fix))
    return pings


def with_coarse_limit(model: Model, slot: int, fix: Fix) -> Drop:
    """The feed's accuracy limit is judged before everything that needs a memory (docs/presence.md, section 2)."""
    if fix.feed == "signalling" and fix.a > 2500 and (fix.cell is not None or (fix.lon, fix.lat) != (0, 0)):
        model.pass_time(fix.now)
        return Drop.TOO_COARSE
    return model.take(slot, fix)


def play(seed: int, count: int, users: int, batch: int) -> None:
    source = random.Random(seed)
    pings = draw_pings(source, count, users)
    model, engine = Model(world(), FEEDS), Engine(world())
    end = pings[-1][1].now
    for start in range(0, count, batch):
        part = pings[start : start + batch]
        begin = len(model.out)
        drops = [with_coarse_limit(model, slot, fix) for slot, fix in part]
        last = start + batch >= count
        now = end + 100_000_000 if last else part[-1][1].now
        model.pass_time(now)
        events = np.concatenate([event_of(slot, fix) for slot, fix in part])
        given = engine.advance(events, now)
        assert [Drop(drop).name for drop in events["drop"]] == [drop.name for drop in drops]
        assert given == model.out[begin:]
        assert engine.presence.occupancy.tolist() == model.occupancy()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), count=st.integers(2, 90), users=st.integers(1, 2), batch=st.sampled_from([1, 7, 90]))
def test_every_transition_is_the_models(seed: int, count: int, users: int, batch: int) -> None:  # P1-P9, L8, L9, T5-T8
    play(seed, count, users, batch)


@pytest.mark.parametrize("seed", range(12))
def test_long_lives_are_the_models(seed: int) -> None:  # P1-P9, L8, L9, T5-T8
    play(1000 + seed, 400, 3, 64)


@pytest.mark.parametrize("seed", range(6))
def test_batches_do_not_matter(seed: int) -> None:  # T4
    source = random.Random(seed)
    pings = draw_pings(source, 300, 4)
    events = np.concatenate([event_of(slot, fix) for slot, fix in pings])
    whole = Engine(world())
    expected = whole.advance(events.copy(), int(events["now_ms"][-1]))
    cut = Engine(world())
    given: list[dict[str, Any]] = []
    start = 0
    while start < len(events):
        end = min(len(events), start + source.choice((1, 1, 2, 5, 40)))
        given += cut.advance(events[start:end].copy(), int(events["now_ms"][end - 1]))
        if end < len(events) and source.random() < 0.5:
            between = source.randint(int(events["now_ms"][end - 1]), int(events["now_ms"][end]))
            given += told(cut.presence.advance(*no_events(), between))
        start = end
    assert given == expected


@pytest.mark.parametrize("seed", range(6))
def test_a_restored_checkpoint_goes_on_as_if_nothing_had_happened(seed: int) -> None:  # T3, T8
    pings = draw_pings(random.Random(50 + seed), 300, 4)
    events = np.concatenate([event_of(slot, fix) for slot, fix in pings])
    straight = Engine(world())
    expected = straight.advance(events.copy(), int(events["now_ms"][-1]) + 90_000_000)
    first = Engine(world())
    given = first.advance(events[:150].copy(), int(events["now_ms"][149]))
    saved = {name: array.copy() for name, array in first.presence.arrays().items()}
    first.advance(events[150:200].copy(), int(events["now_ms"][199]))
    second = Engine(world())
    second.presence.restore(saved)
    given += second.advance(events[150:].copy(), int(events["now_ms"][-1]) + 90_000_000)
    assert given == expected


def changed(source: random.Random) -> list[Fence]:
    """The world with some fences gone, some redrawn (another key), some with other thresholds."""
    fences = []
    for fence in world():
        fence.key = fence.id
        chance = source.random()
        if chance < 0.25:
            continue
        if chance < 0.4:
            fence.key += "*"
        if chance > 0.7:
            fence.dwells = source.choice(((), (60,), (120, 300, 600)))
        fences.append(fence)
    return fences


@pytest.mark.parametrize("seed", range(10))
def test_content_changes_keep_the_state_of_unchanged_fences(seed: int) -> None:  # L10
    source = random.Random(99 + seed)
    pings = draw_pings(source, 300, 3)
    sets = [changed(source) for _ in range(4)]
    model, engine = Model(sets[0], FEEDS), Engine(sets[0])
    now = START
    for number, fences in enumerate(sets):
        if number:
            begin = len(model.out)
            model.pass_time(now)
            copies = [Fence(**fence.__dict__) for fence in fences]
            model.activate(copies, now)
            assert engine.activate(fences, now) == model.out[begin:]
        part = pings[75 * number : 75 * number + 75]
        begin = len(model.out)
        for slot, fix in part:
            with_coarse_limit(model, slot, fix)
        now = part[-1][1].now
        model.pass_time(now)
        assert engine.advance(np.concatenate([event_of(slot, fix) for slot, fix in part]), now) == model.out[begin:]
        assert engine.presence.occupancy.tolist() == model.occupancy()
