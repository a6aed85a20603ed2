"""Scenarios to the arrays that the pattern kernels read: which filter or transition is a step of which pattern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from engine.behavior import layout_kernel as layout
from engine.behavior.filters import is_hashed
from engine.definitions import Content, PatternTrigger, PresenceTrigger, TriggerDefinition, UsageTrigger
from engine.model import Confidence, TransitionKind
from engine.settings import FeedTable

ASKED, OWN, QUESTION = range(3)
"""The order within one event: what others ask about counts it first, then patterns, then the questions."""

_SOURCES = {
    "": layout.NOTHING,
    "app": layout.APP,
    "category": layout.CATEGORY,
    "action": layout.ACTION,
    "fence": layout.FENCE,
}


@dataclass(frozen=True, slots=True)
class Filter:
    """A usage filter, and what must be read from the events that pass it; sum: `field` is read as a number."""

    trigger: UsageTrigger
    phase: int
    field: str = ""
    same: str = ""
    is_sum: bool = False

    @property
    def needs_event(self) -> bool:
        return bool(self.field or self.same) or not all(map(is_hashed, self.trigger.tests))


@dataclass(slots=True)
class Plan:
    """What patterns need of a content set.

    usage      the usage triggers of scenarios come first among the filters: filter i is scenario usage[i]
    filters    the rest of the filters, numbered from len(usage) on
    keys       (state hash, phase) of each pattern: what its states belong to (L10)
    scenarios  of each pattern, the scenarios that it starts
    asked      by scenario, the pattern that must hold besides (`while`)
    inside     by scenario, the fence rows of which the user must be inside one
    looks      filters whose events need to know where the user is inside
    looks_back scenarios that need to know it of a transition, or of nothing that happened
    """

    usage: list[int]
    usage_triggers: list[UsageTrigger]
    filters: list[Filter]
    keys: list[tuple[str, int]]
    patterns: list[PatternTrigger]
    scenarios: list[list[int]]
    asked: dict[int, int]
    inside: dict[int, frozenset[int]]
    looks: frozenset[int]
    looks_back: frozenset[int]
    arrays: layout.Patterns
    spare: int = 2
    has_absence: bool = False


@dataclass(slots=True)
class _Draft:
    content: Content
    fence_row: dict[str, int]
    filters: dict[Filter, int] = field(default_factory=dict)
    filter_steps: dict[Filter, dict[int, int]] = field(default_factory=dict)
    routes: dict[int, dict[tuple[int, int], int]] = field(default_factory=dict)
    rows: dict[tuple[str, int], int] = field(default_factory=dict)
    patterns: list[PatternTrigger] = field(default_factory=list)
    phases: list[int] = field(default_factory=list)

    def pattern(self, trigger: PatternTrigger, phase: int) -> int:
        """Row of the pattern, whose steps are noted when it is new."""
        key = trigger.state_hash, phase
        if key not in self.rows:
            self.rows[key] = len(self.patterns)
            self.patterns.append(trigger)
            self.phases.append(phase)
            for bit, step in enumerate(trigger.steps):
                self.step(step, self.rows[key], 1 << bit, phase, trigger)
        return self.rows[key]

    def step(
        self,
        step: UsageTrigger | PresenceTrigger,
        pattern: int,
        bits: int,
        phase: int,
        of: PatternTrigger | None = None,
    ) -> None:
        """Note what may be a step of a pattern, or, with bits 0, asks about it."""
        if isinstance(step, UsageTrigger):
            read = of.field if of and of.field.startswith("props.") else ""
            same = of.same if of and of.same.startswith("props.") else ""
            steps = self.filter_steps.setdefault(Filter(step, phase, read, same, bool(of and of.kind == "sum")), {})
            steps[pattern] = steps.get(pattern, 0) | bits
            return
        sure = int(step.min_confidence or Confidence.OUT)
        for fence in step.fences:
            route = TransitionKind[step.kind.upper()] * len(self.fence_row) + self.fence_row[fence]
            targets = self.routes.setdefault(route, {})
            targets[pattern, sure] = targets.get((pattern, sure), 0) | bits


def compile_plan(content: Content, feeds: FeedTable, hash_text: Callable[[str], int]) -> Plan:
    """Compile the usage triggers, patterns and `while` conditions of a content set."""
    draft = _Draft(content, {fence.id: row for row, fence in enumerate(content.fences)})
    usage: list[int] = []
    triggers: list[UsageTrigger] = []
    own: dict[int, int] = {}
    asked: dict[int, int] = {}
    for row, scenario in enumerate(content.scenarios):
        trigger = scenario.trigger
        if isinstance(trigger, UsageTrigger):
            usage.append(row)
            triggers.append(trigger)
        elif isinstance(trigger, PatternTrigger):
            own[row] = draft.pattern(trigger, OWN)
        if scenario.while_ and scenario.while_.pattern:
            asked[row] = draft.pattern(scenario.while_.pattern, ASKED)
            if not isinstance(trigger, PatternTrigger):
                draft.step(trigger, asked[row], 0, QUESTION)
    filters = sorted(draft.filter_steps, key=lambda one: one.phase)
    chosen = {one.while_.inside for one in content.scenarios if one.while_ and one.while_.inside}
    # Many scenarios ask about the same fences, and those may be thousands.
    rows_of = {names: frozenset(draft.fence_row[fence] for fence in names) for names in chosen}
    inside = {
        row: rows_of[scenario.while_.inside]
        for row, scenario in enumerate(content.scenarios)
        if scenario.while_ and scenario.while_.inside
    }
    scenarios: list[list[int]] = [[] for _ in draft.patterns]
    for row, pattern in own.items():
        scenarios[pattern].append(row)
    looking = {own[row] for row in inside if row in own and draft.patterns[own[row]].kind != "absence"}
    looks_back = {row for row in inside if not _is_of_usage(content.scenarios[row].trigger)}
    looks = {number for number, row in enumerate(usage) if row in inside} | {
        len(usage) + number
        for number, one in enumerate(filters)
        if any(pattern in looking for pattern in draft.filter_steps[one])
    }
    asks = [sorted({asked[row] for row in rows if row in asked}) for rows in scenarios]
    return Plan(
        usage,
        triggers,
        filters,
        list(draft.rows),
        draft.patterns,
        scenarios,
        asked,
        inside,
        frozenset(looks),
        frozenset(looks_back),
        _arrays(draft, len(usage), filters, asks, feeds, hash_text),
        2 + max(map(len, asks), default=0),
        any(one.kind == "absence" for one in draft.patterns),
    )


def _is_of_usage(trigger: TriggerDefinition) -> bool:
    """Whether only usage events complete it."""
    if isinstance(trigger, PatternTrigger):
        return trigger.kind != "absence" and all(isinstance(step, UsageTrigger) for step in trigger.steps)
    return isinstance(trigger, UsageTrigger)


def _arrays(
    draft: _Draft,
    usage: int,
    filters: list[Filter],
    asks: list[list[int]],
    feeds: FeedTable,
    hash_text: Callable[[str], int],
) -> layout.Patterns:
    pattern = np.zeros(len(draft.patterns), layout.PATTERN)
    for row, one in enumerate(draft.patterns):
        pattern[row] = (
            one.within_ms,
            one.at_least,
            int(one.at_least) if one.kind in ("count", "distinct") else 0,
            layout.KINDS.index(one.kind),
            len(one.steps),
            _SOURCES.get(one.field, layout.READ),
            _SOURCES.get(one.same, layout.READ),
            isinstance(one.steps[-1], UsageTrigger),
            draft.phases[row] == OWN,
        )

    def by_phase(target: int) -> tuple[int, int]:
        return draft.phases[target], target

    filter_steps = [[(0, 0)][:0] for _ in range(usage)] + [
        [(target, draft.filter_steps[one][target]) for target in sorted(draft.filter_steps[one], key=by_phase)]
        for one in filters
    ]
    filter_start, step_pattern, step_bits = _lists(filter_steps)
    routes = [
        sorted(
            ((target, bits, sure) for (target, sure), bits in draft.routes.get(route, {}).items()),
            key=lambda one: (one[1] == 0, by_phase(one[0]), one[2]),
        )
        for route in range((len(TransitionKind) + 1) * len(draft.fence_row))
    ]
    route_start, route_pattern, route_bits = _lists([[one[:2] for one in route] for route in routes])
    ask_start, ask_pattern, _ = _lists([[(one, 0) for one in ask] for ask in asks])
    return layout.Patterns(
        pattern,
        filter_start,
        step_pattern,
        step_bits,
        route_start,
        route_pattern,
        route_bits,
        np.array([one[2] for route in routes for one in route], np.uint8),
        np.array([hash_text(fence) for fence in draft.fence_row], np.uint64),
        np.stack((feeds.array["period_ms"], feeds.array["expected_delay_ms"]), 1),
        ask_start,
        ask_pattern,
    )


def _lists(lists: Sequence[Sequence[tuple[int, int]]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    start = np.zeros(len(lists) + 1, np.int32)
    np.cumsum([len(one) for one in lists], out=start[1:])
    flat = [pair for one in lists for pair in one]
    return start, np.array([one for one, _ in flat], np.int32), np.array([bits for _, bits in flat], np.uint8)
