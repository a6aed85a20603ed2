"""Send a city's day to a service over HTTP at a steady pace, in order, and remember when each slice went out."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from datetime import timedelta

import httpx

from engine.city.city import City
from engine.clock import monotonic_s, wall_ms
from engine.errors import OpportuneError

SLICES_PER_S = 20


class Feeder:
    """Feed `city` through one connection, so that the log keeps the order of events; `pace` before `run`."""

    def __init__(self, city: City, client: httpx.AsyncClient) -> None:
        self.city = city
        self.sent = 0
        self.now_ms = city.begin_ms
        self._client = client
        self._slice_s = 1.0 / SLICES_PER_S
        self._step = timedelta(minutes=1)
        self._edges_ms: list[int] = []
        self._posted_ms: list[int] = []

    def pace(self, lasts_s: float) -> None:
        """Spread the day over `lasts_s` seconds."""
        self._slice_s = lasts_s / max(1, round(lasts_s * SLICES_PER_S))
        self._step = timedelta(milliseconds=(self.city.end_ms - self.city.begin_ms) * self._slice_s / lasts_s)

    @property
    def speed(self) -> float:
        """Simulated seconds per second."""
        return self._step.total_seconds() / self._slice_s

    async def register(self) -> None:
        """Send profiles and consents."""
        lines = self.city.registrations().split(b"\n")
        for first in range(0, len(lines), 2_000):
            await self._post(b"\n".join(lines[first : first + 2_000]))
        self.sent += len(lines)

    async def run(self) -> None:
        """Send the day; where the service is slower than the pace, go on as fast as it takes events."""
        begin_s = monotonic_s()
        for number, one in enumerate(self.city.slices(self._step), 1):
            self._edges_ms.append(one.until_ms)
            self._posted_ms.append(wall_ms())
            if one.events:
                await self._post(one.lines)
            self.sent += one.events
            self.now_ms = one.until_ms
            ahead_s = begin_s + number * self._slice_s - monotonic_s()
            await asyncio.sleep(max(0.0, ahead_s))

    def posted_ms(self, at_ms: int) -> int | None:
        """Return the wall time at which the slice with this instant began to go out."""
        row = bisect_left(self._edges_ms, at_ms + 1)
        return self._posted_ms[row] if row < len(self._posted_ms) else None

    async def _post(self, lines: bytes) -> None:
        while True:
            answer = await self._client.post(
                "/v1/events", content=lines, headers={"content-type": "application/x-ndjson"}
            )
            if answer.status_code == 202:
                return
            if answer.status_code != 429:
                raise OpportuneError(f"the service answered {answer.status_code} to events: {answer.text[:200]}")
            await asyncio.sleep(float(answer.headers.get("retry-after", "1")))
