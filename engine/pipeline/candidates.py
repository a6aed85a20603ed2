"""From what happened to what might be said: transitions become candidates, in log order.

Called per batch; cost grows with the transitions that some scenario waits for, not with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from engine.definitions import Content, PresenceTrigger
from engine.model import (
    LOUD_REASONS,
    TRANSITION,
    Candidate,
    Confidence,
    Method,
    TransitionKind,
    TransitionReason,
    Trigger,
)

Places = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Positions and items of event rows, -1 both for row -1."""

KIND_NAMES = {int(kind): kind.name.lower() for kind in TransitionKind}
CONFIDENCE_NAMES = {int(confidence): confidence.name for confidence in Confidence}
METHOD_NAMES = {int(method): method.name.lower() for method in Method}
_COLUMNS = (
    ("kind", "fence", "threshold_s")  # what scenarios wait for: the key of a route
    + ("crossed_ms", "confirmed_ms", "gap_ms", "duration_ms", "initial", "confidence", "method", "wide_gap")
)
_ROUNDED = ("distance_m", "accuracy_m")
_ALIKE = ("event", "user", "now_ms")
"""What one event, or the timers before it, gave shares these."""


class CandidateMaker:
    """Knows which scenario waits for what; made anew for each content.

    fence_size_m  float[F], the characteristic radius: the smallest fence wins (P8)
    """

    def __init__(self, content: Content, fence_size_m: np.ndarray) -> None:
        self._fences = content.fences
        self._named = [(fence.id, fence.time_zone) for fence in content.fences]
        self._size_m = fence_size_m.tolist()
        self._routes, self.thresholds = _routes(content)
        self._is_awaited = np.zeros((len(TransitionKind) + 1, max(1, len(content.fences))), np.bool_)
        for kind, fence, _ in self._routes:
            self._is_awaited[kind, fence] = True
        self._is_loud = np.isin(np.arange(len(TransitionReason)), LOUD_REASONS)

    def from_transitions(
        self, transitions: np.ndarray, ids_of: Callable[[np.ndarray], list[str]], places: Places
    ) -> tuple[list[int], list[Candidate]]:
        """Return (event rows, candidates) in log order; of one fix or timer one candidate a scenario (P8).

        ids_of  user ids of slots;  places  positions and items of event rows
        """
        rows: list[int] = []
        made: list[Candidate] = []
        if len(transitions) == 0:
            return rows, made
        wanted = self._is_awaited[transitions["kind"], transitions["fence"]] & self._is_loud[transitions["reason"]]
        chosen = _by_cause(transitions[wanted])
        if len(chosen) == 0:
            return rows, made
        columns = [chosen[name] for name in _COLUMNS]
        columns += [np.round(chosen[name].astype(np.float64), 1) for name in _ROUNDED]
        facts = list(zip(*(column.tolist() for column in columns), strict=True))
        starts = _starts(chosen, (*_ALIKE, "by_timer"))
        first = chosen[starts]
        by_timer = first["by_timer"] != 0
        positions, items = places(np.where(by_timer, -1, first["event"]))
        shared = zip(
            starts.tolist(),
            [*starts[1:].tolist(), len(chosen)],
            first["event"].tolist(),
            first["user"].tolist(),
            ids_of(first["user"]),
            first["now_ms"].tolist(),
            positions.tolist(),
            items.tolist(),
            strict=True,
        )
        routes, trigger_of = self._routes, self._trigger
        for start, stop, event, user, name, now_ms, position, item in shared:
            if stop == start + 1:
                fact = facts[start]
                for scenario in routes.get(fact[:3], ()):
                    rows.append(event)
                    made.append(Candidate(scenario, user, name, trigger_of(fact), now_ms, position, item))
                continue
            for scenario, trigger in self._smallest(facts[start:stop]):
                rows.append(event)
                made.append(Candidate(scenario, user, name, trigger, now_ms, position, item))
        return rows, made

    def _smallest(self, facts: list[tuple[Any, ...]]) -> Iterator[tuple[int, Trigger]]:
        """Of several transitions at once give every scenario the one of its smallest fence, naming the others (P8)."""
        chosen: dict[int, list[tuple[Any, ...]]] = {}
        for fact in facts:
            for scenario in self._routes.get(fact[:3], ()):
                chosen.setdefault(scenario, []).append(fact)
        for scenario in sorted(chosen):
            found = chosen[scenario]
            if len(found) > 1:
                found.sort(key=lambda fact: (self._size_m[fact[1]], fact[1]))
            trigger = self._trigger(found[0])
            trigger.also_fences = tuple(self._fences[fact[1]].id for fact in found[1:])
            yield scenario, trigger

    def _trigger(self, fact: tuple[Any, ...]) -> Trigger:
        kind, fence_row, threshold_s, crossed_ms, confirmed_ms, gap_ms, duration_ms, initial, sure, method, wide = fact[
            :-2
        ]
        name, (fence, zone) = KIND_NAMES[kind], self._named[fence_row]
        values: dict[str, Any] = {
            "crossed_at": crossed_ms,
            "confirmed_at": confirmed_ms,
            "confidence": CONFIDENCE_NAMES[sure],
            "method": METHOD_NAMES[method],
            "initial": initial != 0,
        }
        distance_m, accuracy_m = fact[-2:]
        if distance_m - distance_m == 0:  # neither nan, as for a timer, nor infinite, as for a member cell
            values["distance_m"], values["accuracy_m"] = distance_m, accuracy_m
        if gap_ms >= 0:
            values["gap_s"] = gap_ms / 1000
            values["wide_gap"] = wide != 0
        if duration_ms >= 0:
            values["duration_s"] = duration_ms / 1000
        if threshold_s > 0:
            values["threshold_s"] = threshold_s
            key = f"{fence}|{name}|{crossed_ms}|{threshold_s}"
        else:
            key = f"{fence}|{name}|{crossed_ms}|0"
        return Trigger(name, key, confirmed_ms, fence, zone, (), values)


def _by_cause(transitions: np.ndarray) -> np.ndarray:
    """Put together what one fix gave, and what timers before it gave, whichever came first.

    A timer may fall between the fix that was held and the one that confirmed it: both came with one event.
    """
    if len(transitions) == 0 or not transitions["by_timer"].any():
        return transitions
    starts = _starts(transitions, _ALIKE)
    group = np.repeat(np.arange(len(starts)), np.diff(starts, append=len(transitions)))
    is_other = transitions["by_timer"] != transitions["by_timer"][starts][group]
    return transitions[np.lexsort((is_other, group))] if is_other.any() else transitions


def _starts(transitions: np.ndarray, alike: tuple[str, ...]) -> np.ndarray:
    """Rows at which one of these columns changes."""
    differs = np.zeros(len(transitions), np.bool_)
    differs[0] = True
    for name in alike:
        column = transitions[name]
        differs[1:] |= column[1:] != column[:-1]
    return np.flatnonzero(differs)


def _routes(content: Content) -> tuple[dict[tuple[int, int, int], tuple[int, ...]], dict[int, tuple[int, ...]]]:
    """Map (kind, fence row, threshold_s) to scenario rows, and fence rows to their dwell thresholds (P4).

    The threshold is -1 for enter and exit, as in a transition.
    """
    fence_row = {fence.id: row for row, fence in enumerate(content.fences)}
    routes: dict[tuple[int, int, int], list[int]] = {}
    thresholds: dict[int, set[int]] = {}
    for row, scenario in enumerate(content.scenarios):
        trigger = scenario.trigger
        if not isinstance(trigger, PresenceTrigger):
            continue
        kind = TransitionKind[trigger.kind.upper()]
        threshold_s = trigger.threshold_s if kind == TransitionKind.DWELL else -1
        for fence in trigger.fences:
            routes.setdefault((int(kind), fence_row[fence], threshold_s), []).append(row)
            if kind == TransitionKind.DWELL:
                thresholds.setdefault(fence_row[fence], set()).add(threshold_s)
    return (
        {key: tuple(rows) for key, rows in routes.items()},
        {row: tuple(sorted(seconds)) for row, seconds in thresholds.items()},
    )


assert set(_COLUMNS) <= set(TRANSITION.names or ()), "a column was renamed"
