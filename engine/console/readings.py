"""What a running service says about itself, read over HTTP: counters and the newest messages."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import httpx
import orjson

from engine.metrics import read_exposition

Counts = dict[tuple[str, ...], float]


@dataclass(slots=True)
class Readings:
    """Totals since the start of the service, and what was derived from messages."""

    events: float = 0
    transitions: Counts = field(default_factory=dict)
    decisions: Counts = field(default_factory=dict)  # (outcome, reason)
    offers: Counts = field(default_factory=dict)  # (scenario,)
    dispatches: Counts = field(default_factory=dict)  # (gateway, state)
    dead_letters: float = 0
    dropped: float = 0
    candidates: float = 0
    backlog_bytes: float = 0
    latencies_ms: list[float] = field(default_factory=list)
    last_messages: deque[dict[str, Any]] = field(default_factory=lambda: deque(maxlen=12))

    def percentile_ms(self, share: float) -> float | None:
        """Return the latency below which `share` of the messages lie; None without messages."""
        if not self.latencies_ms:
            return None
        ordered = sorted(self.latencies_ms)
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    def by_outcome(self, *outcomes: str) -> dict[str, float]:
        """Sum decisions by reason for these outcomes, most frequent first."""
        sums: dict[str, float] = {}
        for (outcome, reason), count in self.decisions.items():
            if outcome in outcomes:
                sums[reason] = sums.get(reason, 0) + count
        return dict(sorted(sums.items(), key=lambda item: -item[1]))


class Reader:
    """Poll a service.

    posted_ms  wall time at which the event of an instant was sent, or None; gives latencies
    is_prompt  whether a message of this scenario, triggered at this instant, goes out at once: not by a timer, and
               not held until quiet hours end
    """

    def __init__(
        self,
        client: httpx.AsyncClient,
        posted_ms: Callable[[int], int | None],
        is_prompt: Callable[[str, int], bool],
    ) -> None:
        self.readings = Readings()
        self._client = client
        self._posted_ms = posted_ms
        self._is_prompt = is_prompt
        self._seen = 0

    async def poll(self) -> Readings:
        samples = read_exposition((await self._client.get("/metrics")).text)
        now = self.readings
        now.events = sum(samples.get("opportune_events_total", {}).values())
        now.transitions = samples.get("opportune_transitions_total", {})
        now.decisions = samples.get("opportune_decisions_total", {})
        now.offers = samples.get("opportune_offers_total", {})
        now.dispatches = samples.get("opportune_dispatches_total", {})
        now.dead_letters = sum(samples.get("opportune_dead_letters_total", {}).values())
        now.dropped = sum(samples.get("opportune_events_dropped_total", {}).values())
        now.candidates = sum(samples.get("opportune_candidates_total", {}).values())
        now.backlog_bytes = sum(samples.get("opportune_backlog_bytes", {}).values())
        await self._read_messages()
        return now

    async def _read_messages(self) -> None:
        answer = await self._client.get("/v1/sandbox/messages", params={"limit": 1000})
        fresh = [one for one in orjson.loads(answer.content)["messages"] if one["number"] > self._seen]
        for message in reversed(fresh):
            self._seen = message["number"]
            self.readings.last_messages.append(message)
            trigger_ms = int(message["offer_id"][:12], 16)  # the first 48 bits of an offer id (D4)
            if self._is_prompt(message["data"]["scenario"], trigger_ms):
                posted_ms = self._posted_ms(trigger_ms)
                if posted_ms is not None:
                    self.readings.latencies_ms.append(max(0.0, message["wall_ms"] - posted_ms))
