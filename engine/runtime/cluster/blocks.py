"""Kafka's records as blocks: the last place where a record is an object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.model import Block, RecordKind

KIND_HEADER = "opportune-kind"
"""Names the kind of a record that is not events: tick, content or control."""

_KINDS = {kind.name.lower().encode(): int(kind) for kind in RecordKind}
KIND_NAMES = {kind: name for name, kind in _KINDS.items()}
_EVENTS = int(RecordKind.EVENTS)


def block_of_records(records: Sequence[Any], partition: int) -> Block:
    """Copy the values of aiokafka's records of one partition into one buffer.

    A record without a value is an empty one. Append times are the broker's (LogAppendTime).
    """
    values = [record.value or b"" for record in records]
    end = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
    start = np.empty_like(end)
    start[0] = 0
    start[1:] = end[:-1]
    return Block(
        data=b"".join(values),
        start=start,
        end=end,
        position=np.fromiter([record.offset for record in records], np.int64, len(values)),
        append_ms=np.fromiter([record.timestamp for record in records], np.int64, len(values)),
        kind=np.frombuffer(bytes([kind_of(record.headers) for record in records]), np.uint8).copy(),
        partition=partition,
    )


def kind_of(headers: Sequence[tuple[str, bytes]]) -> int:
    """Say what a record is; a kind that is not known is read as events, whose dead letters say what it was."""
    if not headers:
        return _EVENTS
    for name, value in headers:
        if name == KIND_HEADER:
            return _KINDS.get(value, _EVENTS)
    return _EVENTS


def kind_headers(kind: RecordKind) -> list[tuple[str, str | bytes | None]]:
    return [] if kind == RecordKind.EVENTS else [(KIND_HEADER, KIND_NAMES[int(kind)])]
