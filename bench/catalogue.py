"""A catalogue of 200,000 apps: how long it takes to load, and what it adds to matching one usage event.

Events name one of all the apps at random and no category, so that each asks the table once, mostly out of cache; beside
them the same events with their category given, which is what matching costs without a catalogue.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from bench import workload
from engine.behavior import Behavior
from engine.behavior.catalogue import compile_apps
from engine.content.apps import load_apps
from engine.content.faults import Faults
from engine.content.files import ReadLimits
from engine.definitions import AppTable, FieldTest, UsageTrigger
from engine.hashing_kernel import hash_text
from engine.model import EVENT, EventType
from engine.settings import FeedSettings, FeedTable

BATCH = 4096
CATEGORIES = 64


def run(smoke: bool) -> list[dict[str, Any]]:
    apps = 2_000 if smoke else 200_000
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "apps"
        place.mkdir()
        lines = "".join(f"com.example.app{number},category{number % CATEGORIES}\n" for number in range(apps))
        (place / "many.csv").write_text("app,category\n" + lines)
        started = perf_counter()
        table = load_apps(Path(folder), ReadLimits(), Faults())
        compile_apps(table)
        loaded_s = perf_counter() - started
    assert len(table.apps) == apps
    events = 40_960 if smoke else 1_024_000
    with_catalogue, without = (min(match_ns(table, events, given=given) for _ in range(3)) for given in (False, True))
    return [
        {"name": f"catalogue.{apps}.load_ms", "value": loaded_s * 1000, "unit": "ms"},
        {
            "name": f"catalogue.{apps}.match_ns",
            "value": with_catalogue,
            "unit": "ns/event",
            "peer": f"events that say their category at {without:,.0f} ns",
            "ratio": with_catalogue / without,
        },
    ]


def match_ns(apps: AppTable, count: int, *, given: bool) -> float:
    """Nanoseconds an event from rows to matches, best of the whole run's thirds."""
    random = np.random.default_rng(7)
    events = np.zeros(count, EVENT)
    chosen = random.integers(0, len(apps.apps), count)
    hashes = np.array([hash_text(app) for app in apps.apps], np.uint64)
    category = np.array([hash_text(name) for name in apps.categories], np.uint64)
    events["app_hash"] = hashes[chosen]
    events["category_hash"] = category[chosen] if given else 0
    events["type"] = EventType.USAGE
    events["user"] = random.integers(0, 10_000, count)
    events["id_hash"] = np.arange(1, count + 1)
    events["at_ms"] = workload.START_MS + np.arange(count) // 20
    behavior = Behavior(
        [UsageTrigger((FieldTest("category", "==", "category5"), FieldTest("action", "==", "open")))],
        FeedTable({"dpi": FeedSettings()}),
        hash_text,
    )
    behavior.set_apps(apps)
    behavior.ensure(10_000)
    third = count // 3 // BATCH * BATCH
    best = float("inf")
    for start in range(0, 3 * third, third):
        started = perf_counter()
        for first in range(start, start + third, BATCH):
            behavior.match(events[first : first + BATCH])
        best = min(best, (perf_counter() - started) / third * 1e9)
    return best
