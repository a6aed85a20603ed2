"""The sequential loop over events: timers, admission, then every pair a fix concerns (P6, T8).

One pass, in log order, so that any cut of the same records into batches gives the same transitions (T4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.geometry_kernel import FenceArrays
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.model import Drop, EventType
from engine.presence.admission_kernel import (
    ADMIT,
    ADMIT_HELD_FIRST,
    HOLD,
    admit,
    forget_ids,
    hold,
    is_plain,
    release_held,
)
from engine.presence.crossing_kernel import is_way_empty, write_crossings
from engine.presence.fix_kernel import LAG_MS, count_user, process
from engine.presence.layout_kernel import (
    EXITING,
    INSIDE,
    LAGS,
    LIVE_HELD,
    LIVE_HELD_HITS,
    LIVE_SAME,
    LIVE_VISITS,
    NEVER,
    NEWEST_MS,
    NOW_MS,
    OUT_ROWS,
    OUTSIDE,
    RELEASED,
    STALE_TIMERS,
    WANTED,
    Rules,
    State,
    Work,
)
from engine.presence.pair_kernel import find_visit, forget_visit
from engine.presence.timer_kernel import arm_visit, fire
from engine.presence.zone_kernel import describe_fix, note_fix
from engine.wheel_kernel import free_timers, is_reached, pop

DONE, MORE_OUT, MORE_VISITS, MORE_TIMERS, MORE_HELD, MORE_HELD_HITS, MORE_SAME, MORE_USERS, MORE_WORK, MORE_ANSWERS = (
    range(10)
)
"""Why `advance` came back before the end: which pool must grow, by control[WANTED] rows at least."""

TOUCH_ROWS = 256
TRANSITIONS_A_PAIR = 40
"""More than one event can bring about for one pair: two fixes (one held before), each with own-time timers."""

int64: Any = np.int64
_PING = int(EventType.PING)
_TOO_FAST = int(Drop.TOO_FAST)


@lean_kernel
def advance(
    state: State,
    rules: Rules,
    fences: FenceArrays,
    events: np.ndarray,
    hit_start: np.ndarray,
    hits: np.ndarray,
    work: Work,
    first_row: int,
    now_ms: int,
) -> tuple[int, int]:
    """Process events from `first_row` on, then let time pass to `now_ms`.

    events     EVENT[N]        in log order; now_ms never falls; `drop` is written for pings that do not count
    hit_start  int64[N + 1]    hits of event i are hits[hit_start[i]:hit_start[i + 1]], by rising fence
    hits       HIT[M]
    work.out   TRANSITION[K]   rows from control[OUT_ROWS] on are written
    now_ms     int64           not below the last event's

    Returns (next row, DONE or what is lacking): an event is processed wholly or not at all, so the caller grows the
    pool, or empties `out`, and calls again.  Cost: bench/presence.py.
    Oracle: tests/property/test_presence.py, tests/property/test_presence_oracle.py.
    """
    control = state.control
    for row in range(first_row, events.shape[0]):
        if (row - first_row) % TOUCH_ROWS == 0:
            touch_rows(state, events, row, min(row + TOUCH_ROWS, events.shape[0]), work.touched)
        event = events[row]
        control[NOW_MS] = event.now_ms
        if is_reached(state.wheel, event.now_ms) and not fire_timers(state, rules, work, event.now_ms, row):
            return row, MORE_OUT
        if work.ask[work.answered[0]] == row and not answer(state, rules, work, event):
            return row, MORE_ANSWERS
        if event.type != _PING or event.drop != 0:
            continue
        if event.user >= state.user.shape[0]:
            control[WANTED] = event.user + 1
            return row, MORE_USERS
        user = state.user[event.user]
        fix = work.fix[0]
        describe_fix(fix, event, row)
        first, last = hit_start[row], hit_start[row + 1]
        # Most users are in no fence and near none: nothing can happen to them but to be somewhere else.
        if user.visits < 0 and first == last and is_plain(rules, user, fix):
            if not is_way_empty(rules.tiles, user, fix):
                if work.out.shape[0] - control[OUT_ROWS] <= state.occupancy.shape[0] + 1:
                    return row, MORE_OUT
                write_crossings(state, rules, fences, work.out, fix, control[OUT_ROWS])
            user.flags = LAGS if fix.now_ms - fix.at_ms > LAG_MS else 0
            user.last_hash = fix.id_hash
            note_fix(user, fix)
            control[NEWEST_MS] = max(control[NEWEST_MS], fix.at_ms)
            continue
        if work.kept[0] != 0:
            if is_past_full(state, work):
                return row, MORE_OUT
            keep_past(state, rules, work, int64(event.user), row, 0, int64(event.now_ms))
        lacking = take_ping(state, rules, fences, work, event, hits, first, last)
        if lacking != DONE:
            return row, lacking
    if not fire_timers(state, rules, work, now_ms, events.shape[0]):
        return events.shape[0], MORE_OUT
    control[NOW_MS] = max(now_ms, control[NOW_MS])
    return events.shape[0], DONE


@lean_kernel
def answer(state: State, rules: Rules, work: Work, event: Any) -> bool:
    """Write of which fences the user is inside at the instant of this event; False if `answer` is too small.

    INSIDE or EXITING, and heard of within the ttl: a visit that is, or is due to be, SUSPENDED does not count (P7).
    """
    number = work.answered[0]
    place = work.answered[1 + number]
    row = -1
    if event.user < state.user.shape[0]:
        row = 0 + state.user[event.user].visits
    while row >= 0:
        visit = state.visit[row]
        is_open = visit.state == INSIDE or visit.state == EXITING
        if is_open and event.at_ms - visit.seen_ms < rules.feed[visit.feed].ttl_ms:
            if place == work.answer.shape[0]:
                return False
            work.answer[place] = visit.fence
            place += 1
        row = 0 + visit.next
    work.answered[0] = number + 1
    work.answered[2 + number] = place
    return True


@inlined_lean_kernel
def is_past_full(state: State, work: Work) -> bool:
    """Whether `past` might lack room for one more entry; each has at most a row for each fence and one."""
    return bool(work.kept[0] != 0 and work.past.shape[0] - work.kept[1] <= state.occupancy.shape[0])


@lean_kernel
def keep_past(state: State, rules: Rules, work: Work, user: int, row: int, by_timer: int, now_ms: int) -> None:
    """Write of which fences the user is inside, before this ping or timer changes it; there is room."""
    place = work.kept[1]
    pair = -1
    fence = -1
    until_ms = now_ms
    while True:
        one = work.past[place]
        one.now_ms = now_ms
        one.until_ms = until_ms
        one.user = user
        one.row = row
        one.fence = fence
        one.by_timer = by_timer
        place += 1
        pair = int64(state.user[user].visits) if pair < 0 else int64(state.visit[pair].next)
        while pair >= 0 and state.visit[pair].state != INSIDE and state.visit[pair].state != EXITING:
            pair = int64(state.visit[pair].next)
        if pair < 0:
            break
        fence = int64(state.visit[pair].fence)
        until_ms = state.visit[pair].seen_ms + rules.feed[state.visit[pair].feed].ttl_ms
    work.kept[1] = place


@lean_kernel
def touch_rows(state: State, events: np.ndarray, first: int, last: int, touched: np.ndarray) -> None:
    """Read the rows that the next events will need, all at once: misses that overlap cost a fraction.

    Users are far apart in memory, and the loop over events cannot look ahead by itself: measured, a third of its time.
    """
    users = state.user.shape[0]
    pairs = state.visit.shape[0]
    total = 0
    for row in range(first, last):
        if events[row].user < users:
            total += state.user[events[row].user].visits
    for row in range(first, last):
        if events[row].user < users:
            place = state.user[events[row].user].visits
            if 0 <= place < pairs:
                total += state.visit[place].fence
    touched[0] = total


@inlined_lean_kernel
def take_ping(
    state: State, rules: Rules, fences: FenceArrays, work: Work, event: Any, hits: np.ndarray, first: int, last: int
) -> int:
    """Take the ping described in work.fix[0], with hits[first:last]; DONE, or the pool that lacks room."""
    fix = work.fix[0]
    lacking = lacking_room(state, work, fix.user, last - first)
    if lacking != DONE:
        return lacking
    answer = admit(state, rules, fix)
    if answer == HOLD:
        event.drop = _TOO_FAST
        hold(state, fix, hits, first, last)
        return DONE
    number = 0
    fix_hits, fix_first, fix_last = hits, first, last
    if answer == ADMIT_HELD_FIRST:
        number = 1
        fix_hits, fix_first, fix_last = work.hits, 0, take_held(state, work)
        state.counts[RELEASED] += 1
        answer = ADMIT
    # Written as a loop so that the two long functions have one caller each, into which they are compiled.
    while answer == ADMIT:
        process(state, rules, fences, work.out, work.fix[number], fix_hits, fix_first, fix_last)
        if number == 0:
            return DONE
        number = 0
        fix_hits, fix_first, fix_last = hits, first, last
        answer = admit(state, rules, fix)
    event.drop = answer
    state.counts[answer] += 1
    return DONE


@lean_kernel
def fire_timers(state: State, rules: Rules, work: Work, now_ms: int, row: int) -> bool:
    """Fire all that is due by `now_ms`; False if `out` or `past` is too full to go on."""
    out = work.out
    while True:
        if is_past_full(state, work):
            return False
        if out.shape[0] - state.control[OUT_ROWS] < TRANSITIONS_A_PAIR:
            return False
        place = pop(state.wheel, now_ms)
        if place < 0:
            return True
        fire_ms = state.wheel.timer[place].fire_ms
        key = state.wheel.timer[place].key
        user = key >> 32
        pair = find_visit(state, user, key & 0x7FFFFFFF)
        if pair < 0 or state.visit[pair].timer_ms != fire_ms:
            state.counts[STALE_TIMERS] += 1
            continue
        state.visit[pair].timer_ms = NEVER
        if state.user[user].flags & LAGS:
            continue
        if work.kept[0] != 0:
            keep_past(state, rules, work, user, row, 1, fire_ms)
        delay_ms = rules.feed[state.visit[pair].feed].delay_ms
        fire(state, rules, out, user, pair, fire_ms - delay_ms, fire_ms, row)
        arm_visit(state, rules, user, pair, fire_ms)


@inlined_lean_kernel
def lacking_room(state: State, work: Work, user: int, hits: int) -> int:
    """Say which pool could run out during one event of this user, or DONE."""
    control = state.control
    # One way may cross any number of fences, two where a held fix is released.
    crossings = 2 * state.occupancy.shape[0]
    free_visits = state.visit.shape[0] - control[LIVE_VISITS]
    free_out = work.out.shape[0] - control[OUT_ROWS] - crossings
    free_held_hits = state.held_hit.shape[0] - control[LIVE_HELD_HITS]
    if state.held.shape[0] <= control[LIVE_HELD]:
        control[WANTED] = 1
        return MORE_HELD
    if state.same.shape[0] <= control[LIVE_SAME] + 1:
        control[WANTED] = 2
        return MORE_SAME
    pairs = hits + 1
    row = 0 + state.user[user].visits
    while row >= 0:
        pairs += 1
        row = 0 + state.visit[row].next
    if state.user[user].held >= 0:
        held_hits = 0
        row = 0 + state.held[state.user[user].held].hits
        while row >= 0:
            held_hits += 1
            row = 0 + state.held_hit[row].next
        pairs += held_hits
        if held_hits > work.hits.shape[0]:
            control[WANTED] = held_hits
            return MORE_WORK
    control[WANTED] = pairs
    if free_visits < pairs:
        return MORE_VISITS
    if free_held_hits < pairs:
        return MORE_HELD_HITS
    control[WANTED] = 2 * pairs
    if free_timers(state.wheel) < 2 * pairs:
        return MORE_TIMERS
    control[WANTED] = TRANSITIONS_A_PAIR * pairs + crossings + 1
    return MORE_OUT if free_out <= TRANSITIONS_A_PAIR * pairs else DONE


@lean_kernel
def take_held(state: State, work: Work) -> int:
    """Make the held fix work.fix[1], at the row and `now` of the one that proved it; return how many hits it has."""
    fix = work.fix[1]
    user = state.user[work.fix[0].user]
    work.fix[1] = state.held[user.held]
    fix.now_ms = work.fix[0].now_ms
    fix.event = work.fix[0].event
    count = 0
    place = 0 + fix.hits
    while place >= 0:
        kept = state.held_hit[place]
        hit = work.hits[count]
        hit.distance_m = kept.distance_m
        hit.fence = kept.fence
        hit.confidence = kept.confidence
        hit.inside = kept.inside
        count += 1
        place = 0 + kept.next
    release_held(state, user)
    return count


@lean_kernel
def mark_idle(state: State, first: int, before_ms: int, idle: np.ndarray) -> None:
    """Mark the users of whom nothing is open and nothing newer than `before_ms` is known.

    idle  bool[N]  of user `first + i`; written.  A pair OUTSIDE has no timer and, a day later, no witness either.
    """
    for i in range(len(idle)):
        idle[i] = True
        if first + i >= state.user.shape[0]:
            continue
        user = state.user[first + i]
        idle[i] = user.last_ms < before_ms
        row = 0 + user.visits
        while row >= 0 and idle[i]:
            idle[i] = state.visit[row].state == OUTSIDE and state.visit[row].seen_ms < before_ms
            row = 0 + state.visit[row].next
        if user.held >= 0 and state.held[user.held].at_ms >= before_ms:
            idle[i] = False


@lean_kernel
def reset_all(state: State, users: np.ndarray, blank: np.ndarray) -> None:
    """`reset` each of these users."""
    for user in users:
        if user < state.user.shape[0]:
            reset(state, user, blank)


@lean_kernel
def reset(state: State, user: int, blank: np.ndarray) -> None:
    """Forget everything about one user (closed, evicted, or its slot given to another): no transition.

    blank  USER[1]  a row as new
    """
    if state.user[user].flags & LAGS == 0:
        count_user(state, user, -1)
    while state.user[user].visits >= 0:
        forget_visit(state, user, state.user[user].visits)
    if state.user[user].held >= 0:
        release_held(state, state.user[user])
    forget_ids(state, state.user[user])
    state.user[user] = blank[0]
