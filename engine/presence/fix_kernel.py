"""One admitted fix: own-time timers, then every pair it concerns, in the order of rule P6."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.geometry_kernel import FenceArrays, signed_distance_m
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.model import TransitionKind
from engine.presence.admission_kernel import (
    remember_id,
)
from engine.presence.crossing_kernel import is_way_empty, write_crossings
from engine.presence.layout_kernel import (
    EXITING,
    INSIDE,
    LAGS,
    NEVER,
    NEWEST_MS,
    OUT_ROWS,
    RETURNS,
    Rules,
    State,
)
from engine.presence.step_kernel import HOP_MS, step_pair
from engine.presence.timer_kernel import arm_visit, fire, state_due_ms
from engine.presence.zone_kernel import note_fix, zone_of_hit, zone_without_hit

LAG_MS = 600_000

_EXIT = int(TransitionKind.EXIT)
_NO_FENCE = 1 << 40


@inlined_lean_kernel
def process(
    state: State,
    rules: Rules,
    fences: FenceArrays,
    out: np.ndarray,
    fix: Any,
    hits: np.ndarray,
    first: int,
    last: int,
) -> None:
    """Take one admitted fix: own-time timers, then its pairs and hits in fence order, then remember it."""
    # `0 +` makes an int64: one type of row everywhere, so that nothing is compiled twice.
    slot = fix.user
    user = state.user[slot]
    if user.visits >= 0:
        fire_in_own_time(state, rules, out, fix)
    set_lag(state, fix, fix.now_ms - fix.at_ms > LAG_MS)
    hop_ms = NEVER
    if fix.cell >= 0 and fix.cell != user.cell and fix.cell == user.previous_cell:
        left_ms = user.last_ms - user.left_age_ms
        if fix.at_ms - left_ms < HOP_MS:
            hop_ms = left_ms
            state.counts[RETURNS] += user.visits >= 0
    begin = state.control[OUT_ROWS]
    row = 0 + user.visits
    place = first
    while True:
        hit_fence = hits[place].fence if place < last else _NO_FENCE
        row_fence = state.visit[row].fence if row >= 0 else _NO_FENCE
        fence = 0 + min(hit_fence, row_fence)
        if fence == _NO_FENCE:
            break
        rule = rules.fence[fence]
        if hit_fence == fence:
            zone = zone_of_hit(rule, hits[place], fix.accuracy_m)
            place += 1
        else:
            zone = zone_without_hit(rule, fences, fence, fix)
        pair = -1
        if row_fence == fence:
            pair = row
            row = 0 + state.visit[row].next
        pair = step_pair(state, rules, fences, out, fence, pair, fix, zone, hop_ms)
        if pair >= 0 and user.flags & LAGS == 0:
            arm_visit(state, rules, slot, pair, fix.now_ms)
    if state.control[OUT_ROWS] - begin > 1:
        order_step(state, out, begin)
    for written in range(begin, state.control[OUT_ROWS]):
        tell_distance(rules, fences, out[written], fix)
    if not is_way_empty(rules.tiles, user, fix):
        write_crossings(state, rules, fences, out, fix, begin)
    remember_id(state, user, fix)
    note_fix(user, fix)
    state.control[NEWEST_MS] = max(state.control[NEWEST_MS], fix.at_ms)


@inlined_lean_kernel
def tell_distance(rules: Rules, fences: FenceArrays, one: Any, fix: Any) -> None:
    """Measure what locate had no need to: it tells of most points inside only that they are."""
    if np.isnan(one.distance_m) and rules.fence[one.fence].is_cell_set == 0:
        one.distance_m = signed_distance_m(fences, 0 + one.fence, fix.lon_e7, fix.lat_e7)


@inlined_lean_kernel
def fire_in_own_time(state: State, rules: Rules, out: np.ndarray, fix: Any) -> None:
    """Fire what was due before this fix in the user's own time (T8, docs/presence.md section 6)."""
    slot = fix.user
    user = state.user[slot]
    row = 0 + user.visits
    while row >= 0:
        visit = state.visit[row]
        following = 0 + visit.next
        until_ms = NEVER
        if state_due_ms(rules, visit) <= fix.at_ms:
            until_ms = fix.at_ms
        elif user.flags & LAGS:
            until_ms = fix.at_ms - rules.feed[visit.feed].delay_ms
        if until_ms != NEVER:
            fire(state, rules, out, slot, row, until_ms, fix.now_ms, fix.event)
        row = following


@inlined_lean_kernel
def set_lag(state: State, fix: Any, lags: bool) -> None:
    """Note whether the user's newest fix came long after it was made; such users are not in occupancy (P9)."""
    user = state.user[fix.user]
    if lags == (user.flags & LAGS != 0):
        return
    user.flags ^= LAGS
    count_user(state, fix.user, -1 if lags else 1)


@lean_kernel
def count_user(state: State, user: int, change: int) -> None:
    """Add `change` to the occupancy of every fence that the user is in."""
    row = state.user[user].visits
    while row >= 0:
        if state.visit[row].state == INSIDE or state.visit[row].state == EXITING:
            state.occupancy[state.visit[row].fence] += change
        row = state.visit[row].next


@lean_kernel
def order_step(state: State, out: np.ndarray, begin: int) -> None:
    """Put what one fix gave into the order exits, enters, dwells; it stands in fence order already (P6)."""
    scratch = out.shape[0] - 1
    for row in range(begin + 1, state.control[OUT_ROWS]):
        rank = 0 if out[row].kind == _EXIT else out[row].kind
        place = row
        out[scratch] = out[row]
        while place > begin and (0 if out[place - 1].kind == _EXIT else out[place - 1].kind) > rank:
            out[place] = out[place - 1]
            place -= 1
        out[place] = out[scratch]
