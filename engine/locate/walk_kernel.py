"""The walk down the cell index: from the places of a block of fixes to the lists of fences to judge.

The index (built by `engine.locate.build_kernel`): a directory, each cell of it a tile of 16 x 16 smaller cells or one
leaf, and so on down: cells of 2^20 e7 (12 km; only where a finer directory would be too large), 2^16 (730 m), 2^12
(46 m), 2^8 (2.8 m).  A *step*, in the directory and in tiles of 730 m cells, is `place << 1 | 1` of a tile or
`place << 1` of a single word, so that the next place is arithmetic: no branch that a processor could guess wrong.
A *leaf*, in tiles of 46 m cells and below, is 0 empty, > 0 `first word of a list << 3 | least bound in it`, or < 0
minus the place of a tile of the smallest cells.

All fixes of a block go down together, one level at a time: each loop is a handful of instructions a fix whose loads do
not wait for one another, so many are under way at once.  That is three times as fast as fix by fix.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from engine.geometry_kernel import FenceArrays
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.model import FINE_ACCURACY_M, EventType

BOUND_BITS, BOUND_MASK = 3, 7
BOUND_M = 9.0
BLOCK = 256
DIRECTORY_SHIFT = 20
TILE_SHIFT = 4
TILE_CELLS = 1 << 2 * TILE_SHIFT
FINE_SHIFT = DIRECTORY_SHIFT - 2 * TILE_SHIFT
SMALLEST_SHIFT = DIRECTORY_SHIFT - 3 * TILE_SHIFT
WEST_E7 = -1_800_000_000
SOUTH_E7 = -900_000_000
FINE = FINE_ACCURACY_M
PING = int(EventType.PING)
EAST, NORTH, PLACE, FIRST, EVENT_ROW, SCRATCHES = 0, 1, 2, 3, 4, 5


class IndexArrays(NamedTuple):
    """A compiled fence index.

    fences      FenceArrays
    brief       BRIEF[N]    what most hits need of their fence
    grid        int64[5]    first column and line of the directory, its columns and lines, log2 of its cells' width
    directory   int32[columns * lines + 1]  steps, row by row; the last, 0, is for what lies outside
    tile        int32[...]  steps and leaves; place 0 is an empty leaf
    word        int32[W]    lists, see `engine.locate.kernel`
    near        int32[...]  choices of edges, see `engine.locate.local_kernel`
    cell_start  int32[C+1]  radio cell c is a member of member[cell_start[c] : cell_start[c + 1]]
    member      int32[...]  rows of fences, rising within a cell
    """

    fences: FenceArrays
    brief: np.ndarray
    grid: np.ndarray
    directory: np.ndarray
    tile: np.ndarray
    word: np.ndarray
    near: np.ndarray
    cell_start: np.ndarray
    member: np.ndarray


BRIEF = np.dtype(
    [
        ("medium_m", "f8"),  # as in FENCE
        ("deepest_m", "f4"),  # no point inside is farther from the edge
        ("is_plain", "u4"),  # a polygon that is in no tiling set
    ],
    align=True,
)


@lean_kernel
def walk_block(index: IndexArrays, events: np.ndarray, row: int, end: int, work: np.ndarray) -> int:
    """Write FIRST (word of the list, 0 none) and EVENT_ROW of every fix that must be judged; return their number.

    work  int32[SCRATCHES, BLOCK]
    """
    grid = index.grid
    count = end - row
    # Nothing finer than the smallest cell matters here, and this fits 32 bits.
    west_e7 = (grid[0] << grid[4]) + WEST_E7
    south_e7 = (grid[1] << grid[4]) + SOUTH_E7
    for i in range(count):
        event = events[row + i]
        work[EAST, i] = ((0 + event.lon_e7) - west_e7) >> SMALLEST_SHIFT
        work[NORTH, i] = ((0 + event.lat_e7) - south_e7) >> SMALLEST_SHIFT
    if grid[4] == DIRECTORY_SHIFT:
        step_in(index, work, count, DIRECTORY_SHIFT - SMALLEST_SHIFT)
        step_down(index.tile, work, count)
    else:
        step_in(index, work, count, DIRECTORY_SHIFT - TILE_SHIFT - SMALLEST_SHIFT)
    for i in range(count):
        work[PLACE, i] = index.tile[np.uint64(work[PLACE, i])]
    waiting = 0
    for i in range(count):
        leaf = 0 + work[PLACE, i]
        if leaf < 0:
            leaf = 0 + index.tile[np.uint64(child_of(work[EAST, i], work[NORTH, i], 0) - leaf)]
        event = events[row + i]
        is_touching = (leaf > 0) & is_in_reach(leaf, event.accuracy_m)
        work[FIRST, waiting] = (leaf >> BOUND_BITS) * is_touching
        work[EVENT_ROW, waiting] = row + i
        waiting += (is_touching | (event.cell >= 0)) & (event.type == PING) & (event.drop == 0)
    return waiting


@inlined_lean_kernel
def step_in(index: IndexArrays, work: np.ndarray, count: int, shift: int) -> None:
    """Find each fix's cell of the directory, and the place it leads to."""
    columns, lines = index.grid[2], index.grid[3]
    for i in range(count):
        east = 0 + work[EAST, i]
        north = 0 + work[NORTH, i]
        column = east >> shift
        line = north >> shift
        is_in = (column >= 0) & (line >= 0) & (column < columns) & (line < lines)
        step = 0 + index.directory[np.uint64(line * columns + column if is_in else columns * lines)]
        work[PLACE, i] = (step >> 1) + (child_of(east, north, shift - TILE_SHIFT) & -(step & 1))


@inlined_lean_kernel
def step_down(tile: np.ndarray, work: np.ndarray, count: int) -> None:
    """From the cells of a 12 km tile to the place that each leads to."""
    for i in range(count):
        step = 0 + tile[np.uint64(work[PLACE, i])]
        child = child_of(work[EAST, i], work[NORTH, i], FINE_SHIFT - SMALLEST_SHIFT)
        work[PLACE, i] = (step >> 1) + (child & -(step & 1))


@inlined_lean_kernel
def child_of(east: int, north: int, shift: int) -> int:
    """Number of a cell within its tile; east and north from the directory's corner, shift to the cell's width."""
    return (((0 + north) >> shift & 15) << TILE_SHIFT) | ((0 + east) >> shift & 15)


@inlined_lean_kernel
def first_word(index: IndexArrays, lon_e7: int, lat_e7: int, accuracy_m: float) -> int:
    """The same walk for one point alone: first word of its list, 0 where nothing there can matter to such a fix."""
    grid = index.grid
    shift = grid[4]
    east = (0 + lon_e7) - WEST_E7 - (grid[0] << shift)
    north = (0 + lat_e7) - SOUTH_E7 - (grid[1] << shift)
    column = east >> shift
    line = north >> shift
    if column < 0 or line < 0 or column >= grid[2] or line >= grid[3]:
        return 0
    value = 0 + index.directory[line * grid[2] + column]
    while shift > FINE_SHIFT:
        shift -= TILE_SHIFT
        value = 0 + index.tile[(value >> 1) + (child_of(east, north, shift) & -(value & 1))]
    if value < 0:
        value = 0 + index.tile[child_of(east, north, SMALLEST_SHIFT) - value]
    return value >> BOUND_BITS if value > 0 and is_in_reach(value, accuracy_m) else 0


@inlined_lean_kernel
def is_in_reach(bounded: int, accuracy_m: Any) -> bool:
    """Say whether a fix of this accuracy can touch what lies behind the bound in the low bits of `bounded`."""
    reach_m = accuracy_m if accuracy_m <= FINE else 0.0
    return reach_m > ((bounded & BOUND_MASK) - 1) * BOUND_M
