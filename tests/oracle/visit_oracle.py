"""One user and one fence: what a fix, or a timer, makes of a pair (P1-P7, L8, L9 as docs/presence.md reads them)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.definitions import Fence, Shape
from engine.model import Confidence
from tests.oracle.locate_oracle import Evidence, geodesic_m

SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000
DAY = 24 * HOUR
LAGGING_AFTER = 10 * MINUTE  # T8
TOP_SPEED_KMH = 500.0  # L8
HOP = 5 * MINUTE  # L8
COARSE_ENTER_DELAY = 2 * MINUTE  # L8
FINE_M = 60.0  # docs/contracts.md, P2
LONE_EXIT_AFTER = 10 * MINUTE  # P3

OUTSIDE, ENTERING, INSIDE, EXITING, SUSPENDED = "OUTSIDE", "ENTERING", "INSIDE", "EXITING", "SUSPENDED"
IN, UNSURE, NEAR, BEYOND = "IN", "UNSURE", "NEAR", "BEYOND"

# Which of several timers of one pair that are due at one instant comes first.
CLOSE, EXPIRE, SUSPEND, EXIT, ENTER, DWELL = range(6)

Transition = dict[str, Any]


@dataclass(frozen=True)
class Feed:
    """What a feed declares (L1), and what follows from it for presence (P2, P4, P7)."""

    period_ms: int = 60_000
    expected_delay_ms: int = 2_000
    max_accuracy_m: float = math.inf
    signalling: bool = False

    @property
    def presence_ttl(self) -> int:
        return max(3 * HOUR, self.period_ms * 5 // 2) if self.signalling else 30 * MINUTE

    @property
    def max_silence(self) -> int:
        return 2 * self.period_ms if self.signalling else 10 * MINUTE


@dataclass(frozen=True)
class Fix:
    at: int
    lon_e7: int
    lat_e7: int
    accuracy_m: float
    method: str | None
    cell: str | None
    feed: Feed
    identity: Any = None

    @property
    def is_cell(self) -> bool:
        return self.cell is not None or self.method == "cell"

    @property
    def is_fine(self) -> bool:
        return self.accuracy_m <= FINE_M


def agrees(before: Fix, after: Fix) -> bool:
    """L8: not above 500 km/h once both circles are granted."""
    metres = geodesic_m(before.lon_e7 / 1e7, before.lat_e7 / 1e7, after.lon_e7 / 1e7, after.lat_e7 / 1e7)
    return metres - before.accuracy_m - after.accuracy_m <= TOP_SPEED_KMH / 3.6 * (after.at - before.at) / 1000


@dataclass(frozen=True)
class Look:
    """One fix seen from one fence: its zone, whether it is OUT, whether its OUT would be known for certain."""

    fix: Fix
    evidence: Evidence
    zone: str
    is_out: bool
    is_exact: bool

    @property
    def is_inside(self) -> bool:
        return self.zone in (IN, UNSURE)


def look_at(fix: Fix, evidence: Evidence, fence: Fence, characteristic_m: float) -> Look:
    """Put a fix into exactly one zone of a fence."""
    if evidence.is_cell:
        zone = IN if evidence.is_inside else BEYOND
        return Look(fix, evidence, zone, zone == BEYOND, fix.is_fine if fence.shape is not Shape.CELLS else True)
    if fence.tiling:
        zone = IN if evidence.is_inside else BEYOND
        return Look(fix, evidence, zone, zone == BEYOND, True)
    widened = min(max(0.1 * characteristic_m, 20.0), 200.0) + min(fix.accuracy_m, 200.0)
    if evidence.is_inside:
        zone = IN if evidence.confidence >= fence.min_confidence else UNSURE
    elif math.isnan(evidence.distance_m):
        zone = BEYOND  # so far away that nobody measured
    else:
        zone = BEYOND if evidence.distance_m < -widened else NEAR
    return Look(fix, evidence, zone, evidence.confidence is Confidence.OUT, fix.is_fine)


@dataclass
class Pair:
    """What is remembered of one user in one fence. A pair that does not exist has no memory."""

    name: str
    fence: Fence
    thresholds: Sequence[int]
    witness: int | None
    state: str = OUTSIDE
    crossed: int = -1  # first fix of the run that led, or may lead, to ENTER
    delay: int = 0  # of that run, as its last fix judged it
    gap: int | None = None
    initial: bool = False
    dwelt: set[int] = field(default_factory=set)
    last: Look | None = None  # last evidence
    last_inside: int = -1
    first_outside: int | None = None  # EXIT's crossed_at, should it come to that
    run: int = 0  # consecutive fixes beyond the widened edge
    run_since: int = -1
    marked: bool = False  # inside while closed (L9)
    taken_back: tuple[int, int, set[int]] | None = None  # an EXIT that may be taken back: confirmed, crossed, dwelt
    armed_now: int = -1  # `now` when this pair last changed
    out: list[Transition] = field(default_factory=list)

    # --- what comes out ---------------------------------------------------------------------------------------------

    def _emit(self, kind: str, crossed: int, confirmed: int, reason: str, look: Look | None, **more: Any) -> None:
        assert self.last is not None, "a transition without any evidence"
        seen = look or self.last
        confidence = seen.evidence.confidence.name
        if kind == "exit":
            confidence = "HIGH" if seen.is_out or reason in ("closed", "removed") else "LOW"
            if reason == "expired":
                confidence = "LOW"
        distance = look.evidence.distance_m if look else math.nan
        if look and look.evidence.is_cell and not look.is_inside:
            distance = math.nan
        self.out.append(
            {
                "user": self.name,
                "fence": self.fence.id,
                "kind": kind,
                "crossed_at": crossed,
                "confirmed_at": confirmed,
                "initial": False,
                "gap_s": None,
                "threshold_s": None,
                "duration_s": None,
                "reason": reason,
                "confidence": confidence,
                "method": seen.fix.method,
                "distance_m": None if math.isnan(distance) else distance,
                "accuracy_m": look.fix.accuracy_m if look else None,
                **more,
            }
        )

    def _enter(self, confirmed: int, reason: str, look: Look | None) -> None:
        self.state, self.witness, self.dwelt = INSIDE, None, set()
        self.first_outside, self.run, self.marked = None, 0, False
        gap_s = None if self.gap is None else self.gap / 1000
        self._emit("enter", self.crossed, confirmed, reason, look, initial=self.initial, gap_s=gap_s)

    def _exit(self, crossed: int, confirmed: int, reason: str, look: Look | None, was_cell: bool) -> None:
        self.state = OUTSIDE
        seen = look or (self.last if reason == "timer" else None)
        self.witness = seen.fix.at if seen is not None and seen.is_out else None
        self._emit("exit", crossed, confirmed, reason, look, duration_s=(crossed - self.crossed) / 1000)
        can_return = was_cell and reason in ("fix", "timer", "gap")
        self.taken_back = (confirmed, self.crossed, set(self.dwelt)) if can_return else None

    # --- one fix ----------------------------------------------------------------------------------------------------

    def step(self, look: Look, is_open: bool) -> None:
        """An ordinary fix (docs/presence.md, section 3)."""
        if not is_open:
            self._while_closed(look)
        elif self.state in (OUTSIDE, ENTERING):
            self._from_outside(look)
        elif self.state == SUSPENDED:
            self._from_suspended(look)
        else:
            self._from_inside(look)
        if look.is_out and self.state == OUTSIDE:
            self.witness, self.marked = look.fix.at, False
        self._see(look)
        if is_open:
            self._dwell(look)

    def _see(self, look: Look) -> None:
        self.last = look
        if look.is_inside:
            self.last_inside = look.fix.at

    def _while_closed(self, look: Look) -> None:
        if self.state == ENTERING:
            self.state = OUTSIDE
        if look.zone == IN:
            self.marked, self.witness = True, None

    def _from_outside(self, look: Look) -> None:
        at = look.fix.at
        if look.zone != IN:
            self.state = OUTSIDE
            return
        self.last = look
        if self.state == OUTSIDE:
            self.state, self.crossed = ENTERING, at
            known = self.witness is not None and at - self.witness < DAY and not self.marked
            self.initial = not known
            self.gap = at - self.witness if known and self.witness is not None else None
        if self.marked:
            self._enter(at, "opened", look)
            return
        if self.fence.enter_delay_s is not None:
            self.delay = round(self.fence.enter_delay_s * SECOND)
        else:
            waits = look.fix.is_cell and not look.fix.is_fine and not self.fence.tiling and not look.evidence.is_cell
            self.delay = COARSE_ENTER_DELAY if waits else 0
        if at - self.crossed >= self.delay:
            self._enter(at, "fix", look)

    def _from_inside(self, look: Look) -> None:
        at = look.fix.at
        if look.is_inside:
            self._stay()
            return
        if self.first_outside is None:
            self.first_outside = at
        if look.zone == NEAR:
            self._run_over()
            return
        self.run += 1
        self.run_since = at if self.run == 1 else self.run_since
        self.state = EXITING
        if self.fence.exit_delay_s is not None:
            done = at - self.run_since >= round(self.fence.exit_delay_s * SECOND)
        elif self.fence.tiling or self.run >= 2:
            done = True
        else:
            far = -look.evidence.distance_m > max(1000.0, 3 * look.fix.accuracy_m)
            done = not look.fix.is_cell and (far or at - self.last_inside >= LONE_EXIT_AFTER)
        if done:
            self._exit(self.first_outside, at, "fix", look, look.fix.is_cell)

    def _stay(self) -> None:
        self._run_over()
        self.first_outside = None

    def _run_over(self) -> None:
        self.state, self.run = INSIDE, 0

    def _from_suspended(self, look: Look) -> None:
        if look.is_inside:
            self._stay()
        elif look.zone == BEYOND:
            self._exit(self.last_inside, look.fix.at, "gap", look, look.fix.is_cell)

    def _dwell(self, look: Look) -> None:
        if self.state != INSIDE or look.zone != IN:
            return
        for threshold in self.thresholds:
            if threshold not in self.dwelt and look.fix.at >= self.crossed + threshold * SECOND:
                self.dwelt.add(threshold)
                self._emit("dwell", self.crossed, look.fix.at, "fix", look, threshold_s=threshold)

    # --- a return to a cell (L8) ------------------------------------------------------------------------------------

    def step_return(self, look: Look, hop: int, is_open: bool) -> None:
        """A fix that comes back to a cell left less than 5 min ago is no movement (docs/presence.md, section 2)."""
        at = look.fix.at
        if not is_open:
            self.step(look, is_open)
        elif self.state == ENTERING and self.crossed >= hop:
            self.state = OUTSIDE
        elif self.state == EXITING and self.run_since >= hop:
            self._run_over()
            self.first_outside = None
            self._see(look)
            self.last_inside = at
            self._dwell(look)
        elif self.state == OUTSIDE:
            if self.taken_back and self.taken_back[0] >= hop and at - self.taken_back[0] < HOP:
                _, self.crossed, dwelt = self.taken_back
                self.taken_back, self.initial, self.gap = None, True, None
                self.last = look
                self._enter(at, "returned", look)
                self.dwelt = dwelt
                self.last_inside = at
                self._dwell(look)
        elif (look.zone == IN) if self.state == ENTERING else look.is_inside:
            self.step(look, is_open)
        else:
            self.last = look

    # --- timers (T8) ------------------------------------------------------------------------------------------------

    def timers(self, closing: int | None) -> list[tuple[int, int, int]]:
        """What this pair waits for: (due, rank, dwell threshold), by due and rank."""
        if self.state == OUTSIDE or self.last is None:
            return []
        feed, seen = self.last.fix.feed, self.last.fix.at
        waits = [] if closing is None else [(closing, CLOSE, 0)]
        if self.state == SUSPENDED:
            waits.append((seen + DAY, EXPIRE, 0))
        else:
            waits.append((seen + feed.presence_ttl, SUSPEND, 0))
        if self.state == ENTERING:
            waits.append((self.crossed + self.delay, ENTER, 0))
        if self.state == EXITING and self.fence.exit_delay_s is not None:
            waits.append((self.run_since + round(self.fence.exit_delay_s * SECOND), EXIT, 0))
        if self.state == INSIDE and self.last.zone == IN and self.last.evidence.confidence is Confidence.HIGH:
            for threshold in self.thresholds:
                due = self.crossed + threshold * SECOND
                if threshold not in self.dwelt and seen < due and due - seen < feed.max_silence:
                    waits.append((due, DWELL, threshold))
        return sorted(waits)

    def fire(self, due: int, rank: int, threshold: int, was_cell: bool) -> None:
        """One timer goes off, at its due instant in event time."""
        if rank == CLOSE:
            if self.state == ENTERING:
                self.state = OUTSIDE
            else:
                self._exit(due, due, "closed", None, was_cell)
            self.marked = True
        elif rank == EXPIRE:
            self._exit(self.last_inside, due, "expired", None, was_cell)
        elif rank == SUSPEND:
            self.state = OUTSIDE if self.state == ENTERING else SUSPENDED
        elif rank == EXIT:
            assert self.first_outside is not None, "EXITING without a fix outside"
            self._exit(self.first_outside, due, "timer", None, was_cell)
        elif rank == ENTER:
            self._enter(due, "timer", None)
        else:
            self.dwelt.add(threshold)
            self._emit("dwell", self.crossed, due, "timer", None, threshold_s=threshold)
