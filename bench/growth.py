"""What one event costs with many fences or scenarios, against few: same hits, same candidates, interleaved runs.

Fences: the area grows with their number, so that a ping meets as many as before; users, events and all shares are the
same. Scenarios: the same fences and apps are shared out among more, so that as many events become candidates; once of
single events alone, and once (10,000 of them) with a third of them patterns. Small and
large take turns a few blocks at a time, on the thread's own processor time; the ratio is that of the medians.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bench import workload
from bench.pipeline import BATCH, profile_blocks
from engine.decide.records import encode_lines
from engine.definitions import Content
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Block, EventType
from engine.pipeline import Pipeline
from engine.runtime import collector
from engine.runtime.outcome import count
from engine.settings import Settings

DENSITY = 10_000 / workload.CITY_DEG**2
"""Fences per square of half a side, as in the pipeline benchmark's city."""
TURN = 8
"""Blocks before the other has its turn: long enough to be past the other's leavings in the caches."""


def run(smoke: bool = False) -> list[dict[str, Any]]:
    users, events = (2_000, 8 * TURN * 256) if smoke else (200_000, 1_000_000)
    sizes = (500, 2_000) if smoke else (1_000, 100_000)
    rows = compare("growth.fences", sizes, [in_wider_city(size, users, events) for size in sizes], smoke)
    sizes = (32, 64) if smoke else (255, 1_000)
    fences = 500 if smoke else 10_000
    rows += compare("growth.scenarios", sizes, [with_scenarios(fences, n, users, events) for n in sizes], smoke)
    sizes = (32, 128) if smoke else (255, 10_000)
    cases = [with_scenarios(fences, n, users, events, patterns=True) for n in sizes]
    return rows + compare("growth.scenarios", sizes, cases, smoke, small_name="growth.scenarios.patterns")


Case = tuple[Content, workload.Workload]


def in_wider_city(fences: int, users: int, events: int) -> Case:
    spread_deg = (fences / DENSITY) ** 0.5
    content = workload.make_content(fences, 255, spread_deg=spread_deg)
    return content, workload.realistic(users, events, content, spread_deg=spread_deg)


def with_scenarios(fences: int, scenarios: int, users: int, events: int, *, patterns: bool = False) -> Case:
    content = workload.make_content(fences, scenarios)
    hot_apps = scenarios - scenarios * 2 // 3
    if not patterns:
        return content, workload.realistic(users, events, content, hot_apps=hot_apps)
    content = workload.with_patterns(content)
    step_apps = len(range(2, scenarios, 3))
    return content, workload.realistic(users, events, content, hot_apps=hot_apps, step_apps=step_apps)


def compare(
    name: str, sizes: tuple[int, ...], cases: list[Case], smoke: bool, *, small_name: str = ""
) -> list[dict[str, Any]]:
    """Run both cases in turns and give the cost per event of each, and the ratio."""
    with running(*cases[0]) as small, running(*cases[1]) as large:
        collector.settle()
        batch = 256 if smoke else BATCH
        turns = [side.turns(batch) for side in (small, large)]
        for both in zip(*turns, strict=True):
            for side, blocks in zip((small, large), both, strict=True):
                side.run(blocks)
        names = (small_name or name, name)
        rows = [side.row(f"{name}.{size}") for side, name, size in zip((small, large), names, sizes, strict=True)]
    ratio = rows[1]["value"] / rows[0]["value"]
    rows.append({"name": f"{name}.{sizes[1]}.ratio", "value": ratio, "unit": "ratio", "against": sizes[0]})
    return rows


class Side:
    """One pipeline with its events, and what each turn cost."""

    def __init__(self, pipeline: Pipeline, content: Content, made: workload.Workload) -> None:
        self.pipeline, self.content, self.made = pipeline, content, made
        self.ns: list[float] = []
        self.offers = self.candidates = self.transitions = self.events = 0
        for block in profile_blocks(made.users):
            pipeline.process(block)

    def turns(self, batch: int) -> list[list[Block]]:
        """Cut the second half of the events into turns; the first half warms up, at once."""
        blocks = self.made.blocks(batch)
        middle = len(blocks) // 2
        for block in blocks[:middle]:
            self.pipeline.process(block)
        return [blocks[first : first + TURN] for first in range(middle, len(blocks) - TURN + 1, TURN)]

    def run(self, blocks: list[Block]) -> None:
        events = sum(map(len, blocks))
        started = time.thread_time_ns()
        for block in blocks:
            effects = self.pipeline.process(block)
            encode_lines(effects.decisions)
            count(effects)
            self.offers += len(effects.offers)
            self.candidates += effects.candidates
            self.transitions += sum(map(len, effects.transitions))
        self.ns.append((time.thread_time_ns() - started) / events)
        self.events += events

    def row(self, name: str) -> dict[str, Any]:
        rates = {
            "hits_per_ping": round(self.hits_per_ping(), 4),
            "transitions_per_1000": round(1000 * self.transitions / self.events, 2),
            "candidates_per_1000": round(1000 * self.candidates / self.events, 2),
            "offers_per_1000": round(1000 * self.offers / self.events, 2),
        }
        return {"name": f"{name}.ns_per_event", "value": statistics.median(self.ns), "unit": "ns", **rates}

    def hits_per_ping(self) -> float:
        """Fences that a ping of the last block touches: the same on both sides, or the ratio means nothing."""
        events = self.pipeline.decoder.decode(self.made.blocks(65_536)[-1], self.pipeline.now_ms).events
        pings = int(np.count_nonzero(events["type"] == EventType.PING))
        return len(self.pipeline.index.locate(events)[1]) / pings


@contextmanager
def running(content: Content, made: workload.Workload) -> Iterator[Side]:
    with tempfile.TemporaryDirectory() as folder:
        ledger = EmbeddedLedger(Path(folder) / "ledger.db", fsync="never")
        pipeline = Pipeline(content, Settings(), ledger, id_key=b"bench bench bench bench")
        pipeline.decider.compile_all()  # once for a content, and no cost of an event
        yield Side(pipeline, content, made)
        ledger.close()
