"""The undisturbed run: the log of a live day, record by record, through a pipeline that never dies (T3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import orjson

from engine.definitions import Content
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Block
from engine.pipeline import Pipeline
from tests.simulation.live import LedgerSeam, settings_in
from tests.simulation.plan import KEY
from tests.simulation.story import LogRecord, Told
from tests.simulation.told import tell, tell_decisions


def replay(
    records: list[LogRecord],
    contents: dict[str, Content],
    outages: list[tuple[int, int]],
    forgotten: list[tuple[int, str]],
    folder: Path,
) -> tuple[list[Told], list[bytes]]:
    """Return what each record brought about, and the decisions that closing at the end brings."""
    ledger = EmbeddedLedger(Path(":memory:"), fsync="never", boot_id="reference")  # it commits nothing
    seam = LedgerSeam(ledger, outages)
    pipeline = Pipeline(contents["v1"], settings_in(folder), seam, id_key=KEY)
    block, waiting = whole(records), list(forgotten)
    told = []
    for row, record in enumerate(records):
        seam.position = record.position
        while waiting and waiting[0][0] <= record.position:
            _, user = waiting.pop(0)
            pipeline.forget(user)
            ledger.forget(user)
        effects = pipeline.process(block.part(row, row + 1), lambda body: contents[orjson.loads(body)["version"]])
        told.append(tell(pipeline, effects))
    closing = tell_decisions(pipeline.finish().decisions)
    ledger.close()
    return told, closing


def whole(records: list[LogRecord]) -> Block:
    """All records as one block."""
    ends = np.cumsum([len(record.payload) for record in records])
    return Block(
        b"".join(record.payload for record in records),
        ends - np.array([len(record.payload) for record in records]),
        ends,
        np.array([record.position for record in records], np.int64),
        np.array([record.append_ms for record in records], np.int64),
        np.array([record.kind for record in records], np.uint8),
    )
