"""Which patterns must complete, by brute force over windows of what happened (rules B1-B5, T5, T8).

The windows are those of `tests/oracle/pattern_oracle.py`, which was written from docs/behavior.md alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from tests.oracle.pattern_oracle import Completed, PatternOracle, truth
from tests.simulation.ground import LATENESS_MS
from tests.simulation.plan import City, Plan
from tests.simulation.terms import Pattern

FEEDS = {
    "default": (60_000, 2_000),
    "app": (600_000, 2_000),
    "dpi": (1_200_000, 5_000),
    "signalling": (1_800_000, 30_000),
}
"""Of each feed how often it reports, and how late it may be; `live` declares them so."""


class Due(NamedTuple):
    """A candidate that a completed pattern must give; the key of an event without an id ends in `?`."""

    user: str
    plan: str
    key: str
    at_ms: int
    now_ms: int
    is_silent: bool


class Watch:
    """Told what happens in log order; gives what completed by it."""

    def __init__(self, city: City) -> None:
        self.oracle = PatternOracle([], FEEDS, LATENESS_MS, lambda key: 0)
        self._numbers: list[tuple[Pattern, bool]] = []
        self._plans: dict[int, list[Plan]] = {}
        self._asked: dict[str, int] = {}
        self.activate(city)

    def activate(self, city: City) -> None:
        """Take new content: a pattern that is still there keeps what is remembered (L10)."""
        own = [plan.trigger[1] for plan in city.plans if plan.trigger[0] == "pattern"]
        asked = [plan.asked for plan in city.plans if plan.asked is not None]
        numbers = [*((one, True) for one in dict.fromkeys(own)), *((one, False) for one in dict.fromkeys(asked))]
        row_of = {old: numbers.index(one) for old, one in enumerate(self._numbers) if one in numbers}
        self._numbers = numbers
        self.oracle.renumber([one for one, _ in numbers], row_of)
        self._plans = {
            number: [plan for plan in city.plans if is_own and plan.trigger == ("pattern", one)]
            for number, (one, is_own) in enumerate(numbers)
        }
        self._asked = {plan.id: numbers.index((plan.asked, False)) for plan in city.plans if plan.asked is not None}

    def pass_time(self, now_ms: int) -> Iterator[Due]:
        self.oracle.pass_time(now_ms)
        return self._absences()

    def hear(self, event: dict[str, Any], now_ms: int) -> Iterator[Due]:
        """A ping or a usage event, whether or not it counts."""
        self.oracle.hear(event["type"], event["user"], event.get("feed", "default"), event["at"], now_ms)
        return self._absences()

    def move(self, one: tuple[Any, ...]) -> Iterator[Due]:
        """A transition; what has no instant of its own is no step."""
        user, fence, kind, reason, crossed_ms, _, now_ms, _, by_timer, is_stale = one
        yield from self.pass_time(now_ms)
        if reason not in ("fix", "timer") or kind not in ("enter", "exit") or (kind == "enter" and is_stale):
            return
        move = {"fence": fence, "kind": kind, "crossed_ms": crossed_ms, "sure": 9}
        self.oracle.move(user, move, now_ms, by_timer=by_timer)
        for done in self._completed():
            for plan in self._plans[done.pattern]:
                yield Due(user, plan.id, f"{plan.id}|{fence}|{kind}|{crossed_ms}", done.at_ms, now_ms, False)

    def usage(self, event: dict[str, Any], category: str | None, now_ms: int) -> Iterator[Due]:
        """A usage event that counts."""
        fields = {"app": event.get("app"), "category": category, "action": event.get("action")}
        fields |= {f"props.{name}": value for name, value in event.get("props", {}).items()}
        self.oracle.usage(event["user"], event["at"], now_ms, "", fields)
        for done in self._completed():
            for plan in self._plans[done.pattern]:
                key = f"{plan.id}|{event.get('feed', 'default')}|{event.get('id', '?')}"
                yield Due(event["user"], plan.id, key, done.at_ms, now_ms, False)

    def holds(self, plan: Plan, user: str, at_ms: int) -> bool:
        """Whether the count that a scenario asks for besides is true now."""
        number = self._asked[plan.id]
        memory = self.oracle.memory.get((user, number, None))
        return memory is not None and truth(self.oracle.patterns[number], memory.events, at_ms, []) is not None

    def forget(self, user: str) -> None:
        self.oracle.forget(user)

    def _completed(self) -> list[Completed]:
        done = self.oracle.completed
        self.oracle.completed = []
        return done

    def _absences(self) -> Iterator[Due]:
        for done in self._completed():
            for plan in self._plans[done.pattern]:
                yield Due(str(done.user), plan.id, "?", done.at_ms, done.now_ms, done.silent)
