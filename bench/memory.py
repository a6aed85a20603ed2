"""Memory of the whole process per user and per fence, each in a process of its own.

Every user has a profile of two tags and two attributes, three consents, one open visit with its timer, one grant among
the caps, and takes his part of what is bounded: re-entry memory, open runs of equal refusals. Behavior patterns do not
exist yet and are not in the figure; neither are journal and HTTP server. Decisions go to SQLite as in the service.
"""

from __future__ import annotations

import dataclasses
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bench import workload
from engine.decide.records import encode
from engine.definitions import Content, PresenceTrigger
from engine.effects import Effects
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Block
from engine.pipeline import Pipeline
from engine.runtime import collector
from engine.settings import Settings

USERS_A_BLOCK = 4096
VISIT_MS, GRANT_MS, REFUSAL_MS = 60_000, 90_000, 100_000
"""When users step into their fences, open the app that makes the offer, and open it again."""
REFUSED_SHARE = 10
DWELL_S = 3_600
"""So late that the timer of every visit still waits at the end."""
TTL_DAYS, LIVING_DAYS = 2, 4
"""In churn: a visit expires after a day, the ttl is over at two, the sweep comes by within one more."""
DAY_MS = 86_400_000
TURNS = 10


def run(smoke: bool = False) -> list[dict[str, Any]]:
    """Measure users and fences; a smoke run is small, and its bytes per user are mostly the interpreter's."""
    users, fences = (20_000, 2_000) if smoke else (1_000_000, 100_000)
    churned = of_churn(20_000 if smoke else 2_000_000)
    return of_users(users, 500 if smoke else 10_000) + of_fences(fences) + churned


def of_users(users: int, fences: int) -> list[dict[str, Any]]:
    found = in_a_process("users", users, fences)
    arrays = dict(sorted(found["arrays"].items(), key=lambda item: -item[1]))
    per_user = {name: round(size / users, 1) for name, size in arrays.items() if size >= users / 2}
    detail = {"users": users, "fences": fences, "grants": found["grants"], "open_visits": found["open_visits"]}
    total = sum(arrays.values())
    return [
        {"name": "memory.bytes_per_user", "value": found["rss"] / users, "unit": "B", **detail},
        {"name": "memory.above_start.bytes_per_user", "value": (found["rss"] - found["start"]) / users, "unit": "B"},
        {"name": "memory.peak.bytes_per_user", "value": found["peak"] / users, "unit": "B"},
        {"name": "memory.arrays.bytes_per_user", "value": total / users, "unit": "B", "of": per_user},
        {"name": "memory.start.bytes", "value": found["start"], "unit": "B", "means": "kernels and content, no user"},
        {"name": "memory.setup.cpu_s", "value": found["cpu_s"], "unit": "s"},
    ]


def of_fences(fences: int) -> list[dict[str, Any]]:
    """Bytes a fence beyond those of a process with a tenth as many; Python objects, index and routes together."""
    few, many = (in_a_process("fences", number, 0) for number in (fences // 10, fences))
    each = (many["rss"] - few["rss"]) / (fences - fences // 10)
    more = {"fences": fences, "index_bytes": round(many["index"] / fences, 1)}
    return [{"name": "memory.per_fence.bytes", "value": each, "unit": "B", **more}]


def of_churn(users: int) -> list[dict[str, Any]]:
    """How much a process grows while ids come and go: ten times as many pass as live at once."""
    found = in_a_process("churn", users, 500)
    # The first three turns fill the slots for the first time.
    settled, end = found["rss"][2], found["rss"][-1]
    more = {"users": users, "slots": found["slots"], "live": found["live"], "evicted": found["evicted"]}
    rss = [round(size / 1e6, 1) for size in found["rss"]]
    return [{"name": "memory.churn.ratio", "value": end / settled, "unit": "ratio", "rss_mb": rss, **more}]


def in_a_process(what: str, *counts: int) -> dict[str, Any]:
    """Run this module as a fresh process, so that nothing of other benchmarks counts."""
    command = [sys.executable, "-m", "bench.memory", what, *map(str, counts)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


# --- in the process of its own ----------------------------------------------------------------------------------------


def measure_users(users: int, fences: int) -> dict[str, Any]:
    """Feed the users in chunks, so that the events themselves are never many at once; answer what is resident."""
    content = waiting_content(fences)
    with tempfile.TemporaryDirectory() as folder:
        ledger = EmbeddedLedger(Path(folder) / "ledger.db", fsync="never")
        pipeline = Pipeline(content, Settings(), ledger, id_key=b"bench bench bench bench")
        # The first users load every kernel; what they take is taken again below, and is nothing beside the kernels.
        committed = feed(pipeline, ledger, blocks(content, 0, min(64, users)), 0)
        collector.settle()
        start = resident()
        feed(pipeline, ledger, blocks(content, 0, users), committed)
        gc.collect()
        found = {
            "rss": resident(),
            "start": start,
            "peak": resident("VmHWM"),
            "arrays": array_sizes(pipeline, ledger),
            "grants": ledger.caps.count,
            "open_visits": int(np.sum(pipeline.presence.occupancy)),
            "cpu_s": time.process_time(),
        }
        ledger.close()
    assert found["grants"] >= users, "a user without a grant is cheaper than the bar's"
    assert found["open_visits"] >= 0.99 * users, "a user without a visit is cheaper than the bar's"
    return found


def measure_churn(users: int, fences: int) -> dict[str, Any]:
    """Let every id come once, step into a fence and open an app, and never come again; RSS after each tenth."""
    content = waiting_content(fences)
    with tempfile.TemporaryDirectory() as folder:
        ledger = EmbeddedLedger(Path(folder) / "ledger.db", fsync="never")
        settings = Settings(state_ttl_days=TTL_DAYS)
        pipeline = Pipeline(content, settings, ledger, id_key=b"bench bench bench bench")
        span_ms = TURNS * LIVING_DAYS * DAY_MS
        rss, evicted = [], 0
        for turn in range(TURNS):
            for start in range(users * turn // TURNS, users * (turn + 1) // TURNS, USERS_A_BLOCK // 2):
                block = passers_by(
                    content, start, min(start + USERS_A_BLOCK // 2, users * (turn + 1) // TURNS), users, span_ms
                )
                effects = pipeline.process(block)
                assert not effects.dead, effects.dead[0]
                evicted += effects.evicted
            gc.collect()
            rss.append(resident())
        found = {"rss": rss, "evicted": evicted, "slots": pipeline.users.count, "live": pipeline.users.live}
        ledger.close()
    assert found["slots"] < users / 3, "slots are not used again"
    return found


def passers_by(content: Content, first: int, last: int, users: int, span_ms: int) -> Block:
    lines, append_ms = [], []
    for user in range(first, last):
        after_ms = span_ms * user // users
        lines.append(ping(content, user, after_ms, 0.0))
        lines.append(workload._usage_line(user * 10, user, workload.START_MS + after_ms, "unwanted"))
        append_ms += [workload.START_MS + after_ms] * 2
    (block,) = workload._join(users, lines).blocks(len(lines))
    return dataclasses.replace(block, append_ms=np.array(append_ms, np.int64))


def waiting_content(fences: int) -> Content:
    """255 scenarios: presence waits for a dwell that is not due yet, usage offers at once."""
    content = workload.make_content(fences, 255)
    scenarios = tuple(
        dataclasses.replace(one, trigger=PresenceTrigger("dwell", one.trigger.fences, DWELL_S))
        if isinstance(one.trigger, PresenceTrigger)
        else one
        for one in content.scenarios
    )
    return dataclasses.replace(content, scenarios=scenarios)


def blocks(content: Content, first: int, last: int) -> Iterator[Block]:
    """All profiles, then all visits, then all grants and refusals: in the order of time."""
    for phase in (known, outside, inside, granted, refused):
        for start in range(first, last, USERS_A_BLOCK):
            lines = phase(content, start, min(start + USERS_A_BLOCK, last))
            if lines:
                yield from workload._join(last, lines).blocks(len(lines))


def known(content: Content, first: int, last: int) -> list[str]:
    lines = []
    for user in range(first, last):
        head = f'"feed":"app","user":"u{user:08d}","at":{workload.START_MS}'
        attributes = f'{{"age":{20 + user % 50},"plan":"p{user % 9}"}}'
        lines.append(f'{{"type":"profile",{head},"tags":["t0","t1"],"attributes":{attributes}}}')
        for purpose in ("marketing.sms", "location", "usage"):
            lines.append(f'{{"type":"consent",{head},"purpose":"{purpose}","granted":true,"source":"import"}}')
    return lines


def outside(content: Content, first: int, last: int) -> list[str]:
    return [ping(content, user, 0, 2000 / workload.M_PER_DEG_LON) for user in range(first, last)]


def inside(content: Content, first: int, last: int) -> list[str]:
    return [ping(content, user, VISIT_MS, 0.0) for user in range(first, last)]


def ping(content: Content, user: int, after_ms: int, east_deg: float) -> str:
    fence = content.fences[user * 7919 % len(content.fences)]
    at_ms = workload.START_MS + after_ms
    return workload._ping_line(user * 10 + (east_deg == 0), user, at_ms, fence.lon + east_deg, fence.lat, 0, "")


def granted(content: Content, first: int, last: int, after_ms: int = GRANT_MS, number: int = 2) -> list[str]:
    at_ms = workload.START_MS + after_ms
    return [workload._usage_line(user * 10 + number, user, at_ms, f"hot{user % 85}") for user in range(first, last)]


def refused(content: Content, first: int, last: int) -> list[str]:
    """Some open the app again, within the cooldown."""
    return granted(content, first, first + (last - first) // REFUSED_SHARE, REFUSAL_MS, 3)


def feed(pipeline: Pipeline, ledger: EmbeddedLedger, made: Iterator[Block], position: int) -> int:
    for block in made:
        effects: Effects = pipeline.process(block)
        assert not effects.dead, effects.dead[0]
        position += len(block)
        ledger.commit(
            position,
            effects.now_ms,
            decisions=[(one.decision_id, one.user, encode(one)) for one in effects.decisions],
            offers=effects.offers,
            consents=effects.consents,
        )
    return position


def array_sizes(pipeline: Pipeline, ledger: EmbeddedLedger) -> dict[str, int]:
    """Bytes of every array that grows with users, as allocated: the slack of growth counts."""
    arrays, _ = pipeline.snapshot()
    arrays = {name: array for name, array in arrays.items() if not name.startswith("users.")}
    arrays |= {f"users.{name}": array for name, array in pipeline.users.texts._asdict().items()}
    arrays["users.generation"] = pipeline.users.generation
    arrays |= ledger.arrays()
    return {name: whole(array).nbytes for name, array in arrays.items()}


def whole(array: np.ndarray) -> np.ndarray:
    """The array that a view was cut from."""
    return array.base if isinstance(array.base, np.ndarray) else array


def measure_fences(fences: int) -> dict[str, Any]:
    content = workload.make_content(fences, 255)
    with tempfile.TemporaryDirectory() as folder:
        ledger = EmbeddedLedger(Path(folder) / "ledger.db", fsync="never")
        pipeline = Pipeline(content, Settings(), ledger, id_key=b"bench bench bench bench")
        feed(pipeline, ledger, blocks(content, 0, 64), 0)
        gc.collect()
        found = {"rss": resident(), "index": pipeline.index.nbytes}
        ledger.close()
    return found


def resident(field: str = "VmRSS") -> int:
    """Bytes of this process in memory, as Linux counts them."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))


if __name__ == "__main__":
    counts = [int(count) for count in sys.argv[2:]]
    if sys.argv[1] == "users":
        print(json.dumps(measure_users(*counts)))
    elif sys.argv[1] == "churn":
        print(json.dumps(measure_churn(*counts)))
    else:
        print(json.dumps(measure_fences(counts[0])))
