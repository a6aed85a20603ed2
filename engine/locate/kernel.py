"""Find the fences that fixes touch: a walk down the cell index, then the exact test where a cell cannot tell.

A list of fences, one entry after another, each a word `fence << 7 | has_more << 6 | last << 5 | class << 3 | bound`.
Classes:

    INSIDE  the cell lies wholly inside the fence, at least bound * BOUND_M: a hit without looking at the fence
    EDGE    the fence's edge may run through the cell: ask the geometry; the bound is 0
    NEAR    the cell lies at least (bound - 1) * BOUND_M outside: only a fine fix can touch the fence from here

Where it has_more, and every EDGE has, a header follows: of the edges that may be crossed within the cell, which are the
next words, and whether one more word is the place in `near` of the edges that may be nearest to a point of the cell
(`engine.locate.local_kernel`).

A distance is measured only where confidence turns on it.  Elsewhere it is nan, and whoever wants it (presence, for
what it tells) asks `signed_distance_m`: to cover a point costs a tenth of measuring it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.geometry_kernel import (
    POLYGON,
    extent_distance_m,
    is_farther,
    nearest_edge_m,
    polygon_covers,
    relative_lon,
)
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.locate.local_kernel import NEAR_BIT, NO_CHOICE, list_covers, local_nearest_m, words_of
from engine.locate.walk_kernel import (
    BLOCK,
    BOUND_M,
    BOUND_MASK,
    EVENT_ROW,
    FINE,
    FIRST,
    PLACE,
    WEST_E7,
    IndexArrays,
    first_word,
    is_in_reach,
    walk_block,
)
from engine.model import Confidence

NEAR, EDGE, INSIDE = 1 << 3, 2 << 3, 3 << 3
CLASS_BITS, LAST_BIT, MORE_BIT, FENCE_SHIFT = 3 << 3, 1 << 5, 1 << 6, 7
LOW = int(Confidence.LOW)
MEDIUM = int(Confidence.MEDIUM)
HIGH = int(Confidence.HIGH)
FULL = -1


@lean_kernel
def locate_events(
    index: IndexArrays, events: np.ndarray, hit_start: np.ndarray, hits: np.ndarray, row: int, at: int, work: np.ndarray
) -> tuple[int, int]:
    """Locate events[row:], writing hits from `at` on; stop before the first block of events whose hits do not fit.

    events     EVENT[N]         pings with drop == 0 are located, every other row gets no hit
    hit_start  int64[N + 1]     out: event i has hits[hit_start[i] : hit_start[i + 1]]
    hits       HIT[...]         out
    work       int32[SCRATCHES, BLOCK]  scratch: the fixes on their way down, then the lists to judge
    Returns (first row not done, hits written).  No allocation.
    """
    while row < len(events):
        end = min(row + BLOCK, len(events))
        waiting = walk_block(index, events, row, end, work)
        # Touch two lines of each list together: judging one by one would wait for each.  What is read goes where
        # nobody uses it, or the compiler would leave it out.
        for w in range(waiting):
            first = np.uint64(work[FIRST, w])
            work[PLACE, w] = index.word[first] + index.word[first + np.uint64(16)]
        hit_start[row : end + 1] = 0
        if judge_block(index, events, work, waiting, hit_start, hits, at) == FULL:
            break
        hit_start[row] = at
        for i in range(row, end):
            at += hit_start[i + 1]
            hit_start[i + 1] = at
        row = end
    hit_start[row] = at
    return row, at


@lean_kernel
def judge_block(
    index: IndexArrays,
    events: np.ndarray,
    work: np.ndarray,
    waiting: int,
    hit_count: np.ndarray,
    hits: np.ndarray,
    at: int,
) -> int:
    """Judge the fixes in `work`, writing event i's number of hits to hit_count[i + 1]; FULL if the hits do not fit."""
    n = at
    for w in range(waiting):
        i = work[EVENT_ROW, w]
        event = events[i]
        before = n
        n = judge_fix(index, work[FIRST, w], event.lon_e7, event.lat_e7, event.accuracy_m, event.cell, hits, n)
        if n == FULL:
            return FULL
        hit_count[i + 1] = n - before
    return n


@inlined_lean_kernel
def locate_one(
    index: IndexArrays, lon_e7: int, lat_e7: int, accuracy_m: float, cell: int, hits: np.ndarray, at: int
) -> int:
    """Write the fences that one fix touches to hits[at:], by rising fence row; return their number, or FULL.

    lon_e7, lat_e7   snapped WGS-84; outside the globe nothing is hit
    accuracy_m       > 0; up to FINE_ACCURACY_M every fence with |s| < accuracy or the point inside is reported,
                     beyond it only fences that cover the point (docs/contracts.md)
    cell             row of the cell table or -1; members are HIGH at distance +inf, whatever the point says
    Cost: some 20 ns where no fence is near.  Oracle: Shapely and geopy (tests/property/test_locate.py).
    """
    first = first_word(index, lon_e7, lat_e7, accuracy_m)
    n = judge_fix(index, first, lon_e7, lat_e7, accuracy_m, cell, hits, at)
    return n if n == FULL else n - at


@inlined_lean_kernel
def judge_fix(
    index: IndexArrays, first: int, lon_e7: int, lat_e7: int, accuracy_m: float, cell: int, hits: np.ndarray, at: int
) -> int:
    """Judge the list from `first` (0: none) and the fix's cell; return the new number of hits, or FULL."""
    n = at
    if first != 0:
        n = judge_list(index, first, lon_e7, lat_e7, accuracy_m, hits, at)
    if cell >= 0 and n != FULL:
        n = add_members(index, cell, hits, at, n)
    return n


@inlined_lean_kernel
def judge_list(
    index: IndexArrays, position: int, lon_e7: int, lat_e7: int, accuracy_m: float, hits: np.ndarray, n: int
) -> int:
    """Judge every fence of a list (L5, L7); return the new number of hits, or FULL."""
    at = n
    while True:
        word = 0 + index.word[position]
        position += 1
        header = 0
        more = 0 + position
        if word & MORE_BIT:
            header = 0 + index.word[position]
            more += 1
            position += 1 + words_of(header)
        if word & CLASS_BITS == INSIDE or is_in_reach(word, accuracy_m):
            if index.brief[word >> FENCE_SHIFT].is_plain != 0:
                is_inside, distance_m, confidence = judge_polygon(index, word, header, more, lon_e7, lat_e7, accuracy_m)
            else:
                is_inside, distance_m, confidence = judge_other(
                    index, word, header, more, lon_e7, lat_e7, accuracy_m, hits, at, n
                )
            if confidence != 0:
                if n >= len(hits):
                    return FULL
                hit = hits[n]
                hit.distance_m = distance_m
                hit.fence = word >> FENCE_SHIFT
                hit.confidence = confidence
                hit.inside = is_inside
                n += 1
        if word & LAST_BIT:
            return n


@inlined_lean_kernel
def judge_polygon(
    index: IndexArrays, word: int, header: int, more: int, lon_e7: int, lat_e7: int, accuracy_m: float
) -> tuple[bool, float, int]:
    """Return whether the fence covers the point, the signed distance or nan, and the confidence; 0 is no hit.

    word, header   of the entry; `more` is the place of what follows the header
    """
    fence = word >> FENCE_SHIFT
    brief = index.brief[fence]
    if is_covered(index, word, header, more, lon_e7, lat_e7):
        confidence = MEDIUM if accuracy_m <= brief.medium_m else LOW
        if accuracy_m > brief.deepest_m:
            return True, np.nan, confidence
        if accuracy_m <= (word & BOUND_MASK) * BOUND_M:
            return True, np.nan, HIGH
        distance_m = edge_m(index, header, more, fence, lon_e7, lat_e7)
        return True, distance_m, HIGH if distance_m >= accuracy_m else confidence
    if accuracy_m > FINE:
        return False, np.nan, 0
    row = index.fences.row[fence]
    if is_farther(row, relative_lon(row, lon_e7), np.int64(lat_e7) - row.origin_lat_e7, accuracy_m):
        return False, np.nan, 0
    distance_m = edge_m(index, header, more, fence, lon_e7, lat_e7)
    return False, -distance_m, LOW if distance_m < accuracy_m else 0


@inlined_lean_kernel
def is_covered(index: IndexArrays, word: int, header: int, more: int, lon_e7: int, lat_e7: int) -> bool:
    """Say whether a polygon covers a point of the cell that the word stands in; exact."""
    if word & CLASS_BITS != EDGE:
        return word & CLASS_BITS == INSIDE
    if header & NO_CHOICE == 0:
        return list_covers(index.word, more, header, lon_e7, lat_e7)
    row = index.fences.row[word >> FENCE_SHIFT]
    x = relative_lon(row, lon_e7)
    y = np.int64(lat_e7) - row.origin_lat_e7
    is_inside = polygon_covers(index.fences, row, x, y)
    # Half a turn away from the origin one point has two names.
    if abs(x) == -WEST_E7:
        is_inside |= polygon_covers(index.fences, row, -x, y)
    return is_inside


@inlined_lean_kernel
def edge_m(index: IndexArrays, header: int, more: int, fence: int, lon_e7: int, lat_e7: int) -> float:
    """Metres to the nearest edge of a polygon, by the cell's choice of edges where there is one."""
    row = index.fences.row[fence]
    x = relative_lon(row, lon_e7)
    if header & NEAR_BIT:
        near = index.word[more + words_of(header) - 1]
        return float(local_nearest_m(index.fences, index.near, near, fence, x, lat_e7))
    return float(nearest_edge_m(index.fences, row, x, lat_e7))


@lean_kernel
def judge_other(
    index: IndexArrays,
    word: int,
    header: int,
    more: int,
    lon_e7: int,
    lat_e7: int,
    accuracy_m: float,
    hits: np.ndarray,
    at: int,
    n: int,
) -> tuple[bool, float, int]:
    """As `judge_polygon`, for circles, corridors and tiling fences."""
    fence = word >> FENCE_SHIFT
    row = index.fences.row[fence]
    is_fine = accuracy_m <= FINE
    reach_m = accuracy_m if is_fine else 0.0
    if word & CLASS_BITS != INSIDE:
        x = relative_lon(row, lon_e7)
        if is_farther(row, x, np.int64(lat_e7) - row.origin_lat_e7, reach_m):
            return False, np.nan, 0
    if row.tiling != 0:
        if is_set_taken(index, hits, at, n, row):
            return False, np.nan, 0
        if row.shape == POLYGON:
            is_inside = is_covered(index, word, header, more, lon_e7, lat_e7)
        else:
            is_inside = (
                word & CLASS_BITS == INSIDE
                or extent_distance_m(index.fences, row, relative_lon(row, lon_e7), lon_e7, lat_e7) >= 0.0
            )
        return is_inside, np.nan, HIGH if is_inside else 0
    distance_m = extent_distance_m(index.fences, row, relative_lon(row, lon_e7), lon_e7, lat_e7)
    if word & CLASS_BITS == INSIDE:
        distance_m = max(distance_m, 0.0)
    if distance_m >= accuracy_m:
        return True, distance_m, HIGH
    if distance_m >= 0.0:
        return True, distance_m, MEDIUM if accuracy_m <= row.medium_m else LOW
    return False, distance_m, LOW if -distance_m < reach_m else 0


@inlined_lean_kernel
def is_set_taken(index: IndexArrays, hits: np.ndarray, at: int, n: int, row: Any) -> bool:
    """Say whether a fence of the same tiling set already has the point: the lowest row wins a shared edge (L5)."""
    if row.tiling == 0:
        return False
    taken = False
    for i in range(at, n):
        taken |= index.fences.row[hits[i].fence].tiling == row.tiling
    return taken


@lean_kernel
def add_members(index: IndexArrays, cell: int, hits: np.ndarray, at: int, n: int) -> int:
    """Add the fences that list the fix's cell, or raise those already hit, keeping the order (L2)."""
    for m in range(index.cell_start[cell], index.cell_start[cell + 1]):
        fence = index.member[m]
        i = n
        while i > at and hits[i - 1].fence > fence:
            i -= 1
        if i == at or hits[i - 1].fence != fence:
            if n >= len(hits):
                return FULL
            for j in range(n, i, -1):
                hits[j] = hits[j - 1]
            n += 1
        else:
            i -= 1
        hit = hits[i]
        hit.distance_m = np.inf
        hit.fence = fence
        hit.confidence = HIGH
        hit.inside = 1
    return n
