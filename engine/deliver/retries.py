"""What was provably not accepted waits here until it may be submitted again (rule G2)."""

from __future__ import annotations

import heapq
from dataclasses import dataclass

from engine.deliver.contract import Dispatch
from engine.model import Offer

BASE_S = 0.5
LONGEST_S = 60.0


@dataclass(order=True, slots=True)
class Retry:
    due_s: float
    number: int
    offer: Offer
    dispatch: Dispatch
    parts: int
    tries: int  # of the submit that is due, the first is 1


class Retries:
    """Submits to repeat, the next one first."""

    def __init__(self) -> None:
        self._heap: list[Retry] = []
        self._numbers = 0

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next_s(self) -> float:
        """When the next one is due; IndexError where none waits."""
        return self._heap[0].due_s

    def push(self, due_s: float, offer: Offer, dispatch: Dispatch, parts: int, tries: int) -> None:
        self._numbers += 1
        heapq.heappush(self._heap, Retry(due_s, self._numbers, offer, dispatch, parts, tries))

    def pop(self) -> Retry:
        return heapq.heappop(self._heap)

    def take_all(self) -> list[Retry]:
        taken, self._heap = self._heap, []
        return taken

    def take_late(self, now_ms: int) -> list[Retry]:
        """Take out what is past its deadline."""
        late = [one for one in self._heap if now_ms >= one.offer.deadline_ms]
        if late:
            self._heap = [one for one in self._heap if now_ms < one.offer.deadline_ms]
            heapq.heapify(self._heap)
        return late


def delay_s(offer_id: str, tries: int, retry_after_s: float | None) -> float:
    """Return how long to wait after `tries` failed submits (a throttled one is none), spread by the offer id."""
    spread = 0.5 + int(offer_id[-4:], 16) / 0x10000
    waited_s = min(BASE_S * 2 ** max(0, tries - 1), LONGEST_S) * spread
    return max(waited_s if tries else 0.0, (retry_after_s or 0.0) * (0.5 + spread if not tries else 1.0))
