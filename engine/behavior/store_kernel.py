"""Where patterns keep what they know: states in a pool, found by user and pattern, and their entries in an arena.

Pools never grow inside a kernel: who calls has made sure of room (`lacking_room`).
"""

from __future__ import annotations

import numpy as np

from engine.behavior.layout_kernel import (
    CLASSES,
    DAY_MS,
    EVICTED,
    FORGOTTEN,
    FREE_BLOCK,
    FREE_STATE,
    LARGEST_BLOCK,
    LIVE_STATES,
    MOST_KEYS,
    NEVER,
    SMALLEST_BLOCK,
    UNUSED_STATES,
    USED_WORDS,
    WANTED,
    Patterns,
    State,
    int64,
)
from engine.hashing_kernel import fold
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.wheel_kernel import arm, free_timers

ROOM, MORE_STATES, MORE_WORDS, MORE_TIMERS, MORE_OUT = range(5)
_SPREAD = np.uint64(0x9E3779B97F4A7C15)


@inlined_lean_kernel
def bucket_of(state: State, user: int, pattern: int) -> int:
    """Place of the bucket that holds all states of this user in this pattern."""
    mixed = fold((np.uint64(user) << np.uint64(32)) ^ np.uint64(pattern) ^ _SPREAD, _SPREAD)
    return int(int64(mixed & np.uint64(state.bucket.shape[0] - 1)))


@lean_kernel
def lacking_room(state: State) -> int:
    """Say which pool one step might exhaust, or ROOM."""
    control = state.control
    if control[LIVE_STATES] >= state.state.shape[0]:
        control[WANTED] = 1
        return MORE_STATES
    if control[USED_WORDS] + LARGEST_BLOCK > state.at_ms.shape[0]:
        control[WANTED] = LARGEST_BLOCK
        return MORE_WORDS
    if free_timers(state.wheel) < MOST_KEYS + 1:
        control[WANTED] = MOST_KEYS + 1
        return MORE_TIMERS
    return ROOM


@lean_kernel
def find_state(state: State, user: int, pattern: int, key: np.uint64) -> int:
    """Row of the state, or -1."""
    row = int64(state.bucket[bucket_of(state, user, pattern)])
    while row >= 0:
        one = state.state[row]
        if one.user == user and one.pattern == pattern and one.key == key:
            return int(row)
        row = int64(one.next)
    return -1


@lean_kernel
def next_state(state: State, user: int, pattern: int, after: int) -> int:
    """Row of the next state of this user in this pattern behind row `after` (-1: the first), or -1."""
    row = int64(state.bucket[bucket_of(state, user, pattern)]) if after < 0 else int64(state.state[after].next)
    while row >= 0:
        if state.state[row].user == user and state.state[row].pattern == pattern:
            return int(row)
        row = int64(state.state[row].next)
    return -1


@lean_kernel
def state_for(state: State, patterns: Patterns, user: int, pattern: int, key: np.uint64, now_ms: int) -> int:
    """Row of the state, made where there is none; one that is forgotten by `now_ms` is as good as new.

    With correlated keys the one least recently touched makes place for a ninth (B3), counted.
    """
    row = find_state(state, user, pattern, key)
    if row >= 0:
        if not is_forgotten(state, patterns, row, now_ms):
            state.state[row].now_ms = now_ms
            return int(row)
        forget_state(state, row)
    elif key != np.uint64(0):
        _evict_key(state, user, pattern)
    control = state.control
    row = int64(control[FREE_STATE])
    if row >= 0:
        control[FREE_STATE] = state.state[row].next
    else:
        row = int64(state.state.shape[0] - control[UNUSED_STATES])
        control[UNUSED_STATES] -= 1
    control[LIVE_STATES] += 1
    place = bucket_of(state, user, pattern)
    one = state.state[row]
    one.key = key
    one.newest_ms = NEVER
    one.now_ms = now_ms
    one.timer_ms = NEVER
    one.mark_ms = NEVER
    one.user = user
    one.pattern = pattern
    one.next = state.bucket[place]
    one.block = -1
    one.entries = 0
    one.size = 0
    one.waits = 0
    state.bucket[place] = row
    return int(row)


@inlined_lean_kernel
def is_forgotten(state: State, patterns: Patterns, row: int, now_ms: int) -> bool:
    """A day after its window is over a state counts no more, whether or not it was swept (T4)."""
    one = state.state[row]
    return bool(one.now_ms + patterns.pattern[one.pattern].within_ms + DAY_MS <= now_ms and one.timer_ms == NEVER)


@lean_kernel
def _evict_key(state: State, user: int, pattern: int) -> None:
    number = 0
    oldest = -1
    row = next_state(state, user, pattern, -1)
    while row >= 0:
        number += 1
        one = state.state[row]
        if (
            oldest < 0
            or one.newest_ms < state.state[oldest].newest_ms
            or (one.newest_ms == state.state[oldest].newest_ms and one.key < state.state[oldest].key)
        ):
            oldest = row
        row = next_state(state, user, pattern, row)
    if number >= MOST_KEYS:
        state.counts[EVICTED] += 1
        forget_state(state, oldest)


@lean_kernel
def forget_state(state: State, row: int) -> None:
    """Give a state and its block back; its timer, if any, finds nobody when it pops."""
    one = state.state[row]
    place = bucket_of(state, int64(one.user), int64(one.pattern))
    other = int64(state.bucket[place])
    if other == row:
        state.bucket[place] = one.next
    else:
        while state.state[other].next != row:
            other = int64(state.state[other].next)
        state.state[other].next = one.next
    _free_block(state, int64(one.block), int64(one.size))
    one.user = -1
    one.timer_ms = NEVER
    one.next = state.control[FREE_STATE]
    state.control[FREE_STATE] = row
    state.control[LIVE_STATES] -= 1


@inlined_lean_kernel
def _class_of(size: int) -> int:
    number = 0
    while SMALLEST_BLOCK << number < size:
        number += 1
    return number


@inlined_lean_kernel
def _free_block(state: State, block: int, size: int) -> None:
    if block >= 0:
        number = _class_of(size)
        state.at_ms[block] = state.control[FREE_BLOCK + number]
        state.control[FREE_BLOCK + number] = block


@lean_kernel
def widen(state: State, row: int, wanted: int) -> None:
    """See that the state's block holds `wanted` entries, at most LARGEST_BLOCK; entries are kept."""
    one = state.state[row]
    if wanted <= one.size:
        return
    number = _class_of(wanted)
    control = state.control
    block = int64(control[FREE_BLOCK + number])
    if block >= 0:
        control[FREE_BLOCK + number] = state.at_ms[block]
    else:
        block = int64(control[USED_WORDS])
        control[USED_WORDS] += SMALLEST_BLOCK << number
    for place in range(one.entries):
        state.at_ms[block + place] = state.at_ms[one.block + place]
        state.value[block + place] = state.value[one.block + place]
    _free_block(state, int64(one.block), int64(one.size))
    one.block = block
    one.size = SMALLEST_BLOCK << number


@inlined_lean_kernel
def put_entry(state: State, row: int, place: int, at_ms: int, value: np.uint64) -> None:
    """Insert an entry at this place among the state's entries."""
    widen(state, row, int64(state.state[row].entries) + 1)
    one = state.state[row]
    block = int64(one.block)
    later = int64(one.entries)
    while later > place:
        state.at_ms[block + later] = state.at_ms[block + later - 1]
        state.value[block + later] = state.value[block + later - 1]
        later -= 1
    state.at_ms[block + place] = at_ms
    state.value[block + place] = value
    one.entries += 1


@inlined_lean_kernel
def drop_entry(state: State, row: int, place: int) -> None:
    """Take the entry at this place away."""
    one = state.state[row]
    block = int64(one.block)
    one.entries -= 1
    for at in range(place, int64(one.entries)):
        state.at_ms[block + at] = state.at_ms[block + at + 1]
        state.value[block + at] = state.value[block + at + 1]


@inlined_lean_kernel
def place_of(state: State, row: int, at_ms: int, first: int) -> int:
    """Place behind all entries, from `first` on, that are not later than this instant."""
    one = state.state[row]
    block = int64(one.block)
    place = int64(one.entries)
    while place > first and state.at_ms[block + place - 1] > at_ms:
        place -= 1
    return int(place)


@lean_kernel
def sweep(state: State, patterns: Patterns, now_ms: int) -> int:
    """Forget all states that count no more; return how many."""
    before = state.control[LIVE_STATES]
    for row in range(state.state.shape[0] - state.control[UNUSED_STATES]):
        if state.state[row].user >= 0 and is_forgotten(state, patterns, row, now_ms):
            forget_state(state, row)
    gone = before - state.control[LIVE_STATES]
    state.counts[FORGOTTEN] += gone
    return int(gone)


@lean_kernel
def mark_bound(state: State, patterns: Patterns, now_ms: int, first: int, idle: np.ndarray) -> None:
    """Clear idle[user - first] of every user of whom a state still counts at `now_ms`, swept or not."""
    for row in range(state.state.shape[0] - state.control[UNUSED_STATES]):
        user = int64(state.state[row].user) - first
        if 0 <= user < len(idle) and state.state[row].user >= 0 and not is_forgotten(state, patterns, row, now_ms):
            idle[user] = False


@lean_kernel
def fill_buckets(state: State) -> None:
    """Put every living state into its bucket anew; the buckets must be empty (-1)."""
    for row in range(state.state.shape[0] - state.control[UNUSED_STATES] - 1, -1, -1):
        one = state.state[row]
        if one.user >= 0:
            place = bucket_of(state, int64(one.user), int64(one.pattern))
            one.next = state.bucket[place]
            state.bucket[place] = row


@lean_kernel
def forget_patterns(state: State, new_row: np.ndarray) -> None:
    """Forget all states of patterns that are gone: new_row[old row] is -1."""
    for row in range(state.state.shape[0] - state.control[UNUSED_STATES]):
        if state.state[row].user >= 0 and new_row[state.state[row].pattern] < 0:
            forget_state(state, row)


@lean_kernel
def renumber(state: State, new_row: np.ndarray) -> None:
    """Give every state the new row of its pattern; buckets and wheel must be empty, and are filled."""
    for row in range(state.state.shape[0] - state.control[UNUSED_STATES]):
        one = state.state[row]
        if one.user >= 0:
            one.pattern = new_row[one.pattern]
            if one.timer_ms != NEVER:
                arm(state.wheel, int64(one.timer_ms), (int64(one.user) << 32) | int64(one.pattern), 0)
    fill_buckets(state)


@lean_kernel
def forget_user(state: State, user: int, patterns: int) -> None:
    """Forget one user in all of so many patterns: a look for each."""
    for pattern in range(patterns):
        row = next_state(state, user, pattern, -1)
        while row >= 0:
            forget_state(state, row)
            row = next_state(state, user, pattern, -1)
    if user < state.flags.shape[0]:
        state.flags[user] = 0


@lean_kernel
def forget_users(state: State, gone: np.ndarray) -> None:
    """Forget the users u with gone[u], bool[U] for all users that have states: one pass over all of them."""
    for row in range(state.state.shape[0] - state.control[UNUSED_STATES]):
        if state.state[row].user >= 0 and gone[state.state[row].user]:
            forget_state(state, row)
    for user in range(state.flags.shape[0]):
        if gone[user]:
            state.flags[user] = 0


assert SMALLEST_BLOCK << CLASSES - 1 == LARGEST_BLOCK
