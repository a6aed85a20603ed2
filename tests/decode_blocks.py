"""Blocks, feeds and cells for the tests of decoding."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from engine.decode.decoder import Decoded, Decoder
from engine.decode.users import UserTable
from engine.definitions import CellTable
from engine.model import Block, RecordKind
from engine.settings import FeedSettings, FeedTable

NOW = 1_760_000_000_000

FEEDS = FeedTable(
    {
        "default": FeedSettings(),
        "app": FeedSettings(zone="Asia/Shanghai", max_accuracy_m=100),
        "signalling": FeedSettings(signalling=True, radius_percent=95),
        "gcj": FeedSettings(datum="gcj02"),
        "bd": FeedSettings(datum="bd09"),
        "owntracks": FeedSettings(),
        "segment": FeedSettings(),
    }
)
CELLS = CellTable(
    ids=("460-01-1-1", "460-01-1-2", "塔"),
    lon_e7=np.array([1163900000, 1164000000, -1163900000], np.int32),
    lat_e7=np.array([399000000, 399100000, -399000000], np.int32),
    radius_m=np.array([500.0, 0.0, 90.0]),
    indoor=np.array([False, True, False]),
)


def block_of(
    values: Sequence[bytes], append_ms: Sequence[int] | int = NOW, kinds: Sequence[int] | None = None
) -> Block:
    """One record per value; positions are 7 apart, the partition is 3."""
    sizes = np.array([len(value) for value in values], np.int64)
    end = np.cumsum(sizes).astype(np.int64)
    appends = [append_ms] * len(values) if isinstance(append_ms, int) else append_ms
    return Block(
        data=b"".join(values),
        start=end - sizes,
        end=end,
        position=np.arange(len(values), dtype=np.int64) * 7,
        append_ms=np.array(appends, np.int64),
        kind=np.array(kinds or [RecordKind.EVENTS] * len(values), np.uint8),
        partition=3,
    )


def decoder(tenant: str = "default", reader: Any = "scanner") -> Decoder:
    return Decoder(FEEDS, CELLS, UserTable(), tenant, reader)


def decode(*values: bytes | dict[str, Any], append_ms: Sequence[int] | int = NOW, reader: Any = "scanner") -> Decoded:
    """Decode each value as a record of its own; a dict becomes JSON."""
    raw = [one if isinstance(one, bytes) else json.dumps(one).encode() for one in values]
    return decoder(reader=reader).decode(block_of(raw, append_ms), 0)


def ping(**fields: Any) -> dict[str, Any]:
    return {"type": "ping", "user": "u1", "at": NOW, "lon": 116.39, "lat": 39.9, **fields}


def usage(**fields: Any) -> dict[str, Any]:
    return {"type": "usage", "user": "u1", "at": NOW, "app": "taobao", **fields}


def without(fields: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if name not in names}
