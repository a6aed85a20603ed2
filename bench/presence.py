"""Pings per second through presence alone: located beforehand, drop flags cleared between rounds.

The hits are made by `engine.locate` before the clock starts, so these are the costs of state, timers and transitions.
Users are drawn at random, which makes nearly every ping a cache miss in a table of a million rows; that is the point.
"""

from __future__ import annotations

import hashlib
import time
from typing import Any

import numpy as np

from engine.definitions import CellTable, Fence, Shape
from engine.locate import FenceIndex
from engine.model import EVENT, EventType, Method, TransitionKind
from engine.presence import Presence
from engine.settings import FeedTable, default_feeds

SEED = 20_261_121
START_MS = 1_780_000_000_000
BATCH = 4096
CITY_LON_E7, CITY_LAT_E7 = 1_163_000_000, 398_000_000
FENCE_STEP_E7 = 20_000  # about 170 m: discs of 60 m that never overlap
SIDE = 100  # fences a side
NO_CELLS = CellTable((), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0), np.zeros(0, bool))


def run(smoke: bool = False) -> list[dict[str, Any]]:
    """Measure users far from fences, between fences, staying inside one, and pings that each cross an edge."""
    users = 20_000 if smoke else 1_000_000
    pings = 20_000 if smoke else 2_000_000
    fences = tuple(
        Fence(
            f"bench/{number:05}", "", "mall", Shape.CIRCLE, ((centre_of(np.array([number])),),), radius_m=60.0
        )
        for number in range(SIDE * SIDE)
    )  # fmt: skip
    index = FenceIndex.build(fences, NO_CELLS)
    figures = []
    for name in ("away", "between", "staying", "worst"):
        figures += measure(name, index, users, pings)
    return figures


def centre_of(number: np.ndarray) -> np.ndarray:
    """Centres of fences as int64[N, 2]."""
    lon_e7 = CITY_LON_E7 + number % SIDE * FENCE_STEP_E7
    return np.stack([lon_e7, CITY_LAT_E7 + number // SIDE * FENCE_STEP_E7], axis=1).astype(np.int64)


def measure(name: str, index: FenceIndex, users: int, pings: int) -> list[dict[str, Any]]:
    """Run one mix: rounds in which every user sends once, in an order that the caches do not know."""
    random = np.random.default_rng([SEED, users])
    away_e7 = 20_000_000 if name == "away" else 0
    presence = Presence(index.fences, index.arrays, FeedTable(default_feeds()), dict.fromkeys(range(SIDE), (600,)))
    presence.ensure(users)
    home = random.integers(0, SIDE * SIDE, users)
    rounds = max(2, pings // users) + 1
    busy_s = 0.0
    counted = transitions = 0
    digest = hashlib.sha256()
    for number in range(rounds):
        order = random.permutation(users)
        at_ms = START_MS + number * 700_000 + np.arange(users) * 250_000 // users
        for start in range(0, users, BATCH):
            chosen = order[start : start + BATCH]
            events = np.zeros(len(chosen), EVENT)
            centre = centre_of(home[chosen])
            # Outside is the middle between four fences, 113 m from each edge: one fix of 5 m is beyond the widened one.
            is_inside = name == "staying" or (name == "worst" and number % 2 == 0)
            events["lon_e7"] = (
                centre[:, 0] + random.integers(-500, 500, len(chosen)) + away_e7 + (0 if is_inside else 10_000)
            )
            events["lat_e7"] = centre[:, 1] + (0 if is_inside else 10_000)
            events["at_ms"] = events["now_ms"] = at_ms[start : start + BATCH]
            events["id_hash"] = random.integers(1, 1 << 62, len(chosen))
            events["user"], events["cell"] = chosen, -1
            events["accuracy_m"], events["method"], events["type"] = 5.0, Method.GPS, EventType.PING
            hit_start, hits = index.locate(events)
            started = time.perf_counter()
            out = presence.advance(events, hit_start, hits, int(events["now_ms"][-1]))
            if number:  # the first round fills the tables
                busy_s += time.perf_counter() - started
                counted += len(chosen)
                transitions += int((out["kind"] != TransitionKind.CROSS).sum())
            digest.update(out["crossed_ms"].tobytes() + out["fence"].tobytes())
    arrays = presence.arrays()
    owned = sum(arrays[part].nbytes for part in ("user", "visit", "wheel_timer", "wheel_heap"))
    prefix = f"presence.{name}.{users}"
    return [
        {"name": f"{prefix}.pings_per_s", "value": counted / busy_s, "unit": "1/s", "hash": digest.hexdigest()[:16]},
        {"name": f"{prefix}.transitions_per_ping", "value": transitions / counted, "unit": "ratio"},
        {"name": f"{prefix}.bytes_per_user", "value": owned / users, "unit": "B"},
    ]
