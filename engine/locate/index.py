"""The fence index: built once per content version, asked for every batch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from engine.definitions import CellTable, Fence
from engine.distance_kernel import EARTH_TURN_E7, METRES_PER_E7_LAT_MIN
from engine.geometry_kernel import CELLS, POLYGON, FenceArrays
from engine.locate.build_kernel import NEAR_M, build_tree, fences_of_directory, laid_out
from engine.locate.kernel import locate_events
from engine.locate.shapes import compile_fences, lon_metres
from engine.locate.walk_kernel import (
    BLOCK,
    BRIEF,
    DIRECTORY_SHIFT,
    SCRATCHES,
    SOUTH_E7,
    TILE_SHIFT,
    WEST_E7,
    IndexArrays,
)
from engine.model import HIT

POLE_E7 = EARTH_TURN_E7 // 4
BYTES_PER_FENCE = 3_500
MOST_SMALL_CELLS = 1 << 18
"""A directory of 730 m cells, 1 MB: a square of 370 km."""
LARGEST_FLAT_M = 50_000.0
"""Up to this size the globe's bend adds less to the deepest point than `brief_of` allows for."""
FINENESS = (4.0, 1.5, 0.75)
"""How eagerly large fences are cut into small cells; the first that keeps to BYTES_PER_FENCE,
the directory aside, serves."""


_newest: list[tuple[Sequence[Fence], CellTable, tuple[tuple[Fence, ...], IndexArrays]]] = []
"""The fences and cells compiled last, and what became of them: the partitions of a process have one content, and those
that are not there yet the one before, which is kept where it is small."""
SMALL_BYTES = 1 << 22


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
        self._work = np.zeros((SCRATCHES, BLOCK), np.int32)

    @classmethod
    def build(cls, fences: Sequence[Fence], cells: CellTable) -> FenceIndex:
        """Compile a checked fence set.

        Raises ValueError for two fences with one id, for a cell that is not in the table, or a shape that cannot be.
        """
        for known, known_cells, made in _newest:
            if known is fences and known_cells is cells:
                return cls(*made)
        ordered = tuple(sorted(fences, key=lambda fence: fence.id))
        for one, other in pairwise(ordered):
            if one.id == other.id:
                raise ValueError(f"two fences have the id {one.id}")
        arrays = compile_fences(ordered)
        cell_start, member = cell_members(ordered, cells)
        for fineness in FINENESS:
            grid, directory, tile, word, near = build_directory(arrays, fineness)
            index = IndexArrays(arrays, brief_of(arrays), grid, directory, tile, word, near, cell_start, member)
            if nbytes(index) - index.directory.nbytes <= BYTES_PER_FENCE * len(ordered):
                break
        before = [one for one in _newest[:1] if nbytes(one[2][1]) < SMALL_BYTES]
        _newest[:] = [(fences, cells, (ordered, index)), *before]
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
    """Return `grid`, `directory`, `tile`, `word` and `near` of IndexArrays."""
    boxes, margin_x = directory_boxes(fences)
    if not len(boxes):
        grid = np.array([0, 0, 0, 0, DIRECTORY_SHIFT], np.int64)
        return grid, *(np.zeros(length, np.int32) for length in (1, 1, 17, 1))
    first = boxes[:, [1, 3]].min(axis=0)
    grid = np.concatenate([first, boxes[:, [2, 4]].max(axis=0) - first + 1])
    start = np.zeros(grid[2] * grid[3] + 1, np.int64)
    fences_of_directory(boxes, grid, start, np.zeros(0, np.int32), False)
    np.cumsum(start, out=start)
    member = np.zeros(start[-1], np.int32)
    fences_of_directory(boxes, grid, start[:-1].copy(), member, True)
    node, word, near = build_tree(fences, margin_x, grid, start, member, fineness)
    # A directory of 730 m cells saves a step; over a country it would be too large.
    is_small = grid[2] * grid[3] << 2 * TILE_SHIFT <= MOST_SMALL_CELLS
    shift = DIRECTORY_SHIFT - TILE_SHIFT if is_small else DIRECTORY_SHIFT
    directory, tile = laid_out(grid, node, shift)
    return np.append(grid << (DIRECTORY_SHIFT - shift), shift), directory, tile, word, near


def brief_of(fences: FenceArrays) -> np.ndarray:
    """Return `brief` of IndexArrays; a disc inside a polygon has no larger area than it, so R bounds every distance."""
    brief = np.zeros(len(fences.row), BRIEF)
    radius_m = fences.row["characteristic_m"]
    brief["medium_m"] = fences.row["medium_m"]
    brief["deepest_m"] = np.where(radius_m < LARGEST_FLAT_M, radius_m * 1.01 + 1.0, np.inf)
    brief["is_plain"] = (fences.row["shape"] == POLYGON) & (fences.row["tiling"] == 0)
    return brief


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
