"""The rows and arrays that patterns keep: a pool of states found by (user, pattern), and an arena of their instants.

Most users have no state in most patterns, so nothing is kept per user. A state points to a block of the arena: entries
of an instant and a value, rising by instant, in blocks of a power of two. What an entry means depends on the kind:

    count     an event counted                       value unused
    sum       an event, or several merged            real: what it adds
    distinct  the last instant of a value            value: its hash
    sequence  `steps` newest starts, then events     value: bits of the steps that an event can be
    absence   openings and answers                   value: identity of the opening; 0: an answer
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.wheel_kernel import Wheel

int64: Any = np.int64
"""Widens a field of a row in a kernel, where `int` would keep its type."""

NEVER = -(1 << 62)
DAY_MS = 86_400_000
LAG_MS = 600_000
"""A user whose last record lay further behind `now` lives in time of their own (T8)."""

COUNT, SUM, DISTINCT, SEQUENCE, ABSENCE = range(5)
KINDS = ("count", "sum", "distinct", "sequence", "absence")
MOST_SUMMED = 256
KEPT_STEPS = 12
"""Events of a sequence that are kept one by one, so that a late one finds its place; older ones are folded."""
KEPT_OPENINGS, KEPT_ANSWERS = 8, 4
MOST_STEPS = 8
MOST_KEYS = 8
SMALLEST_BLOCK, LARGEST_BLOCK = 2, 256
CLASSES = 8

# Where a value or a correlated key comes from.
NOTHING, APP, CATEGORY, ACTION, READ, FENCE = range(6)
"""READ: handed over with the match, because only the whole event has it."""

PATTERN = np.dtype(
    [
        ("within_ms", "i8"),
        ("at_least", "f8"),  # of a sum
        ("n", "i4"),  # of count and distinct
        ("kind", "u1"),
        ("steps", "u1"),
        ("field", "u1"),  # source of the value
        ("same", "u1"),  # source of the correlated key, NOTHING without one
        ("awaits_usage", "u1"),  # absence: the answer would be a usage event; else a transition
        ("fires", "u1"),  # 0: only asked about, by other triggers
    ],
    align=True,
)

STATE = np.dtype(
    [
        ("key", "u8"),  # correlated key, 0 without
        ("newest_ms", "i8"),  # newest instant that reached it
        ("now_ms", "i8"),  # the log's now then
        ("timer_ms", "i8"),  # absence: when its timer in the wheel pops; NEVER without one
        ("mark_ms", "i8"),  # absence: openings before this instant are settled
        ("user", "i4"),
        ("pattern", "i4"),
        ("next", "i4"),  # of the same bucket, or of the free list
        ("block", "i4"),  # place in the arena, -1
        ("entries", "i2"),
        ("size", "i2"),  # of the block
        ("waits", "u1"),  # absence: its timer popped while the user lagged; due in the user's own time
    ],
    align=True,
)

FIRED = np.dtype(
    [
        ("at_ms", "i8"),  # the instant from which it holds
        ("now_ms", "i8"),
        ("first_ms", "i8"),  # window, or sequence, or absence: from here
        ("identity", "u8"),  # absence: of the opening; else 0
        ("key", "u8"),
        ("total", "f8"),  # of a sum
        ("silent_ms", "i8"),  # absence: how long the feed had been silent where that is too long, else -1
        ("row", "i4"),  # event row that completed it, or before which its timer fired
        ("transition", "i4"),  # the transition that completed it, -1
        ("pattern", "i4"),
        ("user", "i4"),
        ("number", "i4"),  # of count and distinct
        (
            "source",
            "i4",
        ),  # a question answered: the filter or transition target that asked; -1 for a pattern of its own
        ("by_timer", "u1"),
    ],
    align=True,
)

# Places in State.control
FREE_STATE, UNUSED_STATES, LIVE_STATES, USED_WORDS, FIRED_ROWS, WANTED, FREE_BLOCK = 0, 1, 2, 3, 4, 5, 6
CONTROLS = FREE_BLOCK + CLASSES

# Places in State.counts
COMPLETED, MERGED, EVICTED, STALE_TIMERS, SILENT, FORGOTTEN = range(6)
COUNTS = 16

# User flags
LAGS, WAITS = 1, 2


class Patterns(NamedTuple):
    """What does not change between activations; lists are CSR.

    pattern        PATTERN[P]
    filter_start   int32[F + 1]     what a match of filter f may be: step_*[filter_start[f]:filter_start[f + 1]]
    step_pattern   int32[...]
    step_bits      uint8[...]       bits of the steps it can be
    route_start    int32[R + 1]     the same for a transition: route = kind x fences + fence
    route_pattern  int32[...]
    route_bits     uint8[...]
    route_sure     uint8[...]       least confidence
    fence_hash     uint64[N]        of the fences' ids
    feed           int64[feeds, 2]  declared period and expected delay
    ask_start      int32[P + 1]     patterns asked about when one completes (`while`)
    ask_pattern    int32[...]

    Bits 0 of a step ask whether the pattern holds at that instant, for a trigger that is no pattern itself.
    """

    pattern: np.ndarray
    filter_start: np.ndarray
    step_pattern: np.ndarray
    step_bits: np.ndarray
    route_start: np.ndarray
    route_pattern: np.ndarray
    route_bits: np.ndarray
    route_sure: np.ndarray
    fence_hash: np.ndarray
    feed: np.ndarray
    ask_start: np.ndarray
    ask_pattern: np.ndarray


class State(NamedTuple):
    """Everything a checkpoint keeps.

    bucket   int32[B]        first state of each bucket of (user, pattern), -1; B a power of two
    state    STATE[S]        pool
    at_ms    int64[W]        arena: instants of entries
    value    uint64[W]       their values
    real     float64[W]      the same memory as `value`, as numbers
    flags    uint8[U]        LAGS, WAITS of each user
    feed     int64[feeds, 3] now of the newest record, and whether usage events, and pings, ever came from it
    control  int64[CONTROLS]
    counts   int64[COUNTS]
    wheel    Wheel
    """

    bucket: np.ndarray
    state: np.ndarray
    at_ms: np.ndarray
    value: np.ndarray
    real: np.ndarray
    flags: np.ndarray
    feed: np.ndarray
    control: np.ndarray
    counts: np.ndarray
    wheel: Wheel


class Steps(NamedTuple):
    """What happened in a batch that patterns look at, in log order.

    events       EVENT[N]
    transitions  TRANSITION[X]   those that some pattern waits for, as they happened
    which        int32[X]        where each stands among all transitions of the batch
    row          int32[M]        matches: event row, rising
    filter       int32[M]        and the filter it passed
    value        uint64[M]       what the whole event said (READ): the value, as bits, and the correlated key
    same         uint64[M]
    """

    events: np.ndarray
    transitions: np.ndarray
    which: np.ndarray
    row: np.ndarray
    filter: np.ndarray
    value: np.ndarray
    same: np.ndarray


class Work(NamedTuple):
    """Scratch space of one call.

    out     FIRED[K]   what completed, up to control[FIRED_ROWS]
    cursor  int64[4]   row, match, transition and target to go on from
    found   FIRED[1]   the completion at hand
    starts  int64[2 x MOST_STEPS]  newest starts of a sequence, with the event at hand and without
    bits    uint64[1]  a value on its way
    real    float64[1] the same memory, as a number
    """

    out: np.ndarray
    cursor: np.ndarray
    found: np.ndarray
    starts: np.ndarray
    bits: np.ndarray
    real: np.ndarray
