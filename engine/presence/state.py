"""Presence state as arrays: pools that grow between kernel calls, and what a checkpoint keeps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from engine.presence import layout_kernel as layout
from engine.presence.layout_kernel import DAY_MS, FIX, HELD_HIT, NEVER, SAME, USER, VISIT, State
from engine.wheel_kernel import Wheel, grown_wheel, new_wheel

_POOLS = {
    "visit": layout.UNUSED_VISITS,
    "held": layout.UNUSED_HELD,
    "held_hit": layout.UNUSED_HELD_HITS,
    "same": layout.UNUSED_SAME,
}
_FIRST_ROWS = 1024


def blank_user() -> np.ndarray:
    """A user of whom nothing is known, as USER[1]."""
    user = np.zeros(1, USER)
    user["last_ms"] = NEVER
    for name in ("visits", "cell", "previous_cell", "held", "same"):
        user[name] = -1
    for name in ("fine_age_ms", "cell_age_ms", "left_age_ms"):
        user[name] = DAY_MS
    return user


def new_state(fences: int) -> State:
    """Build the state of no users in so many fences."""
    control = np.zeros(layout.CONTROLS, np.int64)
    control[[layout.FREE_VISIT, layout.FREE_HELD, layout.FREE_HELD_HIT, layout.FREE_SAME]] = -1
    control[layout.NEWEST_MS] = NEVER
    control[list(_POOLS.values())] = _FIRST_ROWS
    return State(
        user=np.zeros(0, USER),
        visit=np.zeros(_FIRST_ROWS, VISIT),
        held=np.zeros(_FIRST_ROWS, FIX),
        held_hit=np.zeros(_FIRST_ROWS, HELD_HIT),
        same=np.zeros(_FIRST_ROWS, SAME),
        occupancy=np.zeros(fences, np.int64),
        control=control,
        counts=np.zeros(layout.COUNTS, np.int64),
        wheel=new_wheel(_FIRST_ROWS),
    )


def with_users(state: State, users: int) -> State:
    """Make room for at least so many user slots."""
    have = len(state.user)
    if users <= have:
        return state
    # By half as much again: doubling would leave half of the largest array unused.
    rows = max(users, have + have // 2, _FIRST_ROWS)
    user = np.empty(rows, USER)
    user[:have] = state.user
    user[have:] = blank_user()[0]
    return state._replace(user=user)


def with_room(state: State, pool: str, more: int) -> State:
    """Grow one pool ("timer" for the wheel) by at least `more` rows."""
    if pool == "timer":
        have = len(state.wheel.timer)
        return state._replace(wheel=grown_wheel(state.wheel, have + max(more, have // 4)))
    old = getattr(state, pool)
    extra = max(more, len(old) // 4)
    state.control[_POOLS[pool]] += extra
    # Zeroes that nobody wrote take no memory yet.
    wider = np.zeros(len(old) + extra, old.dtype)
    wider[: len(old)] = old
    grown: Any = {pool: wider}
    return state._replace(**grown)


def state_arrays(state: State) -> dict[str, np.ndarray]:
    """Name every array of the state; views, not copies."""
    flat = {name: array for name, array in state._asdict().items() if name != "wheel"}
    return flat | {f"wheel_{name}": array for name, array in state.wheel._asdict().items()}


def state_of(arrays: Mapping[str, np.ndarray]) -> State:
    """Rebuild the state from copies of its arrays (`state_arrays`)."""
    wheel = Wheel(*(np.array(arrays[f"wheel_{name}"]) for name in Wheel._fields))
    rest: Any = {name: np.array(arrays[name]) for name in State._fields if name != "wheel"}
    return State(wheel=wheel, **rest)
