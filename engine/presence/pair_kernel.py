"""Small acts on pairs of user and fence: find, remember, forget; is the fence open; begin a transition.

A user's pairs are a list in fence order. Pools never grow inside a kernel: who calls has made sure of room.
"""

from __future__ import annotations

import numpy as np

from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.presence.layout_kernel import (
    FREE_VISIT,
    KINDS,
    LIVE_VISITS,
    NEVER,
    OUT_ROWS,
    OUTSIDE,
    UNUSED_VISITS,
    Rules,
    State,
)


@inlined_lean_kernel
def find_visit(state: State, user: int, fence: int) -> int:
    """Row of the pair, or -1."""
    row = state.user[user].visits
    while row >= 0 and state.visit[row].fence < fence:
        row = state.visit[row].next
    return row if row >= 0 and state.visit[row].fence == fence else -1


@inlined_lean_kernel
def open_visit(state: State, user: int, fence: int, witness_ms: int) -> int:
    """Remember a pair, OUTSIDE with this witness; the pair must be unknown and the pool have room."""
    control = state.control
    row = control[FREE_VISIT]
    if row >= 0:
        control[FREE_VISIT] = state.visit[row].next
    else:
        row = state.visit.shape[0] - control[UNUSED_VISITS]
        control[UNUSED_VISITS] -= 1
    control[LIVE_VISITS] += 1
    visit = state.visit[row]
    visit.crossed_ms = NEVER
    visit.seen_ms = NEVER
    visit.mark_ms = witness_ms
    visit.edge_ms = NEVER
    visit.run_ms = NEVER
    visit.timer_ms = NEVER
    visit.fence = fence
    visit.state = OUTSIDE
    visit.flags = 0
    visit.dwelt = 0
    visit.feed = 0
    visit.method = 0
    visit.confidence = 0
    before = -1
    after = state.user[user].visits
    while after >= 0 and state.visit[after].fence < fence:
        before = after
        after = state.visit[after].next
    visit.next = after
    if before < 0:
        state.user[user].visits = row
    else:
        state.visit[before].next = row
    return int(row)


@inlined_lean_kernel
def forget_visit(state: State, user: int, row: int) -> None:
    """Give the pair's row back; its timer, if any, finds nobody when it pops."""
    after = state.visit[row].next
    other = state.user[user].visits
    if other == row:
        state.user[user].visits = after
    else:
        while state.visit[other].next != row:
            other = state.visit[other].next
        state.visit[other].next = after
    state.visit[row].next = state.control[FREE_VISIT]
    state.visit[row].fence = -1
    state.control[FREE_VISIT] = row
    state.control[LIVE_VISITS] -= 1


@lean_kernel
def closing_ms(rules: Rules, fence: int, at_ms: int) -> int:
    """End of the open interval that holds `at_ms`; NEVER where the fence is closed then."""
    rule = rules.fence[fence]
    low = rule.hours_start
    high = rule.hours_end
    while low < high:
        middle = (low + high) >> 1
        if rules.hours[middle, 1] > at_ms:
            high = middle
        else:
            low = middle + 1
    if low < rule.hours_end and rules.hours[low, 0] <= at_ms:
        return int(rules.hours[low, 1])
    return NEVER


@inlined_lean_kernel
def next_row(state: State, out: np.ndarray, user: int, fence: int, kind: int) -> int:
    """Begin a transition and return its row, with everything at its usual value.  The caller has made sure of room."""
    row = state.control[OUT_ROWS]
    state.control[OUT_ROWS] += 1
    one = out[row]
    one.gap_ms = -1
    one.duration_ms = -1
    one.distance_m = np.nan
    one.accuracy_m = np.nan
    one.user = user
    one.fence = fence
    one.threshold_s = -1
    one.kind = kind
    one.reason = 0
    one.initial = 0
    one.by_timer = 0
    one.wide_gap = 0
    state.counts[KINDS + kind] += 1
    return int(row)
