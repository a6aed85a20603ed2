"""Count, sum and distinct in a sliding window of event time (B2), exact to the event.

The window that ends at s is (s - within, s]. An event completes a pattern if, among the windows that hold it and end at
it or at a later event, the pattern is true in one with it and in none without it. For events in order that is the
false-to-true edge (B5); a late event (T5) may complete, and never undoes or repeats.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.behavior.layout_kernel import MERGED, MOST_SUMMED, State, int64
from engine.behavior.store_kernel import drop_entry, place_of, put_entry
from engine.kernels import inlined_lean_kernel, lean_kernel

_NO_VALUE = np.uint64(0)


@inlined_lean_kernel
def _forget_old(state: State, row: int, until_ms: int) -> None:
    """Drop the entries up to this instant."""
    one = state.state[row]
    base = int64(one.block)
    gone = 0
    while gone < one.entries and state.at_ms[base + gone] <= until_ms:
        gone += 1
    if gone > 0:
        one.entries -= gone
        for at in range(int64(one.entries)):
            state.at_ms[base + at] = state.at_ms[base + at + gone]
            state.value[base + at] = state.value[base + at + gone]


@lean_kernel
def add_counted(state: State, row: int, at_ms: int, within_ms: int, keep_ms: int, n: int, found: Any) -> bool:
    """Take one event into a count; True where it completes `n`, with the window in `found`.

    keep_ms  instants that no window of an admissible event can hold are forgotten: older than the newest by so much
    Kept are the newest 2 n: n make the pattern true, and n more know whether a late event finds it so already.
    Cost: one look back over the window for an event in order.
    """
    one = state.state[row]
    _forget_old(state, row, max(one.newest_ms, at_ms) - keep_ms)
    base = int64(one.block)
    entries = int64(one.entries)
    place = place_of(state, row, at_ms, 0)
    # Only windows that end at the event or behind it hold it; the first of them ends with it.
    first = place
    while first > 0 and state.at_ms[base + first - 1] > at_ms - within_ms:
        first -= 1
    most = place - first + 1
    found.first_ms = state.at_ms[base + first] if first < place else at_ms
    found.at_ms = at_ms
    for end in range(place, entries):
        end_ms = state.at_ms[base + end]
        if end_ms >= at_ms + within_ms:
            break
        while first < place and state.at_ms[base + first] <= end_ms - within_ms:
            first += 1
        number = end - first + 2
        if number > most:
            most = number
            found.first_ms = state.at_ms[base + first] if first < place else at_ms
            found.at_ms = end_ms
    if entries == 2 * n:
        if place > 0:
            drop_entry(state, row, 0)
            put_entry(state, row, place - 1, at_ms, _NO_VALUE)
    else:
        put_entry(state, row, place, at_ms, _NO_VALUE)
    found.number = most
    return most == n


@lean_kernel
def add_summed(
    state: State, row: int, at_ms: int, real: float, within_ms: int, keep_ms: int, at_least: float, found: Any
) -> bool:
    """Take one value >= 0 into a sum; True where the sum of a window reaches `at_least` by it.

    keep_ms  events that no window of an admissible event can hold are forgotten: older than the newest by so much
    Beyond MOST_SUMMED events the oldest two become one, at the instant of the older: it leaves the window early, so
    a pattern may be late and is never wrong.  Sums run from the oldest to the newest (T4).
    """
    one = state.state[row]
    _forget_old(state, row, max(one.newest_ms, at_ms) - keep_ms)
    base = int64(one.block)
    entries = int64(one.entries)
    place = place_of(state, row, at_ms, 0)
    found.total = 0.0
    completes = False
    held_before = False
    for end in range(place - 1, entries):
        end_ms = at_ms if end < place else state.at_ms[base + end]
        if end_ms >= at_ms + within_ms:
            break
        if end + 1 < entries and end >= place and state.at_ms[base + end + 1] == end_ms:
            continue
        total_with = 0.0
        total_without = 0.0
        first_ms = at_ms
        for at in range(end + 1):
            if at == place:
                total_with += real
            if state.at_ms[base + at] > end_ms - within_ms:
                first_ms = min(first_ms, state.at_ms[base + at])
                total_with += state.real[base + at]
                total_without += state.real[base + at]
        if end < place:
            total_with += real
        if total_without >= at_least:
            held_before = True
        if total_with >= at_least and not completes:
            completes = True
            found.at_ms = end_ms
            found.first_ms = first_ms
            found.total = total_with
    if entries == MOST_SUMMED:
        state.counts[MERGED] += 1
        if place <= 1:
            state.real[base] += real
            state.at_ms[base] = min(state.at_ms[base], at_ms)
            return completes and not held_before
        state.real[base + 1] += state.real[base]
        state.at_ms[base + 1] = state.at_ms[base]
        drop_entry(state, row, 0)
        place -= 1
    put_entry(state, row, place, at_ms, _NO_VALUE)
    state.real[one.block + place] = real
    return completes and not held_before


@lean_kernel
def add_distinct(state: State, row: int, at_ms: int, value: np.uint64, within_ms: int, n: int, found: Any) -> bool:
    """Take one value into a distinct count; True where a window then holds `n` different ones.

    Kept are the newest n values, each with its last instant.
    """
    one = state.state[row]
    entries = int64(one.entries)
    base = int64(one.block)
    old = -1
    for at in range(entries):
        if state.value[base + at] == value:
            old = at
    if old >= 0 and state.at_ms[base + old] >= at_ms:
        return False
    place = place_of(state, row, at_ms, 0)
    most_with = 0
    most_without = 0
    for end in range(place - 1, entries):
        end_ms = at_ms if end < place else state.at_ms[base + end]
        if end_ms >= at_ms + within_ms:
            break
        with_it = 1
        without_it = 0
        first_ms = at_ms
        for at in range(entries):
            if end_ms - within_ms < state.at_ms[base + at] <= end_ms:
                without_it += 1
                if at != old:
                    with_it += 1
                    first_ms = min(first_ms, state.at_ms[base + at])
        most_without = max(most_without, without_it)
        if with_it > most_with:
            most_with = with_it
            found.at_ms = end_ms
            found.first_ms = first_ms
    if old >= 0:
        drop_entry(state, row, old)
        place -= 1
    elif entries == n:
        if place > 0:
            drop_entry(state, row, 0)
        place -= 1
    if place >= 0:
        put_entry(state, row, place, at_ms, value)
    found.number = most_with
    return most_with >= n and most_without < n


@lean_kernel
def count_at(state: State, row: int, at_ms: int, within_ms: int) -> int:
    """How many of the kept instants lie in the window that ends at `at_ms`."""
    one = state.state[row]
    number = 0
    for at in range(int64(one.block), int64(one.block) + int64(one.entries)):
        if at_ms - within_ms < state.at_ms[at] <= at_ms:
            number += 1
    return number
