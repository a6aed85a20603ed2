"""Presence as dictionaries and lists, written from docs/presence.md: whole histories kept, everything recomputed.

Knows circles, cell sets and axis-parallel tiling squares only. Shares with the engine nothing but enums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from geopy.distance import geodesic

from engine.model import Confidence, Drop

MIN, HOUR, DAY = 60_000, 3_600_000, 86_400_000
INF = math.inf
ORDER = {"exit": 0, "enter": 1, "dwell": 2, "cross": 3}


@lru_cache(maxsize=200_000)
def metres(lon_e7: int, lat_e7: int, other_lon_e7: int, other_lat_e7: int) -> float:
    return float(geodesic((lat_e7 / 1e7, lon_e7 / 1e7), (other_lat_e7 / 1e7, other_lon_e7 / 1e7)).meters)


@dataclass
class Feed:
    delay: int
    ttl: int
    silence: int
    gap: int


@dataclass
class Fence:
    """centre and radius of a circle, or box (west, south, east, north), or neither: a cell set."""

    id: str
    centre: tuple[int, int] | None = None
    radius: float = 0.0
    box: tuple[int, int, int, int] | None = None
    cells: frozenset[int] = frozenset()
    enter_delay: int | None = None
    exit_delay: int | None = None
    min_confidence: int = 2
    spans: list[tuple[int, int]] | None = None
    dwells: tuple[int, ...] = ()
    added: float = -INF
    key: str = ""

    @property
    def is_cell_set(self) -> bool:
        return self.centre is None and self.box is None

    def closes(self, at: int) -> float | None:
        """End of the open span around `at`; infinity without hours, None when closed."""
        if self.spans is None:
            return INF
        return next((end for start, end in self.spans if start <= at < end), None)


@dataclass
class Fix:
    at: int
    now: int
    id: int
    lon: int
    lat: int
    a: float
    cell: int | None
    method: str
    feed: str

    @property
    def is_cell(self) -> bool:
        return self.cell is not None or self.method == "cell"

    @property
    def is_fine(self) -> bool:
        return self.a <= 60


@dataclass
class Judged:
    zone: str | None  # in, unsure, near, beyond, or None: no evidence
    is_out: bool
    s: float
    confidence: int
    is_member: bool = False


def judge(fence: Fence, fix: Fix) -> Judged:
    if fix.cell is not None and fix.cell in fence.cells:
        return Judged("in", False, INF, 3, True)
    if fence.is_cell_set:
        return Judged(None if fix.cell is None else "beyond", fix.cell is not None, math.nan, 0)
    if fence.box is not None:
        west, south, east, north = fence.box
        # The shared edge belongs to one fence; the world never puts a fix on one.
        inside = west < fix.lon < east and south < fix.lat < north
        return Judged("in" if inside else "beyond", not inside, math.nan, 3 if inside else 0)
    assert fence.centre is not None
    s = fence.radius - metres(fix.lon, fix.lat, *fence.centre)
    if s >= fix.a:
        confidence = 3
    elif s >= 0:
        confidence = 2 if fix.a <= fence.radius / 0.78 else 1
    else:
        confidence = 1 if s > -fix.a else 0
    if s >= 0:
        return Judged("in" if confidence >= fence.min_confidence else "unsure", False, s, confidence)
    edge = min(max(0.1 * fence.radius, 20), 200) + min(fix.a, 200)
    return Judged("beyond" if s < -edge else "near", s <= -fix.a, s, confidence)


def is_exact(fence: Fence, fix: Fix) -> bool:
    if fence.is_cell_set:
        return fix.cell is not None
    return fence.box is not None or fix.is_fine


@dataclass
class Pair:
    witness: int | None
    state: str = "OUTSIDE"
    crossed: int = 0
    run: int = 0
    first_outside: int | None = None
    last_inside: int = 0
    given: set[int] = field(default_factory=set)
    last: Fix | None = None  # last evidence
    judged: Judged | None = None
    closed_inside: bool = False
    exited: int | None = None  # when an EXIT was confirmed that a return may take back
    touched: int = 0  # now when its timers were last armed


@dataclass
class User:
    fixes: list[Fix] = field(default_factory=list)
    held: Fix | None = None
    lags: bool = False
    pairs: dict[int, Pair] = field(default_factory=dict)
    cell: int | None = None
    previous: int | None = None
    left: int = -(1 << 60)


class Model:
    def __init__(self, fences: list[Fence], feeds: dict[str, Feed]) -> None:
        self.fences = fences
        self.feeds = feeds
        self.users: dict[int, User] = {}
        self.out: list[dict[str, Any]] = []
        self.newest = -(1 << 60)

    # --- time -------------------------------------------------------------------------------------------------------

    def duties(self, fence: Fence, pair: Pair) -> list[tuple[int, int, Any]]:
        """(due, rank, what) of everything pending, soonest first."""
        if pair.state == "OUTSIDE":
            return []
        assert pair.last is not None
        assert pair.judged is not None
        feed, last = self.feeds[pair.last.feed], pair.last.at
        found: list[tuple[int, int, Any]] = []
        closes = fence.closes(last)
        if closes is not None and closes < INF:
            found.append((int(closes), 0, "closing"))
        if pair.state == "SUSPENDED":
            return sorted([*found, (last + DAY, 1, "expiry")])
        found.append((last + feed.ttl, 2, "suspension"))
        if pair.state == "EXITING" and fence.exit_delay is not None:
            found.append((pair.run + fence.exit_delay, 3, "exit"))
        if pair.state == "ENTERING" and pair.judged.zone == "in":
            found.append((pair.crossed + self.delay(fence, pair.last, pair.judged), 4, "enter"))
        if pair.state == "INSIDE" and pair.judged.zone == "in" and pair.judged.confidence == 3:
            for threshold in fence.dwells:
                due = pair.crossed + threshold * 1000
                if threshold not in pair.given and last < due and due - last < feed.silence:
                    found.append((due, 5, threshold))
        return sorted(found, key=lambda duty: duty[:2])

    def delay(self, fence: Fence, fix: Fix, judged: Judged) -> int:
        if fence.enter_delay is not None:
            return fence.enter_delay
        coarse = fix.is_cell and not fix.is_fine and not judged.is_member and fence.box is None
        return 2 * MIN if coarse else 0

    def pass_time(self, now: int) -> None:
        while True:
            ready = []
            for slot, user in self.users.items():
                if user.lags:
                    continue
                for row, pair in user.pairs.items():
                    for due, _, _ in self.duties(self.fences[row], pair)[:1]:
                        assert pair.last is not None
                        fires = max(due + self.feeds[pair.last.feed].delay, pair.touched)
                        if fires <= now:
                            ready.append((fires, slot, row))
            if not ready:
                return
            fires, slot, row = min(ready)
            pair = self.users[slot].pairs[row]
            assert pair.last is not None
            self.fire(slot, row, fires - self.feeds[pair.last.feed].delay, fires)
            pair.touched = fires

    def fire(self, slot: int, row: int, until: int, now: int) -> None:
        fence, user = self.fences[row], self.users[slot]
        pair = user.pairs[row]
        while (duties := self.duties(fence, pair)) and duties[0][0] <= until:
            due, _, what = duties[0]
            assert pair.last is not None
            assert pair.judged is not None
            more: dict[str, Any] = {"now": now, "by_timer": True, "method": pair.last.method}
            if what == "closing":
                if pair.state != "ENTERING":
                    self.exit(slot, row, due, due, "closed", 3, more)
                pair.state, pair.witness, pair.closed_inside = "OUTSIDE", None, True
            elif what == "expiry":
                self.exit(slot, row, pair.last_inside, due, "expired", 1, more)
            elif what == "suspension":
                pair.state = "OUTSIDE" if pair.state == "ENTERING" else "SUSPENDED"
                pair.first_outside = None
            elif what == "exit":
                out = pair.judged.is_out
                assert pair.first_outside is not None
                self.exit(slot, row, pair.first_outside, due, "timer", 3 if out else 1, more)
                pair.witness = pair.last.at if out else None
                pair.exited = due if user.fixes[-1].is_cell else None
            elif what == "enter":
                pair.given = set()
                self.enter(slot, row, due, "timer", pair.judged.confidence, more)
            else:
                self.emit("dwell", slot, row, pair.crossed, due, "timer", pair.judged.confidence, more, threshold=what)
                pair.given.add(what)

    # --- what comes out -----------------------------------------------------------------------------------------------

    def emit(
        self,
        kind: str,
        slot: int,
        row: int,
        crossed: int,
        confirmed: int,
        reason: str,
        confidence: int,
        more: Any,
        **rest: Any,
    ) -> None:
        self.out.append(
            {
                "kind": kind, "user": slot, "fence": row, "crossed": crossed, "confirmed": confirmed, "reason": reason,
                "confidence": confidence, "gap": -1, "duration": -1, "threshold": -1, "initial": False, "wide": False,
                "by_timer": False, **more, **rest,
            }
        )  # fmt: skip

    def exit(self, slot: int, row: int, crossed: int, confirmed: int, reason: str, confidence: int, more: Any) -> None:
        pair = self.users[slot].pairs[row]
        self.emit("exit", slot, row, crossed, confirmed, reason, confidence, more, duration=crossed - pair.crossed)
        pair.state, pair.witness, pair.first_outside, pair.exited = "OUTSIDE", None, None, None

    def enter(self, slot: int, row: int, confirmed: int, reason: str, confidence: int, more: Any) -> None:
        pair = self.users[slot].pairs[row]
        assert pair.last is not None
        rest: dict[str, Any] = {"initial": True}
        if pair.witness is not None and pair.crossed - pair.witness < DAY:
            gap = pair.crossed - pair.witness
            rest = {"gap": gap, "wide": gap > self.feeds[pair.last.feed].gap}
        self.emit("enter", slot, row, pair.crossed, confirmed, reason, confidence, more, **rest)
        pair.state, pair.last_inside, pair.first_outside = "INSIDE", pair.last.at, None
        pair.exited, pair.closed_inside = None, False

    # --- pings --------------------------------------------------------------------------------------------------------

    def take(self, slot: int, fix: Fix) -> Drop:
        self.pass_time(fix.now)
        user = self.users.setdefault(slot, User())
        if fix.cell is None and (fix.lon, fix.lat) == (0, 0):
            return Drop.NULL_ISLAND
        return self.admit(slot, user, fix)

    def admit(self, slot: int, user: User, fix: Fix) -> Drop:
        if user.fixes:
            last = user.fixes[-1]
            if fix.at < last.at:
                return Drop.LATE
            if any(fix.at == one.at and fix.id == one.id for one in [*user.fixes, *([user.held] if user.held else [])]):
                return Drop.DUPLICATE
            old = agrees(last, fix)
            if user.held is None:
                if not old:
                    user.held = fix
                    return Drop.TOO_FAST
            else:
                held = user.held
                new = fix.at >= held.at and agrees(held, fix)
                user.held = None
                if new and (not old or way(held, fix) < way(last, fix)):
                    self.process(slot, user, Fix(**{**held.__dict__, "now": fix.now}))
                    return self.admit(slot, user, fix)
                if not old:
                    user.held = fix
                    return Drop.TOO_FAST
        self.process(slot, user, fix)
        return Drop.NONE

    def process(self, slot: int, user: User, fix: Fix) -> None:
        for row in sorted(user.pairs):
            pair = user.pairs[row]
            duties = self.duties(self.fences[row], pair)
            if any(due <= fix.at for due, _, what in duties if what in ("closing", "expiry", "suspension")):
                self.fire(slot, row, fix.at, fix.now)
            elif user.lags and pair.last is not None:
                self.fire(slot, row, fix.at - self.feeds[pair.last.feed].delay, fix.now)
        user.lags = fix.now - fix.at > 10 * MIN
        hop = None
        if fix.cell is not None and fix.cell != user.cell:
            if fix.cell == user.previous and fix.at - user.left < 5 * MIN:
                hop = user.left
            user.previous, user.cell, user.left = user.cell, fix.cell, fix.at
        begin = len(self.out)
        before = {row: pair.state for row, pair in user.pairs.items()}
        for row, fence in enumerate(self.fences):
            judged = judge(fence, fix)
            if judged.zone is not None:
                self.step(slot, user, row, fence, fix, judged, hop)
            if row in user.pairs:
                user.pairs[row].touched = fix.now
        step = sorted(self.out[begin:], key=lambda one: (ORDER[one["kind"]], one["fence"]))
        del self.out[begin:]
        self.out += step
        self.cross(slot, user, fix, before, {one["fence"] for one in step})
        user.fixes.append(fix)
        self.newest = max(self.newest, fix.at)

    def cross(self, slot: int, user: User, fix: Fix, before: dict[int, str], moved: set[int]) -> None:
        if not user.fixes:
            return
        last = user.fixes[-1]
        if last.is_cell or fix.is_cell or fix.at - last.at > 30 * MIN:
            return
        for row, fence in enumerate(self.fences):
            if fence.is_cell_set or row in moved or before.get(row, "OUTSIDE") != "OUTSIDE":
                continue
            if row in user.pairs and user.pairs[row].state != "OUTSIDE":
                continue
            one, other = judge(fence, last), judge(fence, fix)
            if one.is_out and other.is_out and fence.closes(fix.at) is not None and touches(fence, last, fix):
                more = {"now": fix.now, "method": fix.method}
                self.emit("cross", slot, row, fix.at, fix.at, "fix", 1, more)

    def witness_before(self, user: User, fence: Fence) -> int | None:
        known = [fix.at for fix in user.fixes if is_exact(fence, fix)][-1:]
        if user.fixes and judge(fence, user.fixes[-1]).is_out:
            known.append(user.fixes[-1].at)
        return max((at for at in known if at > fence.added), default=None)

    def step(self, slot: int, user: User, row: int, fence: Fence, fix: Fix, judged: Judged, hop: int | None) -> None:
        pair = user.pairs.get(row)
        if pair is None:
            if judged.is_out or not (judged.zone == "in" or is_exact(fence, fix)):
                return
            pair = user.pairs[row] = Pair(self.witness_before(user, fence))
        if hop is not None:
            self.step_return(slot, user, row, fence, fix, judged, pair, hop)
        elif pair.state in ("OUTSIDE", "ENTERING"):
            self.step_outside(slot, user, row, fence, fix, judged, pair)
        else:
            self.step_visit(slot, row, fence, fix, judged, pair)
        if pair.state == "INSIDE" and judged.zone == "in":
            for threshold in fence.dwells:
                if threshold not in pair.given and fix.at >= pair.crossed + threshold * 1000:
                    pair.given.add(threshold)
                    more = {"now": fix.now, "method": fix.method}
                    self.emit(
                        "dwell", slot, row, pair.crossed, fix.at, "fix", judged.confidence, more, threshold=threshold
                    )
        if pair.state == "OUTSIDE" and judged.is_out and hop is None:
            if pair.exited is not None and fix.at - pair.exited < 5 * MIN:
                return
            fine = [one.at for one in user.fixes if one.is_fine][-1:]
            if is_exact(fence, fix) or not fine or fix.at - fine[0] >= DAY:
                del user.pairs[row]

    def step_outside(self, slot: int, user: User, row: int, fence: Fence, fix: Fix, judged: Judged, pair: Pair) -> None:
        if judged.is_out:
            pair.witness, pair.closed_inside = fix.at, False
        pair.last, pair.judged = fix, judged
        if judged.zone != "in":
            pair.state = "OUTSIDE"
        elif fence.closes(fix.at) is None:
            pair.state, pair.witness, pair.closed_inside, pair.exited = "OUTSIDE", None, True, None
        else:
            if pair.state == "OUTSIDE":
                pair.crossed, pair.exited = fix.at, None
            opened = pair.closed_inside
            if opened or fix.at - pair.crossed >= self.delay(fence, fix, judged):
                pair.given = set()
                if opened:
                    pair.witness = None
                more = {"now": fix.now, "method": fix.method}
                self.enter(slot, row, fix.at, "opened" if opened else "fix", judged.confidence, more)
            else:
                pair.state = "ENTERING"

    def step_visit(self, slot: int, row: int, fence: Fence, fix: Fix, judged: Judged, pair: Pair) -> None:
        more = {"now": fix.now, "method": fix.method}
        pair.last, pair.judged = fix, judged
        if judged.zone in ("in", "unsure"):
            pair.state, pair.last_inside, pair.first_outside = "INSIDE", fix.at, None
            return
        if pair.first_outside is None:
            pair.first_outside = fix.at
        if judged.zone == "near":
            pair.state = pair.state if pair.state == "SUSPENDED" else "INSIDE"
            return
        if pair.state == "SUSPENDED":
            reason, crossed, enough = "gap", pair.last_inside, True
        else:
            since = pair.run if pair.state == "EXITING" else fix.at
            reason, crossed = "fix", pair.first_outside
            if fence.exit_delay is not None:
                enough = fix.at - since >= fence.exit_delay
            else:
                far = -judged.s > max(1000, 3 * fix.a) if not math.isnan(judged.s) else False
                lone = not fix.is_cell and (far or fix.at - pair.last_inside >= 10 * MIN)
                enough = fence.box is not None or pair.state == "EXITING" or lone
            pair.run = since
        if not enough:
            pair.state = "EXITING"
            return
        self.exit(slot, row, crossed, fix.at, reason, 3 if judged.is_out else 1, more)
        pair.witness = fix.at if judged.is_out else None
        pair.exited = fix.at if fix.is_cell else None

    def step_return(
        self, slot: int, user: User, row: int, fence: Fence, fix: Fix, judged: Judged, pair: Pair, hop: int
    ) -> None:
        more = {"now": fix.now, "method": fix.method}
        if fence.closes(fix.at) is None:
            self.step_outside(slot, user, row, fence, fix, judged, pair)
        elif pair.state == "OUTSIDE":
            if pair.exited is None or pair.exited < hop or fix.at - pair.exited >= 5 * MIN:
                return
            pair.last, pair.judged, pair.witness = fix, judged, None
            self.enter(slot, row, fix.at, "returned", judged.confidence, more)
        elif pair.state == "ENTERING":
            if pair.crossed >= hop:
                pair.state = "OUTSIDE"
            elif judged.zone == "in":
                self.step_outside(slot, user, row, fence, fix, judged, pair)
            else:
                pair.last, pair.judged = fix, judged
        elif pair.state == "EXITING" and pair.run >= hop:
            pair.state, pair.last_inside, pair.first_outside = "INSIDE", fix.at, None
            pair.last, pair.judged = fix, judged
        elif judged.zone in ("in", "unsure"):
            self.step_visit(slot, row, fence, fix, judged, pair)
        else:
            pair.last, pair.judged = fix, judged

    # --- the rest -----------------------------------------------------------------------------------------------------

    def activate(self, fences: list[Fence], now: int) -> None:
        rows = {fence.key: row for row, fence in enumerate(fences)}
        old = self.fences
        for fence in fences:
            kept = [one for one in old if one.key == fence.key]
            fence.added = kept[0].added if kept else max(now, self.newest)
        for slot in sorted(self.users):
            user = self.users[slot]
            user.held = None
            pairs: dict[int, Pair] = {}
            for row in sorted(user.pairs):
                pair = user.pairs[row]
                if old[row].key in rows:
                    pair.touched = now
                    pair.given &= set(fences[rows[old[row].key]].dwells)
                    pairs[rows[old[row].key]] = pair
                elif pair.state in ("INSIDE", "EXITING", "SUSPENDED"):
                    assert pair.last is not None
                    more = {"now": now, "by_timer": True, "method": pair.last.method}
                    self.exit(slot, row, now, now, "removed", 3, more)
            user.pairs = pairs
        self.fences = fences

    def occupancy(self) -> list[int]:
        counts = [0] * len(self.fences)
        for user in self.users.values():
            for row, pair in user.pairs.items():
                counts[row] += not user.lags and pair.state in ("INSIDE", "EXITING")
        return counts


def way(one: Fix, other: Fix) -> float:
    return metres(one.lon, one.lat, other.lon, other.lat)


def agrees(one: Fix, other: Fix) -> bool:
    return way(one, other) - one.a - other.a <= 500 / 3.6 * (other.at - one.at) / 1000


def touches(fence: Fence, one: Fix, other: Fix) -> bool:
    """Whether the way between two fixes on one parallel touches the fence (the world has no other ways)."""
    assert one.lat == other.lat
    west, east = min(one.lon, other.lon), max(one.lon, other.lon)
    if fence.box is not None:
        return west <= fence.box[2] and east >= fence.box[0] and fence.box[1] <= one.lat <= fence.box[3]
    assert fence.centre is not None
    nearest = min(max(fence.centre[0], west), east)
    return metres(nearest, one.lat, *fence.centre) <= fence.radius


CONFIDENCES = {confidence.name: int(confidence) for confidence in Confidence}
