"""What an event is to the peer that decodes the same bytes."""

from __future__ import annotations

from typing import Any

import msgspec


class Event(msgspec.Struct):
    """The fields of pings and usage events, as a peer would declare them."""

    type: str
    user: str
    at: int
    v: int = 1
    feed: str = "default"
    id: str | None = None
    lon: float | None = None
    lat: float | None = None
    accuracy_m: float | None = None
    method: str | None = None
    cell: str | None = None
    app: str | None = None
    category: str | None = None
    action: str | None = None
    props: dict[str, Any] | None = None
