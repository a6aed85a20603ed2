"""Which candidates one record must bring: usage events, transitions and patterns in log order (B1-B5, P8, T8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.ground import category_of, matches
from tests.simulation.plan import City, Plan
from tests.simulation.story import Told
from tests.simulation.watch import Due, Watch
from tests.simulation.whereabouts import Whereabouts

SILENT = {"closed", "opened", "gap", "expired", "removed", "returned"}
Wanted = tuple[str, str, str, int]
"""A candidate that must be decided: user, scenario, trigger key, instant of the trigger."""


@dataclass
class Heard:
    """A ping or usage event as the record has it; `counts`: with consent, once, and in time."""

    event: dict[str, Any]
    counts: bool


@dataclass
class Wants:
    """What a record must bring, what it may bring, and what is known of each."""

    sure: Counter[Wanted] = field(default_factory=Counter)
    maybe: Counter[Wanted] = field(default_factory=Counter)
    now_ms: dict[Wanted, int] = field(default_factory=dict)
    stale: set[tuple[str, str, int]] = field(default_factory=set)
    silent: set[tuple[str, str, int]] = field(default_factory=set)  # user, scenario, instant

    def add(self, one: Wanted, now_ms: int, *, is_sure: bool = True) -> None:
        (self.sure if is_sure else self.maybe)[one] += 1
        self.now_ms[one] = now_ms

    def holds(self, user: str, scenario: str) -> bool:
        """Whether a candidate is not decided yet: it may have begun to wait in this very record."""
        return any(one[:2] == (user, scenario) for wanted in (self.sure, self.maybe) for one in +wanted)

    def take(self, one: Wanted) -> bool:
        """A decision came: strike out what it decides. Ids that the engine made itself are not known here."""
        user, scenario, key, at_ms = one
        for spelt in (key, key.rpartition("|")[0] + "|?", "?"):
            for wanted in (self.sure, self.maybe):
                if wanted[user, scenario, spelt, at_ms] > 0:
                    wanted[user, scenario, spelt, at_ms] -= 1
                    return True
        return False


class Walk:
    """Goes along the log with a model of visits and patterns; `say` is told what cannot be."""

    def __init__(self, cities: Iterable[City], city: City, say: Callable[[str], None]) -> None:
        self.city = city
        self.inside: dict[tuple[str, str], bool] = {}
        self.seen: set[tuple[Any, ...]] = set()
        self.watch = Watch(city)
        self.whereabouts = Whereabouts()
        self._say = say
        self._place = {one.id: one for each in cities for one in each.places}

    def activate(self, city: City) -> None:
        self.city = city
        self.watch.activate(city)

    def forget(self, user: str) -> None:
        for key in [key for key in self.inside if key[0] == user]:
            del self.inside[key]
        self.watch.forget(user)
        self.whereabouts.forget(user)

    def follow(self, heard: list[Heard], told: Told, now_ms: int, *, passes_time: bool) -> Wants:
        """Take a record's events and the transitions that came of it, each at its place."""
        wants = Wants()
        self._chosen: dict[tuple[Any, ...], dict[str, tuple[float, str, str, int]]] = {}
        self._told: set[tuple[int, str, str]] = set()
        moves = list(zip(told.rows, told.transitions, strict=True))
        for row, one in enumerate(heard):
            while moves and moves[0][0] == row and moves[0][1][8]:
                self._move(*moves.pop(0), wants)
            self._due(row, self.watch.hear(one.event, now_ms), wants)
            if one.event["type"] == "ping" and one.counts:
                self.whereabouts.ping(one.event)
            while moves and moves[0][0] == row:
                self._move(*moves.pop(0), wants)
            if one.event["type"] == "usage" and one.counts:
                self._usage(row, one.event, now_ms, wants)
        for row, move in moves:
            self._move(row, move, wants)
        if passes_time:
            self._due(-1, self.watch.pass_time(now_ms), wants)
        for (_, user, moved_ms, _), group in self._chosen.items():
            for name, (_, _, key, at_ms) in group.items():
                wants.add((user, name, key, at_ms), moved_ms)
        return wants

    def _usage(self, row: int, event: dict[str, Any], now_ms: int, wants: Wants) -> None:
        category = category_of(event, self.city.apps)
        self._due(row, self.watch.usage(event, category, now_ms), wants)
        for plan in self.city.plans:
            if plan.trigger[0] != "usage" or not matches(plan.trigger[1], event, category):
                continue
            if plan.asked is not None and not self.watch.holds(plan, event["user"], event["at"]):
                continue
            is_inside = self._is_inside(plan, event) if plan.inside else True
            if is_inside is not False:
                # The id of an event without one is a hash of the engine's own.
                key = f"{event.get('feed', 'default')}|{event.get('id', '?')}"
                wants.add((event["user"], plan.id, key, event["at"]), now_ms, is_sure=is_inside is True)

    def _is_inside(self, plan: Plan, event: dict[str, Any]) -> bool | None:
        user = event["user"]
        visited = [self._place[name] for name in plan.inside if self.inside.get((user, name), False)]
        return self.whereabouts.is_inside(user, visited, event["at"])

    def _due(self, row: int, dues: Iterable[Due], wants: Wants) -> None:
        for one in dues:
            by_timer = one.key == "?"
            if not by_timer:
                if (row, one.user, one.plan) in self._told:
                    continue  # one event gives at most one candidate per scenario and user (P8)
                self._told.add((row, one.user, one.plan))
            wants.add((one.user, one.plan, one.key, one.at_ms), one.now_ms)
            if one.is_silent:
                wants.silent.add((one.user, one.plan, one.at_ms))

    def _move(self, row: int, one: tuple[Any, ...], wants: Wants) -> None:
        """Check that visits alternate, and note whom the transition concerns."""
        user, fence, kind, reason, crossed_ms, confirmed_ms, now_ms, threshold_s, by_timer, is_stale = one
        self.seen.add((user, fence, kind, reason, crossed_ms, confirmed_ms))
        was_inside = self.inside.get((user, fence), False)
        if kind in ("enter", "exit"):
            if was_inside != (kind == "exit"):
                self._say(f"{kind} of {user} and {fence} does not alternate")
            self.inside[user, fence] = kind == "enter"
        elif kind == "dwell":
            if not was_inside:
                self._say(f"dwell of {user} outside of {fence}")
            if confirmed_ms - crossed_ms < threshold_s * 1000:
                self._say(f"dwell of {user} in {fence} too early")
        self._due(-2 - row if by_timer else row, self.watch.move(one), wants)
        if reason in SILENT or kind == "cross":
            return
        key = f"{fence}|{kind}|{crossed_ms}|{max(threshold_s, 0)}"
        if is_stale and kind == "enter":
            wants.stale.add((user, key, confirmed_ms))
        size_m = self._place[fence].size_m
        for plan in self.city.plans:
            if plan.trigger[0] != kind or fence not in plan.trigger[1]:
                continue
            if kind == "dwell" and plan.trigger[2] != threshold_s:
                continue
            group = self._chosen.setdefault((row, user, now_ms, by_timer), {})
            if plan.id not in group or (size_m, fence) < group[plan.id][:2]:
                group[plan.id] = (size_m, fence, key, confirmed_ms)
