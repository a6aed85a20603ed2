"""Find the fences that fixes touch: a walk down the cell index, then the exact test where a cell cannot tell.

The index (built by `engine.locate.build_kernel`): a directory of cells 2^20 e7 wide (12 km), each empty, a list of
fences, or a tile of 16 x 16 smaller cells (2^16, 2^12, 2^8: 730 m, 46 m, 2.8 m), and so on down.  A word of a
list is `fence << 7 | has_local << 6 | last << 5 | class << 3 | bound`; where it has_local, the next word is the place
in `local` of the cell's own choice of edges.  The bound is 0 for INSIDE and EDGE; a cell in class NEAR lies at least
(bound - 1) * BOUND_M outside.  Classes:

    INSIDE  the cell lies wholly inside the fence: a hit without asking whether the point is covered
    EDGE    the fence's edge may run through the cell: ask the geometry
    NEAR    the cell lies outside: only a fine fix can touch the fence from here
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.geometry_kernel import (
    POLYGON,
    FenceArrays,
    extent_distance_m,
    is_farther,
    nearest_edge_m,
    polygon_covers,
    relative_lon,
)
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.locate.local_kernel import local_covers, local_nearest_m
from engine.model import FINE_ACCURACY_M, Confidence, EventType

NEAR, EDGE, INSIDE = 1 << 3, 2 << 3, 3 << 3
BOUND_BITS, BOUND_MASK = 3, 7
BOUND_M = 9.0
CLASS_BITS, LAST_BIT, LOCAL_BIT, FENCE_SHIFT = 3 << 3, 1 << 5, 1 << 6, 7
BLOCK = 256
DIRECTORY_SHIFT = 20
TILE_SHIFT = 4
TILE_CELLS = 1 << 2 * TILE_SHIFT
WEST_E7 = -1_800_000_000
SOUTH_E7 = -900_000_000

LOW = int(Confidence.LOW)
MEDIUM = int(Confidence.MEDIUM)
HIGH = int(Confidence.HIGH)
PING = int(EventType.PING)
FULL = -1
FINE = FINE_ACCURACY_M


class IndexArrays(NamedTuple):
    """A compiled fence index.

    fences      FenceArrays
    grid        int64[4]    first column and row of the directory, its columns and rows
    node        int32[...]  the directory row by row, then tiles: 0 empty, < 0 minus the place of a tile in `node`,
                            > 0 `first word of a list << 3 | least bound in it`
    word        int32[W]    lists in order of fence
    local       int32[...]  choices of edges, see `engine.locate.local_kernel`
    cell_start  int32[C+1]  radio cell c is a member of member[cell_start[c] : cell_start[c + 1]]
    member      int32[...]  rows of fences, rising within a cell
    """

    fences: FenceArrays
    grid: np.ndarray
    node: np.ndarray
    word: np.ndarray
    local: np.ndarray
    cell_start: np.ndarray
    member: np.ndarray


@lean_kernel
def locate_events(
    index: IndexArrays, events: np.ndarray, hit_start: np.ndarray, hits: np.ndarray, row: int, at: int, work: np.ndarray
) -> tuple[int, int]:
    """Locate events[row:], writing hits from `at` on; stop before the first block of events whose hits do not fit.

    events     EVENT[N]         pings with drop == 0 are located, every other row gets no hit
    hit_start  int64[N + 1]     out: event i has hits[hit_start[i] : hit_start[i + 1]]
    hits       HIT[...]         out
    work       int32[BLOCK, 4]  scratch: lists to judge and their events
    Returns (first row not done, hits written).  No allocation.

    The walk is done for a block of events first: its loads do not wait for one another as those of the judgement do.
    """
    while row < len(events):
        end = min(row + len(work), len(events))
        waiting = walk_block(index, events, row, end, work)
        fetch_ahead(index, work[:waiting])
        hit_start[row : end + 1] = 0
        if judge_block(index, events, work[:waiting], hit_start, hits, at) == FULL:
            break
        hit_start[row] = at
        for i in range(row, end):
            at += hit_start[i + 1]
            hit_start[i + 1] = at
        row = end
    hit_start[row] = at
    return row, at


@lean_kernel
def walk_block(index: IndexArrays, events: np.ndarray, row: int, end: int, work: np.ndarray) -> int:
    """Write (first word, event) of every event that must be judged to `work`; return their number."""
    waiting = 0
    for i in range(row, end):
        event = events[i]
        first = first_word(index, event.lon_e7, event.lat_e7, event.accuracy_m)
        work[waiting, 0] = first
        work[waiting, 1] = i
        waiting += ((first != 0) | (event.cell >= 0)) & (event.type == PING) & (event.drop == 0)
    return waiting


@lean_kernel
def fetch_ahead(index: IndexArrays, work: np.ndarray) -> None:
    """Touch what the judgement of a block begins with, so that it waits for memory once and not fix by fix.

    Judging goes from list to fence to edges, each known only from the last; here a block's lists are read, then its
    fences, then its edges, many at a time.  Half of the time was spent waiting.  What is read goes to `work`, where
    nobody uses it, or the compiler would leave it out.
    """
    for w in range(len(work)):
        work[w, 2] = index.word[work[w, 0]] >> FENCE_SHIFT
    for w in range(len(work)):
        row = index.fences.row[work[w, 2]]
        work[w, 2] = row.first_edge
        work[w, 3] = row.tiling
    if len(index.fences.vertex):
        for w in range(len(work)):
            work[w, 2] = index.fences.vertex[work[w, 2], 0]


@lean_kernel
def judge_block(
    index: IndexArrays, events: np.ndarray, work: np.ndarray, hit_count: np.ndarray, hits: np.ndarray, at: int
) -> int:
    """Judge the fixes in `work`, writing event i's number of hits to hit_count[i + 1]; FULL if the hits do not fit."""
    n = at
    for w in range(len(work)):
        i = work[w, 1]
        event = events[i]
        before = n
        n = judge_fix(index, work[w, 0], event.lon_e7, event.lat_e7, event.accuracy_m, event.cell, hits, n)
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
def first_word(index: IndexArrays, lon_e7: int, lat_e7: int, accuracy_m: float) -> int:
    """Walk down to the list of the cell that holds the point; 0 where nothing there can matter to such a fix."""
    east = np.int64(lon_e7) - WEST_E7
    north = np.int64(lat_e7) - SOUTH_E7
    column = (east >> DIRECTORY_SHIFT) - index.grid[0]
    line = (north >> DIRECTORY_SHIFT) - index.grid[1]
    if column < 0 or line < 0 or column >= index.grid[2] or line >= index.grid[3]:
        return 0
    value = int(index.node[line * index.grid[2] + column])
    shift = DIRECTORY_SHIFT
    while value < 0:
        shift -= TILE_SHIFT
        value = int(index.node[((north >> shift & 15) << TILE_SHIFT | (east >> shift & 15)) - value])
    return value >> BOUND_BITS if is_in_reach(value, accuracy_m) else 0


@inlined_lean_kernel
def is_in_reach(bounded: int, accuracy_m: float) -> bool:
    """Say whether a fix of this accuracy can touch what lies behind the bound in the low bits of `bounded`."""
    reach_m = accuracy_m if accuracy_m <= FINE else 0.0
    return reach_m > ((bounded & BOUND_MASK) - 1) * BOUND_M


@inlined_lean_kernel
def judge_list(
    index: IndexArrays, position: int, lon_e7: int, lat_e7: int, accuracy_m: float, hits: np.ndarray, n: int
) -> int:
    """Judge every fence of a list (L5, L7); return the new number of hits, or FULL."""
    at = n
    is_fine = accuracy_m <= FINE
    reach_m = accuracy_m if is_fine else 0.0
    while True:
        word = index.word[position]
        local = 0
        if word & LOCAL_BIT:
            position += 1
            local = index.word[position]
        if is_in_reach(word, accuracy_m):
            row = index.fences.row[word >> FENCE_SHIFT]
            x = relative_lon(row, lon_e7)
            y = np.int64(lat_e7) - row.origin_lat_e7
            is_certain = word & CLASS_BITS == INSIDE
            if (is_certain or not is_farther(row, x, y, reach_m)) and not is_set_taken(index, hits, at, n, row):
                is_inside, distance = judge(index, word, local, lon_e7, lat_e7, is_fine)
                if is_inside or -distance < reach_m:
                    if n >= len(hits):
                        return FULL
                    hit = hits[n]
                    hit.distance_m = distance
                    hit.fence = word >> FENCE_SHIFT
                    hit.inside = is_inside
                    if row.tiling != 0 or distance >= accuracy_m:
                        hit.confidence = HIGH
                    elif is_inside and accuracy_m <= row.medium_m:
                        hit.confidence = MEDIUM
                    else:
                        hit.confidence = LOW
                    n += 1
        if word & LAST_BIT:
            return n
        position += 1


@inlined_lean_kernel
def judge(index: IndexArrays, word: int, local: int, lon_e7: int, lat_e7: int, is_fine: bool) -> tuple[bool, float]:
    """Return whether the fence covers the point, and the signed distance; -inf where an outside point needs none."""
    fences = index.fences
    fence = word >> FENCE_SHIFT
    row = fences.row[fence]
    kind = word & CLASS_BITS
    x = relative_lon(row, lon_e7)
    if row.shape != POLYGON:
        distance = extent_distance_m(fences, row, x, lon_e7, lat_e7)
        if kind == INSIDE:
            distance = max(distance, 0.0)
        elif distance < 0.0 and row.tiling != 0:
            distance = -np.inf
        return distance >= 0.0, distance
    is_inside = kind == INSIDE
    if kind == EDGE:
        y = np.int64(lat_e7) - row.origin_lat_e7
        if local != 0:
            is_inside = local_covers(fences, index.local, local, x, y)
        else:
            is_inside = polygon_covers(fences, row, x, y)
            # Half a turn away from the origin one point has two names.
            if abs(x) == -WEST_E7:
                is_inside |= polygon_covers(fences, row, -x, y)
    if not is_inside and (not is_fine or row.tiling != 0):
        return False, -np.inf
    if local != 0:
        distance = local_nearest_m(fences, index.local, local, fence, x, lat_e7)
    else:
        distance = nearest_edge_m(fences, row, x, lat_e7)
    return is_inside, distance if is_inside else -distance


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
