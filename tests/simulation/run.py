"""One seed from beginning to end: a day, its faults, the live run, the undisturbed replay, and the audit."""

from __future__ import annotations

import hashlib
import tempfile
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import orjson

from tests.simulation.auditor import Auditor
from tests.simulation.cities import make_cities
from tests.simulation.content import build_content
from tests.simulation.day import make_day
from tests.simulation.faults import draw, spoil
from tests.simulation.live import Live
from tests.simulation.plan import HOUR_MS, START_MS
from tests.simulation.reference import replay
from tests.simulation.sizes import Size, size_of
from tests.simulation.story import Story, Told

MEMORY = Path("/dev/shm")  # where there is one: nothing of a seed outlives its process, so no disk need hear of it
RUN_OUT_MS = 13 * HOUR_MS  # until the last quiet hours have ended, those of people in London


@dataclass
class Verdict:
    """What became of a seed. `digest` is over the log, every decision and every message."""

    seed: int
    size: str
    violations: list[str]
    events: int
    records: int
    users: int
    messages: int
    digest: str
    faults: tuple[str, ...]
    happened: dict[str, int] = field(default_factory=dict)
    reasons: dict[str, int] = field(default_factory=dict)  # by "outcome reason"
    dead: dict[str, int] = field(default_factory=dict)

    @property
    def command(self) -> str:
        return f"python -m tests.simulation --seeds 1 --from {self.seed} --size {self.size}"


def run_seed(seed: int, size: Size | None = None) -> Verdict:
    """Simulate and audit one seed, in a world of the size that is its turn where none is asked for."""
    size = size or size_of(seed)
    people, hours = size.people, size.hours
    cities = make_cities(seed)
    contents = {city.version: build_content(city) for city in cities}
    trouble = draw(seed, hours)
    day = make_day(seed, cities[0], people=people, hours=hours)
    events = spoil(seed, day, trouble.kinds)
    with tempfile.TemporaryDirectory(prefix="opportune-sim-", dir=MEMORY if MEMORY.is_dir() else None) as name:
        folder = Path(name)
        end_ms = START_MS + hours * HOUR_MS + RUN_OUT_MS
        story = Live(seed, events, trouble, contents, folder, end_ms, size).run()
        told, closing = replay(story.records, contents, story.outages, story.forgotten, folder)
    auditor = Auditor(cities, story, told, closing, day.expected)
    auditor.audit()
    return Verdict(
        seed,
        size.name,
        auditor.violations,
        sum(one.events + len(one.dead) for one in told),
        len(story.records),
        auditor.user_count,
        len(story.messages),
        digest(story, told),
        trouble.kinds,
        story.happened,
        auditor.reasons,
        Counter(reason for one in told for _, _, reason in one.dead),
    )


def digest(story: Story, told: list[Told]) -> str:
    """Hash everything that left a trace."""
    made = hashlib.blake2b(digest_size=16)
    for record in story.records:
        made.update(b"%d %d %d " % (record.position, record.append_ms, record.kind) + record.payload)
    for one in told:
        made.update(orjson.dumps(one.transitions))
        made.update(b"\n".join(one.decisions))
    for message in story.messages:
        made.update(repr(message).encode())
    made.update(orjson.dumps(story.endings))
    for scan in story.scans:
        made.update(repr(scan).encode())
    return made.hexdigest()
