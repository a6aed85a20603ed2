"""Which partition an event belongs to: that of its user's id, by murmur2, as Kafka's own producers have it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import orjson
from aiokafka.partitioner import murmur2

from engine.decode.envelopes import Ignored, unwrap
from engine.decode.split import on_one_line
from engine.errors import EventError

MOST_BYTES = 256 << 10
"""A record of many events is cut where it would grow beyond this."""


def partition_of(user: str, partitions: int) -> int:
    """Return the partition of a user."""
    return int(murmur2(user.encode()) & 0x7FFFFFFF) % partitions


def by_partition(payloads: Sequence[bytes], partitions: int) -> Iterator[tuple[int, bytes | None, bytes]]:
    """Sort events into records of lines: (partition, key of its first event, record); a user's events keep their order.

    payloads  each a JSON object, an array of them, or lines; what cannot be read goes to partition 0 as it is, where
              its dead letter says what is wrong
    """
    open_: dict[int, list[bytes]] = {}
    sizes: dict[int, int] = {}
    keys: dict[int, bytes | None] = {}
    for payload in payloads:
        for user, event in events_of(payload):
            partition = 0 if user is None else partition_of(user, partitions)
            if sizes.get(partition, 0) + len(event) > MOST_BYTES and partition in open_:
                yield partition, keys[partition], b"\n".join(open_.pop(partition))
                sizes[partition] = 0
            if partition not in open_:
                open_[partition], keys[partition] = [], None if user is None else user.encode()
            open_[partition].append(event)
            sizes[partition] = sizes.get(partition, 0) + len(event) + 1
    for partition, events in open_.items():
        yield partition, keys[partition], b"\n".join(events)


def events_of(payload: bytes) -> Iterator[tuple[str | None, bytes]]:
    """Give each event of a payload on a line of its own, with its user's id, None where it cannot be read."""
    try:
        document = orjson.loads(payload)
    except orjson.JSONDecodeError:
        for line in payload.split(b"\n"):
            if line.strip():
                try:
                    yield user_of(orjson.loads(line)), line.strip()
                except orjson.JSONDecodeError:
                    yield None, line.strip()
        return
    for event in document if isinstance(document, list) else [document]:
        yield user_of(event), orjson.dumps(event) if isinstance(document, list) else _whole_line(payload)


def user_of(event: Any) -> str | None:
    """Return whose event this is, in whatever envelope it comes; None where that cannot be said."""
    if not isinstance(event, dict):
        return None
    try:
        inner = unwrap(event)
    except EventError:
        return None
    user = None if isinstance(inner, Ignored) else inner.get("user")
    return user if isinstance(user, str) and user else None


def _whole_line(payload: bytes) -> bytes:
    return on_one_line(payload).strip() if b"\n" in payload or b"\r" in payload else payload
