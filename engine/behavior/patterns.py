"""`PatternStore`: what happened in, completed patterns out. Cold twin of the pattern kernels; owns their state."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.behavior import layout_kernel as layout
from engine.behavior import pattern_kernel, store_kernel
from engine.behavior.layout_kernel import FIRED, STATE, State
from engine.behavior.plan import Plan
from engine.wheel_kernel import CURSOR_S, HEAPED, WAITING, Wheel, grown_wheel, new_wheel

_FIRST_ROWS = 256
_OUT_ROWS = 1024
_COUNTS = {
    "completed": layout.COMPLETED,
    "sums_merged": layout.MERGED,
    "keys_evicted": layout.EVICTED,
    "absences_feed_silent": layout.SILENT,
    "states_forgotten": layout.FORGOTTEN,
}


class PatternStore:
    """The states of all users in all patterns, as a function of the log alone (B2-B5).

    late_ms  the largest allowed lateness of a feed
    """

    def __init__(self, plan: Plan, feeds: int, late_ms: int) -> None:
        self._late_ms = late_ms
        self._state = _new_state(feeds)
        self._work = _new_work(_OUT_ROWS)
        self._plan = plan
        self._taken = self._state.counts.copy()
        self._has_run = False  # since its counts were taken
        self._now_ms = 0  # not above the log's now: what is forgotten by then is forgotten for good

    def ensure(self, users: int) -> None:
        """Make room for user slots below `users`."""
        have = len(self._state.flags)
        if users > have:
            flags = np.zeros(max(users, have + have // 2, _FIRST_ROWS), np.uint8)
            flags[:have] = self._state.flags
            self._state = self._state._replace(flags=flags)

    def advance(self, steps: layout.Steps, now_ms: int) -> np.ndarray:
        """Take the steps of a batch and let time pass to `now_ms`; return FIRED[K] in the order it happened.

        Any cut of the same records into batches gives the same completions (T4).
        """
        work, by_row = self._work, self._plan.has_absence
        if not len(steps.row) and not len(steps.transitions) and not self.looks(steps.events, now_ms):
            return work.out[:0]
        self._has_run = True
        work.cursor[:] = 0
        chunks: list[np.ndarray] = []
        while True:
            lacking = pattern_kernel.advance(
                self._state, self._plan.arrays, steps, self._work, now_ms, self._late_ms, self._plan.spare, by_row
            )
            written = int(self._state.control[layout.FIRED_ROWS])
            if written:
                chunks.append(self._work.out[:written].copy())
                self._state.control[layout.FIRED_ROWS] = 0
            if lacking == store_kernel.ROOM:
                break
            self._make_room(lacking, steps)
        self._now_ms = now_ms
        return np.concatenate(chunks) if chunks else work.out[:0]

    def looks(self, events: np.ndarray, now_ms: int) -> bool:
        """Say whether a batch in which nothing is a step may yet tell an absence, or know more of a feed."""
        return self._plan.has_absence and (len(events) > 0 or _is_due(self._state.wheel, now_ms))

    def _make_room(self, lacking: int, steps: layout.Steps) -> None:
        wanted = int(self._state.control[layout.WANTED])
        if lacking == store_kernel.MORE_STATES:
            row = int(self._work.cursor[pattern_kernel.ROW])
            reached_ms = int(steps.events["now_ms"][row - 1]) if row > 0 else self._now_ms
            have = len(self._state.state)
            gone = store_kernel.sweep(self._state, self._plan.arrays, reached_ms)
            if gone * 4 < have:
                self._state = _with_states(self._state, have + max(wanted, have // 2))
        elif lacking == store_kernel.MORE_WORDS:
            self._state = _with_words(self._state, max(wanted, len(self._state.at_ms) // 2))
        elif lacking == store_kernel.MORE_TIMERS:
            have = len(self._state.wheel.timer)
            self._state = self._state._replace(wheel=grown_wheel(self._state.wheel, have + max(wanted, have // 2)))
        elif len(self._work.out) < 2 * self._plan.spare:
            self._work = self._work._replace(out=np.zeros(4 * self._plan.spare, FIRED))

    def activate(self, plan: Plan) -> None:
        """Take the patterns of new content; the state of unchanged ones stays (L10)."""
        old, self._plan = self._plan, plan
        rows = {key: row for row, key in enumerate(plan.keys)}
        new_row = np.array([rows.get(key, -1) for key in old.keys], np.int32)
        wheel = new_wheel(len(self._state.wheel.timer))
        wheel.control[CURSOR_S] = self._state.wheel.control[CURSOR_S]
        store_kernel.forget_patterns(self._state, new_row)
        self._state = self._state._replace(bucket=np.full_like(self._state.bucket, -1), wheel=wheel)
        store_kernel.renumber(self._state, new_row)

    def reset_users(self, users: np.ndarray) -> None:
        """Forget users (closed, evicted, or their slots reused)."""
        patterns, states = len(self._plan.patterns), int(self._state.control[layout.LIVE_STATES])
        if len(users) * patterns < states:
            for user in users.tolist():
                store_kernel.forget_user(self._state, user, patterns)
            return
        gone = np.zeros(max(len(self._state.flags), int(users.max()) + 1), np.bool_)
        gone[users] = True
        store_kernel.forget_users(self._state, gone)

    def clear_bound(self, idle: np.ndarray, first: int, now_ms: int) -> None:
        """Clear idle[user - first] of users of whom a state still counts at `now_ms`."""
        store_kernel.mark_bound(self._state, self._plan.arrays, now_ms, first, idle)

    def take_counts(self) -> dict[str, int]:
        """Return what happened since this was asked last, or since a restart; empty where nothing did."""
        if not self._has_run:
            return {}
        self._has_run = False
        counts = self._state.counts
        if counts.tobytes() == self._taken.tobytes():
            return {}
        told = {name: int(counts[place] - self._taken[place]) for name, place in _COUNTS.items()}
        self._taken[:] = counts
        return told

    def counts(self) -> dict[str, int]:
        """Totals since the first start, and how many states are alive."""
        totals = {name: int(self._state.counts[place]) for name, place in _COUNTS.items()}
        return totals | {"states": int(self._state.control[layout.LIVE_STATES])}

    def arrays(self) -> dict[str, np.ndarray]:
        """Name every array of the state; views, so copy before the next `advance`."""
        flat = {name: array for name, array in self._state._asdict().items() if name not in ("wheel", "real")}
        return flat | {f"wheel_{name}": array for name, array in self._state.wheel._asdict().items()}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Take the state of `arrays()`, made with the same content and feeds."""
        wheel = Wheel(*(np.array(arrays[f"wheel_{name}"]) for name in Wheel._fields))
        rest: Any = {name: np.array(arrays[name]) for name in State._fields if name not in ("wheel", "real")}
        self._state = State(wheel=wheel, real=rest["value"].view(np.float64), **rest)
        self._taken = self._state.counts.copy()


def _is_due(wheel: Wheel, now_ms: int) -> bool:
    """Say whether a timer might pop; a call of the kernel costs more than to ask."""
    control = wheel.control
    return bool(control[HEAPED] or (control[WAITING] and control[CURSOR_S] < now_ms // 1000))


def _new_state(feeds: int) -> State:
    control = np.zeros(layout.CONTROLS, np.int64)
    control[layout.FREE_STATE] = -1
    control[layout.FREE_BLOCK :] = -1
    control[layout.UNUSED_STATES] = _FIRST_ROWS
    value = np.zeros(8 * _FIRST_ROWS, np.uint64)
    return State(
        bucket=np.full(_FIRST_ROWS, -1, np.int32),
        state=np.zeros(_FIRST_ROWS, STATE),
        at_ms=np.zeros(8 * _FIRST_ROWS, np.int64),
        value=value,
        real=value.view(np.float64),
        flags=np.zeros(0, np.uint8),
        feed=np.zeros((feeds, 3), np.int64),
        control=control,
        counts=np.zeros(layout.COUNTS, np.int64),
        wheel=new_wheel(_FIRST_ROWS),
    )


def _with_states(state: State, rows: int) -> State:
    wider = np.zeros(rows, STATE)
    wider[: len(state.state)] = state.state
    state.control[layout.UNUSED_STATES] += rows - len(state.state)
    buckets = len(state.bucket)
    while buckets < rows:
        buckets *= 2
    grown = state._replace(state=wider, bucket=np.full(buckets, -1, np.int32))
    store_kernel.fill_buckets(grown)
    return grown


def _with_words(state: State, more: int) -> State:
    at_ms = np.zeros(len(state.at_ms) + more, np.int64)
    value = np.zeros(len(at_ms), np.uint64)
    at_ms[: len(state.at_ms)], value[: len(state.value)] = state.at_ms, state.value
    return state._replace(at_ms=at_ms, value=value, real=value.view(np.float64))


def _new_work(rows: int) -> layout.Work:
    bits = np.zeros(1, np.uint64)
    return layout.Work(
        np.zeros(rows, FIRED),
        np.zeros(4, np.int64),
        np.zeros(1, FIRED),
        np.zeros(2 * layout.MOST_STEPS, np.int64),
        bits,
        bits.view(np.float64),
    )
