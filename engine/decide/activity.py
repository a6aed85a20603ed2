"""How often each user was seen in a month, for the activity rate (docs/reports.md): two bits this month, two the last.

Months are those of the log's time in one zone. Of a user nothing is kept but "never, once, twice, more often".
"""

from __future__ import annotations

import numpy as np

from engine.decide.columns import Column
from engine.decide.local_time import calendar_window, to_local
from engine.model import TransitionKind, TransitionReason

MOST = 3
"""Visits a month that are told apart; who reaches it is active."""

# Plain numbers: comparing an array with an enum member asks the member for attributes first, at microseconds each.
_ENTER, _RETURNED = int(TransitionKind.ENTER), int(TransitionReason.RETURNED)
_NO_MONTH = -1


class Activity:
    """Visits by user slot, of the running month of the log and of the one before.

    month     the running one as year * 12 + month - 1; -1 before the first visit
    end_ms    when it ends; fixed when it begins, whatever zone later content names
    since_ms  the log's now at the first visit ever counted; -1 before
    """

    __slots__ = ("column", "end_ms", "month", "since_ms")

    def __init__(self, capacity: int = 0) -> None:
        self.column = Column("u1", 0, capacity)
        self.month, self.end_ms, self.since_ms = _NO_MONTH, 0, -1

    def note(self, transitions: np.ndarray, is_place: np.ndarray, zone: str) -> None:
        """Count the visits among TRANSITION rows in log order; every row's user has a slot.

        A visit begins with an ENTER that takes no EXIT back (L8); fences entered by one fix are one visit.

        is_place  bool[F], by fence row: False where entering is no visit
        zone      whose months are counted, from the next month on
        """
        kind = transitions["kind"]
        if not (kind == _ENTER).any():
            return
        rows = transitions[(kind == _ENTER) & (transitions["reason"] != _RETURNED) & is_place[transitions["fence"]]]
        while len(rows):
            is_later = rows["now_ms"] >= self.end_ms
            self._count(rows[~is_later])
            rows = rows[is_later]
            if len(rows):
                self._begin(int(rows["now_ms"].min()), zone)

    def seen(self, month: int) -> np.ndarray | None:
        """Return uint8[N]: 0 to 3 visits of each slot in a month; None where it is older than what is kept."""
        array: np.ndarray = self.column.array
        if month > self.month:
            return np.zeros_like(array)
        if month == self.month:
            return array & MOST
        return array >> 2 if month == self.month - 1 else None

    def reset(self, slots: np.ndarray) -> None:
        """Forget users whose slots are given away."""
        self.column.array[slots] = 0

    def state(self) -> list[int]:
        return [self.month, self.end_ms, self.since_ms]

    def restore(self, state: list[int]) -> None:
        self.month, self.end_ms, self.since_ms = state

    def _count(self, rows: np.ndarray) -> None:
        if not len(rows):
            return
        # Enters of one fix stand side by side (P6), and those of one timer.
        is_first = np.ones(len(rows), np.bool_)
        np.any([rows[name][1:] != rows[name][:-1] for name in ("user", "event", "confirmed_ms")], 0, is_first[1:])
        users, visits = np.unique(rows["user"][is_first], return_counts=True)
        held = self.column.array[users]
        self.column.array[users] = (held & ~np.uint8(MOST)) | np.minimum((held & MOST) + visits, MOST).astype(np.uint8)

    def _begin(self, now_ms: int, zone: str) -> None:
        """Let the month of this instant be the running one."""
        local = to_local(zone, now_ms)
        month = local.year * 12 + local.month - 1
        if self.month == _NO_MONTH:
            self.since_ms = now_ms
        elif month == self.month + 1:
            # In place: the column's memoryview stays the array's.
            self.column.array[:] = (self.column.array & MOST) << 2
        elif month > self.month:
            self.column.array[:] = 0
        # A new zone may still be in the month that ended in the old one: it goes on.
        self.month, self.end_ms = max(month, self.month), calendar_window("month", zone, now_ms)[1]
