"""The fence index: built once per content version, asked for every batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from engine.definitions import CellTable, Fence
from engine.distance_kernel import EARTH_TURN_E7, METRES_PER_E7_LAT_MIN
from engine.geometry_kernel import CELLS, FenceArrays
from engine.locate.build_kernel import NEAR_M, build_tree, fences_of_directory
from engine.locate.kernel import BLOCK, DIRECTORY_SHIFT, SOUTH_E7, WEST_E7, IndexArrays, locate_events
from engine.locate.shapes import compile_fences, lon_metres
from engine.model import HIT

POLE_E7 = EARTH_TURN_E7 // 4
BYTES_PER_FENCE = 3_500
FINENESS = (4.0, 1.5, 0.75)
"""How eagerly large fences are cut into small cells; the first that keeps to BYTES_PER_FENCE,
the directory aside, serves."""


class FenceIndex:
    """Which fences a fix touches, for one fence set.

    fences   the set, sorted by id; row i of every array, and `HIT.fence` i, is fences[i]
    arrays   FenceArrays, for `covers` and `signed_distance_m`
    index    IndexArrays, for `locate_one` inside another kernel
    """

    def __init__(self, fences: tuple[Fence, ...], index: IndexArrays) -> None:
        self.fences = fences
        self.index = index
        self.arrays = index.fences
        self._hit_start = np.zeros(1, np.int64)
        self._hits = np.zeros(1024, HIT)
        self._work = np.zeros((BLOCK, 4), np.int32)

    @classmethod
    def build(cls, fences: Sequence[Fence], cells: CellTable) -> FenceIndex:
        """Compile a checked fence set.

        Raises ValueError for two fences with one id, for a cell that is not in the table, or a shape that cannot be.
        """
        ordered = tuple(sorted(fences, key=lambda fence: fence.id))
        for one, other in pairwise(ordered):
            if one.id == other.id:
                raise ValueError(f"two fences have the id {one.id}")
        arrays = compile_fences(ordered)
        cell_start, member = cell_members(ordered, cells)
        for fineness in FINENESS:
            grid, node, word, local = build_directory(arrays, fineness)
            index = IndexArrays(arrays, grid, node, word, local, cell_start, member)
            directory = int(grid[2] * grid[3]) * node.itemsize
            if nbytes(index) - directory <= BYTES_PER_FENCE * len(ordered):
                break
        return cls(ordered, index)

    def locate(self, events: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (hit_start int64[N + 1], hits HIT[M]) for EVENT[N]; event i has hits[hit_start[i] : hit_start[i + 1]].

        Hits of one event rise by fence row.  Both arrays are overwritten by the next call.
        """
        count = len(events)
        if len(self._hit_start) <= count:
            self._hit_start = np.zeros(2 * count + 1, np.int64)
        row, at = locate_events(self.index, events, self._hit_start, self._hits, 0, 0, self._work)
        while row < count:
            self._hits = np.concatenate([self._hits, np.zeros(len(self._hits), HIT)])
            row, at = locate_events(self.index, events, self._hit_start, self._hits, row, at, self._work)
        return self._hit_start[: count + 1], self._hits[:at]

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays."""
        return nbytes(self.index)


def nbytes(index: IndexArrays) -> int:
    return sum(array.nbytes for array in (*index.fences, *index[1:]))


def build_directory(fences: FenceArrays, fineness: float) -> tuple[np.ndarray, ...]:
    """Return `grid`, `node`, `word` and `local` of IndexArrays."""
    boxes, margin_x = directory_boxes(fences)
    if not len(boxes):
        return np.zeros(4, np.int64), np.zeros(1, np.int32), np.zeros(1, np.int32), np.zeros(1, np.int32)
    first = boxes[:, [1, 3]].min(axis=0)
    grid = np.concatenate([first, boxes[:, [2, 4]].max(axis=0) - first + 1])
    start = np.zeros(grid[2] * grid[3] + 1, np.int64)
    fences_of_directory(boxes, grid, start, np.zeros(0, np.int32), False)
    np.cumsum(start, out=start)
    member = np.zeros(start[-1], np.int32)
    fences_of_directory(boxes, grid, start[:-1].copy(), member, True)
    return grid, *build_tree(fences, margin_x, grid, start, member, fineness)


def directory_boxes(fences: FenceArrays) -> tuple[np.ndarray, np.ndarray]:
    """Return int64[B, 5] of (fence row, columns from .. to, lines from .. to), rising, and the e7 that reach NEAR_M.

    A fence over the antimeridian gives two boxes; a point there has two names, and either must find it.
    """
    row = fences.row
    rows = np.flatnonzero(row["shape"] != CELLS)
    south = row["origin_lat_e7"].astype(np.int64) + row["min_y"]
    north = row["origin_lat_e7"].astype(np.int64) + row["max_y"]
    margin_y = int(NEAR_M / METRES_PER_E7_LAT_MIN) + 1
    farthest = np.minimum(np.maximum(np.abs(south), np.abs(north)) + margin_y, POLE_E7)
    reach = np.ceil(NEAR_M / np.maximum(lon_metres(farthest), 1e-9)) + 1
    margin_x = np.minimum(reach, EARTH_TURN_E7 // 2).astype(np.int64)
    west = (row["origin_lon_e7"].astype(np.int64) + row["min_x"] - margin_x - WEST_E7)[rows]
    east = (row["origin_lon_e7"].astype(np.int64) + row["max_x"] + margin_x - WEST_E7)[rows]
    lines = [
        np.maximum(south[rows] - margin_y - SOUTH_E7, 0) >> DIRECTORY_SHIFT,
        np.minimum(north[rows] + margin_y - SOUTH_E7, 2 * POLE_E7) >> DIRECTORY_SHIFT,
    ]
    goes_round = east - west >= EARTH_TURN_E7 - (2 << DIRECTORY_SHIFT)
    pieces = []
    for turn in (-EARTH_TURN_E7, 0, EARTH_TURN_E7):
        low = np.where(goes_round, 0, np.maximum(west + turn, 0))
        high = np.where(goes_round, EARTH_TURN_E7, np.minimum(east + turn, EARTH_TURN_E7))
        kept = (low <= high) & (~goes_round | (turn == 0))
        columns = [low >> DIRECTORY_SHIFT, high >> DIRECTORY_SHIFT]
        pieces.append(np.stack([rows, *columns, *lines], axis=1)[kept])
    boxes = np.concatenate(pieces)
    return np.ascontiguousarray(boxes[np.argsort(boxes[:, 0], kind="stable")]), margin_x


def cell_members(fences: Sequence[Fence], cells: CellTable) -> tuple[np.ndarray, np.ndarray]:
    """Return `cell_start` and `member` of IndexArrays; tiling fences are judged by the point alone (L5)."""
    row_of = {cell: row for row, cell in enumerate(cells.ids)} if any(fence.cells for fence in fences) else {}
    pairs = []
    for i, fence in enumerate(fences):
        for cell in fence.cells if not fence.tiling else ():
            if cell not in row_of:
                raise ValueError(f"fence {fence.id} lists the cell {cell}, which no cells file places")
            pairs.append((row_of[cell], i))
    pairs = sorted(set(pairs))
    start = np.zeros(len(cells.ids) + 1, np.int32)
    np.cumsum(np.bincount([cell for cell, _ in pairs], minlength=len(cells.ids)), out=start[1:])
    return start, np.array([fence for _, fence in pairs], np.int32)
