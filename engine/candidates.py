"""From what happened to what might be said: transitions and usage matches become candidates, in log order.

Called per batch; cost grows with the transitions that some scenario waits for, not with all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from engine.definitions import Content, PresenceTrigger, UsageTrigger
from engine.model import (
    TRANSITION,
    Block,
    Candidate,
    Confidence,
    Method,
    TransitionKind,
    TransitionReason,
    Trigger,
)

ReadEvent = Callable[[Block, Any], Any]

QUIET_REASONS = (
    TransitionReason.CLOSED,
    TransitionReason.OPENED,
    TransitionReason.GAP,
    TransitionReason.EXPIRED,
    TransitionReason.REMOVED,
    TransitionReason.RETURNED,
)
"""Transitions that never make an offer by themselves (L8, L9, L10, P7)."""

KIND_NAMES = {int(kind): kind.name.lower() for kind in TransitionKind}
CONFIDENCE_NAMES = {int(confidence): confidence.name for confidence in Confidence}
METHOD_NAMES = {int(method): method.name.lower() for method in Method}
_COLUMNS = (
    ("event", "user", "now_ms", "by_timer")  # what one event, or the timers before it, gave shares these
    + ("kind", "fence", "threshold_s")
    + ("crossed_ms", "confirmed_ms", "gap_ms", "duration_ms", "initial", "confidence", "method", "wide_gap")
)
_CAUSE, _SHARED = 3, 4


class CandidateMaker:
    """Knows which scenario waits for what; made anew for each content.

    fence_size_m  float[F], the characteristic radius: the smallest fence wins (P8)
    """

    def __init__(self, content: Content, fence_size_m: np.ndarray) -> None:
        self._fences = content.fences
        self._size_m = fence_size_m.tolist()
        self._scenarios = content.scenarios
        self._routes, self.thresholds = _routes(content)
        self._is_awaited = np.zeros((len(TransitionKind) + 1, max(1, len(content.fences))), np.bool_)
        for kind, fence, _ in self._routes:
            self._is_awaited[kind, fence] = True
        self._is_loud = np.ones(len(TransitionReason), np.bool_)
        self._is_loud[list(QUIET_REASONS)] = False
        self.usage_scenarios = [
            row for row, scenario in enumerate(content.scenarios) if isinstance(scenario.trigger, UsageTrigger)
        ]

    def usage_triggers(self) -> list[UsageTrigger]:
        """List the usage triggers in the order that `from_usage` numbers them."""
        triggers = (self._scenarios[row].trigger for row in self.usage_scenarios)
        return [trigger for trigger in triggers if isinstance(trigger, UsageTrigger)]

    def awaited(self, transitions: np.ndarray) -> list[tuple[Any, ...]]:
        """Keep the transitions that may start a scenario, as tuples of `_COLUMNS`."""
        if len(transitions) == 0:
            return []
        wanted = self._is_awaited[transitions["kind"], transitions["fence"]] & self._is_loud[transitions["reason"]]
        chosen = transitions[wanted]
        return list(zip(*(chosen[name].tolist() for name in _COLUMNS), strict=True))

    def from_transitions(
        self, rows: list[tuple[Any, ...]], user_id: Callable[[int], str], place: Callable[[int], tuple[int, int]]
    ) -> Iterator[tuple[int, list[Candidate]]]:
        """Yield (event row, candidates) for each fix or timer, one candidate a scenario (P8)."""
        start, end = 0, len(rows)
        while start < end:
            event, user, now_ms, _ = rows[start][:_SHARED]
            stop = start + 1
            while stop < end and rows[stop][:_CAUSE] == (event, user, now_ms):
                stop += 1
            found = rows[start:stop]
            # A timer may fall between the fix that was held and the one that confirmed it: both came with one event.
            for by_timer in dict.fromkeys(row[_CAUSE] for row in found):
                position, item = (-1, -1) if by_timer else place(event)
                name = user_id(user)
                group = [row for row in found if row[_CAUSE] == by_timer]
                made = [
                    Candidate(scenario, user, name, trigger, now_ms, position, item)
                    for scenario, trigger in self._chosen(group)
                ]
                if made:
                    yield event, made
            start = stop

    def _chosen(self, rows: list[tuple[Any, ...]]) -> Iterator[tuple[int, Trigger]]:
        """Yield (scenario, its trigger) of what one cause gave: of several fences the smallest, naming the others."""
        if len(rows) == 1:
            for scenario in self._routes.get(rows[0][4:7], ()):
                yield scenario, self._trigger(rows[0])
            return
        chosen: dict[int, list[tuple[Any, ...]]] = {}
        for row in rows:
            for scenario in self._routes.get(row[4:7], ()):
                chosen.setdefault(scenario, []).append(row)
        for scenario in sorted(chosen):
            found = chosen[scenario]
            if len(found) > 1:
                found.sort(key=lambda row: (self._size_m[row[5]], row[5]))
            trigger = self._trigger(found[0])
            trigger.also_fences = tuple(self._fences[row[5]].id for row in found[1:])
            yield scenario, trigger

    def _trigger(self, row: tuple[Any, ...]) -> Trigger:
        kind, fence_row, threshold_s, crossed_ms, confirmed_ms, gap_ms, duration_ms, initial, sure, method, wide = row[
            4:
        ]
        fence = self._fences[fence_row]
        name = KIND_NAMES[kind]
        values: dict[str, Any] = {
            "crossed_at": crossed_ms,
            "confirmed_at": confirmed_ms,
            "confidence": CONFIDENCE_NAMES[sure],
            "method": METHOD_NAMES[method],
            "initial": initial != 0,
        }
        if gap_ms >= 0:
            values["gap_s"] = gap_ms / 1000
            values["wide_gap"] = wide != 0
        if duration_ms >= 0:
            values["duration_s"] = duration_ms / 1000
        if threshold_s > 0:
            values["threshold_s"] = threshold_s
        key = f"{fence.id}|{name}|{crossed_ms}|{threshold_s if threshold_s > 0 else 0}"
        return Trigger(name, key, confirmed_ms, fence.id, fence.time_zone, (), values)


def usage_trigger(feed: str, event: Any, at_ms: int, id_hash: int) -> Trigger:
    """Make the trigger of one usage event; its key is feed and event id (D4)."""
    identity = event.id or f"{id_hash:016x}"
    values = {name: text for name in ("app", "category", "action") if (text := getattr(event, name))}
    return Trigger("usage", f"{feed}|{identity}", at_ms, None, None, (), values)


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
