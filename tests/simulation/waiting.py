"""Candidates that wait: for quiet hours to end (C6), or for competitors (D2)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from tests.simulation.judge import Trigger
from tests.simulation.walk import Wanted


@dataclass
class Gathered:
    """One that passed the gates and was not decided: it is when the user's window ends."""

    trigger: Trigger
    arrived_ms: int
    until_ms: int
    is_sure: bool


class Waiting:
    """At most one of a user and scenario."""

    def __init__(self) -> None:
        self._held: dict[tuple[str, str], tuple[str, Trigger, int]] = {}
        self._gathered: dict[tuple[str, str], Gathered] = {}

    def hold(self, decision: dict[str, Any], trigger: Trigger, arrived_ms: int) -> None:
        self._held[decision["user"], decision["scenario"]] = (decision["decision_id"], trigger, arrived_ms)

    def gather(self, one: Wanted, trigger: Trigger, now_ms: int, window_ms: int, is_sure: bool) -> None:
        """The first of a user opens the window."""
        mine = [
            each.until_ms for (user, _), each in self._gathered.items() if user == one[0] and each.until_ms > now_ms
        ]
        until_ms = min(mine, default=now_ms + window_ms)
        if is_sure or one[:2] not in self._gathered:
            self._gathered[one[:2]] = Gathered(trigger, now_ms, until_ms, is_sure)

    def is_released(self, decision: dict[str, Any]) -> bool:
        held = self._held.get((decision["user"], decision["scenario"]))
        return (held is not None and held[0] == decision["decision_id"]) or self._gather_of(decision) is not None

    def take(self, decision: dict[str, Any]) -> tuple[Trigger, int, int | None] | None:
        """Return trigger, arrival, and the instant at which it must be decided where that is known."""
        place = decision["user"], decision["scenario"]
        held = self._held.get(place)
        if held is not None and held[0] == decision["decision_id"]:
            del self._held[place]
            return held[1], held[2], None
        gathered = self._gather_of(decision)
        if gathered is None:
            return None
        del self._gathered[place]
        told = decision["trigger"]
        trigger = Trigger(told["kind"], told["key"], told["at"], told["fence"])
        return trigger, gathered.arrived_ms, gathered.until_ms

    def _gather_of(self, decision: dict[str, Any]) -> Gathered | None:
        one = self._gathered.get((decision["user"], decision["scenario"]))
        told = decision["trigger"]
        if one is None or one.trigger.at_ms != told["at"] or decision["at"] < one.arrived_ms:
            return None
        known = (told["key"], told["key"].rpartition("|")[0] + "|?", "?")
        return one if one.trigger.key in known else None

    def holds(self, user: str, scenario: str, decision_id: str | None) -> bool:
        """Whether a candidate of this scenario waits for this user."""
        held = self._held.get((user, scenario))
        return (held is not None and held[0] == decision_id) or (user, scenario) in self._gathered

    def forget(self, user: str) -> None:
        self._held = {key: one for key, one in self._held.items() if key[0] != user}
        self._gathered = {key: one for key, one in self._gathered.items() if key[0] != user}

    def left(self) -> Iterator[str]:
        for user, scenario in self._held:
            yield f"held candidate of {scenario} to {user}"
        for (user, scenario), one in self._gathered.items():
            if one.is_sure:
                yield f"candidate of {scenario} to {user}, waiting since {one.arrived_ms}"
