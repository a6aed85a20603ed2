"""Taking new content over the state of the old (L10)."""

from __future__ import annotations

import numpy as np

from engine.kernels import lean_kernel
from engine.model import TransitionReason
from engine.presence.admission_kernel import discard_held
from engine.presence.layout_kernel import (
    DWELLS,
    EXITING,
    INSIDE,
    LAGS,
    NEVER,
    OUT_ROWS,
    SUSPENDED,
    Rules,
    State,
)
from engine.presence.pair_kernel import forget_visit
from engine.presence.timer_kernel import arm_visit, by_timer, end_visit
from engine.wheel_kernel import pop

_REMOVED = int(TransitionReason.REMOVED)


@lean_kernel
def leave_removed(state: State, out: np.ndarray, new_row: np.ndarray, first_user: int, now_ms: int) -> int:
    """End and forget all pairs of fences that are gone, by user slot and fence, from `first_user` on.

    new_row  int32[F]  the fence's row in the new set, -1 for none

    Returns the user to go on with once `out` is emptied; the number of users when done.
    """
    for user in range(first_user, state.user.shape[0]):
        pairs = 0
        row = state.user[user].visits
        while row >= 0:
            pairs += 1
            row = state.visit[row].next
        if out.shape[0] - state.control[OUT_ROWS] < pairs:
            return user
        row = state.user[user].visits
        while row >= 0:
            visit = state.visit[row]
            following = visit.next
            if new_row[visit.fence] < 0:
                if visit.state in (INSIDE, EXITING, SUSPENDED):
                    by_timer(out, end_visit(state, out, user, row, now_ms, now_ms), now_ms, 0, _REMOVED)
                forget_visit(state, user, row)
            row = following
    return int(state.user.shape[0])


@lean_kernel
def renumber(state: State, rules: Rules, new_row: np.ndarray, new_number: np.ndarray, now_ms: int) -> None:
    """Give every pair its fence's new row and its thresholds' new numbers, and arm its timer in an empty wheel.

    rules       of the new content
    new_number  uint8[F, DWELLS]  of each old threshold, 255 for none

    The caller has left removed fences, emptied the wheel and zeroed occupancy.
    """
    pop(state.wheel, now_ms)
    for user in range(state.user.shape[0]):
        row = state.user[user].visits
        while row >= 0:
            visit = state.visit[row]
            dwelt = 0
            for number in range(DWELLS):
                if visit.dwelt & (1 << number) and new_number[visit.fence, number] < DWELLS:
                    dwelt |= 1 << new_number[visit.fence, number]
            visit.dwelt = dwelt
            visit.fence = new_row[visit.fence]
            visit.timer_ms = NEVER
            if state.user[user].flags & LAGS == 0:
                arm_visit(state, rules, user, row, now_ms)
                if visit.state in (INSIDE, EXITING):
                    state.occupancy[visit.fence] += 1
            row = visit.next
        if state.user[user].held >= 0:
            # Its hits are of the old fences; the next fix will tell.
            discard_held(state, state.user[user])


@lean_kernel
def renumber_cells(state: State, new_row: np.ndarray) -> None:
    """Give every remembered cell its new row (int32[C], -1 where it is gone)."""
    for user in range(state.user.shape[0]):
        one = state.user[user]
        if one.cell >= 0:
            one.cell = new_row[one.cell]
        if one.previous_cell >= 0:
            one.previous_cell = new_row[one.previous_cell]
