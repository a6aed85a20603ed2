"""Who goes next at a gateway: service before marketing, then scenarios in turn by their weight (rule G4).

Stride scheduling: each scenario advances by 1/weight for every offer taken, the one that is furthest behind goes next.
A scenario of weight 3 gets three times the share of one of weight 1, and no flood of one starves another. Within a
scenario the older offer goes first.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from engine.model import Offer

LEAST_WEIGHT = 0.01
SERVICE_FIRST = {"service": 0}


@dataclass(slots=True)
class _Share:
    waiting: deque[Offer] = field(default_factory=deque)
    passed: float = 0.0


class FairQueue:
    """Offers by class and scenario. The weight of a scenario is the priority of the offer that goes (1 without one)."""

    def __init__(self) -> None:
        self._shares: dict[tuple[int, str], _Share] = {}
        self._heap: list[tuple[int, float, int, tuple[int, str]]] = []  # one entry for each share that waits
        self._now = {0: 0.0, 1: 0.0}  # by class: where a newcomer starts, so that it owes and is owed nothing
        self._count = self._numbers = 0

    def __len__(self) -> int:
        return self._count

    def __iter__(self) -> Iterator[Offer]:
        for share in self._shares.values():
            yield from share.waiting

    def push(self, offer: Offer) -> None:
        key = (SERVICE_FIRST.get(offer.offer_class, 1), offer.scenario)
        share = self._shares.get(key)
        if share is None:
            share = self._shares[key] = _Share()
        if not share.waiting:
            share.passed = max(share.passed, self._now[key[0]])
            self._enter(key, share)
        share.waiting.append(offer)
        self._count += 1

    def pop(self) -> Offer:
        """Take the offer whose turn it is; IndexError where none waits."""
        rank, passed, _, key = heapq.heappop(self._heap)
        share = self._shares[key]
        offer = share.waiting.popleft()
        self._count -= 1
        self._now[rank] = passed
        share.passed = passed + 1.0 / max(offer.priority or 1.0, LEAST_WEIGHT)
        if share.waiting:
            self._enter(key, share)
        elif len(self._shares) > 4096:
            del self._shares[key]
        return offer

    def take(self, is_wanted: Callable[[Offer], bool], most: int | None = None) -> list[Offer]:
        """Take out every offer of which `is_wanted` is true, or the first `most`, whoever's turn it is."""
        taken: list[Offer] = []
        for share in self._shares.values():
            before = len(taken)
            kept: deque[Offer] = deque()
            for offer in share.waiting:
                wanted = (most is None or len(taken) < most) and is_wanted(offer)
                (taken if wanted else kept).append(offer)
            if len(taken) > before:
                share.waiting = kept
        if taken:
            self._count -= len(taken)
            self._heap = [entry for entry in self._heap if self._shares[entry[3]].waiting]
            heapq.heapify(self._heap)
        return taken

    def _enter(self, key: tuple[int, str], share: _Share) -> None:
        self._numbers += 1
        heapq.heappush(self._heap, (key[0], share.passed, self._numbers, key))
