"""The loop over what happened: steps of patterns in log order, and absences that fall due between them (B2-B5, T8)."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.behavior.layout_kernel import (
    ABSENCE,
    ACTION,
    APP,
    CATEGORY,
    COMPLETED,
    COUNT,
    DAY_MS,
    DISTINCT,
    FENCE,
    FIRED_ROWS,
    LAG_MS,
    LAGS,
    NEVER,
    NOTHING,
    SEQUENCE,
    SILENT,
    STALE_TIMERS,
    SUM,
    WAITS,
    Patterns,
    State,
    Steps,
    Work,
    int64,
)
from engine.behavior.order_kernel import add_step, answer_absence, first_opening, open_absence, settle_opening
from engine.behavior.store_kernel import MORE_OUT, ROOM, find_state, lacking_room, next_state, state_for
from engine.behavior.window_kernel import add_counted, add_distinct, add_summed, count_at
from engine.hashing_kernel import combine
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.model import EventType
from engine.wheel_kernel import arm, is_reached, pop

ROW, MATCH, TRANSITION_AT, TARGET = range(4)
OWN, MATCHED = -1, -2
"""FIRED.source: completed by itself; asked about by a match or a transition. Else: by that pattern, as it completed."""
_PING, _USAGE = int(EventType.PING), int(EventType.USAGE)
_NO_KEY = np.uint64(0)


@lean_kernel
def advance(
    state: State, patterns: Patterns, steps: Steps, work: Work, now_ms: int, late_ms: int, spare: int, by_row: bool
) -> int:
    """Take the steps of a batch from `work.cursor` on, then let time pass to `now_ms`; ROOM, or what must grow.

    late_ms  the largest allowed lateness: how much older than the newest a usage event can be
    spare    rows of `work.out` that one step can need
    by_row   look at every event: some pattern is an absence, and needs to know which feeds and users are heard of

    Before a record come the absences due by then; a step is taken wholly or not at all, so the caller grows a pool,
    or empties `out`, and calls again.  Oracle: tests/property/test_patterns.py.
    """
    cursor = work.cursor
    events, transitions = steps.events, steps.transitions
    rows, moves, matches = events.shape[0], transitions.shape[0], steps.row.shape[0]
    while True:
        row = cursor[ROW]
        if not by_row:
            # Nothing happens between steps.
            row = rows
            if cursor[TRANSITION_AT] < moves:
                row = int64(transitions[cursor[TRANSITION_AT]].event)
            if cursor[MATCH] < matches:
                row = min(row, int64(steps.row[cursor[MATCH]]))
            cursor[ROW] = row
        while cursor[TRANSITION_AT] < moves:
            move = transitions[cursor[TRANSITION_AT]]
            if move.event > row or (move.by_timer == 0 and row < rows):
                break
            lacking = _fire_timers(state, patterns, work, move.now_ms, row, spare)
            if lacking == ROOM:
                lacking = _take_transition(state, patterns, steps, work, late_ms, spare)
            if lacking != ROOM:
                return lacking
        if row == rows:
            return _fire_timers(state, patterns, work, now_ms, row, spare)
        event = events[row]
        if by_row:
            if is_reached(state.wheel, event.now_ms):
                lacking = _fire_timers(state, patterns, work, event.now_ms, row, spare)
                if lacking != ROOM:
                    return lacking
            lacking = _hear(state, patterns, work, event, row, spare)
            if lacking != ROOM:
                return lacking
        while cursor[TRANSITION_AT] < moves and transitions[cursor[TRANSITION_AT]].event == row:
            lacking = _take_transition(state, patterns, steps, work, late_ms, spare)
            if lacking != ROOM:
                return lacking
        while cursor[MATCH] < matches and steps.row[cursor[MATCH]] == row:
            lacking = _take_match(state, patterns, steps, work, late_ms, spare)
            if lacking != ROOM:
                return lacking
        cursor[ROW] = row + 1


@inlined_lean_kernel
def _hear(state: State, patterns: Patterns, work: Work, event: Any, row: int, spare: int) -> int:
    """Note who was heard of, and when; let a lagging user's absences fall due in time of their own (T8)."""
    user = int64(event.user)
    if state.flags[user] & WAITS:
        lacking = _fire_own(state, patterns, work, event, row, spare)
        if lacking != ROOM:
            return lacking
    if event.now_ms - event.at_ms > LAG_MS:
        state.flags[user] |= LAGS
    else:
        state.flags[user] &= ~LAGS & 255
    state.feed[event.feed, 0] = event.now_ms
    if event.type == _USAGE:
        state.feed[event.feed, 1] = 1
    elif event.type == _PING:
        state.feed[event.feed, 2] = 1
    return ROOM


@lean_kernel
def _take_match(state: State, patterns: Patterns, steps: Steps, work: Work, late_ms: int, spare: int) -> int:
    cursor = work.cursor
    at = cursor[MATCH]
    event = steps.events[steps.row[at]]
    number = steps.filter[at]
    while patterns.filter_start[number] + cursor[TARGET] < patterns.filter_start[number + 1]:
        lacking = _lacking(state, work, spare)
        if lacking != ROOM:
            return lacking
        target = patterns.filter_start[number] + cursor[TARGET]
        pattern = int64(patterns.step_pattern[target])
        key = _source(int64(patterns.pattern[pattern].same), event, steps.same[at])
        value = _source(int64(patterns.pattern[pattern].field), event, steps.value[at])
        found = work.found[0]
        found.row = steps.row[at]
        found.transition = -1
        found.user = event.user
        found.now_ms = event.now_ms
        found.by_timer = 0
        bits = int64(patterns.step_bits[target])
        _take_target(state, patterns, work, pattern, bits, key, value, event.at_ms, event.id_hash, late_ms)
        cursor[TARGET] += 1
    cursor[TARGET] = 0
    cursor[MATCH] += 1
    return ROOM


@lean_kernel
def _take_transition(state: State, patterns: Patterns, steps: Steps, work: Work, late_ms: int, spare: int) -> int:
    cursor = work.cursor
    move = steps.transitions[cursor[TRANSITION_AT]]
    fences = patterns.fence_hash.shape[0]
    route = int64(move.kind) * fences + int64(move.fence)
    while patterns.route_start[route] + cursor[TARGET] < patterns.route_start[route + 1]:
        lacking = _lacking(state, work, spare)
        if lacking != ROOM:
            return lacking
        target = patterns.route_start[route] + cursor[TARGET]
        if move.confidence >= patterns.route_sure[target]:
            pattern = int64(patterns.route_pattern[target])
            fence = patterns.fence_hash[move.fence]
            key = fence if patterns.pattern[pattern].same == FENCE else _NO_KEY
            identity = combine(combine(fence, np.uint64(move.kind)), np.uint64(move.crossed_ms))
            found = work.found[0]
            found.row = move.event
            found.transition = steps.which[cursor[TRANSITION_AT]]
            found.user = move.user
            found.now_ms = move.now_ms
            found.by_timer = move.by_timer
            bits = int64(patterns.route_bits[target])
            at_ms = move.crossed_ms if bits != 0 else move.confirmed_ms
            _take_target(state, patterns, work, pattern, bits, key, fence, at_ms, identity, late_ms)
        cursor[TARGET] += 1
    cursor[TARGET] = 0
    cursor[TRANSITION_AT] += 1
    return ROOM


@inlined_lean_kernel
def _lacking(state: State, work: Work, spare: int) -> int:
    if work.out.shape[0] - state.control[FIRED_ROWS] < spare:
        return MORE_OUT
    return lacking_room(state)


@inlined_lean_kernel
def _source(source: int, event: Any, read: np.uint64) -> Any:
    if source == APP:
        return event.app_hash
    if source == CATEGORY:
        return event.category_hash
    if source == ACTION:
        return event.action_hash
    return read


@lean_kernel
def _take_target(
    state: State,
    patterns: Patterns,
    work: Work,
    number: int,
    bits: int,
    key: np.uint64,
    value: np.uint64,
    at_ms: int,
    identity: np.uint64,
    late_ms: int,
) -> None:
    """Let one thing that happened be a step of one pattern, or a question about it; work.found says whose and where."""
    pattern = patterns.pattern[number]
    found = work.found[0]
    user = int64(found.user)
    now_ms = int64(found.now_ms)
    found.identity = _NO_KEY
    found.silent_ms = -1
    found.number = 0
    found.total = 0.0
    if bits == 0:
        _answer(state, patterns, work, number, at_ms, MATCHED)
        return
    if (pattern.same != NOTHING and key == _NO_KEY) or (pattern.kind == DISTINCT and value == _NO_KEY):
        return
    if pattern.same == NOTHING:
        key = _NO_KEY
    row = state_for(state, patterns, user, number, key, now_ms)
    within_ms = int64(pattern.within_ms)
    completes = False
    if pattern.kind == COUNT:
        completes = add_counted(state, row, at_ms, within_ms, within_ms + late_ms, int64(pattern.n), found)
    elif pattern.kind == SUM:
        # The value travels as bits; the arena's second view reads them as a number.
        work.bits[0] = value
        real = work.real[0]
        completes = add_summed(state, row, at_ms, real, within_ms, within_ms + late_ms, pattern.at_least, found)
    elif pattern.kind == DISTINCT:
        completes = add_distinct(state, row, at_ms, value, within_ms, int64(pattern.n), found)
    elif pattern.kind == SEQUENCE:
        completes = add_step(state, row, at_ms, np.uint64(bits), within_ms, int64(pattern.steps), work.starts, found)
    else:
        if bits & 2:
            answer_absence(state, row, at_ms, within_ms)
        if bits & 1:
            open_absence(state, row, at_ms, identity, within_ms)
        _arm_absence(state, patterns, row, now_ms)
    state.state[row].newest_ms = max(state.state[row].newest_ms, at_ms)
    if completes and pattern.fires != 0:
        _tell(state, patterns, work, number, key)


@lean_kernel
def _tell(state: State, patterns: Patterns, work: Work, number: int, key: np.uint64) -> None:
    """Write the completion at hand, and the answers of the patterns that are asked about with it."""
    found = work.found[0]
    found.pattern = number
    found.key = key
    found.source = OWN
    work.out[state.control[FIRED_ROWS]] = found
    state.control[FIRED_ROWS] += 1
    state.counts[COMPLETED] += 1
    at_ms = int64(found.at_ms)
    for at in range(patterns.ask_start[number], patterns.ask_start[number + 1]):
        _answer(state, patterns, work, int64(patterns.ask_pattern[at]), at_ms, number)


@lean_kernel
def _answer(state: State, patterns: Patterns, work: Work, number: int, at_ms: int, source: int) -> None:
    """Write that a counting pattern holds at this instant, where it does."""
    found = work.found[0]
    pattern = patterns.pattern[number]
    row = find_state(state, int64(found.user), number, _NO_KEY)
    if row < 0:
        return
    counted = count_at(state, row, at_ms, int64(pattern.within_ms))
    if counted >= pattern.n:
        one = work.out[state.control[FIRED_ROWS]]
        one.at_ms = at_ms
        one.now_ms = found.now_ms
        one.first_ms = at_ms - pattern.within_ms
        one.identity = _NO_KEY
        one.key = _NO_KEY
        one.total = 0.0
        one.silent_ms = -1
        one.row = found.row
        one.transition = found.transition
        one.pattern = number
        one.user = found.user
        one.number = counted
        one.source = source
        one.by_timer = found.by_timer
        state.control[FIRED_ROWS] += 1


# --- absences -------------------------------------------------------------------------------------------------------


@inlined_lean_kernel
def _is_awaited(state: State, feed: int, awaits_usage: int, now_ms: int) -> bool:
    """Say whether an answer would come from this feed: it ever brought such records, and it was heard of in a day."""
    return bool(state.feed[feed, 1 if awaits_usage else 2] != 0 and now_ms - state.feed[feed, 0] < DAY_MS)


@inlined_lean_kernel
def _delay_ms(state: State, patterns: Patterns, awaits_usage: int, now_ms: int) -> int:
    """The longest expected delay of the feeds that an answer would come from."""
    longest = 0
    for feed in range(state.feed.shape[0]):
        if _is_awaited(state, feed, awaits_usage, now_ms):
            longest = max(longest, patterns.feed[feed, 1])
    return longest


@inlined_lean_kernel
def _silent_ms(state: State, patterns: Patterns, awaits_usage: int, now_ms: int) -> int:
    """How long a feed that an answer would come from has been silent, where that is over twice its period; else -1.

    Where there is no such feed there is nothing to be silent: 0.
    """
    silent = -1
    known = False
    for feed in range(state.feed.shape[0]):
        if _is_awaited(state, feed, awaits_usage, now_ms):
            known = True
            gap = now_ms - state.feed[feed, 0]
            if gap > 2 * patterns.feed[feed, 0]:
                silent = max(silent, gap)
    return silent if known else 0


@lean_kernel
def _arm_absence(state: State, patterns: Patterns, row: int, now_ms: int) -> None:
    """See that the state's timer pops no later than its first opening is due."""
    place = first_opening(state, row)
    one = state.state[row]
    if place < 0 or one.waits != 0:
        return
    pattern = patterns.pattern[one.pattern]
    due_ms = state.at_ms[place] + pattern.within_ms + _delay_ms(state, patterns, pattern.awaits_usage, now_ms)
    fire_ms = max(due_ms, now_ms)
    if one.timer_ms == NEVER or fire_ms < one.timer_ms:
        one.timer_ms = fire_ms
        arm(state.wheel, fire_ms, (int64(one.user) << 32) | int64(one.pattern), 0)


@lean_kernel
def _fire_timers(state: State, patterns: Patterns, work: Work, now_ms: int, row: int, spare: int) -> int:
    """Tell all absences that are due by `now_ms`, by the instant they can fire, then user and pattern."""
    if not is_reached(state.wheel, now_ms):
        return ROOM
    while True:
        lacking = _lacking(state, work, spare)
        if lacking != ROOM:
            return lacking
        place = pop(state.wheel, now_ms)
        if place < 0:
            return ROOM
        fire_ms = int64(state.wheel.timer[place].fire_ms)
        key = int64(state.wheel.timer[place].key)
        user, pattern = key >> 32, key & 0x7FFFFFFF
        # States with correlated keys share a timer's key; the smallest of those due goes first.
        chosen = -1
        one = next_state(state, user, pattern, -1)
        while one >= 0:
            if state.state[one].timer_ms == fire_ms and (chosen < 0 or state.state[one].key < state.state[chosen].key):
                chosen = one
            one = next_state(state, user, pattern, one)
        if chosen < 0:
            state.counts[STALE_TIMERS] += 1
            continue
        state.state[chosen].timer_ms = NEVER
        opening = first_opening(state, chosen)
        if opening < 0:
            continue
        rule = patterns.pattern[pattern]
        due_ms = state.at_ms[opening] + rule.within_ms
        if due_ms + _delay_ms(state, patterns, rule.awaits_usage, fire_ms) <= fire_ms:
            if state.flags[user] & LAGS:
                state.state[chosen].waits = 1
                state.flags[user] |= WAITS
                continue
            _tell_absence(state, patterns, work, chosen, opening, fire_ms, row)
        _arm_absence(state, patterns, chosen, fire_ms)


@lean_kernel
def _fire_own(state: State, patterns: Patterns, work: Work, event: Any, row: int, spare: int) -> int:
    """Tell a lagging user's absences that are due by the user's own new record; give the rest their timers back."""
    user = int64(event.user)
    lags = event.now_ms - event.at_ms > LAG_MS
    remain = False
    for number in range(patterns.pattern.shape[0]):
        if patterns.pattern[number].kind != ABSENCE:
            continue
        rule = patterns.pattern[number]
        while True:
            lacking = _lacking(state, work, spare)
            if lacking != ROOM:
                return lacking
            # By the instant due, then by key; one at a time, for the openings behind the first may be due as well.
            chosen = -1
            chosen_ms = int64(0)
            one = next_state(state, user, number, -1)
            while one >= 0:
                if state.state[one].waits != 0:
                    opening = first_opening(state, one)
                    if opening < 0:
                        state.state[one].waits = 0
                    else:
                        due_ms = state.at_ms[opening]
                        if (
                            chosen < 0
                            or due_ms < chosen_ms
                            or (due_ms == chosen_ms and state.state[one].key < state.state[chosen].key)
                        ):
                            chosen = one
                            chosen_ms = due_ms
                one = next_state(state, user, number, one)
            if chosen < 0:
                break
            if (
                chosen_ms + rule.within_ms + _delay_ms(state, patterns, rule.awaits_usage, int64(event.now_ms))
                <= event.at_ms
            ):
                opening = first_opening(state, chosen)
                _tell_absence(state, patterns, work, chosen, opening, int64(event.now_ms), row)
                continue
            if lags:
                remain = True
                break
            state.state[chosen].waits = 0
            _arm_absence(state, patterns, chosen, int64(event.now_ms))
    if not remain:
        state.flags[user] &= ~WAITS & 255
    return ROOM


@lean_kernel
def _tell_absence(state: State, patterns: Patterns, work: Work, one: int, opening: int, now_ms: int, row: int) -> None:
    """Write the absence that began at this opening, and settle it."""
    number = int64(state.state[one].pattern)
    rule = patterns.pattern[number]
    found = work.found[0]
    found.first_ms = state.at_ms[opening]
    found.at_ms = state.at_ms[opening] + rule.within_ms
    found.identity = state.value[opening]
    found.now_ms = now_ms
    found.user = state.state[one].user
    found.row = row
    found.transition = -1
    found.number = 0
    found.total = 0.0
    found.by_timer = 1
    found.silent_ms = _silent_ms(state, patterns, rule.awaits_usage, now_ms)
    if found.silent_ms >= 0:
        state.counts[SILENT] += 1
    _tell(state, patterns, work, number, np.uint64(state.state[one].key))
    settle_opening(state, one, int64(found.first_ms), int64(rule.within_ms))
