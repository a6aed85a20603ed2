"""Workers on as many partitions: the events a second that 1, 2 and 4 processes drain together.

Each count has a topic of its own with as many partitions, filled before. Nobody begins before every worker holds its
partition, and may have fetched eight pieces of some megabytes by then; the ratio is to one worker of the same run.
Redis and broker run beside; more workers than cores share them.
"""

from __future__ import annotations

import os
import time
from typing import Any

from bench.cluster_host import host_worker
from bench.cluster_rig import Rig, fill, open_content, servers
from bench.processes import Part, spawn
from engine.runtime.warm import warm


def run(smoke: bool) -> list[dict[str, Any]]:
    events, users, fences = (20_000, 2_000, 1_000) if smoke else (1_500_000, 200_000, 10_000)
    with servers("scale") as rig:
        if rig is None:
            return []
        warm()
        rates = {count: _drain(rig, count, fences, users, events) for count in ((1, 2) if smoke else (1, 2, 4))}
        first = rates[1]
        cores = os.cpu_count()
        return [
            {
                "name": f"scale.{count}.events_per_s",
                "value": rate,
                "unit": f"events/s, {count} partitions and workers on {cores} cores, {rig.versions}",
                **({"peer": "one worker", "ratio": rate / first} if count > 1 else {}),
            }
            for count, rate in rates.items()
        ]


def _drain(rig: Rig, count: int, fences: int, users: int, events: int) -> float:
    settings = rig.settings(f"scale{count}", count)
    fill(settings, open_content(fences), users, events)
    counters = [spawn.Array("q", 2 + count, lock=False) for _ in range(count)]
    parts = [
        Part(host_worker, (settings, fences), rig.folder / f"scale{count}-{row}.json", counters[row])
        for row in range(count)
    ]
    try:
        while any(sum(one[1:-1]) != 1 for one in counters):
            _look_after(parts)
        begun_s = time.perf_counter()
        for one in counters:
            one[-1] = 1
        # Ticks of idle partitions are counted too, so the last few events may be missing.
        while sum(one[0] for one in counters) < events:
            _look_after(parts)
        seconds = time.perf_counter() - begun_s
        for part in parts:
            part.stop()
    finally:
        for part in parts:
            part.kill()
    return events / seconds


def _look_after(parts: list[Part]) -> None:
    for part in parts:
        part.must_live()
    time.sleep(0.002)
