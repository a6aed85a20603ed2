"""From completed patterns and `while` conditions to candidates (rules B4, D4, D5).

Called per batch, and does nothing where no pattern completed and no scenario has a condition.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from engine.behavior.plan import Plan
from engine.definitions import Content
from engine.model import Candidate, Trigger
from engine.pipeline.candidates import KIND_NAMES

_BY_ITSELF, _BY_MATCH = -1, -2
_COLUMNS = ("row", "by_timer", "now_ms", "user", "transition", "pattern", "source") + (
    "at_ms",
    "first_ms",
    "identity",
    "number",
    "total",
    "silent_ms",
)
_Place = tuple[int, int, int]


class Scene(NamedTuple):
    """What a batch was: its transitions, and how to name users and read the few events that are asked about."""

    transitions: np.ndarray
    user_id: Callable[[int], str]
    place: Callable[[int], tuple[int, int]]  # position and item of an event row
    usage: Callable[[int], Trigger]  # the trigger that a usage event would be by itself
    inside_after: Callable[[int, int, bool, int, int], list[int]]  # of `Presence`


class FiredMaker:
    """Knows which scenario waits for which pattern, and what must hold besides; made anew for each content.

    fence_size_m  float[F], the characteristic radius: of several fences the smallest is named (P8)
    """

    def __init__(self, content: Content, plan: Plan, fence_size_m: np.ndarray) -> None:
        self._content = content
        self._plan = plan
        self._size_m = fence_size_m.tolist()
        self._conditional = frozenset(plan.asked) | frozenset(plan.inside)
        self.has_conditions = bool(self._conditional)
        self.looks_back = bool(plan.looks_back)

    def may_hold(self, scenario: int, row: int, inside: dict[int, list[int]]) -> bool:
        """Say whether the conditions of a scenario can hold at an event row, before a candidate is made of it."""
        wanted = self._plan.inside.get(scenario)
        return wanted is None or not wanted.isdisjoint(inside.get(row, ()))

    def merge(
        self, plain: Iterable[tuple[int, Candidate]], fired: np.ndarray, inside: dict[int, list[int]], scene: Scene
    ) -> Iterator[Candidate]:
        """Yield the candidates of a batch in log order: plain ones whose conditions hold, and those of patterns.

        plain   (event row, candidate), in log order
        inside  event row -> fence rows its user was inside of
        """
        rows = list(zip(*(fired[name].tolist() for name in _COLUMNS), strict=True))
        held = {(one[0], one[3], one[2], one[5], one[6]): one[10] for one in rows if one[6] != _BY_ITSELF}
        waiting = deque(self._own(rows, held, inside, scene))
        for row, candidate in plain:
            place = (row, int(candidate.position >= 0), candidate.now_ms)
            while waiting and waiting[0][0] < place:
                yield waiting.popleft()[1]
            cause = (row, candidate.user, candidate.now_ms)
            if candidate.scenario in self._conditional:
                fences: Sequence[int] = inside.get(row, ())
                if candidate.scenario in self._plan.looks_back:
                    moment = candidate.user, row, candidate.position < 0, candidate.now_ms
                    fences = scene.inside_after(*moment, candidate.trigger.at_ms)
                if not self._holds(candidate.scenario, candidate.trigger, cause, held, fences, _BY_MATCH):
                    continue
            yield candidate
        for _, candidate in waiting:
            yield candidate

    def _own(
        self,
        rows: list[tuple[Any, ...]],
        held: dict[tuple[int, int, int, int, int], int],
        inside: dict[int, list[int]],
        scene: Scene,
    ) -> Iterator[tuple[_Place, Candidate]]:
        told: set[tuple[int, int, int]] = set()
        for one in rows:
            row, by_timer, now_ms, user, _, pattern, source = one[:7]
            if source != _BY_ITSELF:
                continue
            for scenario in self._plan.scenarios[pattern]:
                if not by_timer and (row, user, scenario) in told:
                    continue  # one event gives at most one candidate per scenario and user (P8)
                trigger, position, item = self._trigger(one, scenario, scene)
                if scenario in self._conditional:
                    fences = self._inside(one, scenario, inside, scene)
                    if not self._holds(scenario, trigger, (row, user, now_ms), held, fences, pattern):
                        continue
                told.add((row, user, scenario))
                candidate = Candidate(scenario, user, scene.user_id(user), trigger, now_ms, position, item)
                yield (row, 1 - by_timer, now_ms), candidate

    def _inside(self, one: tuple[Any, ...], scenario: int, inside: dict[int, list[int]], scene: Scene) -> Sequence[int]:
        """Return of which fences the user was inside when a pattern completed: by a transition, nothing, or usage."""
        row, by_timer, now_ms, user, transition, pattern, _, at_ms = one[:8]
        if scenario not in self._plan.looks_back:
            return inside.get(row, ())
        if transition >= 0:
            at_ms = int(scene.transitions[transition]["confirmed_ms"])
        elif self._plan.patterns[pattern].kind != "absence":
            return inside.get(row, ())
        return scene.inside_after(user, row, bool(by_timer), now_ms, at_ms)

    def _holds(
        self,
        scenario: int,
        trigger: Trigger,
        cause: tuple[int, int, int],
        held: dict[tuple[int, int, int, int, int], int],
        inside: Sequence[int],
        source: int,
    ) -> bool:
        """Answer a scenario's `while` and write the evidence into the trigger (B4)."""
        if scenario in self._plan.asked:
            asked = self._plan.asked[scenario]
            number = held.get((*cause, asked, source))
            if number is None:
                return False
            wanted = self._plan.patterns[asked]
            trigger.values["while_count"] = number
            trigger.values["while_at_least"] = int(wanted.at_least)
            trigger.values["while_within_s"] = wanted.within_ms / 1000
        if scenario in self._plan.inside:
            found = [row for row in inside if row in self._plan.inside[scenario]]
            if not found:
                return False
            found.sort(key=lambda row: (self._size_m[row], row))
            fences = self._content.fences
            trigger.values["inside"] = fences[found[0]].id
            if trigger.fence is None:  # a transition has a fence of its own
                trigger.fence = fences[found[0]].id
                trigger.time_zone = fences[found[0]].time_zone
                trigger.also_fences = tuple(fences[row].id for row in found[1:])
        return True

    def _trigger(self, one: tuple[Any, ...], scenario: int, scene: Scene) -> tuple[Trigger, int, int]:
        row, by_timer, _, _, transition, pattern, _, at_ms, first_ms, identity, number, total, silent_ms = one
        wanted = self._plan.patterns[pattern]
        values: dict[str, Any] = {"pattern": wanted.kind, "within_s": wanted.within_ms / 1000}
        if wanted.kind == "absence":
            values |= {"opened_at": first_ms, "due_at": at_ms}
            if silent_ms >= 0:
                values["silent_s"] = silent_ms / 1000
            return Trigger("absence", f"{identity:016x}", at_ms, None, None, (), values), -1, -1
        values |= {"first_at": first_ms, "last_at": at_ms}
        if wanted.kind == "sum":
            values |= {"field": wanted.field, "sum": total, "at_least": wanted.at_least}
        elif wanted.kind != "sequence":
            values |= {wanted.kind: number, "at_least": int(wanted.at_least)}
            if wanted.field:
                values["field"] = wanted.field
        else:
            values["steps"] = len(wanted.steps)
        name = self._content.scenarios[scenario].id
        if transition < 0:
            event = scene.usage(row)
            trigger = Trigger("pattern", f"{name}|{event.key}", at_ms, None, None, (), values | event.values)
            return trigger, *scene.place(row)
        move = scene.transitions[transition]
        fence, kind = self._content.fences[move["fence"]], KIND_NAMES[int(move["kind"])]
        values["transition"] = kind
        key = f"{name}|{fence.id}|{kind}|{int(move['crossed_ms'])}"
        place = (-1, -1) if by_timer else scene.place(row)
        return Trigger("pattern", key, at_ms, fence.id, fence.time_zone, (), values), *place
