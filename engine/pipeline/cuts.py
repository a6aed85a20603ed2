"""Where a block must be cut: at content records, and at what else changes more than time."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from engine.decode.decoder import Decoded
from engine.model import Block, RecordKind

# Plain numbers: comparing an array with an enum member asks the member for attributes first, at microseconds each.
EVENTS, CONTENT, CONTROL = int(RecordKind.EVENTS), int(RecordKind.CONTENT), int(RecordKind.CONTROL)


def between_contents(block: Block) -> Iterator[Block]:
    """Cut a block so that each content record stands alone: what follows is read with the new content."""
    if CONTENT not in block.kind.tobytes():
        yield block
        return
    contents = np.flatnonzero(block.kind == CONTENT).tolist()
    start = 0
    for record in contents:
        if record > start:
            yield block.part(start, record)
        yield block.part(record, record + 1)
        start = record + 1
    if start < len(block):
        yield block.part(start, len(block))


def stops_of(block: Block, decoded: Decoded) -> list[tuple[int, int, int]]:
    """List where the array path must pause: (event row, rare row or -1, block record or -1), in log order."""
    kinds = block.kind.tobytes()
    if kinds.count(EVENTS) == len(kinds):
        return [(row, row, -1) for row in sorted(decoded.rare)]
    if len(kinds) == 1:
        return [(0, -1, 0)]
    stops = [(row, row, -1) for row in decoded.rare]
    others = np.flatnonzero(block.kind != EVENTS)
    rows = np.searchsorted(decoded.events["record"], others, side="right")
    stops += [(row, -1, record) for row, record in zip(rows.tolist(), others.tolist(), strict=True)]
    # At the same row a tick or control record comes first: it was appended before the event of that row.
    stops.sort(key=lambda stop: (stop[0], stop[1] >= 0, stop[2]))
    return stops
