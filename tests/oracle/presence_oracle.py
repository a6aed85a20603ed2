"""Presence by brute force: lists, dictionaries and the words of the rules (T5-T8, L5-L9, P1-P8).

Feed it pings in log order; it answers with transitions as dictionaries. Every timer is found by looking at every
visit of a user; nothing is clever. It shares no code with the engine but the names of model.py and Fence.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.definitions import Fence
from engine.model import Confidence
from tests.oracle.hours_oracle import open_spans
from tests.oracle.locate_oracle import FenceShape, accuracy_of
from tests.oracle.visit_oracle import (
    DAY,
    ENTERING,
    EXITING,
    FOREVER,
    HOP_MS,
    INSIDE,
    KIND_ORDER,
    MAX_EVENT_AGE,
    OUTSIDE,
    SECOND,
    SUSPENDED,
    Feed,
    Fix,
    Judgement,
    Visit,
    dwell,
    enter,
    enter_delay,
    leave,
    too_fast,
)


@dataclass
class User:
    last_at: int = -FOREVER
    ids: set[Any] = field(default_factory=set)
    behind: bool = False
    fix: Fix | None = None
    held: Fix | None = None
    cell: str | None = None
    left: dict[str, int] = field(default_factory=dict)
    visits: dict[str, Visit] = field(default_factory=dict)
    coarse_out: set[str] | None = None


class PresenceOracle:
    """Take pings in log order with `take`, end with `finish`; `transitions` then holds everything that happened.

    feeds        feed name -> Feed
    thresholds   fence id -> dwell thresholds in seconds
    hours        instants between which opening hours are needed
    """

    def __init__(
        self,
        fences: Iterable[Fence],
        feeds: Mapping[str, Feed],
        thresholds: Mapping[str, Sequence[int]] | None = None,
        hours: tuple[int, int] = (0, 0),
    ) -> None:
        self.fences = {fence.id: fence for fence in sorted(fences, key=lambda fence: fence.id)}
        self.shapes = {fence_id: FenceShape(fence) for fence_id, fence in self.fences.items()}
        self.feeds = dict(feeds)
        self.thresholds = {key: sorted(value) for key, value in (thresholds or {}).items()}
        self.spans = {
            fence_id: open_spans(fence, *hours)
            for fence_id, fence in self.fences.items()
            if fence.opening_hours or fence.valid_from_ms is not None or fence.valid_until_ms is not None
        }
        self.users: dict[str, User] = {}
        self.transitions: list[dict[str, Any]] = []
        self.drops: list[str | None] = []
        self.now = -FOREVER
        self._due: list[tuple[int, str]] = []

    # --- records ----------------------------------------------------------------------------------------------------

    def take(self, ping: Mapping[str, Any]) -> None:
        """One ping in log order: first what fell due before it (T8), then itself."""
        self.now = max(self.now, ping["now_ms"])
        self._fire_until_now()
        user = self.users.setdefault(ping["user"], User())
        self.drops.append(self._admit_and_judge(ping["user"], user, ping))
        self._remember_due(ping["user"], user)

    def finish(self, now_ms: int) -> None:
        self.now = max(self.now, now_ms)
        self._fire_until_now()

    def run(self, pings: Iterable[Mapping[str, Any]], end_now_ms: int | None = None) -> list[dict[str, Any]]:
        for ping in pings:
            self.take(ping)
        if end_now_ms is not None:
            self.finish(end_now_ms)
        return self.transitions

    # --- admission (T5, T7, L8) -------------------------------------------------------------------------------------

    def _admit_and_judge(self, name: str, user: User, ping: Mapping[str, Any]) -> str | None:
        feed = self.feeds[ping["feed"]]
        at = ping["at_ms"]
        if at < user.last_at:
            return "late"
        identity = (
            (ping["feed"], ping["id"])
            if ping["id"] is not None
            else tuple(ping[key] for key in ("feed", "lon_e7", "lat_e7", "accuracy_m", "method", "cell"))
        )
        if at == user.last_at and identity in user.ids:
            return "duplicate"
        lon_e7, lat_e7 = ping["lon_e7"], ping["lat_e7"]
        if abs(lon_e7) > 1_800_000_000 or abs(lat_e7) > 900_000_000:
            return "out_of_range"
        if lon_e7 == 0 and lat_e7 == 0:
            return "null_island"
        fix = Fix(
            at, lon_e7, lat_e7, accuracy_of(ping["accuracy_m"], ping["method"]), ping["method"], ping["cell"], feed
        )
        if fix.accuracy_m > feed.max_accuracy_m:
            return "too_coarse"
        if at > user.last_at:
            user.ids.clear()
        user.ids.add(identity)
        user.last_at = at
        # What waits in this user's own time falls due before the record (T8).
        if user.behind:
            self._fire_own_time(name, user, at)
        user.behind = self.now - at > MAX_EVENT_AGE
        if user.fix is not None and too_fast(user.fix, fix) and (user.held is None or too_fast(user.held, fix)):
            user.held = fix
            return "too_fast"
        user.held = None
        returned = self._is_return(user, fix)
        self._judge(name, user, fix, returned)
        user.fix = fix
        return None

    @staticmethod
    def _is_return(user: User, fix: Fix) -> bool:
        """L8: whether this fix comes back to a cell that was left less than 5 min ago; notes the cell."""
        if fix.cell is None:
            return False
        before, user.cell = user.cell, fix.cell
        if before is None or before == fix.cell:
            return False
        left = user.left.pop(fix.cell, None)
        user.left[before] = fix.at
        return left is not None and fix.at - left < HOP_MS

    # --- one fix ----------------------------------------------------------------------------------------------------

    def _judge(self, name: str, user: User, fix: Fix, returned: bool) -> None:
        out: list[dict[str, Any]] = []
        coarse_out: set[str] = set()
        for fence_id, fence in self.fences.items():
            shape = self.shapes[fence_id]
            visit = user.visits.setdefault(fence_id, Visit())
            evidence = shape.evidence(fix.lon_e7, fix.lat_e7, fix.accuracy_m, fix.cell, visit.state != OUTSIDE)
            if evidence is None:
                continue
            judgement = Judgement(
                name=name,
                fence=fence,
                visit=visit,
                fix=fix,
                evidence=evidence,
                characteristic_m=shape.characteristic_m if shape.geometry is not None else 0.0,
                thresholds=self.thresholds.get(fence_id, ()),
                is_open=self.is_open(fence_id, fix.at),
                outside_before=self._outside_before(user, fence_id),
            )
            out += judgement.returned() if returned else judgement.ordinary()
            if evidence.confidence is Confidence.OUT:
                if fix.is_fine:
                    visit.witness = fix.at
                else:
                    coarse_out.add(fence_id)
        user.coarse_out = coarse_out
        out.sort(key=lambda one: (KIND_ORDER[one["kind"]], one["fence"], one["threshold_s"] or 0))
        self.transitions += out

    @staticmethod
    def _outside_before(user: User, fence_id: str) -> int | None:
        """P2 as the contracts make it exact: the newest fine fix that was OUT, or the newest fix if coarse and OUT."""
        if user.coarse_out and fence_id in user.coarse_out:
            assert user.fix is not None
            return user.fix.at
        return user.visits[fence_id].witness

    def is_open(self, fence_id: str, at: int) -> bool:
        spans = self.spans.get(fence_id)
        return spans is None or any(start <= at < end for start, end in spans)

    def closing_after(self, fence_id: str, at: int) -> int | None:
        """The end of the open span that holds `at`."""
        return next((end for start, end in self.spans.get(fence_id, ()) if start <= at < end), None)

    # --- timers (T8) ------------------------------------------------------------------------------------------------

    def _dues(self, user: User) -> list[tuple[int, int, str, str, int]]:
        """Everything this user waits for: (due, rank among equals, fence, what, threshold)."""
        dues = []
        for fence_id, visit in user.visits.items():
            fence = self.fences[fence_id]
            if visit.state == OUTSIDE or visit.last is None:
                continue
            feed = visit.last.feed
            closing = self.closing_after(
                fence_id, visit.last.at if visit.entered < 0 else max(visit.entered, visit.last.at)
            )
            if closing is not None:
                dues.append((closing, 0, fence_id, "close", 0))
            if visit.state == ENTERING:
                dues.append((visit.crossed + enter_delay(fence, visit), 1, fence_id, "enter", 0))
            if visit.state == EXITING and fence.exit_delay_s is not None and visit.beyond_since is not None:
                dues.append((visit.beyond_since + round(fence.exit_delay_s * SECOND), 0, fence_id, "exit", 0))
            if visit.state == INSIDE and (visit.confidence is Confidence.HIGH):
                for threshold in self.thresholds.get(fence_id, ()):
                    due = visit.crossed + threshold * SECOND
                    if threshold not in visit.dwelt and due - visit.last.at < feed.max_silence:
                        dues.append((due, 2, fence_id, "dwell", threshold))
            if visit.state in (INSIDE, EXITING):
                dues.append((visit.last.at + feed.presence_ttl, 3, fence_id, "suspend", 0))
            if visit.state == SUSPENDED:
                dues.append((visit.last.at + DAY, 0, fence_id, "expire", 0))
        return sorted(dues)

    def _remember_due(self, name: str, user: User) -> None:
        dues = self._dues(user)
        if dues and not user.behind:
            bisect.insort(self._due, (min(due + self._delay(user, fence_id) for due, _, fence_id, _, _ in dues), name))

    @staticmethod
    def _delay(user: User, fence_id: str) -> int:
        last = user.visits[fence_id].last
        assert last is not None
        return last.feed.expected_delay_ms

    def _fire_until_now(self) -> None:
        while self._due and self._due[0][0] <= self.now:
            _, name = self._due.pop(0)
            user = self.users[name]
            if user.behind:
                continue
            ready = [due for due in self._dues(user) if due[0] + self._delay(user, due[2]) <= self.now]
            if ready:
                self._fire(name, user, ready[0])
            self._remember_due(name, user)

    def _fire_own_time(self, name: str, user: User, at: int) -> None:
        while (dues := self._dues(user)) and dues[0][0] <= at:
            self._fire(name, user, dues[0])

    def _fire(self, name: str, user: User, what: tuple[int, int, str, str, int]) -> None:
        due, _, fence_id, action, threshold = what
        visit = user.visits[fence_id]
        if action == "suspend":
            visit.state = SUSPENDED
        elif action == "enter":
            self.transitions.append(enter(visit, name, fence_id, due, "timer", None, None))
        elif action == "dwell":
            self.transitions.append(dwell(visit, name, fence_id, due, threshold, "timer", None, None))
        elif action == "exit":
            assert visit.first_outside is not None, "EXITING without a fix outside"
            self.transitions.append(leave(visit, name, fence_id, visit.first_outside, due, "timer", None, None))
        elif action == "expire":
            self.transitions.append(leave(visit, name, fence_id, visit.last_inside, due, "expired", None, None))
        elif visit.state == ENTERING:
            visit.state = OUTSIDE
        else:
            self.transitions.append(leave(visit, name, fence_id, due, due, "closed", None, None))
            visit.closed_inside = visit.first_outside is None
