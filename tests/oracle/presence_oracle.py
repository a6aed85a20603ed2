"""Presence by brute force: lists, dictionaries and the words of the rules (T5-T8, L5-L9, P1-P8).

Feed it pings in log order; it answers with transitions as dictionaries. Every fence is asked about every fix, every
timer is found by looking at every pair of a user; nothing is clever. Where the rules can be read in more than one way,
docs/presence.md says how. It shares no code with the engine but the names of model.py and the Fence that is read.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from engine.definitions import Fence, Shape
from engine.model import Confidence
from tests.oracle.hours_oracle import open_spans
from tests.oracle.locate_oracle import Evidence, FenceShape, accuracy_of, geodesic_m
from tests.oracle.visit_oracle import (
    CLOSE,
    DAY,
    EXPIRE,
    HOP,
    IN,
    LAGGING_AFTER,
    MINUTE,
    OUTSIDE,
    SUSPEND,
    Feed,
    Fix,
    Look,
    Pair,
    agrees,
    look_at,
)

KIND_ORDER = {"exit": 0, "enter": 1, "dwell": 2, "cross": 3}  # P6
NEVER = -(1 << 62)


@dataclass
class User:
    pairs: dict[str, Pair] = field(default_factory=dict)
    newest: Fix | None = None
    newest_at: int = NEVER
    identities: set[Any] = field(default_factory=set)  # of the newest instant
    held: Fix | None = None
    lagging: bool = False
    cell: str | None = None
    cell_before: str | None = None
    left: int = NEVER
    newest_fine: int | None = None
    newest_with_cell: int | None = None
    out_of: set[str] = field(default_factory=set)  # fences that the newest fix was OUT of


class PresenceOracle:
    """Take pings in log order with `take`, end with `finish`; `transitions` then holds everything that happened.

    feeds        feed name -> Feed
    thresholds   fence id -> dwell thresholds in seconds
    hours        instants between which opening hours are needed
    expiry_forgets   EXIT `expired` ends the memory of the pair, as docs/presence.md reads P2; False: P2 to the letter,
                     where a fix inside is never a witness of "outside before", however late the next fix comes
    """

    def __init__(
        self,
        fences: Iterable[Fence],
        feeds: Mapping[str, Feed],
        thresholds: Mapping[str, Sequence[int]] | None = None,
        hours: tuple[int, int] = (0, 0),
        expiry_forgets: bool = False,
    ) -> None:
        self.expiry_forgets = expiry_forgets
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
        self.now = NEVER
        self._due: list[tuple[int, str]] = []

    def take(self, ping: Mapping[str, Any]) -> None:
        """One ping in log order: first what fell due before it (T8), then itself."""
        self.now = max(self.now, ping["now_ms"])
        self._fire_by_now()
        user = self.users.setdefault(ping["user"], User())
        self.drops.append(self._admit(ping["user"], user, ping))
        self._await(ping["user"], user)

    def finish(self, now_ms: int) -> None:
        """Let `now` move on without a record."""
        self.now = max(self.now, now_ms)
        self._fire_by_now()

    def run(self, pings: Iterable[Mapping[str, Any]], end_now_ms: int | None = None) -> list[dict[str, Any]]:
        for ping in pings:
            self.take(ping)
        if end_now_ms is not None:
            self.finish(end_now_ms)
        return self.transitions

    # --- which pings count (T5, T7, L8) -----------------------------------------------------------------------------

    def _admit(self, name: str, user: User, ping: Mapping[str, Any]) -> str | None:
        """Judge a ping that counts; answer why it does not count, or None."""
        feed, lon_e7, lat_e7 = self.feeds[ping["feed"]], ping["lon_e7"], ping["lat_e7"]
        if abs(lon_e7) > 1_800_000_000 or abs(lat_e7) > 900_000_000:
            return "out_of_range"
        if ping["cell"] is None and lon_e7 == 0 and lat_e7 == 0:
            return "null_island"
        accuracy_m = accuracy_of(ping["accuracy_m"], ping["method"])
        if accuracy_m > feed.max_accuracy_m:
            return "too_coarse"
        said = (ping["feed"], ping["id"]) if ping["id"] is not None else tuple(sorted(ping.items(), key=str))
        if ping["id"] is None:
            said = tuple(item for item in said if item[0] != "now_ms")
        fix = Fix(ping["at_ms"], lon_e7, lat_e7, accuracy_m, ping["method"], ping["cell"], feed, said)
        if fix.at == user.newest_at and said in user.identities:
            return "duplicate"
        if user.held is not None and fix.at == user.held.at and said == user.held.identity:
            return "duplicate"
        if fix.at < user.newest_at:
            return "late"
        return self._check_speed(name, user, fix)

    def _check_speed(self, name: str, user: User, fix: Fix) -> str | None:
        newest, held = user.newest, user.held
        if newest is None or (held is None and agrees(newest, fix)):
            self._judge(name, user, fix)
            return None
        if held is None:
            user.held = fix
            return "too_fast"
        with_old = agrees(newest, fix)
        with_held = fix.at >= held.at and agrees(held, fix)
        if with_old and with_held:
            with_held = apart_m(held, fix) < apart_m(newest, fix)
            with_old = not with_held
        user.held = None
        if with_held:
            self._judge(name, user, held)
            self._judge(name, user, fix)
            return None
        if with_old:
            self._judge(name, user, fix)
            return None
        user.held = fix
        return "too_fast"

    # --- one fix ----------------------------------------------------------------------------------------------------

    def _judge(self, name: str, user: User, fix: Fix) -> None:
        self._fire_in_own_time(user, fix.at)
        hop = self._cell_left(user, fix)
        out: list[dict[str, Any]] = []
        out_of: set[str] = set()
        for fence_id, fence in self.fences.items():
            shape, pair = self.shapes[fence_id], user.pairs.get(fence_id)
            visited = pair is not None and (pair.state != OUTSIDE or pair.taken_back is not None)
            evidence = shape.evidence(fix.lon_e7, fix.lat_e7, fix.accuracy_m, fix.cell, visited)
            if fence.tiling:
                evidence = self._tile(fence, fix)
            if evidence is None:
                continue
            look = look_at(fix, evidence, fence, 0.0 if shape.geometry is None else shape.characteristic_m)
            if look.is_out:
                out_of.add(fence_id)
            state_before = OUTSIDE if pair is None else pair.state
            emitted = self._step(name, user, fence_id, look, hop)
            pair = user.pairs.get(fence_id)
            state = OUTSIDE if pair is None else pair.state
            if state_before == state == OUTSIDE and not emitted and self._crosses(user, fence_id, look):
                emitted = [cross(name, fence_id, look, shape.signed_m(fix.lon_e7, fix.lat_e7))]
            out += emitted
        out.sort(key=lambda one: (KIND_ORDER[one["kind"]], one["fence"], one["threshold_s"] or 0))
        self.transitions += out
        self._become_newest(user, fix, out_of)

    def _tile(self, fence: Fence, fix: Fix) -> Evidence:
        """L5: a tile is judged by the point alone; what several of one set cover belongs to the first."""
        covering = [
            other.id
            for other in self.fences.values()
            if other.tiling and other.kind == fence.kind and self.shapes[other.id].covers(fix.lon_e7, fix.lat_e7)
        ]
        inside = bool(covering) and covering[0] == fence.id
        signed = self.shapes[fence.id].signed_m(fix.lon_e7, fix.lat_e7)
        return Evidence(Confidence.HIGH if inside else Confidence.OUT, inside, signed)

    def _step(self, name: str, user: User, fence_id: str, look: Look, hop: int | None) -> list[dict[str, Any]]:
        fix, pair = look.fix, user.pairs.get(fence_id)
        is_open = self.is_open(fence_id, fix.at)
        if pair is None:
            begins = look.zone == IN or (look.is_exact and not look.is_out)
            if not begins:
                return []
            witness = self._witness_without_memory(user, fence_id)
            pair = Pair(name, self.fences[fence_id], self.thresholds.get(fence_id, ()), witness)
            user.pairs[fence_id] = pair
        if hop is not None:
            pair.step_return(look, hop, is_open)
        else:
            pair.step(look, is_open)
            self._forget(user, fence_id, pair, look)
        pair.armed_now = self.now
        emitted, pair.out = pair.out, []
        return emitted

    def _witness_without_memory(self, user: User, fence_id: str) -> int | None:
        """P2: the newest fix that surely was OUT, and the newest of all if it was."""
        fence = self.fences[fence_id]
        newest_exact = user.newest_fine
        if fence.shape is Shape.CELLS:
            newest_exact = user.newest_with_cell
        elif fence.tiling:
            newest_exact = None if user.newest is None else user.newest.at
        witnesses = [] if newest_exact is None else [newest_exact]
        if user.newest is not None and fence_id in user.out_of:
            witnesses.append(user.newest.at)
        return max(witnesses, default=None)

    def _forget(self, user: User, fence_id: str, pair: Pair, look: Look) -> None:
        """P2: memory of a pair OUTSIDE ends with a fix that surely is OUT."""
        if pair.state != OUTSIDE or not look.is_out:
            return
        at = look.fix.at
        if pair.taken_back is not None and at - pair.taken_back[0] < HOP:
            return
        no_fine = user.newest_fine is None or at - user.newest_fine >= DAY
        if look.is_exact or (self.fences[fence_id].shape is not Shape.CELLS and no_fine):
            del user.pairs[fence_id]

    def _become_newest(self, user: User, fix: Fix, out_of: set[str]) -> None:
        if fix.at > user.newest_at:
            user.identities = set()
        user.identities.add(fix.identity)
        user.newest, user.newest_at, user.out_of = fix, fix.at, out_of
        user.lagging = self.now - fix.at > LAGGING_AFTER
        if fix.is_fine:
            user.newest_fine = fix.at
        if fix.cell is not None:
            user.newest_with_cell = fix.at

    @staticmethod
    def _cell_left(user: User, fix: Fix) -> int | None:
        """L8: the instant the cell was left that this fix returns to within 5 min; None for an ordinary fix."""
        if fix.cell is None or fix.cell == user.cell:
            return None
        hop = user.left if fix.cell == user.cell_before and fix.at - user.left < HOP else None
        user.cell_before, user.cell = user.cell, fix.cell
        user.left = fix.at if user.cell_before is not None else NEVER
        return hop

    def is_open(self, fence_id: str, at: int) -> bool:
        spans = self.spans.get(fence_id)
        return spans is None or any(start <= at < end for start, end in spans)

    def _closing(self, fence_id: str, pair: Pair) -> int | None:
        """L9: the end of the open span that holds the last evidence."""
        if pair.last is None:
            return None
        at = pair.last.fix.at
        return next((end for start, end in self.spans.get(fence_id, ()) if start <= at < end), None)

    def _crosses(self, user: User, fence_id: str, look: Look) -> bool:
        """P8: two fixes OUT whose straight segment touches the fence."""
        before, after = user.newest, look.fix
        if before is None or before.is_cell or after.is_cell:
            return False
        if self.shapes[fence_id].geometry is None or not self.is_open(fence_id, after.at):
            return False
        if not 0 <= after.at - before.at <= 30 * MINUTE or abs(after.lon_e7 - before.lon_e7) > 1_800_000_000:
            return False
        if not look.is_out or fence_id not in user.out_of:
            return False
        if (before.lon_e7, before.lat_e7) == (after.lon_e7, after.lat_e7):
            return False  # who stands on the shared corner of tiles crosses none of those that do not have it
        return self.shapes[fence_id].segment_touches(before.lon_e7, before.lat_e7, after.lon_e7, after.lat_e7)

    # --- timers (T8) ------------------------------------------------------------------------------------------------

    def _able(self, user: User) -> list[tuple[int, str, int, int, int]]:
        """When each timer of a user may fire by `now`: (instant, fence, due, rank, threshold)."""
        return sorted(
            (max(due + delay_of(pair), pair.armed_now), fence_id, due, rank, threshold)
            for fence_id, pair in user.pairs.items()
            for due, rank, threshold in pair.timers(self._closing(fence_id, pair))
        )

    def _await(self, name: str, user: User) -> None:
        able = self._able(user)
        if able and not user.lagging:
            bisect.insort(self._due, (able[0][0], name))

    def _fire_by_now(self) -> None:
        while self._due and self._due[0][0] <= self.now:
            _, name = self._due.pop(0)
            user = self.users[name]
            if user.lagging:
                continue
            able = self._able(user)
            if able and able[0][0] <= self.now:
                instant, fence_id, due, rank, threshold = able[0]
                self._fire(user, fence_id, due, rank, threshold, instant)
                self._await(name, user)
            elif able:
                bisect.insort(self._due, (able[0][0], name))

    def _fire_in_own_time(self, user: User, at: int) -> None:
        """What comes before this fix whatever `now` says, pair by pair."""
        for fence_id in sorted(user.pairs):
            pair = user.pairs[fence_id]
            while fence_id in user.pairs:
                timers = pair.timers(self._closing(fence_id, pair))
                if any(due <= at and rank in (CLOSE, EXPIRE, SUSPEND) for due, rank, _ in timers):
                    ready = [timer for timer in timers if timer[0] <= at]
                elif user.lagging:
                    ready = [timer for timer in timers if timer[0] + delay_of(pair) <= at]
                else:
                    ready = []
                if not ready:
                    break
                self._fire(user, fence_id, *ready[0], self.now)

    def _fire(self, user: User, fence_id: str, due: int, rank: int, threshold: int, now: int) -> None:
        pair = user.pairs[fence_id]
        pair.fire(due, rank, threshold, user.newest is not None and user.newest.is_cell)
        pair.armed_now = max(pair.armed_now, now)
        self.transitions += pair.out
        pair.out = []
        if rank == EXPIRE and self.expiry_forgets:
            del user.pairs[fence_id]


def delay_of(pair: Pair) -> int:
    return 0 if pair.last is None else pair.last.fix.feed.expected_delay_ms


def apart_m(one: Fix, other: Fix) -> float:
    return geodesic_m(one.lon_e7 / 1e7, one.lat_e7 / 1e7, other.lon_e7 / 1e7, other.lat_e7 / 1e7)


def cross(name: str, fence_id: str, look: Look, distance_m: float) -> dict[str, Any]:
    """P8: for counting only."""
    at = look.fix.at
    return {
        "user": name,
        "fence": fence_id,
        "kind": "cross",
        "crossed_at": at,
        "confirmed_at": at,
        "initial": False,
        "gap_s": None,
        "threshold_s": None,
        "duration_s": None,
        "reason": "fix",
        "confidence": Confidence.LOW.name,
        "method": look.fix.method,
        "distance_m": distance_m,
        "accuracy_m": look.fix.accuracy_m,
    }
