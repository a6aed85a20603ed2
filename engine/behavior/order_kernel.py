"""Sequence and absence (B3): what came after what, and what did not."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.behavior.layout_kernel import (
    KEPT_ANSWERS,
    KEPT_OPENINGS,
    KEPT_STEPS,
    MOST_STEPS,
    NEVER,
    State,
    int64,
)
from engine.behavior.store_kernel import drop_entry, place_of, put_entry
from engine.kernels import inlined_lean_kernel, lean_kernel

_ANSWER = np.uint64(0)
_ONE = np.uint64(1)


@inlined_lean_kernel
def _take_step(starts: np.ndarray, first: int, steps: int, at_ms: int, bits: np.uint64) -> None:
    """Let an event stand for the steps it can be; starts[first + j] is the newest start of the first j + 1 steps."""
    for step in range(steps - 1, 0, -1):
        if bits >> np.uint64(step) & _ONE:
            starts[first + step] = max(starts[first + step], starts[first + step - 1])
    if bits & _ONE:
        starts[first] = max(starts[first], at_ms)


@lean_kernel
def add_step(
    state: State, row: int, at_ms: int, bits: np.uint64, within_ms: int, steps: int, starts: np.ndarray, found: Any
) -> bool:
    """Take one event into a sequence; True where it completes it, with the newest start in `found`.

    bits    the steps that this event can be; within one match it stands for one of them
    starts  int64[2 x MOST_STEPS], scratch

    The newest KEPT_STEPS events are kept by instant; older ones are folded into the newest starts and order no more.
    """
    if state.state[row].entries == 0:
        for _ in range(steps):
            put_entry(state, row, 0, NEVER, _ANSWER)
    one = state.state[row]
    base = int64(one.block)
    entries = int64(one.entries)
    place = place_of(state, row, at_ms, steps)
    for step in range(steps):
        starts[step] = state.at_ms[base + step]
        starts[MOST_STEPS + step] = state.at_ms[base + step]
    last, last_without = steps - 1, MOST_STEPS + steps - 1
    for at in range(steps, place):
        _take_step(starts, 0, steps, state.at_ms[base + at], state.value[base + at])
        _take_step(starts, MOST_STEPS, steps, state.at_ms[base + at], state.value[base + at])
    _take_step(starts, 0, steps, at_ms, bits)
    completes = starts[last] > at_ms - within_ms
    held_before = starts[last_without] > at_ms - within_ms
    found.at_ms = at_ms
    found.first_ms = starts[last]
    for at in range(place, entries):
        end_ms = state.at_ms[base + at]
        if end_ms >= at_ms + within_ms:
            break
        _take_step(starts, 0, steps, end_ms, state.value[base + at])
        _take_step(starts, MOST_STEPS, steps, end_ms, state.value[base + at])
        if at + 1 < entries and state.at_ms[base + at + 1] == end_ms:
            continue
        if starts[last] > end_ms - within_ms and not completes:
            completes = True
            found.at_ms = end_ms
            found.first_ms = starts[last]
        if starts[last_without] > end_ms - within_ms:
            held_before = True
    if entries == steps + KEPT_STEPS:
        if place == steps:
            _take_step(state.at_ms, base, steps, at_ms, bits)
            return completes and not held_before
        _take_step(state.at_ms, base, steps, state.at_ms[base + steps], state.value[base + steps])
        drop_entry(state, row, steps)
        place -= 1
    put_entry(state, row, place, at_ms, bits)
    return completes and not held_before


@lean_kernel
def first_opening(state: State, row: int) -> int:
    """Place in the arena of the first unanswered opening, or -1."""
    one = state.state[row]
    for at in range(int64(one.block), int64(one.block) + int64(one.entries)):
        if state.value[at] != _ANSWER:
            return at
    return -1


@lean_kernel
def open_absence(state: State, row: int, at_ms: int, identity: np.uint64, within_ms: int) -> None:
    """Take what opens an absence, unless it is settled or answered already.

    Kept are the first opening and the newest ones, KEPT_OPENINGS in all.
    """
    one = state.state[row]
    if at_ms < one.mark_ms:
        return
    openings = 0
    for at in range(one.entries):
        if state.value[one.block + at] != _ANSWER:
            openings += 1
        elif at_ms <= state.at_ms[one.block + at] < at_ms + within_ms:
            return
    put_entry(state, row, place_of(state, row, at_ms, 0), at_ms, identity)
    if openings == KEPT_OPENINGS:
        at = first_opening(state, row) - int64(one.block) + 1
        while state.value[one.block + at] == _ANSWER:
            at += 1
        drop_entry(state, row, at)


@lean_kernel
def answer_absence(state: State, row: int, at_ms: int, within_ms: int) -> None:
    """Take what answers: all openings it lies within the span of are settled.  KEPT_ANSWERS are kept."""
    answers = 0
    oldest = -1
    at = int64(state.state[row].entries) - 1
    while at >= 0:
        block = int64(state.state[row].block)
        if state.value[block + at] == _ANSWER:
            answers += 1
            oldest = at
        elif state.at_ms[block + at] <= at_ms < state.at_ms[block + at] + within_ms:
            drop_entry(state, row, at)
            if oldest > at:
                oldest -= 1
        at -= 1
    if answers == KEPT_ANSWERS:
        drop_entry(state, row, oldest)
    put_entry(state, row, place_of(state, row, at_ms, 0), at_ms, _ANSWER)


@lean_kernel
def settle_opening(state: State, row: int, at_ms: int, within_ms: int) -> None:
    """Note that the absence opened at `at_ms` was told: what opened within its span is told with it."""
    one = state.state[row]
    one.mark_ms = at_ms + within_ms
    at = int64(one.entries) - 1
    while at >= 0:
        place = int64(one.block) + at
        if state.value[place] != _ANSWER and state.at_ms[place] < one.mark_ms:
            drop_entry(state, row, at)
        at -= 1
