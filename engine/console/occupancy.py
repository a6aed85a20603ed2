"""How many are inside each fence: as an answer, and as a stream of what changes (rule P9)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import orjson

from engine.console.contract import FenceOccupancy
from engine.decide.disclosure import shown

EVERY_S = 1.0
MOST_STREAMS = 16


def rows_of(occupancy: Sequence[FenceOccupancy]) -> list[dict[str, Any]]:
    """Return what may be shown of each fence, in the given order."""
    return [
        {"fence": one.fence, "name": one.name, "kind": one.kind, "users": shown(one.users), "crowded": one.crowded}
        for one in occupancy
    ]


class OccupancyStream:
    """Server-sent events: first every fence with users, then once a second those whose shown count changed.

    read  returns the counts of now; called in a thread
    goes_on  says whether the service still runs
    """

    def __init__(
        self, read: Callable[[], Sequence[FenceOccupancy]], goes_on: Callable[[], bool], every_s: float = EVERY_S
    ) -> None:
        self._read = read
        self._goes_on = goes_on
        self._every_s = every_s
        self._open = 0

    @property
    def is_full(self) -> bool:
        return self._open >= MOST_STREAMS

    async def events(self) -> AsyncIterator[bytes]:
        """Yield one event per second with changes, a comment where there are none, so that a dead peer is noticed."""
        self._open += 1
        try:
            told: dict[str, tuple[Any, bool]] = {}
            while self._goes_on():
                changed = []
                for row in rows_of(await asyncio.to_thread(self._read)):
                    now = (row["users"], row["crowded"])
                    if told.get(row["fence"], (0, False)) != now:
                        told[row["fence"]] = now
                        changed.append(row)
                if changed:
                    yield b"event: occupancy\ndata: " + orjson.dumps({"occupancy": changed}) + b"\n\n"
                else:
                    yield b": nothing changed\n\n"
                await asyncio.sleep(self._every_s)
        finally:
            self._open -= 1
