"""Find the fences that fixes touch: a walk down the cell index, then the exact test where a cell cannot tell.

The index (built by `engine.locate.build_kernel`): a directory of cells 2^21 e7 wide (23 km), each empty, a list of
fences, or a tile of 16 x 16 smaller cells (2^17, 2^13, 2^9: 1.5 km, 91 m, 5.7 m), and so on down.  A word of a
list is `fence << 3 | last << 2 | class`:

    INSIDE  the cell lies wholly inside the fence: a hit without asking the geometry
    EDGE    the fence's edge may run through the cell: ask the geometry
    NEAR    the cell lies outside, within FINE_ACCURACY_M: only a fine fix can touch the fence from here
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
from engine.kernels import lean_kernel
from engine.model import FINE_ACCURACY_M, Confidence, EventType

NEAR, EDGE, INSIDE = 1, 2, 3
CLASS_BITS, LAST_BIT, FENCE_SHIFT = 3, 4, 3
DIRECTORY_SHIFT = 21
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
    node        int32[...]  the directory row by row, then tiles: 0 empty, > 0 first word of a list in `word`,
                            < 0 minus the place of a tile in `node`
    word        int32[...]  lists in order of fence
    cell_start  int32[C+1]  radio cell c is a member of member[cell_start[c] : cell_start[c + 1]]
    member      int32[...]  rows of fences, rising within a cell
    """

    fences: FenceArrays
    grid: np.ndarray
    node: np.ndarray
    word: np.ndarray
    cell_start: np.ndarray
    member: np.ndarray


@lean_kernel
def locate_events(
    index: IndexArrays, events: np.ndarray, hit_start: np.ndarray, hits: np.ndarray, row: int, at: int
) -> tuple[int, int]:
    """Locate events[row:], writing hits from `at` on; stop at the first event whose hits do not fit.

    events     EVENT[N]      pings with drop == 0 are located, every other row gets no hit
    hit_start  int64[N + 1]  out: event i has hits[hit_start[i] : hit_start[i + 1]]
    hits       HIT[...]      out
    Returns (first row not done, hits written).  No allocation.
    """
    while row < len(events):
        event = events[row]
        hit_start[row] = at
        if event.type == PING and event.drop == 0:
            count = locate_one(index, event.lon_e7, event.lat_e7, event.accuracy_m, event.cell, hits, at)
            if count == FULL:
                return row, at
            at += count
        row += 1
    hit_start[row] = at
    return row, at


@lean_kernel
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
    n = at
    first = list_at(index, lon_e7, lat_e7)
    if first != 0:
        n = judge_list(index, first, lon_e7, lat_e7, accuracy_m, hits, at)
        if n == FULL:
            return FULL
    if cell >= 0:
        n = add_members(index, cell, hits, at, n)
        if n == FULL:
            return FULL
    return n - at


@lean_kernel
def list_at(index: IndexArrays, lon_e7: int, lat_e7: int) -> int:
    """Walk down to the list of the cell that holds the point; 0 where it is empty."""
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
    return value


@lean_kernel
def judge_list(
    index: IndexArrays, position: int, lon_e7: int, lat_e7: int, accuracy_m: float, hits: np.ndarray, n: int
) -> int:
    """Judge every fence of a list (L5, L7); return the new number of hits, or FULL."""
    fences = index.fences
    at = n
    is_fine = accuracy_m <= FINE
    reach_m = accuracy_m if is_fine else 0.0
    while True:
        word = index.word[position]
        position += 1
        kind = word & CLASS_BITS
        if kind != NEAR or is_fine:
            fence = word >> FENCE_SHIFT
            row = fences.row[fence]
            x = relative_lon(row, lon_e7)
            y = np.int64(lat_e7) - row.origin_lat_e7
            if (kind == INSIDE or not is_farther(row, x, y, reach_m)) and not is_set_taken(index, hits, at, n, row):
                is_inside = kind == INSIDE
                if row.shape == POLYGON:
                    if kind == EDGE:
                        is_inside = polygon_covers(fences, row, x, y) or (
                            abs(x) == -WEST_E7 and polygon_covers(fences, row, -x, y)
                        )
                    distance = -np.inf
                    if is_inside:
                        distance = nearest_edge_m(fences, row, x, lat_e7)
                    elif is_fine and row.tiling == 0:
                        distance = -nearest_edge_m(fences, row, x, lat_e7)
                else:
                    distance = extent_distance_m(fences, row, x, lon_e7, lat_e7)
                    if is_inside:
                        distance = max(distance, 0.0)
                    is_inside = distance >= 0.0
                if is_inside or (is_fine and row.tiling == 0 and -distance < accuracy_m):
                    if n >= len(hits):
                        return FULL
                    hit = hits[n]
                    hit.distance_m = distance
                    hit.fence = fence
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


@lean_kernel
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
