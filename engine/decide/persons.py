"""Whose numbers are one person's, and what that person refused on any of them (rule A4).

A person's newest no to a purpose binds every number of the person that has not said yes after it: the numbers linked
when it is said, and any that is linked later. A yes counts for its own number alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from engine.decide.columns import MISSING, Column, TextColumn


class Persons:
    """Slots of one person form a ring, in memory only while profiles name persons; 4 bytes a user then.

    refused  by person row the newest instant at which each purpose was refused
    """

    def __init__(self) -> None:
        self.refused: dict[int, dict[str, int]] = {}
        self._next = Column("i4", MISSING, 0)
        self._any: list[int] = []  # by person row a slot of its ring, MISSING where there is none

    def move(self, column: TextColumn, slot: int, person: str | None) -> None:
        """Name the person of a slot in `column`, or nobody, and keep the rings."""
        before = column.view[slot]
        column.set(slot, person)
        after = column.view[slot]
        if after == before:
            return
        if slot >= len(self._next.array):
            self._next.grow(len(column.array))
        if before != MISSING:
            self._leave(before, slot)
        if after != MISSING:
            self._join(after, slot)

    def rebuild(self, column: TextColumn | None, count: int) -> None:
        """Make the rings of a restored column."""
        self._next, self._any = Column("i4", MISSING, 0), []
        if column is not None:
            self._next.grow(len(column.array))
            for slot, row in enumerate(column.array[:count].tolist()):
                if row != MISSING:
                    self._join(row, slot)

    def others(self, row: int, slot: int) -> list[int]:
        """List the person's other slots, lowest first, however they came together."""
        return sorted(one for one in self._ring(row) if one != slot)

    def refuse(self, row: int, purpose: str, at_ms: int) -> bool:
        """Remember a no; says whether it is not older than those remembered, so that it must be spread."""
        newest = self.refused.setdefault(row, {})
        if at_ms < newest.get(purpose, at_ms):
            return False
        newest[purpose] = at_ms
        return True

    def _ring(self, row: int) -> Iterator[int]:
        first = self._any[row] if row < len(self._any) else MISSING
        if first == MISSING:
            return
        yield first
        slot = self._next.view[first]
        while slot != first:
            yield slot
            slot = self._next.view[slot]

    def _join(self, row: int, slot: int) -> None:
        self._any += [MISSING] * (row + 1 - len(self._any))
        first, ring = self._any[row], self._next.view
        if first == MISSING:
            self._any[row] = ring[slot] = slot
        else:
            ring[slot] = ring[first]
            ring[first] = slot

    def _leave(self, row: int, slot: int) -> None:
        ring = self._next.view
        after = ring[slot]
        last = next(one for one in self._ring(row) if ring[one] == slot)
        ring[last], ring[slot] = after, MISSING
        self._any[row] = MISSING if after == slot else after

    def state(self) -> list[list[Any]]:
        return [[row, purpose, at_ms] for row, said in self.refused.items() for purpose, at_ms in said.items()]

    def restore(self, state: list[list[Any]]) -> None:
        self.refused = {}
        for row, purpose, at_ms in state:
            self.refused.setdefault(row, {})[purpose] = at_ms
