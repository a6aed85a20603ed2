"""One user and one fence, by the words of P1-P7 and L8-L9: what one fix, or one timer, makes of a visit."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.definitions import Fence
from engine.model import Confidence
from tests.oracle.locate_oracle import Evidence, geodesic_m

SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
DAY = 24 * HOUR
MAX_EVENT_AGE = 10 * MINUTE  # T6, T8
TOP_SPEED_KMH = 500.0  # L8
HOP_MS = 5 * MINUTE  # L8
COARSE_ENTER_DELAY = 2 * MINUTE  # L8
FINE_M = 60.0  # docs/contracts.md, P2
MAX_SILENCE = 10 * MINUTE  # P4
LONE_EXIT_AFTER = 10 * MINUTE  # P3
FOREVER = 1 << 62
KIND_ORDER = {"exit": 0, "enter": 1, "dwell": 2, "cross": 3}  # P6

OUTSIDE, ENTERING, INSIDE, EXITING, SUSPENDED = "OUTSIDE", "ENTERING", "INSIDE", "EXITING", "SUSPENDED"


@dataclass(frozen=True)
class Feed:
    period_ms: int = 60_000
    expected_delay_ms: int = 2_000
    max_accuracy_m: float = math.inf
    radius_factor: float = 1.0
    signalling: bool = False

    @property
    def presence_ttl(self) -> int:
        """P7."""
        return max(3 * HOUR, self.period_ms * 5 // 2) if self.signalling else 30 * MINUTE

    @property
    def max_silence(self) -> int:
        """P4."""
        return 2 * self.period_ms if self.signalling else MAX_SILENCE


@dataclass(frozen=True)
class Fix:
    at: int
    lon_e7: int
    lat_e7: int
    accuracy_m: float
    method: str | None
    cell: str | None
    feed: Feed

    @property
    def is_cell(self) -> bool:
        return self.cell is not None or self.method == "cell"

    @property
    def is_fine(self) -> bool:
        return self.accuracy_m <= FINE_M


@dataclass
class Visit:
    """What is remembered of one user in one fence."""

    state: str = OUTSIDE
    crossed: int = -1  # first inside fix of the run that led, or may lead, to ENTER
    entered: int = -1  # when ENTER was confirmed
    initial: bool = False
    gap_ms: int | None = None
    last_inside: int = -1  # the last fix whose point was inside
    confidence: Confidence = Confidence.OUT  # of the last fix with evidence
    is_cell: bool = False  # the last fix was a member cell
    last: Fix | None = None  # the last fix that refreshed this visit
    first_outside: int | None = None  # first fix outside the true edge since the last one inside
    beyond: int = 0  # consecutive fixes beyond the widened edge
    beyond_since: int | None = None
    dwelt: set[int] = field(default_factory=set)
    witness: int | None = None  # the last fine fix that was OUT
    exited: dict[str, Any] | None = None  # the last EXIT with what it ended, for a return to a cell (L8)
    closed_inside: bool = False  # seen inside while closed (L9)
    coarse_cell: bool = False  # the run was begun by a coarse cell fix (L8)
    opened: bool = False  # the run was begun by the first fix after opening (L9)


def too_fast(before: Fix, after: Fix) -> bool:
    """L8: above 500 km/h even when both circles are granted."""
    metres = geodesic_m(before.lon_e7 / 1e7, before.lat_e7 / 1e7, after.lon_e7 / 1e7, after.lat_e7 / 1e7)
    metres -= before.accuracy_m + after.accuracy_m
    return metres > 0 and metres * 3600.0 > TOP_SPEED_KMH * (after.at - before.at)


def enter_delay(fence: Fence, visit: Visit) -> int:
    if fence.enter_delay_s is not None:
        return round(fence.enter_delay_s * SECOND)
    return COARSE_ENTER_DELAY if visit.coarse_cell else 0


def transition(
    name: str,
    fence_id: str,
    kind: str,
    crossed: int,
    confirmed: int,
    reason: str,
    visit: Visit,
    fix: Fix | None,
    evidence: Evidence | None,
    **more: Any,
) -> dict[str, Any]:
    return {
        "user": name,
        "fence": fence_id,
        "kind": kind,
        "crossed_at": crossed,
        "confirmed_at": confirmed,
        "initial": False,
        "gap_s": None,
        "threshold_s": None,
        "duration_s": None,
        "reason": reason,
        "confidence": (evidence.confidence if evidence else visit.confidence).name,
        "method": fix.method if fix else visit.last.method if visit.last else None,
        "distance_m": evidence.distance_m if evidence else None,
        "accuracy_m": fix.accuracy_m if fix else None,
        **more,
    }


def enter(
    visit: Visit, name: str, fence_id: str, at: int, reason: str, fix: Fix | None, evidence: Evidence | None
) -> dict[str, Any]:
    """P2, P5: ENTER, crossed at the first fix of its run."""
    visit.state, visit.entered = INSIDE, at
    visit.dwelt = set()
    gap_s = None if visit.gap_ms is None else visit.gap_ms / SECOND
    return transition(
        name, fence_id, "enter", visit.crossed, at, reason, visit, fix, evidence, initial=visit.initial, gap_s=gap_s
    )


def dwell(
    visit: Visit,
    name: str,
    fence_id: str,
    at: int,
    threshold_s: int,
    reason: str,
    fix: Fix | None,
    evidence: Evidence | None,
) -> dict[str, Any]:
    """P4: DWELL, crossed at its ENTER's."""
    visit.dwelt.add(threshold_s)
    return transition(name, fence_id, "dwell", visit.crossed, at, reason, visit, fix, evidence, threshold_s=threshold_s)


def leave(
    visit: Visit,
    name: str,
    fence_id: str,
    crossed: int,
    at: int,
    reason: str,
    fix: Fix | None,
    evidence: Evidence | None,
) -> dict[str, Any]:
    """P3, P7, L9: EXIT, with the duration between the two crossings."""
    duration_s = (crossed - visit.crossed) / SECOND
    gone = transition(name, fence_id, "exit", crossed, at, reason, visit, fix, evidence, duration_s=duration_s)
    visit.exited = {"at": at, "crossed": visit.crossed, "dwelt": set(visit.dwelt), "reason": reason}
    visit.state = OUTSIDE
    visit.first_outside, visit.beyond, visit.beyond_since, visit.entered = None, 0, None, -1
    return gone


@dataclass
class Judgement:
    """One fix against one fence. `outside_before` is the instant of the witness of P2, if there is one."""

    name: str
    fence: Fence
    visit: Visit
    fix: Fix
    evidence: Evidence
    characteristic_m: float
    thresholds: Sequence[int]
    is_open: bool
    outside_before: int | None
    out: list[dict[str, Any]] = field(default_factory=list)

    @property
    def is_beyond(self) -> bool:
        """P3: outside by more than the widened edge; for a cell set any other cell."""
        if self.evidence.is_cell:
            return not self.evidence.is_inside
        widened = min(max(0.1 * self.characteristic_m, 20.0), 200.0) + min(self.fix.accuracy_m, 200.0)
        return self.evidence.distance_m < -widened

    @property
    def is_far(self) -> bool:
        """P3: one fix suffices; never one from a cell."""
        if self.fix.is_cell or self.evidence.is_cell:
            return False
        distance = -self.evidence.distance_m
        alone = distance > max(1000.0, 3 * self.fix.accuracy_m)
        return alone or self.fix.at - self.visit.last_inside >= LONE_EXIT_AFTER

    def ordinary(self) -> list[dict[str, Any]]:
        visit, at = self.visit, self.fix.at
        inside = self.evidence.is_inside
        enough = inside and self.evidence.confidence >= self.fence.min_confidence
        if not self.is_open:
            if visit.state == ENTERING:
                visit.state = OUTSIDE
            visit.closed_inside = inside
        elif visit.state == SUSPENDED:
            self._wake(inside)
        elif visit.state in (INSIDE, EXITING):
            self._stay() if inside else self._go()
        elif visit.state == ENTERING and not inside:
            visit.state = OUTSIDE
        elif visit.state == OUTSIDE and enough:
            self._begin()
        if inside:
            visit.last_inside = at
        visit.confidence, visit.is_cell, visit.last = self.evidence.confidence, self.evidence.is_cell, self.fix
        if self.is_open:
            if visit.state == ENTERING and enough and at >= visit.crossed + enter_delay(self.fence, visit):
                reason = "opened" if visit.opened else "fix"
                self.out.append(enter(visit, self.name, self.fence.id, at, reason, self.fix, self.evidence))
            if visit.state == INSIDE and inside:
                self._dwell()
            if not inside or visit.state == INSIDE:
                visit.closed_inside = False
        return self.out

    def _begin(self) -> None:
        visit, at = self.visit, self.fix.at
        visit.state, visit.crossed = ENTERING, at
        visit.coarse_cell = self.fix.is_cell and not self.evidence.is_cell and not self.fix.is_fine
        visit.opened = visit.closed_inside
        before = self.outside_before
        visit.initial = before is None or at - before > DAY or visit.opened
        visit.gap_ms = None if visit.initial or before is None else at - before

    def _stay(self) -> None:
        visit = self.visit
        visit.state = INSIDE
        visit.first_outside, visit.beyond, visit.beyond_since = None, 0, None

    def _go(self) -> None:
        visit, at = self.visit, self.fix.at
        if visit.first_outside is None:
            visit.first_outside = at
        if not self.is_beyond:
            visit.state, visit.beyond, visit.beyond_since = INSIDE, 0, None
            return
        visit.beyond += 1
        visit.state = EXITING
        visit.beyond_since = at if visit.beyond_since is None else visit.beyond_since
        if self.fence.exit_delay_s is None:
            done = visit.beyond >= 2 or self.is_far
        else:
            done = at >= visit.beyond_since + round(self.fence.exit_delay_s * SECOND)
        if done:
            self.out.append(
                leave(visit, self.name, self.fence.id, visit.first_outside, at, "fix", self.fix, self.evidence)
            )

    def _wake(self, inside: bool) -> None:
        visit = self.visit
        if inside:
            self._stay()
        elif self.is_beyond:
            self.out.append(
                leave(visit, self.name, self.fence.id, visit.last_inside, self.fix.at, "gap", self.fix, self.evidence)
            )

    def _dwell(self) -> None:
        for threshold in self.thresholds:
            if threshold not in self.visit.dwelt and self.fix.at >= self.visit.crossed + threshold * SECOND:
                self.out.append(
                    dwell(self.visit, self.name, self.fence.id, self.fix.at, threshold, "fix", self.fix, self.evidence)
                )

    def returned(self) -> list[dict[str, Any]]:
        """L8: a return to a cell is no movement; it refreshes, cancels what is pending, and takes back a fresh EXIT."""
        visit, at = self.visit, self.fix.at
        inside = self.evidence.is_inside
        gone = visit.exited
        if visit.state == ENTERING and not inside:
            visit.state = OUTSIDE
        elif visit.state == EXITING:
            self._stay()
        elif (
            visit.state == OUTSIDE
            and inside
            and self.is_open
            and gone
            and gone["reason"] == "fix"
            and at - gone["at"] < HOP_MS
        ):
            visit.crossed, visit.initial, visit.gap_ms = gone["crossed"], True, None
            self.out.append(enter(visit, self.name, self.fence.id, at, "returned", self.fix, self.evidence))
            visit.dwelt = set(gone["dwelt"])
        elif inside:
            return self.ordinary()
        if inside:
            visit.last_inside = at
        visit.confidence, visit.is_cell, visit.last = self.evidence.confidence, self.evidence.is_cell, self.fix
        return self.out
