"""Absences that fall due: two million live timers in the wheel, told through the pattern kernels (T8).

Users open an app that nobody answers, spread over the span; then time passes second by second and every absence is
told. `timers.arm_per_s` is the steps that open them, `timers.fires_per_s` what is told while the rest stay live.
Peer: a binary heap of Python tuples (heapq), the usual way to hold timers in one process.
"""

from __future__ import annotations

import hashlib
import heapq
from time import perf_counter
from typing import Any

import numpy as np

from bench import workload
from engine.behavior import Behavior, compile_plan
from engine.definitions import CellTable, Content, FieldTest, PatternTrigger, Policy, Scenario, UsageTrigger
from engine.hashing_kernel import hash_text
from engine.model import EVENT, TRANSITION, EventType, Mode
from engine.settings import FeedSettings, FeedTable

BATCH = 4096
SPAN_S = 3600
START_MS = workload.START_MS


def run(smoke: bool) -> list[dict[str, Any]]:
    live = 20_000 if smoke else 2_000_000
    told_s = 60 if smoke else 600  # of the hour over which they are spread
    behavior = one_absence()
    behavior.ensure(live)
    opened = openings(live)
    nothing = np.zeros(0, TRANSITION)
    started = perf_counter()
    for first in range(0, live, BATCH):
        part = opened[first : first + BATCH]
        behavior.advance(part, behavior.match(part), nothing, int(part["now_ms"][-1]), None)
    armed_s = perf_counter() - started
    assert behavior.counts()["states"] == live
    digest = hashlib.blake2b(digest_size=8)
    told = 0
    no_matches = np.zeros(0, np.int32), np.zeros(0, np.int32)
    first_due_ms = START_MS + SPAN_S * 1000 + 5_000
    started = perf_counter()
    for second in range(told_s):
        fired = behavior.advance(opened[:0], no_matches, nothing, first_due_ms + second * 1000, None)
        told += len(fired)
        digest.update(fired["identity"].tobytes())
    fired_s = perf_counter() - started
    assert abs(told - live * (told_s - 1) / SPAN_S) <= live / SPAN_S
    peer = heap_rate(live, told)
    facts = {"live": live, "told": told, "hash": digest.hexdigest()}
    return [
        {"name": "timers.arm_per_s", "value": live / armed_s, "unit": "timers/s"},
        {
            "name": "timers.fires_per_s",
            "value": told / fired_s,
            "unit": "timers/s",
            "peer": f"heapq pops at {peer:,.0f}/s",
            "ratio": told / fired_s / peer,
            **facts,
        },
    ]


def one_absence() -> Behavior:
    """One scenario: an app opened and no other within the hour."""
    feeds = FeedTable({"dpi": FeedSettings(expected_delay_s=5, period_s=SPAN_S)})
    steps = tuple(UsageTrigger((FieldTest("app", "==", app),)) for app in ("opened", "answered"))
    pattern = PatternTrigger("absence", steps, SPAN_S * 1000, state_hash="absence")
    offer = workload.make_scenarios(1, ())[0].offer
    scenario = Scenario("national/absence", "", Mode.LIVE, pattern, offer)
    empty = np.zeros(0, np.int32)
    cells = CellTable((), empty, empty, np.zeros(0), np.zeros(0, bool))
    content = Content("timers", (), cells, (scenario,), Policy())
    behavior = Behavior((), feeds, hash_text)
    behavior.activate((), compile_plan(content, feeds, hash_text))
    return behavior


def openings(live: int) -> np.ndarray:
    """EVENT[live]: one user after another opens the app, evenly over the span."""
    events = np.zeros(live, EVENT)
    events["now_ms"] = events["at_ms"] = START_MS + np.arange(live) * (SPAN_S * 1000) // live
    events["user"] = np.random.default_rng(1).permutation(live)
    events["id_hash"] = np.arange(1, live + 1)
    events["app_hash"] = hash_text("opened")
    events["type"] = EventType.USAGE
    return events


def heap_rate(live: int, told: int) -> float:
    heap = [(START_MS + row, row) for row in range(live)]
    heapq.heapify(heap)
    started = perf_counter()
    for _ in range(told):
        heapq.heappop(heap)
    return told / (perf_counter() - started)
