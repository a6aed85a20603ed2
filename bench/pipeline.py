"""JSON bytes to decision bytes through the whole pipeline, one core; peer: msgspec decoding the same bytes.

Realistic and worst mix as in bench/workload.py: 10,000 clustered fences, 255 scenarios, batches of 4,096 events, caps,
dedupe, timers and metrics on. The result hash is over all decisions and transitions, so that nothing is skipped.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from time import perf_counter

import msgspec

from bench import workload
from bench.peer import Event
from engine.decide.records import encode_lines
from engine.definitions import Content
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Block, Drop
from engine.pipeline import Pipeline
from engine.runtime import collector
from engine.runtime.outcome import count
from engine.settings import FeedSettings, Settings, default_feeds

BATCH = 4096


def run(smoke: bool) -> list[dict]:
    rows = []
    sizes = (20_000,) if smoke else (200_000, 1_000_000)
    events = 40_000 if smoke else 2_000_000
    content = workload.make_content(1_000 if smoke else 10_000, 255)
    for users in sizes:
        made = workload.realistic(users, events, content)
        rows += measure(f"pipeline.realistic.{users}", content, made, warm_share=0.5)
        if users == sizes[0]:
            rows += reordering(users, content, made, rows[-1]["value"])
    patterned_users, patterned_events = (20_000, 40_000) if smoke else (200_000, 1_000_000)
    for scenarios in (255,) if smoke else (255, 10_000):
        content = workload.with_patterns(workload.make_content(1_000 if smoke else 10_000, scenarios))
        made = workload.realistic(
            patterned_users,
            patterned_events,
            content,
            hot_apps=scenarios - scenarios * 2 // 3,
            step_apps=len(range(2, scenarios, 3)),
        )
        rows += measure(f"pipeline.patterns.{scenarios}", content, made, warm_share=0.5)
    count_worst = 8_192 if smoke else 200_000
    open_to_all = workload.make_content(1_000 if smoke else 10_000, 254, audience=None, every_edge=True)
    made = workload.worst(2_000 if smoke else 20_000, count_worst, open_to_all)
    rows += measure("pipeline.worst", open_to_all, made, warm_share=0.1)
    return rows


def reordering(users: int, content: Content, made: workload.Workload, without: float) -> list[dict]:
    """The same events, every ping held for 3 s of their time (T5); the peer is the pipeline without."""
    feeds = {**default_feeds(), "app": FeedSettings(reorder_s=3)}
    (row,) = measure(f"pipeline.reorder.{users}", content, made, warm_share=0.5, settings=Settings(feeds=feeds))
    return [{**row, "peer": f"the same without reordering at {without:,.0f}/s", "ratio": row["value"] / without}]


def measure(
    name: str, content: Content, made: workload.Workload, *, warm_share: float, settings: Settings | None = None
) -> list[dict]:
    """Feed profiles, warm up on the first share of the events, time the rest."""
    with tempfile.TemporaryDirectory() as folder:
        ledger = EmbeddedLedger(Path(folder) / "ledger.db", assumed_consent=frozenset(), fsync="never")
        pipeline = Pipeline(content, settings or Settings(), ledger, id_key=b"bench bench bench bench")
        pipeline.decider.compile_all()  # a tenth of a millisecond each, once for a content
        for block in profile_blocks(made.users):
            pipeline.process(block)
        blocks = made.blocks(BATCH)
        warm = max(1, int(len(blocks) * warm_share))
        for block in blocks[:warm]:
            pipeline.process(block)
        collector.settle()
        digest = hashlib.blake2b(digest_size=8)
        events = candidates = offers = dead = transitions = 0
        drops = [0] * len(Drop)
        lines: list[bytes] = []
        started = perf_counter()
        for block in blocks[warm:]:
            effects = pipeline.process(block)
            lines.append(encode_lines(effects.decisions))
            count(effects)
            events += effects.events
            candidates += effects.candidates
            offers += len(effects.offers)
            dead += len(effects.dead)
            transitions += sum(map(len, effects.transitions))
            for drop in range(len(Drop)):
                drops[drop] += int(effects.drops[drop])
        seconds = perf_counter() - started
        ledger.close()
    for line in lines:
        digest.update(line)
    assert dead == 0
    first, last = sum(len(block) for block in blocks[:warm]), len(made.start)
    peer = decode_rate(made.data[int(made.start[first]) : int(made.end[last - 1]) + 1], last - first)
    patterns = pipeline.behavior.counts()
    shares = {Drop(drop).name.lower(): number for drop, number in enumerate(drops) if drop and number}
    return [
        {
            "name": f"{name}.events_per_s",
            "value": events / seconds,
            "unit": "events/s",
            "peer": f"msgspec decode_lines at {peer:,.0f}/s",
            "ratio": events / seconds / peer,
            "candidates": candidates,
            "offers": offers,
            "transitions": transitions,
            "drops": shares,
            **({"held": pipeline.held_events} if pipeline.held_events else {}),
            **({"patterns": patterns} if any(patterns.values()) else {}),
            "hash": digest.hexdigest(),
        }
    ]


def decode_rate(data: bytes, events: int) -> float:
    """Events/s of msgspec on these bytes, batch by batch like the pipeline, best of three."""
    decoder = msgspec.json.Decoder(Event)
    cuts, start = [], 0
    lines = data.split(b"\n")
    for first in range(0, len(lines) - 1, BATCH):
        size = sum(len(line) + 1 for line in lines[first : first + BATCH])
        cuts.append(data[start : start + size])
        start += size
    best = 0.0
    for _ in range(3):
        started, read = perf_counter(), 0
        for cut in cuts:
            read += len(decoder.decode_lines(cut))
        best = max(best, read / (perf_counter() - started))
    assert abs(read - events) <= 1
    return best


def profile_blocks(users: int) -> list[Block]:
    lines = workload.profiles(users)
    return [
        block
        for first in range(0, len(lines), 8192)
        for block in workload._join(users, [line.decode() for line in lines[first : first + 8192]]).blocks(8192)
    ]
