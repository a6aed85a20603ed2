"""What came into a partition: a feed that turns bad fills the dead letters faster than anybody reads them (FAULTS F2).

Then the partition stops and says so.
"""

from __future__ import annotations

from typing import Any

from engine.decode.decoder import Decoded
from engine.model import Block

_JUDGED = 5_000
"""Events of which the share of dead letters is taken: at least the last so many, at most twice that."""


class Intake:
    """Watches one partition's events as they are decoded; `pipeline.on_decoded = intake.watch`.

    percent    of dead letters among events above which `alarm` speaks; 0: never
    in_a_row   dead letters without a good event between that make it speak; 0: never
    """

    def __init__(self, *, percent: float, in_a_row: int) -> None:
        self._percent = percent
        self._most_in_a_row = in_a_row
        self._in_a_row = 0
        self._events = self._dead = self._events_before = self._dead_before = 0

    def watch(self, block: Block, decoded: Decoded) -> None:
        """Count what a block held."""
        events, dead = decoded.events, decoded.dead
        if len(events):
            last = (int(block.position[events["record"][-1]]), int(events["item"][-1]))
            self._in_a_row = sum((one.position, one.item) > last for one in dead)
        else:
            self._in_a_row += len(dead)
        self._events += len(events) + len(dead)
        self._dead += len(dead)
        if self._events >= _JUDGED:
            self._events_before, self._dead_before = self._events, self._dead
            self._events = self._dead = 0

    def add_dead(self, letters: int) -> None:
        """Count events that could not even be handed to the decoder."""
        self._in_a_row += letters
        self._events += letters
        self._dead += letters

    def alarm(self) -> str:
        """Say why the partition must not be read on; '' where it may."""
        if self._most_in_a_row and self._in_a_row >= self._most_in_a_row:
            return f"{self._in_a_row} dead letters in a row"
        events, dead = self._events + self._events_before, self._dead + self._dead_before
        if self._percent and events >= _JUDGED and dead * 100 > self._percent * events:
            return f"{dead} of the last {events} events are dead letters"
        return ""

    def objects(self) -> dict[str, Any]:
        """What a checkpoint holds: whoever takes the partition over must not read on either."""
        return {
            "in_a_row": self._in_a_row,
            "counts": [self._events, self._dead, self._events_before, self._dead_before],
        }

    def restore(self, objects: dict[str, Any]) -> None:
        self._in_a_row = int(objects.get("in_a_row", 0))
        counts = objects.get("counts", [0, 0, 0, 0])
        self._events, self._dead, self._events_before, self._dead_before = counts
