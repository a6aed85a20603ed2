"""The sequential loop over events: timers, admission, then every pair a fix concerns (P6, T8).

One pass, in log order, so that any cut of the same records into batches gives the same transitions (T4).
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.geometry_kernel import FenceArrays
from engine.kernels import kernel
from engine.model import HIT, Drop, EventType, TransitionKind
from engine.presence.admission_kernel import (
    ADMIT,
    ADMIT_HELD_FIRST,
    HOLD,
    admit,
    forget_ids,
    hold,
    release_held,
    remember_id,
)
from engine.presence.crossing_kernel import write_crossings
from engine.presence.layout_kernel import (
    EXITING,
    FIX,
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
    RELEASED,
    RETURNS,
    STALE_TIMERS,
    WANTED,
    Rules,
    State,
    find_visit,
    forget_visit,
)
from engine.presence.step_kernel import HOP_MS, step_pair
from engine.presence.timer_kernel import arm_visit, fire, state_due_ms
from engine.presence.zone_kernel import describe_fix, note_fix, zone_of_hit, zone_without_hit
from engine.wheel_kernel import free_timers, pop

DONE, MORE_OUT, MORE_VISITS, MORE_TIMERS, MORE_HELD, MORE_HELD_HITS, MORE_SAME, MORE_USERS = range(8)
"""Why `advance` came back before the end: which pool must grow, by control[WANTED] rows at least."""

LAG_MS = 600_000
ROOM = 512
"""While every pool has this much room, an event with few pairs needs no count of what it may take."""
TRANSITIONS_A_PAIR = 40
"""More than one event can bring about for one pair: two fixes (one held before), each with own-time timers."""

_PING = int(EventType.PING)
_TOO_FAST = int(Drop.TOO_FAST)
_EXIT = int(TransitionKind.EXIT)
_NO_FENCE = 1 << 40


@kernel
def advance(
    state: State,
    rules: Rules,
    fences: FenceArrays,
    events: np.ndarray,
    hit_start: np.ndarray,
    hits: np.ndarray,
    out: np.ndarray,
    first_row: int,
    now_ms: int,
) -> tuple[int, int]:
    """Process events from `first_row` on, then let time pass to `now_ms`.

    events     EVENT[N]        in log order; now_ms never falls; `drop` is written for pings that do not count
    hit_start  int64[N + 1]    hits of event i are hits[hit_start[i]:hit_start[i + 1]], by rising fence
    hits       HIT[M]
    out        TRANSITION[K]   rows from control[OUT_ROWS] on are written; the last row is scratch space
    now_ms     int64           not below the last event's

    Returns (next row, DONE or what is lacking): an event is processed wholly or not at all, so the caller grows the
    pool, or empties `out`, and calls again.  Cost: about 0.1 us for a ping of a user in no fence.
    Oracle: tests/property/test_presence.py, tests/oracle.
    """
    fixes = np.zeros(2, FIX)
    for row in range(first_row, events.shape[0]):
        event = events[row]
        state.control[NOW_MS] = event.now_ms
        if not fire_timers(state, rules, out, event.now_ms, row):
            return row, MORE_OUT
        if event.type != _PING or event.drop != 0:
            continue
        lacking = lacking_room(state, out, event.user, hit_start[row + 1] - hit_start[row])
        if lacking != DONE:
            return row, lacking
        describe_fix(fixes[0], event, row)
        answer = admit(state, rules, fixes[0])
        if answer == HOLD:
            event.drop = _TOO_FAST
            hold(state, fixes[0], hits, hit_start[row], hit_start[row + 1])
            continue
        number = 0
        fix_hits, first, last = hits, hit_start[row], hit_start[row + 1]
        if answer == ADMIT_HELD_FIRST:
            number = 1
            fix_hits = take_held(state, fixes)
            first, last = 0, fix_hits.shape[0]
            answer = ADMIT
            state.counts[RELEASED] += 1
        while answer == ADMIT:
            process(state, rules, fences, out, fixes[number], fix_hits, first, last)
            if number == 0:
                break
            number = 0
            fix_hits, first, last = hits, hit_start[row], hit_start[row + 1]
            answer = admit(state, rules, fixes[0])
        if answer != ADMIT:
            event.drop = answer
            state.counts[answer] += 1
    if not fire_timers(state, rules, out, now_ms, events.shape[0]):
        return events.shape[0], MORE_OUT
    state.control[NOW_MS] = max(now_ms, state.control[NOW_MS])
    return events.shape[0], DONE


@kernel
def fire_timers(state: State, rules: Rules, out: np.ndarray, now_ms: int, row: int) -> bool:
    """Fire all that is due by `now_ms`; False if `out` is too full to go on."""
    while True:
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
        delay_ms = rules.feed[state.visit[pair].feed].delay_ms
        if fire(state, rules, out, user, pair, fire_ms - delay_ms, fire_ms, row):
            arm_visit(state, rules, user, pair, fire_ms)


@kernel
def lacking_room(state: State, out: np.ndarray, user: int, hits: int) -> int:
    """Say which pool could run out during one event of this user, or DONE."""
    if user >= state.user.shape[0]:
        state.control[WANTED] = user + 1
        return MORE_USERS
    control = state.control
    free = min(
        min(state.visit.shape[0] - control[LIVE_VISITS], free_timers(state.wheel)),
        state.held_hit.shape[0] - control[LIVE_HELD_HITS],
    )
    if state.held.shape[0] <= control[LIVE_HELD]:
        control[WANTED] = 1
        return MORE_HELD
    if state.same.shape[0] <= control[LIVE_SAME] + 1:
        control[WANTED] = 2
        return MORE_SAME
    # One way may cross any number of fences, two where a held fix is released.
    crossings = 2 * state.occupancy.shape[0]
    free = min(free, out.shape[0] - control[OUT_ROWS] - crossings)
    if free > ROOM and hits < 4 and state.user[user].visits < 0 and state.user[user].held < 0:
        return DONE
    pairs = hits + 1
    row = state.user[user].visits
    while row >= 0:
        pairs += 1
        row = state.visit[row].next
    if state.user[user].held >= 0:
        row = state.held[state.user[user].held].hits
        while row >= 0:
            pairs += 1
            row = state.held_hit[row].next
    control[WANTED] = pairs
    if state.visit.shape[0] - control[LIVE_VISITS] < pairs:
        return MORE_VISITS
    if state.held_hit.shape[0] - control[LIVE_HELD_HITS] < pairs:
        return MORE_HELD_HITS
    control[WANTED] = 2 * pairs
    if free_timers(state.wheel) < 2 * pairs:
        return MORE_TIMERS
    control[WANTED] = TRANSITIONS_A_PAIR * pairs + crossings + 1
    if out.shape[0] - control[OUT_ROWS] < control[WANTED]:
        return MORE_OUT
    return DONE


@kernel
def take_held(state: State, fixes: np.ndarray) -> np.ndarray:
    """Make the user's held fix fixes[1], at the row and `now` of fixes[0] that proved it right; return its hits.

    Allocating is no matter here: a held fix that proves right is one flight or one tunnel.
    """
    user = state.user[fixes[0].user]
    fixes[1] = state.held[user.held]
    fixes[1].now_ms = fixes[0].now_ms
    fixes[1].event = fixes[0].event
    count = 0
    place = fixes[1].hits
    while place >= 0:
        count += 1
        place = state.held_hit[place].next
    hits = np.zeros(count, HIT)
    place = fixes[1].hits
    for number in range(count):
        kept = state.held_hit[place]
        hits[number].distance_m = kept.distance_m
        hits[number].fence = kept.fence
        hits[number].confidence = kept.confidence
        hits[number].inside = kept.inside
        place = kept.next
    release_held(state, user)
    return hits


@kernel
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
            state.counts[RETURNS] += 1
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
    write_crossings(state, rules, fences, out, fix, begin)
    remember_id(state, user, fix)
    note_fix(user, fix)
    state.control[NEWEST_MS] = max(state.control[NEWEST_MS], fix.at_ms)


@kernel
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


@kernel
def set_lag(state: State, fix: Any, lags: bool) -> None:
    """Note whether the user's newest fix came long after it was made; such users are not in occupancy (P9)."""
    user = state.user[fix.user]
    if lags == (user.flags & LAGS != 0):
        return
    user.flags ^= LAGS
    count_user(state, fix.user, -1 if lags else 1)


@kernel
def count_user(state: State, user: int, change: int) -> None:
    """Add `change` to the occupancy of every fence that the user is in."""
    row = state.user[user].visits
    while row >= 0:
        if state.visit[row].state == INSIDE or state.visit[row].state == EXITING:
            state.occupancy[state.visit[row].fence] += change
        row = state.visit[row].next


@kernel
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


@kernel
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
