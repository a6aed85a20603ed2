"""One fix and one pair: the transition table at work (P1-P3, P5-P7, L8, L9)."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.geometry_kernel import FenceArrays
from engine.kernels import inlined_lean_kernel
from engine.model import Confidence, TransitionReason
from engine.presence.layout_kernel import (
    BEYOND,
    BEYOND_ENOUGH,
    CLOSED_INSIDE,
    COARSE_CELL,
    DAY_MS,
    ENTERING,
    EXIT_TAKEN_BACK,
    EXITING,
    HOP_UNDONE,
    IN_ENOUGH,
    IN_WAITING,
    INSIDE,
    LAST_IN,
    LAST_OUT,
    NEVER,
    OUTSIDE,
    SUSPENDED,
    TAKEABLE,
    UNSURE,
    Rules,
    State,
)
from engine.presence.pair_kernel import closing_ms, forget_visit, open_visit
from engine.presence.timer_kernel import begin_visit, end_visit, enter_delay_ms, occupy, write_dwell
from engine.presence.zone_kernel import NO_EVIDENCE, Zone, is_exact, witness_before

HOP_MS = 300_000
FAR_M = 1000.0
LONG_AGO_MS = 600_000
_FIX, _GAP = int(TransitionReason.FIX), int(TransitionReason.GAP)
_OPENED, _RETURNED = int(TransitionReason.OPENED), int(TransitionReason.RETURNED)
_HIGH, _LOW = int(Confidence.HIGH), int(Confidence.LOW)


@inlined_lean_kernel
def note_evidence(visit: Any, fix: Any, zone: Zone) -> None:
    """Make this fix the pair's last evidence."""
    visit.seen_ms = fix.at_ms
    visit.feed = fix.feed
    visit.method = fix.method
    visit.confidence = zone.confidence
    flags = visit.flags & ~(LAST_IN | LAST_OUT | COARSE_CELL) & 255
    if zone.zone == IN_ENOUGH:
        flags |= LAST_IN
    if zone.is_out:
        flags |= LAST_OUT
    if fix.is_cell != 0 and fix.is_fine == 0 and zone.distance_m != np.inf:
        flags |= COARSE_CELL
    visit.flags = flags


@inlined_lean_kernel
def by_fix(out: np.ndarray, at: int, fix: Any, zone: Zone, reason: int) -> None:
    """Complete a transition that this fix gave."""
    one = out[at]
    one.reason = reason
    one.now_ms = fix.now_ms
    one.event = fix.event
    one.distance_m = zone.distance_m
    one.accuracy_m = fix.accuracy_m
    one.method = fix.method


@inlined_lean_kernel
def exit_by_fix(
    state: State, out: np.ndarray, user: int, row: int, fix: Any, zone: Zone, crossed_ms: int, reason: int
) -> None:
    """Write the EXIT that this fix gives; the fix is the new witness if it is OUT."""
    visit = state.visit[row]
    at = end_visit(state, out, user, row, crossed_ms, fix.at_ms)
    by_fix(out, at, fix, zone, reason)
    if zone.is_out:
        visit.mark_ms = fix.at_ms
    else:
        out[at].confidence = _LOW
    if fix.is_cell != 0:
        visit.flags |= TAKEABLE


@inlined_lean_kernel
def is_run_enough(rule: Any, visit: Any, fix: Any, zone: Zone) -> bool:
    """Say whether a fix beyond the widened edge ends the visit (P3)."""
    if rule.exit_delay_ms >= 0:
        since_ms = visit.run_ms if visit.state == EXITING else fix.at_ms
        return bool(fix.at_ms - since_ms >= rule.exit_delay_ms)
    if rule.is_tiling != 0 or visit.state == EXITING:
        return True
    if fix.is_cell != 0:
        return False
    return bool(-zone.distance_m > max(FAR_M, 3.0 * fix.accuracy_m) or fix.at_ms - visit.mark_ms >= LONG_AGO_MS)


@inlined_lean_kernel
def step_visit(state: State, rules: Rules, out: np.ndarray, user: int, row: int, fix: Any, zone: Zone) -> None:
    """Step a pair that is INSIDE, EXITING or SUSPENDED by one fix."""
    visit = state.visit[row]
    was = visit.state
    key = zone.zone
    if key == BEYOND and was != SUSPENDED and is_run_enough(rules.fence[visit.fence], visit, fix, zone):
        key = BEYOND_ENOUGH
    after = rules.table[was, key]
    note_evidence(visit, fix, zone)
    if key in (IN_ENOUGH, UNSURE):
        visit.mark_ms = fix.at_ms
        visit.edge_ms = NEVER
    elif visit.edge_ms == NEVER:
        visit.edge_ms = fix.at_ms
    if after == OUTSIDE:
        crossed_ms = visit.mark_ms if was == SUSPENDED else visit.edge_ms
        exit_by_fix(state, out, user, row, fix, zone, crossed_ms, _GAP if was == SUSPENDED else _FIX)
        return
    if after == EXITING:
        if was != EXITING:
            visit.run_ms = fix.at_ms
    else:
        visit.run_ms = NEVER
    if was == SUSPENDED and after != SUSPENDED:
        occupy(state, user, 0 + visit.fence, 1)
    visit.state = after


@inlined_lean_kernel
def step_outside(state: State, rules: Rules, out: np.ndarray, user: int, row: int, fix: Any, zone: Zone) -> None:
    """Step a remembered pair that is OUTSIDE or ENTERING by one fix."""
    visit = state.visit[row]
    rule = rules.fence[visit.fence]
    if zone.is_out:
        visit.mark_ms = fix.at_ms
        visit.flags &= ~CLOSED_INSIDE & 255
    note_evidence(visit, fix, zone)
    if zone.zone != IN_ENOUGH:
        visit.state = rules.table[visit.state, zone.zone]
        return
    if rule.has_hours != 0 and closing_ms(rules, 0 + visit.fence, fix.at_ms) == NEVER:
        visit.state = OUTSIDE
        visit.mark_ms = NEVER
        visit.flags = (visit.flags | CLOSED_INSIDE) & ~TAKEABLE & 255
        return
    if visit.state == OUTSIDE:
        visit.crossed_ms = fix.at_ms
        visit.flags &= ~TAKEABLE & 255
    is_opened = visit.flags & CLOSED_INSIDE != 0
    delay_ms = 0
    if not is_opened and rule.is_tiling == 0:
        delay_ms = enter_delay_ms(rule, visit.flags)
    elif not is_opened and rule.enter_delay_ms > 0:
        delay_ms = rule.enter_delay_ms
    key = IN_ENOUGH if fix.at_ms - visit.crossed_ms >= delay_ms else IN_WAITING
    visit.state = rules.table[visit.state, key]
    if visit.state == INSIDE:
        visit.dwelt = 0
        if is_opened:
            visit.mark_ms = NEVER
        at = begin_visit(state, rules, out, user, row, fix.at_ms)
        by_fix(out, at, fix, zone, _OPENED if is_opened else _FIX)


@inlined_lean_kernel
def undo_hop(
    state: State, rules: Rules, out: np.ndarray, user: int, row: int, fix: Any, zone: Zone, hop_ms: int
) -> bool:
    """Step a pair by a return to the cell left at `hop_ms` (L8): what the hop left pending is undone.

    Returns True where the fix counts as usual, as one inside a fence that the hop has not touched does.
    """
    visit = state.visit[row]
    was = visit.state
    if rules.fence[visit.fence].has_hours != 0 and closing_ms(rules, 0 + visit.fence, fix.at_ms) == NEVER:
        return True
    if was == OUTSIDE:
        if visit.flags & TAKEABLE == 0 or visit.run_ms < hop_ms or fix.at_ms - visit.run_ms >= HOP_MS:
            return False
        visit.state = rules.table[was, EXIT_TAKEN_BACK]
        note_evidence(visit, fix, zone)
        visit.mark_ms = NEVER
        at = begin_visit(state, rules, out, user, row, fix.at_ms)
        by_fix(out, at, fix, zone, _RETURNED)
        return False
    if was == ENTERING and visit.crossed_ms >= hop_ms:
        visit.state = rules.table[was, HOP_UNDONE]
        return False
    if was == EXITING and visit.run_ms >= hop_ms:
        visit.state = rules.table[was, HOP_UNDONE]
        note_evidence(visit, fix, zone)
        visit.mark_ms = fix.at_ms
        visit.edge_ms = NEVER
        visit.run_ms = NEVER
        return False
    if zone.zone == IN_ENOUGH or (zone.zone == UNSURE and was != ENTERING):
        return True
    note_evidence(visit, fix, zone)
    return False


@inlined_lean_kernel
def give_dwells(state: State, rules: Rules, out: np.ndarray, user: int, row: int, fix: Any, zone: Zone) -> None:
    """Write every DWELL that a fix inside shows (P4)."""
    visit = state.visit[row]
    for number in range(rules.fence[visit.fence].dwells):
        if visit.dwelt & (1 << number):
            continue
        if fix.at_ms < visit.crossed_ms + rules.dwell_ms[visit.fence, number]:
            return
        by_fix(out, write_dwell(state, rules, out, user, row, number, fix.at_ms), fix, zone, _FIX)


@inlined_lean_kernel
def step_pair(
    state: State,
    rules: Rules,
    fences: FenceArrays,
    out: np.ndarray,
    fence: int,
    row: int,
    fix: Any,
    zone: Zone,
    hop_ms: int,
) -> int:
    """Step one pair by one fix; returns the pair's row afterwards, -1 if it is not remembered.

    row     the pair's row, or -1
    hop_ms  for a return to a cell the instant at which it was left, else NEVER
    """
    user = fix.user
    rule = rules.fence[fence]
    if zone.zone == NO_EVIDENCE:
        return row
    if row < 0:
        if zone.is_out or not (zone.zone == IN_ENOUGH or is_exact(rule, fix)):
            return -1
        row = open_visit(state, user, fence, witness_before(state.user[user], rule, fences, fence))
    visit = state.visit[row]
    if hop_ms != NEVER and not undo_hop(state, rules, out, user, row, fix, zone, hop_ms):
        pass
    elif visit.state == OUTSIDE or visit.state == ENTERING:
        step_outside(state, rules, out, user, row, fix, zone)
    else:
        step_visit(state, rules, out, user, row, fix, zone)
    if visit.state == INSIDE and zone.zone == IN_ENOUGH:
        give_dwells(state, rules, out, user, row, fix, zone)
    if visit.state == OUTSIDE and zone.is_out and hop_ms == NEVER:
        is_kept = visit.flags & TAKEABLE != 0 and fix.at_ms - visit.run_ms < HOP_MS
        if not is_kept and (is_exact(rule, fix) or is_fine_forgotten(state.user[user], fix.at_ms)):
            forget_visit(state, user, row)
            return -1
    return row


@inlined_lean_kernel
def is_fine_forgotten(user: Any, at_ms: int) -> bool:
    """Say whether the user's newest fine fix is missing or a day old, so that it cannot be mistaken for a witness."""
    if user.last_ms == NEVER or user.fine_age_ms >= DAY_MS:
        return True
    return bool(at_ms - (user.last_ms - user.fine_age_ms) >= DAY_MS)
