"""The codes of one pool that one worker may give: numbers in leases, always the lowest first (rule O3).

Which number comes next depends on the set alone and not on how it came about, so that a state rebuilt from stored
rows goes on as the lost one would have.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush, heapreplace
from typing import Any


@dataclass(frozen=True, slots=True)
class Lease:
    """Numbers first : first + count of a pool, given to a worker under an epoch."""

    pool: str
    first: int
    count: int
    epoch: int
    expired: bool = False

    @property
    def end(self) -> int:
        return self.first + self.count


class CodePool:
    """Draw costs the logarithm of how many spans there are: one, and one for each code given back."""

    def __init__(self) -> None:
        self._leases: list[tuple[int, int, int]] = []  # first, end, epoch
        self._expired: list[tuple[int, int]] = []
        self._heap: list[tuple[int, int]] = []  # spans (first, end) that may be drawn
        self._returned: list[tuple[int, int]] = []
        self.available = 0

    @property
    def leased(self) -> int:
        """How many numbers are leased here, the expired ones not included."""
        return sum(end - first for first, end, _ in self._leases)

    def lease(self, first: int, count: int, epoch: int) -> None:
        end = first + count
        if count <= 0 or (first, end, epoch) in self._leases:
            return
        self._leases.append((first, end, epoch))
        self._expired = without(self._expired, [(first, end)])
        heappush(self._heap, (first, end))
        self.available += count

    def draw(self) -> int:
        """Take the lowest number; the caller asked `available` before."""
        first, end = self._heap[0]
        if first + 1 < end:
            heapreplace(self._heap, (first + 1, end))
        else:
            heappop(self._heap)
        self.available -= 1
        return first

    def give_back(self, number: int) -> None:
        """Take back a number that was drawn; one of an expired lease goes to what is returned."""
        if any(first <= number < end for first, end in self._expired):
            self._returned.append((number, number + 1))
        else:
            heappush(self._heap, (number, number + 1))
            self.available += 1

    def spend(self, spans: Iterable[Sequence[int]]) -> None:
        """Never draw these again: they were given by records that a power loss took from the log."""
        self._heap = without(joined(self._heap), [(span[0], span[1]) for span in spans])
        heapify(self._heap)
        self.available = sum(end - first for first, end in self._heap)

    def recall(self, epoch: int) -> None:
        """Let every lease up to this epoch expire."""
        gone = [(first, end) for first, end, under in self._leases if under <= epoch]
        if not gone:
            return
        self._leases = [one for one in self._leases if one[2] > epoch]
        self._expired = joined([*self._expired, *gone])
        kept = without(joined(self._heap), gone)
        self._returned += without(joined(self._heap), kept)
        self._heap = kept
        heapify(self._heap)
        self.available = sum(end - first for first, end in self._heap)

    def known(self) -> list[tuple[int, int]]:
        """List the spans that were ever leased here, the expired ones included."""
        return joined([*((first, end) for first, end, _ in self._leases), *self._expired])

    def has_lease(self, epoch: int) -> bool:
        """Say whether a lease up to this epoch has not expired yet."""
        return any(under <= epoch for _, _, under in self._leases)

    def returned(self) -> list[tuple[int, int]]:
        return joined(self._returned)

    def accept_return(self, spans: Iterable[Sequence[int]]) -> None:
        self._returned = without(joined(self._returned), [(span[0], span[1]) for span in spans])

    def state(self) -> dict[str, Any]:
        return {
            "leases": [list(one) for one in self._leases],
            "expired": [list(one) for one in self._expired],
            "free": [list(one) for one in joined(self._heap)],
            "returned": [list(one) for one in joined(self._returned)],
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> CodePool:
        pool = cls()
        pool._leases = [(first, end, epoch) for first, end, epoch in state["leases"]]
        pool._expired = [(first, end) for first, end in state["expired"]]
        pool._heap = [(first, end) for first, end in state["free"]]
        pool._returned = [(first, end) for first, end in state["returned"]]
        pool.available = sum(end - first for first, end in pool._heap)
        return pool

    @classmethod
    def rebuilt(cls, leases: Iterable[Lease], used: Iterable[int]) -> CodePool:
        """Make a pool of stored leases less the numbers in use.

        What had been returned before is not known any more; codes.db takes it back a second time without harm.
        """
        pool = cls()
        every = list(leases)
        live = [(one.first, one.end, one.epoch) for one in every if not one.expired]
        pool._leases = live
        covered = joined([(first, end) for first, end, _ in live])
        pool._expired = without(joined([(one.first, one.end) for one in every if one.expired]), covered)
        taken = joined([(number, number + 1) for number in used])
        pool._heap = without(covered, taken)
        heapify(pool._heap)
        pool._returned = without(pool._expired, taken)
        pool.available = sum(end - first for first, end in pool._heap)
        return pool


def joined(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Sort spans and join those that touch."""
    joined: list[tuple[int, int]] = []
    for first, end in sorted(spans):
        if joined and first <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(end, joined[-1][1])
        else:
            joined.append((first, end))
    return joined


def without(spans: Sequence[tuple[int, int]], gone: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Take the numbers of `gone` out of sorted, joined spans."""
    cuts = joined(gone)
    left: list[tuple[int, int]] = []
    at = 0
    for first, end in spans:
        while at < len(cuts) and cuts[at][1] <= first:
            at += 1
        here = at
        while here < len(cuts) and cuts[here][0] < end:
            if cuts[here][0] > first:
                left.append((first, cuts[here][0]))
            first = max(first, cuts[here][1])
            here += 1
        if first < end:
            left.append((first, end))
    return left
