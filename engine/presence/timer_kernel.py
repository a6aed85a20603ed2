"""What falls due for a pair without a fix (T8): enter and exit delays, dwells, suspension, expiry, closing.

A pair has at most one timer in the wheel, at its earliest duty or earlier: as fixes arrive duties move on, and a
timer that pops too early just arms itself again. So a ping in the middle of a visit costs the wheel nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.model import Confidence, TransitionKind, TransitionReason
from engine.presence.layout_kernel import (
    CELL_FIX,
    CLOSED_INSIDE,
    CLOSING,
    COARSE_CELL,
    DAY_MS,
    ENTER_DUE,
    ENTERING,
    EXIT_DUE,
    EXITING,
    EXPIRE_DUE,
    INSIDE,
    LAGS,
    LAST_IN,
    LAST_OUT,
    NEVER,
    OUTSIDE,
    SUSPEND_DUE,
    SUSPENDED,
    TAKEABLE,
    Rules,
    State,
)
from engine.presence.pair_kernel import closing_ms, next_row
from engine.wheel_kernel import arm

FOREVER = 1 << 62
DWELL_DUE = -1
COARSE_CELL_DELAY_MS = 120_000
_ENTER, _DWELL, _EXIT = int(TransitionKind.ENTER), int(TransitionKind.DWELL), int(TransitionKind.EXIT)
_TIMER, _CLOSED = int(TransitionReason.TIMER), int(TransitionReason.CLOSED)
_EXPIRED = int(TransitionReason.EXPIRED)
_HIGH, _LOW = int(Confidence.HIGH), int(Confidence.LOW)


@inlined_lean_kernel
def enter_delay_ms(rule: Any, flags: int) -> int:
    """The delay that the last fix of a run asks for (P2, L8)."""
    if rule.enter_delay_ms >= 0:
        return int(rule.enter_delay_ms)
    return COARSE_CELL_DELAY_MS if flags & COARSE_CELL else 0


@inlined_lean_kernel
def state_due_ms(rules: Rules, visit: Any) -> int:
    """When the pair's suspension, expiry or closing is due, whichever comes first; FOREVER for a pair OUTSIDE."""
    if visit.state == OUTSIDE:
        return FOREVER
    due_ms = visit.seen_ms + (DAY_MS if visit.state == SUSPENDED else rules.feed[visit.feed].ttl_ms)
    if rules.fence[visit.fence].has_hours != 0:
        closes_ms = closing_ms(rules, 0 + visit.fence, visit.seen_ms)
        if closes_ms != NEVER:
            due_ms = min(due_ms, closes_ms)
    return int(due_ms)


@inlined_lean_kernel
def next_duty(rules: Rules, visit: Any) -> tuple[int, int]:
    """The earliest duty of the pair as (due instant, input of the table or DWELL_DUE); (FOREVER, _) if none.

    Duties of one instant come as closing, expiry, suspension, exit, enter, dwell.
    """
    if visit.state == OUTSIDE:
        return FOREVER, DWELL_DUE
    rule = rules.fence[visit.fence]
    if visit.state == SUSPENDED:
        due_ms = visit.seen_ms + DAY_MS
        duty = EXPIRE_DUE
    else:
        due_ms = visit.seen_ms + rules.feed[visit.feed].ttl_ms
        duty = SUSPEND_DUE
    if rule.has_hours != 0:
        closes_ms = closing_ms(rules, 0 + visit.fence, visit.seen_ms)
        if closes_ms != NEVER and closes_ms <= due_ms:
            due_ms = closes_ms
            duty = CLOSING
    if visit.state == EXITING:
        if rule.exit_delay_ms >= 0 and visit.run_ms + rule.exit_delay_ms < due_ms:
            due_ms = visit.run_ms + rule.exit_delay_ms
            duty = EXIT_DUE
    elif visit.state == ENTERING:
        if visit.flags & LAST_IN:
            enter_ms = visit.crossed_ms + enter_delay_ms(rule, visit.flags)
            if enter_ms < due_ms:
                due_ms = enter_ms
                duty = ENTER_DUE
    elif visit.state == INSIDE and visit.flags & LAST_IN and visit.confidence == _HIGH:
        silence_ms = rules.feed[visit.feed].silence_ms
        for number in range(rule.dwells):
            if visit.dwelt & (1 << number):
                continue
            dwell_ms = visit.crossed_ms + rules.dwell_ms[visit.fence, number]
            if visit.seen_ms < dwell_ms < min(due_ms, visit.seen_ms + silence_ms):
                due_ms = dwell_ms
                duty = DWELL_DUE
    return due_ms, duty


@inlined_lean_kernel
def occupy(state: State, user: int, fence: int, change: int) -> None:
    """Count a pair into or out of occupancy (P9); users that lag behind are not counted at all."""
    if state.user[user].flags & LAGS == 0:
        state.occupancy[fence] += change


@inlined_lean_kernel
def begin_visit(state: State, rules: Rules, out: np.ndarray, user: int, row: int, confirmed_ms: int) -> int:
    """Write ENTER, make the pair's witness its gap, and return the transition's row for the caller to complete.

    The pair's evidence must be noted already; its last evidence counts as its last fix inside.
    """
    visit = state.visit[row]
    at = next_row(state, out, user, 0 + visit.fence, _ENTER)
    one = out[at]
    one.crossed_ms = visit.crossed_ms
    one.confirmed_ms = confirmed_ms
    one.confidence = visit.confidence
    one.method = visit.method
    gap_ms = visit.crossed_ms - visit.mark_ms if visit.mark_ms != NEVER else DAY_MS
    if gap_ms < DAY_MS:
        one.gap_ms = gap_ms
        one.wide_gap = 1 if gap_ms > rules.feed[visit.feed].gap_ms else 0
    else:
        one.initial = 1
    visit.mark_ms = visit.seen_ms
    visit.edge_ms = NEVER
    visit.run_ms = NEVER
    visit.flags &= ~(CLOSED_INSIDE | TAKEABLE) & 255
    occupy(state, user, 0 + visit.fence, 1)
    return at


@inlined_lean_kernel
def end_visit(state: State, out: np.ndarray, user: int, row: int, crossed_ms: int, confirmed_ms: int) -> int:
    """Write EXIT and leave the pair OUTSIDE without a witness; return the transition's row."""
    visit = state.visit[row]
    at = next_row(state, out, user, 0 + visit.fence, _EXIT)
    one = out[at]
    one.crossed_ms = crossed_ms
    one.confirmed_ms = confirmed_ms
    one.duration_ms = crossed_ms - visit.crossed_ms
    one.confidence = _HIGH
    one.method = visit.method
    if visit.state != SUSPENDED:
        occupy(state, user, 0 + visit.fence, -1)
    visit.state = OUTSIDE
    visit.mark_ms = NEVER
    visit.edge_ms = NEVER
    visit.run_ms = confirmed_ms
    visit.flags &= ~TAKEABLE & 255
    return at


@inlined_lean_kernel
def by_timer(out: np.ndarray, at: int, now_ms: int, event: int, reason: int) -> None:
    """Complete a transition that no fix gave."""
    out[at].reason = reason
    out[at].by_timer = 1
    out[at].now_ms = now_ms
    out[at].event = event


@lean_kernel
def fire(
    state: State, rules: Rules, out: np.ndarray, user: int, row: int, until_ms: int, now_ms: int, event: int
) -> None:
    """Do all duties of a pair that are due at or before `until_ms`, in order.

    now_ms, event  what its transitions carry
    """
    visit = state.visit[row]
    while True:
        due_ms, duty = next_duty(rules, visit)
        if due_ms > until_ms:
            return
        was = visit.state
        if duty == DWELL_DUE:
            # Thresholds of a fence differ, so this is the one that next_duty meant.
            for number in range(rules.fence[visit.fence].dwells):
                if visit.crossed_ms + rules.dwell_ms[visit.fence, number] == due_ms:
                    by_timer(out, write_dwell(state, rules, out, user, row, number, due_ms), now_ms, event, _TIMER)
            continue
        if duty == ENTER_DUE:
            visit.state = rules.table[was, duty]
            visit.dwelt = 0
            by_timer(out, begin_visit(state, rules, out, user, row, due_ms), now_ms, event, _TIMER)
        elif duty == EXIT_DUE:
            is_out = visit.flags & LAST_OUT
            seen_ms = visit.seen_ms
            at = end_visit(state, out, user, row, visit.edge_ms, due_ms)
            by_timer(out, at, now_ms, event, _TIMER)
            if is_out:
                visit.mark_ms = seen_ms
            else:
                out[at].confidence = _LOW
            if state.user[user].flags & CELL_FIX:
                visit.flags |= TAKEABLE
        elif duty == CLOSING:
            if was != ENTERING:
                by_timer(out, end_visit(state, out, user, row, due_ms, due_ms), now_ms, event, _CLOSED)
            visit.state = rules.table[was, duty]
            visit.mark_ms = NEVER
            visit.flags |= CLOSED_INSIDE
        elif duty == EXPIRE_DUE:
            at = end_visit(state, out, user, row, visit.mark_ms, due_ms)
            by_timer(out, at, now_ms, event, _EXPIRED)
            out[at].confidence = _LOW
        else:
            visit.state = rules.table[was, duty]
            if visit.state == SUSPENDED:
                occupy(state, user, 0 + visit.fence, -1)
                visit.edge_ms = NEVER
                visit.run_ms = NEVER


@inlined_lean_kernel
def write_dwell(
    state: State, rules: Rules, out: np.ndarray, user: int, row: int, number: int, confirmed_ms: int
) -> int:
    """Write DWELL of one threshold, note it, and return the transition's row."""
    visit = state.visit[row]
    at = next_row(state, out, user, 0 + visit.fence, _DWELL)
    one = out[at]
    one.crossed_ms = visit.crossed_ms
    one.confirmed_ms = confirmed_ms
    one.threshold_s = rules.dwell_ms[visit.fence, number] // 1000
    one.confidence = visit.confidence
    one.method = visit.method
    visit.dwelt |= 1 << number
    return at


@inlined_lean_kernel
def arm_visit(state: State, rules: Rules, user: int, row: int, now_ms: int) -> None:
    """See that the pair's timer pops no later than its earliest duty."""
    visit = state.visit[row]
    due_ms, _ = next_duty(rules, visit)
    if due_ms == FOREVER:
        return
    fire_ms = max(due_ms + rules.feed[visit.feed].delay_ms, now_ms)
    if visit.timer_ms == NEVER or fire_ms < visit.timer_ms:
        visit.timer_ms = fire_ms
        arm(state.wheel, fire_ms, int((np.int64(user) << 32) | visit.fence), 0)
