"""Candidates that wait: for quiet hours to end (C6) or for competitors (D2). They hold no reservation."""

from __future__ import annotations

from heapq import heapify, heappop, heappush
from typing import Any

import msgspec

from engine.model import Trigger

NEVER_MS = 1 << 62


class Held(msgspec.Struct):
    """One waiting candidate. `scenario` is the id, so that it survives a change of content.

    gathers  it waits for competitors, not for quiet hours to end
    """

    offer_id: str
    scenario: str
    slot: int
    user_id: str
    trigger: Trigger
    arrived_ms: int
    release_ms: int
    quiet_ends_ms: int
    gathers: bool = False


class HeldQueue:
    """Waiting candidates by release instant; at most one per user and scenario."""

    def __init__(self) -> None:
        self._by_user: dict[int, dict[str, Held]] = {}
        self._heap: list[tuple[int, str, int, str]] = []
        self.due_ms = NEVER_MS
        """Of the first release, or earlier."""

    def __len__(self) -> int:
        return sum(map(len, self._by_user.values()))

    def find(self, slot: int, scenario: str) -> Held | None:
        return self._by_user.get(slot, {}).get(scenario)

    def gathering_until(self, slot: int) -> int | None:
        """Say when the user's open arbitration window ends, if one is open."""
        return next((one.release_ms for one in self._by_user.get(slot, {}).values() if one.gathers), None)

    def of_user(self, slot: int) -> list[Held]:
        return list(self._by_user.get(slot, {}).values())

    def push(self, held: Held) -> None:
        assert self.find(held.slot, held.scenario) is None, "one held candidate per user and scenario"
        self._by_user.setdefault(held.slot, {})[held.scenario] = held
        heappush(self._heap, (held.release_ms, held.offer_id, held.slot, held.scenario))
        self.due_ms = self._heap[0][0]

    def pop_due(self, now_ms: int) -> tuple[int, list[Held]] | None:
        """Return the next release instant up to now, and what is released then; None if nothing is due.

        It is the first of a user, together with the user's others whose quiet hours have ended by then: they compete.
        """
        while self._heap and self._heap[0][0] <= now_ms:
            release_ms, offer_id, slot, scenario = heappop(self._heap)
            first = self.find(slot, scenario)
            if first is None or first.offer_id != offer_id:
                continue
            waiting = self._by_user[slot]
            ready = [one for one in waiting.values() if one.quiet_ends_ms <= release_ms]
            for one in ready:
                del waiting[one.scenario]
            if not waiting:
                del self._by_user[slot]
            self.due_ms = self._heap[0][0] if self._heap else NEVER_MS
            return release_ms, sorted(ready, key=lambda one: (one.arrived_ms, one.offer_id))
        self.due_ms = self._heap[0][0] if self._heap else NEVER_MS
        return None

    def take_user(self, slot: int) -> list[Held]:
        """Remove and return all that waits for a user."""
        return sorted(self._by_user.pop(slot, {}).values(), key=lambda one: (one.arrived_ms, one.offer_id))

    def slots(self) -> set[int]:
        """Of the users for whom something waits."""
        return set(self._by_user)

    def state(self) -> list[Any]:
        every = [one for waiting in self._by_user.values() for one in waiting.values()]
        every.sort(key=lambda one: (one.release_ms, one.offer_id))
        return [msgspec.to_builtins(one) for one in every]

    def restore(self, state: list[Any]) -> None:
        self._by_user, self._heap = {}, []
        for record in state:
            held = msgspec.convert(record, Held)
            self._by_user.setdefault(held.slot, {})[held.scenario] = held
            self._heap.append((held.release_ms, held.offer_id, held.slot, held.scenario))
        heapify(self._heap)
        self.due_ms = self._heap[0][0] if self._heap else NEVER_MS
