"""Presence of all users of one partition: batches of located pings in, transitions out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from engine.definitions import Fence
from engine.geometry_kernel import FenceArrays
from engine.model import EVENT, HIT, TRANSITION, Drop, TransitionKind
from engine.presence import activation_kernel, kernel
from engine.presence import layout_kernel as layout
from engine.presence.pair_kernel import find_visit
from engine.presence.past import Past
from engine.presence.rules import compile_rules, with_hours
from engine.presence.state import blank_user, new_state, state_arrays, state_of, with_room, with_users
from engine.presence.table import STATES
from engine.settings import FeedTable
from engine.wheel_kernel import new_wheel

_OUT_ROWS = 16_384
_HELD_HITS = 64
_QUESTIONS = 256
_NO_ROW = 1 << 62
_NOTHING_ASKED = np.zeros(0, np.int64)
_POOL_OF = {
    kernel.MORE_VISITS: "visit",
    kernel.MORE_TIMERS: "timer",
    kernel.MORE_HELD: "held",
    kernel.MORE_HELD_HITS: "held_hit",
    kernel.MORE_SAME: "same",
}


class Presence:
    """Who is in which fence (P1-P9), as a function of the log alone.

    fences            sorted by id; row i everywhere is fences[i]
    arrays            the same fences compiled (engine.locate)
    dwell_thresholds  fence row -> seconds, at most 8 of one fence (P4)
    open_intervals    fence row -> int64[K, 2] of [start, end) in epoch ms; absent: always open (L9)

    docs/presence.md is the exact reading of every rule.
    """

    def __init__(
        self,
        fences: Sequence[Fence],
        arrays: FenceArrays,
        feeds: FeedTable,
        dwell_thresholds: Mapping[int, Sequence[int]] | None = None,
        open_intervals: Mapping[int, np.ndarray] | None = None,
    ) -> None:
        self.fences = tuple(fences)
        self._feeds = feeds
        self._arrays = arrays
        self._rules = compile_rules(self.fences, arrays, feeds, dwell_thresholds or {}, open_intervals or {})
        self._state = new_state(len(self.fences))
        self._work = _new_work(len(self.fences))
        self._has_questions = False
        self._blank = blank_user()
        self._past = Past([])

    # --- the stream -------------------------------------------------------------------------------------------------

    def ensure(self, users: int) -> None:
        """Make room for user slots below `users`."""
        self._state = with_users(self._state, users)

    def advance(
        self,
        events: np.ndarray,
        hit_start: np.ndarray,
        hits: np.ndarray,
        now_ms: int,
        ask: np.ndarray | None = None,
        *,
        keeps_past: bool = False,
    ) -> np.ndarray:
        """Process a batch and let time pass to `now_ms`; return TRANSITION[K] in the order they happened.

        events     EVENT[N]      in log order; `drop` is set where a ping does not count (T5, T7, L8)
        hit_start  int64[N + 1]  hits of event i are hits[hit_start[i]:hit_start[i + 1]], by rising fence row
        now_ms     not below the last event's; without events this is a tick
        ask        rising rows, not of pings, at which `inside_at` will be asked
        keeps_past whether `inside_after` will be asked

        A transition's `event` is the row that gave it, or before which its timer fired (N: after the last).
        Any cut of the same records into batches gives the same transitions (T4).
        """
        chunks: list[np.ndarray] = []
        row = 0
        self._take_questions(ask)
        past: list[np.ndarray] = []
        self._keep_past(keeps_past)
        while True:
            row, answer = kernel.advance(
                self._state, self._rules, self._arrays, events, hit_start, hits, self._work, row, now_ms
            )
            written = int(self._state.control[layout.OUT_ROWS])
            if written:
                chunks.append(self._work.out[:written].copy())
                self._state.control[layout.OUT_ROWS] = 0
            if kept := int(self._work.kept[1]):
                past.append(self._work.past[:kept].copy())
                self._work.kept[1] = 0
            if answer == kernel.DONE:
                break
            self._make_room(answer, written + kept)
        self._past = Past(past)
        if not chunks:
            return np.zeros(0, TRANSITION)
        return chunks[0] if len(chunks) == 1 else np.concatenate(chunks)

    def _take_questions(self, ask: np.ndarray | None) -> None:
        if ask is None:
            if not self._has_questions:
                return
            ask = _NOTHING_ASKED
        self._has_questions = len(ask) > 0
        if len(ask) + 2 > len(self._work.answered):
            answered = np.zeros(2 * len(ask) + 2, np.int64)
            self._work = self._work._replace(ask=np.zeros(len(answered), np.int64), answered=answered)
        self._work.ask[: len(ask)] = ask
        self._work.ask[len(ask)] = _NO_ROW
        self._work.answered[:2] = 0

    def inside_at(self) -> dict[int, list[int]]:
        """Return, for each row asked about in the last `advance`, the fence rows its user was inside of then (P7)."""
        work = self._work
        ends = work.answered[1 : int(work.answered[0]) + 2].tolist()
        return {
            row: work.answer[first:end].tolist()
            for row, first, end in zip(work.ask.tolist(), ends, ends[1:], strict=False)
        }

    def _keep_past(self, keeps_past: bool) -> None:
        if keeps_past and not len(self._work.past):
            self._work = self._work._replace(past=np.zeros(_OUT_ROWS + 2 * len(self.fences), layout.PAST))
        self._work.kept[:] = keeps_past, 0

    def inside_after(self, user: int, row: int, by_timer: bool, now_ms: int, at_ms: int) -> list[int]:
        """Return the fence rows that the user was inside of (P7) at a moment of the last `advance(keeps_past=True)`.

        row, by_timer, now_ms  after this event, or, before it, after all timers up to this `now`
        at_ms                  event time: a visit due to be SUSPENDED by then does not count
        """
        then = self._past.after(user, row, by_timer, now_ms)
        if then is not None:
            return [int(one["fence"]) for one in then if at_ms < one["until_ms"]]
        found = []
        pair = int(self._state.user[user]["visits"]) if user < len(self._state.user) else -1
        while pair >= 0:
            visit = self._state.visit[pair]
            if self._is_inside(visit, at_ms):
                found.append(int(visit["fence"]))
            pair = int(visit["next"])
        return found

    def _make_room(self, lacking: int, written: int) -> None:
        wanted = int(self._state.control[layout.WANTED])
        if lacking == kernel.MORE_USERS:
            self.ensure(wanted)
        elif lacking == kernel.MORE_OUT:
            if not written:  # even empty it is too small for one event
                self._work = _with_rows(self._work, wanted + 2)
        elif lacking == kernel.MORE_ANSWERS:
            self._work = self._work._replace(answer=np.concatenate((self._work.answer, self._work.answer)))
        elif lacking == kernel.MORE_WORK:
            self._work = self._work._replace(hits=np.zeros(2 * wanted, HIT))
        else:
            self._state = with_room(self._state, _POOL_OF[lacking], wanted)

    def reset_user(self, user: int) -> None:
        """Forget one user (closed, or its slot reused); gives no transition."""
        if user < len(self._state.user):
            kernel.reset(self._state, user, self._blank)

    def idle(self, first: int, last: int, before_ms: int) -> np.ndarray:
        """Say of users first .. last - 1 whether nothing of them is open, nor newer than `before_ms` (event time)."""
        found = np.empty(last - first, np.bool_)
        kernel.mark_idle(self._state, first, before_ms, found)
        return found

    def reset_users(self, users: np.ndarray) -> None:
        """As `reset_user`, for many."""
        kernel.reset_all(self._state, users, self._blank)

    # --- content ----------------------------------------------------------------------------------------------------

    def activate(
        self,
        fences: Sequence[Fence],
        arrays: FenceArrays,
        dwell_thresholds: Mapping[int, Sequence[int]] | None = None,
        open_intervals: Mapping[int, np.ndarray] | None = None,
        *,
        cell_rows: np.ndarray | None = None,
        now_ms: int | None = None,
    ) -> np.ndarray:
        """Take new content (L10); return the EXITs `removed` of fences that are gone or changed, as TRANSITION[K].

        cell_rows  int32[C], the new row of each old cell, -1 where it is gone; None: the cells are as before
        now_ms     the log's now at the activation; None: of the last `advance`, which must have come so far
        """
        now_ms = int(self._state.control[layout.NOW_MS]) if now_ms is None else now_ms
        old, old_rules, old_state = self.fences, self._rules, self._state
        rows = {(fence.id, fence.state_hash): row for row, fence in enumerate(fences)}
        new_row = np.array([rows.get((fence.id, fence.state_hash), -1) for fence in old], np.int32)
        gone = self._leave_removed(new_row, now_ms)
        rules = compile_rules(fences, arrays, self._feeds, dwell_thresholds or {}, open_intervals or {})
        rules.fence["added_ms"] = max(now_ms, int(old_state.control[layout.NEWEST_MS]))
        kept = np.flatnonzero(new_row >= 0)
        rules.fence["added_ms"][new_row[kept]] = old_rules.fence["added_ms"][kept]
        self._rules, self._arrays, self.fences = rules, arrays, tuple(fences)
        self._work = _new_work(len(self.fences))
        self._state = self._state._replace(
            wheel=new_wheel(len(old_state.wheel.timer)), occupancy=np.zeros(len(fences), np.int64)
        )
        numbers = _new_numbers(old_rules, rules, new_row)
        activation_kernel.renumber(self._state, rules, new_row, numbers, now_ms)
        if cell_rows is not None:
            activation_kernel.renumber_cells(self._state, cell_rows)
        return gone

    def _leave_removed(self, new_row: np.ndarray, now_ms: int) -> np.ndarray:
        chunks = [self._work.out[:0].copy()]
        if (new_row < 0).any():
            user = 0
            while user < len(self._state.user):
                user = activation_kernel.leave_removed(self._state, self._work.out, new_row, user, now_ms)
                written = int(self._state.control[layout.OUT_ROWS])
                if not written and user < len(self._state.user):
                    self._work = _with_rows(self._work, 0)
                chunks.append(self._work.out[:written].copy())
                self._state.control[layout.OUT_ROWS] = 0
        return np.concatenate(chunks)

    def set_open_intervals(self, open_intervals: Mapping[int, np.ndarray]) -> None:
        """Take opening hours compiled for another stretch of time; they must agree where both speak."""
        self._rules = with_hours(self._rules, self.fences, open_intervals)

    # --- questions --------------------------------------------------------------------------------------------------

    def is_inside(self, user: int, fence: int, now_ms: int) -> bool:
        """Say whether the user counts as inside at `now_ms`: INSIDE or EXITING, and heard of within the ttl (P7)."""
        row = find_visit(self._state, user, fence) if 0 <= user < len(self._state.user) else -1
        if row < 0:
            return False
        return self._is_inside(self._state.visit[row], now_ms)

    def _is_inside(self, visit: Any, at_ms: int) -> bool:
        ttl_ms = int(self._rules.feed["ttl_ms"][visit["feed"]])
        return visit["state"] in (layout.INSIDE, layout.EXITING) and at_ms - int(visit["seen_ms"]) < ttl_ms

    def open_visits(self, user: int) -> list[dict[str, Any]]:
        """Describe every remembered pair of the user, for explain: no coordinates, instants in epoch ms or None."""
        pairs = []
        row = int(self._state.user[user]["visits"]) if 0 <= user < len(self._state.user) else -1
        while row >= 0:
            visit = self._state.visit[row]
            state = STATES[visit["state"]]
            is_open = visit["state"] in (layout.INSIDE, layout.EXITING, layout.SUSPENDED)
            pairs.append(
                {
                    "fence": self.fences[visit["fence"]].id,
                    "state": state,
                    "crossed_at": _instant(visit["crossed_ms"]) if state != "OUTSIDE" else None,
                    "last_fix_at": _instant(visit["seen_ms"]),
                    "last_inside_at": _instant(visit["mark_ms"]) if is_open else None,
                    "outside_before_at": None if is_open else _instant(visit["mark_ms"]),
                    "first_outside_at": _instant(visit["edge_ms"]) if is_open else None,
                    "dwelt_s": [
                        int(self._rules.dwell_ms[visit["fence"], number]) // 1000
                        for number in range(layout.DWELLS)
                        if visit["dwelt"] >> number & 1
                    ],
                }
            )
            row = int(visit["next"])
        return pairs

    @property
    def occupancy(self) -> np.ndarray:
        """Users in each fence now, int64[F] (P9); a view."""
        return self._state.occupancy

    def counts(self) -> dict[str, int]:
        """Totals since the first start: drops by reason, transitions by kind, and what else happened."""
        counts = self._state.counts
        totals = {f"drop_{drop.name.lower()}": int(counts[drop]) for drop in Drop if drop != Drop.NONE}
        totals |= {kind.name.lower(): int(counts[layout.KINDS + kind]) for kind in TransitionKind}
        control = self._state.control
        return totals | {
            "released": int(counts[layout.RELEASED]),
            "returns": int(counts[layout.RETURNS]),
            "pairs": int(control[layout.LIVE_VISITS]),
            "held": int(control[layout.LIVE_HELD]),
        }

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def arrays(self) -> dict[str, np.ndarray]:
        """Name every array of the state; views, so copy before the next `advance`."""
        return state_arrays(self._state) | {"added_ms": self._rules.fence["added_ms"]}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the state of `arrays()`, made with the same fences."""
        assert len(arrays["occupancy"]) == len(self.fences), "a checkpoint of another fence set"
        self._state = state_of(arrays)
        self._rules.fence["added_ms"] = arrays["added_ms"]


def _instant(value: Any) -> int | None:
    return None if value == layout.NEVER else int(value)


def _new_work(fences: int) -> layout.Work:
    # Rows beyond what is used are never touched, so they cost no memory.
    return layout.Work(
        np.zeros(_OUT_ROWS + 2 * fences, TRANSITION),
        np.zeros(2, layout.FIX),
        np.zeros(_HELD_HITS, HIT),
        np.zeros(1, np.int64),
        np.full(_QUESTIONS, _NO_ROW, np.int64),
        np.zeros(_QUESTIONS, np.int32),
        np.zeros(_QUESTIONS, np.int64),
        np.zeros(0, layout.PAST),
        np.zeros(2, np.int64),
    )


def _with_rows(work: layout.Work, wanted: int) -> layout.Work:
    return work._replace(out=np.zeros(max(2 * len(work.out), wanted), TRANSITION))


def _new_numbers(old: layout.Rules, new: layout.Rules, new_row: np.ndarray) -> np.ndarray:
    """Number of each old threshold among the new ones of the same fence, uint8[F, DWELLS], 255 for none."""
    numbers = np.full(old.dwell_ms.shape, 255, np.uint8)
    for row in np.flatnonzero(new_row >= 0):
        after = new.dwell_ms[new_row[row], : new.fence["dwells"][new_row[row]]].tolist()
        for number in range(old.fence["dwells"][row]):
            if old.dwell_ms[row, number] in after:
                numbers[row, number] = after.index(old.dwell_ms[row, number])
    return numbers


def no_events() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The arguments of `advance` for a tick: no events, no hits."""
    return np.zeros(0, EVENT), np.zeros(1, np.int64), np.zeros(0, HIT)
