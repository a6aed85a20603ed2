"""Patterns by the words of the rules (B1-B5, T5, T8): lists, brute force over windows, one record at a time.

A pattern is true at an instant s if what it asks for lies in the window (s - within, s]. What happens at t completes
it if, among t and the later instants below t + within that are remembered, it is true at one with it and at none
without it. What is remembered is bounded as docs/behavior.md says. Shares no code with the engine; reads definitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from engine.definitions import FieldTest, PatternTrigger

LAG_MS = 600_000
KEPT_STEPS, KEPT_SUMMED, KEPT_KEYS, KEPT_OPENINGS, KEPT_ANSWERS = 12, 256, 8, 8, 4


@dataclass
class Memory:
    """What is remembered of one user in one pattern under one key."""

    events: list[tuple[int, Any]] = field(default_factory=list)  # (instant, payload), by instant, then as they came
    frozen: list[tuple[int, Any]] = field(default_factory=list)  # sequence: in an order that is settled
    newest_ms: int = -(10**15)
    openings: list[tuple[int, str]] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)
    settled_ms: int = -(10**15)
    armed_ms: int = 0
    waits: bool = False


@dataclass(frozen=True)
class Completed:
    pattern: int
    user: int
    at_ms: int
    now_ms: int
    by_timer: bool
    evidence: Any
    silent: bool = False


class PatternOracle:
    """Feed it records in log order with `hear`, what patterns see with `usage` and `move`; read `completed`.

    feeds  name -> (period_ms, expected_delay_ms)
    rank   which of two keys of equal age goes first, which the rules leave open
    """

    def __init__(
        self,
        patterns: list[PatternTrigger],
        feeds: Mapping[str, tuple[int, int]],
        late_ms: int,
        rank: Callable[[Any], int],
    ) -> None:
        self.patterns, self.feeds, self.late_ms, self.rank = patterns, feeds, late_ms, rank
        self.memory: dict[tuple[Any, int, Any], Memory] = {}
        self._absences: dict[Any, dict[tuple[Any, int, Any], Memory]] = {}  # those of them, by user
        self._next_ms = 0  # before which no absence is due
        self.lags: set[int] = set()
        self.heard: dict[str, int] = {}
        self.brings: dict[str, set[str]] = {name: set() for name in feeds}
        self.completed: list[Completed] = []
        self.evicted = self.merged = 0

    # --- what happens -----------------------------------------------------------------------------------------------

    def hear(self, kind: str, user: int, feed: str, at_ms: int, now_ms: int) -> None:
        """Any ping or usage event, whether or not it counts."""
        self.pass_time(now_ms)
        lags = now_ms - at_ms > LAG_MS
        for number, pattern in enumerate(self.patterns):
            if pattern.kind != "absence":
                continue
            while waiting := sorted(
                (one.openings[0][0], key, one)
                for (_, of, key), one in self._absences.get(user, {}).items()
                if of == number and one.waits and one.openings
            ):
                opened_ms, _, one = waiting[0]
                if opened_ms + pattern.within_ms + self._delay(pattern) <= at_ms:
                    self._tell_absence(number, user, one, now_ms)
                elif lags:
                    break
                else:
                    one.waits, one.armed_ms = False, now_ms
                    self._next_ms = min(self._next_ms, opened_ms + pattern.within_ms)
            for (_, of, _), one in self._absences.get(user, {}).items():
                if of == number and not one.openings:
                    one.waits = False
        self.lags.discard(user)
        if lags:
            self.lags.add(user)
        self.heard[feed] = now_ms
        self.brings[feed].add(kind)

    def usage(self, user: int, at_ms: int, now_ms: int, identity: str, fields: Mapping[str, Any]) -> None:
        """A usage event that counts; `fields` by their names in filters."""
        for number, pattern in enumerate(self.patterns):
            steps = [_is_usage(step) and all(passes(test, fields) for test in step.tests) for step in pattern.steps]
            if any(steps):
                self._step(number, user, at_ms, now_ms, identity, steps, fields, by_timer=False)

    def move(self, user: int, transition: Mapping[str, Any], now_ms: int, *, by_timer: bool) -> None:
        """A transition, timers by its `now` having been told: fence, kind, crossed_ms, sure."""
        for number, pattern in enumerate(self.patterns):
            steps = [
                not _is_usage(step)
                and step.kind == transition["kind"]
                and transition["fence"] in step.fences
                and transition["sure"] >= (step.min_confidence or 0)
                for step in pattern.steps
            ]
            if any(steps):
                identity = f"{transition['fence']}|{transition['kind']}|{transition['crossed_ms']}"
                fields = {"fence": transition["fence"]}
                self._step(number, user, transition["crossed_ms"], now_ms, identity, steps, fields, by_timer=by_timer)

    def pass_time(self, now_ms: int) -> None:
        """Tell the absences that are due by `now_ms`."""
        while now_ms >= self._next_ms:
            due, self._next_ms = [], 1 << 62
            for (user, number, key), one in (each for mine in self._absences.values() for each in mine.items()):
                if one.openings and not one.waits:
                    pattern = self.patterns[number]
                    due_ms = one.openings[0][0] + pattern.within_ms
                    self._next_ms = min(self._next_ms, due_ms)
                    ready_ms = due_ms + self._delay(pattern)
                    if ready_ms <= now_ms:
                        due.append((max(ready_ms, one.armed_ms), user, number, str(key), one))
            if not due:
                return
            ready_ms, user, number, _, one = min(due, key=lambda each: each[:4])
            if user in self.lags:
                one.waits = True
            else:
                self._tell_absence(number, user, one, ready_ms)

    # --- users and content ------------------------------------------------------------------------------------------

    def forget(self, user: Any) -> None:
        """A user is gone, or another one."""
        for place in [place for place in self.memory if place[0] == user]:
            del self.memory[place]
        self._absences.pop(user, None)

    def renumber(self, patterns: list[Any], row_of: Mapping[int, int]) -> None:
        """Take new patterns; those that stay keep what is remembered under their new number (L10)."""
        kept = {
            (user, row_of[number], key): one for (user, number, key), one in self.memory.items() if number in row_of
        }
        self.patterns, self.memory, self._absences, self._next_ms = patterns, kept, {}, 0
        for place, one in kept.items():
            if patterns[place[1]].kind == "absence":
                self._absences.setdefault(place[0], {})[place] = one

    # --- patterns ---------------------------------------------------------------------------------------------------

    def _step(
        self,
        number: int,
        user: int,
        at_ms: int,
        now_ms: int,
        identity: str,
        steps: list[bool],
        fields: Mapping[str, Any],
        *,
        by_timer: bool,
    ) -> None:
        pattern = self.patterns[number]
        key = plain(fields.get(pattern.same)) if pattern.same else None
        if pattern.same and key is None:
            return
        payload: Any = None
        if pattern.kind == "sum":
            payload = fields.get(pattern.field)
            if isinstance(payload, bool) or not isinstance(payload, int | float) or not 0 <= payload < float("inf"):
                return
        elif pattern.kind == "distinct":
            payload = plain(fields.get(pattern.field))
            if payload is None:
                return
        elif pattern.kind == "sequence":
            payload = tuple(steps)
        place = user, number, key
        if place not in self.memory:
            self._make_room(user, number)
            self.memory[place] = Memory()
            if pattern.kind == "absence":
                self._absences.setdefault(user, {})[place] = self.memory[place]
        one = self.memory[place]
        if pattern.kind == "absence":
            self._absence(pattern, one, at_ms, now_ms, identity, steps)
        else:
            evidence = self._completes(pattern, one, at_ms, payload)
            if evidence is not None:
                self.completed.append(Completed(number, user, evidence[0], now_ms, by_timer, evidence[1]))
            self._remember(pattern, one, at_ms, payload)
        one.newest_ms = max(one.newest_ms, at_ms)

    def _make_room(self, user: int, number: int) -> None:
        mine = [place for place in self.memory if place[:2] == (user, number)]
        if mine and mine[0][2] is not None and len(mine) >= KEPT_KEYS:
            self.evicted += 1
            oldest = min(mine, key=lambda place: (self.memory[place].newest_ms, self.rank(place[2])))
            del self.memory[oldest]
            self._absences.get(user, {}).pop(oldest, None)

    def _completes(self, pattern: PatternTrigger, one: Memory, at_ms: int, payload: Any) -> tuple[int, Any] | None:
        without = list(one.events)
        if pattern.kind == "distinct":
            known = {value: when for when, value in one.events}
            if known.get(payload, -(10**15)) >= at_ms:
                return None
            with_it = [(when, value) for when, value in one.events if value != payload]
        else:
            with_it = list(one.events)
        later = [place for place, (when, _) in enumerate(with_it) if when > at_ms]
        with_it.insert(later[0] if later else len(with_it), (at_ms, payload))
        ends = sorted({at_ms} | {when for when, _ in one.events if at_ms < when < at_ms + pattern.within_ms})
        if any(truth(pattern, without, end_ms, one.frozen) is not None for end_ms in ends):
            return None
        found = [(end_ms, truth(pattern, with_it, end_ms, one.frozen)) for end_ms in ends]
        return next((each for each in found if each[1] is not None), None)

    def _remember(self, pattern: PatternTrigger, one: Memory, at_ms: int, payload: Any) -> None:
        if pattern.kind in ("count", "sum"):
            newest_ms = max(one.newest_ms, at_ms)
            horizon_ms = newest_ms - pattern.within_ms - self.late_ms
            one.events = [each for each in one.events if each[0] > horizon_ms]
        if pattern.kind == "distinct":
            if any(value == payload and when >= at_ms for when, value in one.events):
                return
            one.events = [each for each in one.events if each[1] != payload]
        later = [place for place, (when, _) in enumerate(one.events) if when > at_ms]
        one.events.insert(later[0] if later else len(one.events), (at_ms, payload))
        if pattern.kind in ("count", "distinct"):
            kept = int(pattern.at_least) * (2 if pattern.kind == "count" else 1)
            one.events = one.events[-kept:]
        elif pattern.kind == "sum" and len(one.events) > KEPT_SUMMED:
            self.merged += 1
            (first_ms, first), (_, second) = one.events[:2]
            one.events[:2] = [(first_ms, first + second)]
        elif pattern.kind == "sequence" and len(one.events) > KEPT_STEPS:
            one.frozen.append(one.events.pop(0))

    # --- absences ---------------------------------------------------------------------------------------------------

    def _absence(
        self, pattern: PatternTrigger, one: Memory, at_ms: int, now_ms: int, identity: str, steps: list[bool]
    ) -> None:
        first = one.openings[:1]
        if steps[1]:
            one.openings = [each for each in one.openings if not each[0] <= at_ms < each[0] + pattern.within_ms]
            if len(one.answers) == KEPT_ANSWERS:
                one.answers.remove(min(one.answers))
            one.answers.append(at_ms)
        is_answered = any(at_ms <= answer < at_ms + pattern.within_ms for answer in one.answers)
        if steps[0] and at_ms >= one.settled_ms and not is_answered:
            later = [place for place, each in enumerate(one.openings) if each[0] > at_ms]
            one.openings.insert(later[0] if later else len(one.openings), (at_ms, identity))
            if len(one.openings) > KEPT_OPENINGS:
                del one.openings[1]
        if one.openings[:1] != first:
            one.armed_ms = now_ms
            if one.openings:
                self._next_ms = min(self._next_ms, one.openings[0][0] + pattern.within_ms)

    def _tell_absence(self, number: int, user: int, one: Memory, now_ms: int) -> None:
        pattern = self.patterns[number]
        opened_ms, identity = one.openings[0]
        due_ms = opened_ms + pattern.within_ms
        awaited = list(self._awaited(pattern))
        silent = not awaited or any(now_ms - self.heard[name] > 2 * self.feeds[name][0] for name in awaited)
        self.completed.append(Completed(number, user, due_ms, now_ms, True, identity, silent))
        one.settled_ms = due_ms
        one.openings = [each for each in one.openings if each[0] >= due_ms]
        one.armed_ms = now_ms

    def _awaited(self, pattern: PatternTrigger) -> Iterator[str]:
        kind = "usage" if _is_usage(pattern.steps[1]) else "ping"
        return (name for name, brings in self.brings.items() if kind in brings)

    def _delay(self, pattern: PatternTrigger) -> int:
        return max((self.feeds[name][1] for name in self._awaited(pattern)), default=0)


def truth(pattern: PatternTrigger, events: list[tuple[int, Any]], end_ms: int, frozen: list[tuple[int, Any]]) -> Any:
    """What makes the pattern true in the window (end - within, end], or None."""
    if pattern.kind == "sequence":
        best = None
        known = [*frozen, *((when, steps) for when, steps in events if when <= end_ms)]
        for chosen in combinations(known, len(pattern.steps)):
            if all(each[1][number] for number, each in enumerate(chosen)):
                start_ms = chosen[0][0]
                if start_ms > end_ms - pattern.within_ms:
                    best = start_ms if best is None else max(best, start_ms)
        return best
    inside = [payload for when, payload in events if end_ms - pattern.within_ms < when <= end_ms]
    if pattern.kind == "sum":
        total = 0.0
        for value in inside:
            total += value
        return total if total >= pattern.at_least else None
    number = len(set(inside)) if pattern.kind == "distinct" else len(inside)
    return number if number >= pattern.at_least else None


def _is_usage(step: Any) -> bool:
    return not getattr(step, "kind", "")


def plain(value: Any) -> Any:
    """A value that equals another where ops would say so: 1 and 1.0, but not 1 and "1" or true."""
    if value is None or isinstance(value, str):
        return value
    return ("yes or no", value) if isinstance(value, bool) else ("number", float(value))


def passes(test: FieldTest, fields: Mapping[str, Any]) -> bool:
    """Whether a field is what a filter asks for (B1)."""
    actual = fields.get(test.field)
    if actual is None:
        return False
    if test.op == "==":
        return actual == test.value
    if test.op == "in":
        return actual in test.value
    if test.op == "prefix":
        return str(actual).startswith(test.value)
    low, high = test.value
    if isinstance(actual, bool | str):
        return False
    return (low is None or actual >= low) and (high is None or actual < high)
