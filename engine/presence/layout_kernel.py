"""The rows that presence keeps, and the arrays that hold them.

One row per user (a cache line) and one per remembered pair of user and fence; a user's pairs are a list in fence
order, so that they merge with hits. Pools never grow inside a kernel: who calls makes sure of room.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from engine.wheel_kernel import Wheel

NEVER = -(1 << 62)
DAY_MS = 86_400_000
OUTSIDE, ENTERING, INSIDE, EXITING, SUSPENDED = 0, 1, 2, 3, 4
# What a fix or a timer is to a pair: the columns of the transition table.
IN_WAITING, IN_ENOUGH, UNSURE, NEAR, BEYOND, BEYOND_ENOUGH = 0, 1, 2, 3, 4, 5
ENTER_DUE, EXIT_DUE, SUSPEND_DUE, EXPIRE_DUE, CLOSING, REMOVED, HOP_UNDONE, EXIT_TAKEN_BACK = 6, 7, 8, 9, 10, 11, 12, 13
INPUTS = 14
DWELLS = 8
"""Most thresholds of one fence (P4): one bit each."""

# User.flags
LAGS, CELL_FIX = 1, 2
# Visit.flags
LAST_IN, LAST_OUT, COARSE_CELL, CLOSED_INSIDE, TAKEABLE = 1, 2, 4, 8, 16

USER = np.dtype(
    [
        ("last_ms", "i8"),  # `at` of the newest fix, NEVER before the first
        ("last_hash", "u8"),  # its id hash; more of the same instant are in `same`
        ("lon_e7", "i4"),
        ("lat_e7", "i4"),
        ("accuracy_m", "f4"),
        ("visits", "i4"),  # first pair, -1 for none
        ("cell", "i4"),  # of the newest fix that had one, -1
        ("previous_cell", "i4"),
        ("held", "i4"),  # row of the held fix, -1
        ("same", "i4"),  # row of the pool of further ids of the newest instant, -1
        ("fine_age_ms", "i4"),  # from the newest fine fix to the newest fix; DAY_MS: as old or none
        ("cell_age_ms", "i4"),  # the same for the newest fix with a cell
        ("left_age_ms", "i4"),  # the same for the fix that left the previous cell
        ("feed", "u1"),
        ("method", "u1"),
        ("flags", "u1"),
        ("spare", "u1"),
    ],
    align=True,
)

VISIT = np.dtype(
    [
        ("crossed_ms", "i8"),  # first fix inside of the run that led, or may lead, to ENTER
        ("seen_ms", "i8"),  # last evidence
        ("mark_ms", "i8"),  # OUTSIDE, ENTERING: the witness of outside before; else the last fix inside
        ("edge_ms", "i8"),  # first fix outside the true edge since the last inside, or NEVER
        ("run_ms", "i8"),  # EXITING: first fix of the run; OUTSIDE and TAKEABLE: when EXIT was confirmed
        ("timer_ms", "i8"),  # when the pair's timer in the wheel pops; NEVER without one
        ("fence", "i4"),
        ("next", "i4"),
        ("state", "u1"),
        ("flags", "u1"),
        ("dwelt", "u1"),  # thresholds already given
        ("feed", "u1"),  # feed, method and confidence of the last evidence
        ("method", "u1"),
        ("confidence", "u1"),
    ],
    align=True,
)

FIX = np.dtype(
    [
        ("at_ms", "i8"),
        ("now_ms", "i8"),
        ("id_hash", "u8"),
        ("lon_e7", "i4"),
        ("lat_e7", "i4"),
        ("accuracy_m", "f8"),
        ("user", "i8"),
        ("event", "i8"),  # row of the event that is being processed
        ("cell", "i4"),
        ("hits", "i4"),  # held: first row of its hits in the pool, -1; free rows are chained by it
        ("feed", "u1"),
        ("method", "u1"),
        ("is_cell", "u1"),  # method cell, or a cell given
        ("is_fine", "u1"),
    ],
    align=True,
)

HELD_HIT = np.dtype(
    [("distance_m", "f8"), ("fence", "i4"), ("next", "i4"), ("confidence", "u1"), ("inside", "u1")], align=True
)
SAME = np.dtype([("id_hash", "u8"), ("next", "i4")], align=True)

RULE = np.dtype(
    [
        ("enter_delay_ms", "i8"),  # -1: the default of L8
        ("exit_delay_ms", "i8"),  # -1: two fixes
        ("added_ms", "i8"),  # fixes up to here are no witnesses (L10)
        ("margin_m", "f8"),  # widening of the edge without the accuracy (P3)
        ("hours_start", "i4"),  # open intervals: hours[hours_start:hours_end]
        ("hours_end", "i4"),
        ("min_confidence", "u1"),
        ("is_cell_set", "u1"),
        ("is_tiling", "u1"),
        ("has_hours", "u1"),
        ("dwells", "u1"),  # how many thresholds
    ],
    align=True,
)

FEED_RULE = np.dtype(
    [
        ("delay_ms", "i8"),  # expected delay (T8)
        ("ttl_ms", "i8"),  # presence_ttl (P7)
        ("silence_ms", "i8"),  # max_silence (P4)
        ("gap_ms", "i8"),  # max_gap (P2)
        ("max_accuracy_m", "f8"),
    ],
    align=True,
)


BOX = np.dtype([("fence", "i4"), ("west", "i4"), ("east", "i4"), ("south", "i4"), ("north", "i4")])
TILE_SHIFT = 16
"""A tile is 2^16 e7 wide: about 700 m, so that a step on foot asks one or two tiles, each with few fences."""
MAYBE_BITS = 1 << 20


class Tiles(NamedTuple):
    """Bounding boxes of shape fences by tile.

    key    int64[T]      tile_of(column, row), rising
    start  int64[T + 1]  boxes of tile t: box[start[t]:start[t + 1]]
    box    BOX[...]
    wide   int32[...]    fences too wide for tiles, or over the antimeridian: always looked at
    maybe  uint64[2^14]  one bit a tile, by its hash: unset where no box is
    slot   int32[2^k]    open addressing by the hash: place of the tile, -1 empty
    """

    key: np.ndarray
    start: np.ndarray
    box: np.ndarray
    wide: np.ndarray
    maybe: np.ndarray
    slot: np.ndarray


class Rules(NamedTuple):
    """What does not change between activations.

    fence    RULE[F]
    dwell_ms int64[F, DWELLS]    thresholds, rising
    hours    int64[K, 2]         open intervals [start, end) of all fences, rising within one
    feed     FEED_RULE[...]
    table    uint8[5, INPUTS]    the next state of (state, input)
    tiles    Tiles               where fences are, for CROSS
    """

    fence: np.ndarray
    dwell_ms: np.ndarray
    hours: np.ndarray
    feed: np.ndarray
    table: np.ndarray
    tiles: Tiles


# Places in State.control
FREE_VISIT, UNUSED_VISITS, FREE_HELD, UNUSED_HELD, FREE_HELD_HIT, UNUSED_HELD_HITS, FREE_SAME, UNUSED_SAME = range(8)
OPEN_VISITS, NEWEST_MS, OUT_ROWS, NOW_MS, LIVE_VISITS, LIVE_HELD, LIVE_HELD_HITS, LIVE_SAME, WANTED = range(8, 17)
CONTROLS = 17

# Places in State.counts, behind one place per Drop
RELEASED, RETURNS, STALE_TIMERS, KINDS = 16, 17, 18, 24
COUNTS = 64


class State(NamedTuple):
    """Everything a checkpoint keeps.

    user      USER[U]        by user slot
    visit     VISIT[...]     pool
    held      FIX[...]       pool: fixes that were too fast, until the next one decides
    held_hit  HELD_HIT[...]  pool: their hits
    same      SAME[...]      pool: further ids of a user's newest instant
    occupancy int64[F]       P9
    control   int64[CONTROLS]
    counts    int64[COUNTS]
    wheel     Wheel
    """

    user: np.ndarray
    visit: np.ndarray
    held: np.ndarray
    held_hit: np.ndarray
    same: np.ndarray
    occupancy: np.ndarray
    control: np.ndarray
    counts: np.ndarray
    wheel: Wheel


PAST = np.dtype(
    [
        ("now_ms", "i8"),  # of the ping, or when the timer fired
        ("until_ms", "i8"),  # event time: from then on the visit is due to be SUSPENDED
        ("user", "i4"),
        ("row", "i4"),  # event row, or the one before which the timer fired
        ("fence", "i4"),  # -1 in the first row of each entry; its fences follow
        ("by_timer", "u1"),
    ],
    align=True,
)
"""What a user was inside of just before a ping or timer."""


class Work(NamedTuple):
    """Scratch space of one call; nothing in it outlives an event.

    out      TRANSITION[K]   what happened, up to control[OUT_ROWS]; the last row is for sorting
    fix      FIX[2]          the fix at hand, and the held one that it proves right
    hits     HIT[...]        the held one's hits
    touched  int64[1]        where `touch_rows` leaves its sum, so that it is not compiled away
    ask      int64[A + 1]    rising event rows, not of pings, where it is asked what the user is inside of; a last
    answer   int32[...]      fences that those users are inside of (P7), question by question
    answered int64[A + 2]    questions answered; then where the answers of each begin, and the end
    past     PAST[...]       what users were inside of before each thing that could change it
    kept     int64[2]        whether that is asked for, and rows of `past` used
    """

    out: np.ndarray
    fix: np.ndarray
    hits: np.ndarray
    touched: np.ndarray
    ask: np.ndarray
    answer: np.ndarray
    answered: np.ndarray
    past: np.ndarray
    kept: np.ndarray
