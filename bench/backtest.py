"""A recording on disk to a whole backtest, one core: reading, sorting, deciding, counting; peer: msgspec decoding it.

The realistic mix of bench/workload.py among 10,000 fences and 255 scenarios, from a file, with limits and stock in
memory. Profiles and the first half are taken before the clock starts: a recording is longer than its warm-up. The
result hash is over everything that was counted, so that nothing is skipped.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path
from time import perf_counter

from bench import workload
from bench.pipeline import decode_rate, profile_blocks
from engine.model import Block
from engine.pipeline import Pipeline
from engine.runtime.backtest import Tally
from engine.runtime.backtest import run as backtest
from engine.runtime.file_source import FileSource
from engine.settings import Settings


def run(smoke: bool) -> list[dict]:
    users, events = (20_000, 40_000) if smoke else (200_000, 2_000_000)
    content = workload.make_content(1_000 if smoke else 10_000, 255)
    made = workload.realistic(users, events, content)
    half = len(made.start) // 2
    cut = int(made.start[half])
    head = workload.Workload(made.data[:cut], made.start[:half], made.end[:half], users)
    tail = made.data[cut:]

    def prepare(pipeline: Pipeline) -> None:
        for block in [*profile_blocks(users), *head.blocks(4096)]:
            pipeline.process(block)

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.ndjson"
        path.write_bytes(tail)
        source = _Timed(path)
        tally = backtest(
            source, content, Settings(), id_key=b"bench bench bench bench", endless_codes=True, prepare=prepare
        )
    seconds = source.opening_s + tally.seconds
    peer = decode_rate(tail, len(made.start) - half)
    assert tally.dead == 0
    return [
        {
            "name": "backtest.events_per_s",
            "value": tally.events / seconds,
            "unit": "events/s",
            "peer": f"msgspec decode_lines at {peer:,.0f}/s",
            "ratio": tally.events / seconds / peer,
            "candidates": tally.candidates,
            "offers": sum(tally.by_slot.values()),
            "opening_s": source.opening_s,
            "hash": digest(tally),
        }
    ]


class _Timed:
    """The file source, which reads and sorts when it is opened: that belongs to the time."""

    def __init__(self, path: Path) -> None:
        started = perf_counter()
        self._source = FileSource([path])
        self.opening_s = perf_counter() - started

    def poll(self, events: int) -> list[Block]:
        return self._source.poll(events)


def digest(tally: Tally) -> str:
    counted = [tally.outcomes, tally.by_slot, tally.by_fence, tally.parts, tally.given]
    told = [sorted(one.items()) for one in counted]
    segments = sorted((key, one.offers, len(one.users)) for key, one in tally.segments.items())
    return hashlib.blake2b(repr((tally.events, told, segments)).encode(), digest_size=8).hexdigest()
