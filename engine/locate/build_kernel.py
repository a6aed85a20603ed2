"""Build the cell index: classify cells against fences, split where a smaller cell would tell more (cold).

A cell is judged from its middle: where the fence's edge is farther away than the cell's corners, the whole cell is
on one side.  Shapely agrees (tests/property/test_locate.py) and is some ten times slower at it.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from engine.distance_kernel import METRES_PER_E7_LAT_MIN, RADIANS_PER_E7, scales
from engine.geometry_kernel import CELLS, POLAR_LAT_E7, FenceArrays, relative_lon, signed_distance_m
from engine.kernels import inlined_lean_kernel, kernel, lean_kernel
from engine.locate.kernel import (
    BOUND_BITS,
    BOUND_M,
    BOUND_MASK,
    CLASS_BITS,
    DIRECTORY_SHIFT,
    EDGE,
    FENCE_SHIFT,
    INSIDE,
    LAST_BIT,
    LOCAL_BIT,
    NEAR,
    SOUTH_E7,
    TILE_CELLS,
    TILE_SHIFT,
    WEST_E7,
)
from engine.locate.local_kernel import MOST_LOCAL, choose_local
from engine.model import FINE_ACCURACY_M

SMALLEST_SHIFT = DIRECTORY_SHIFT - 3 * TILE_SHIFT
NEAR_M = FINE_ACCURACY_M * 1.01 + 1.0
MARGIN_Y = int(NEAR_M / METRES_PER_E7_LAT_MIN) + 1
WORTH_SPLITTING = np.array([6, 6, 40])
"""More fences' edges than this through a cell of the level make it worth a tile of its own (1 kB)."""


@kernel
def fences_of_directory(
    boxes: np.ndarray, grid: np.ndarray, start: np.ndarray, member: np.ndarray, filling: bool
) -> None:
    """Count (`start[cell + 1]`), then fill, the fences whose box meets each directory cell.

    boxes   int64[B, 5]   fence row, then columns from .. to and lines from .. to, inclusive; rising rows
    start   int64[D + 1]  cell c owns member[start[c] : start[c + 1]]; when filling, start[c] is its next free place
    """
    for b in range(len(boxes)):
        for line in range(boxes[b, 3], boxes[b, 4] + 1):
            for column in range(boxes[b, 1], boxes[b, 2] + 1):
                cell = (line - grid[1]) * grid[2] + column - grid[0]
                if filling:
                    member[start[cell]] = boxes[b, 0]
                    start[cell] += 1
                else:
                    start[cell + 1] += 1


@kernel
def build_tree(
    fences: FenceArrays, margin_x: np.ndarray, grid: np.ndarray, start: np.ndarray, member: np.ndarray, fineness: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return `node`, `word` and `local` of IndexArrays.

    margin_x  int64[N]  e7 of longitude that reach NEAR_M beyond the box
    fineness  a cell is split where a fence whose edge runs through it is less than this many times its size
    Cells wait in a queue with their candidates (words without LAST_BIT and LOCAL_BIT) until they become a list or tile.
    """
    directory = grid[2] * grid[3]
    node = np.zeros(directory + TILE_CELLS, np.int32)
    nodes = directory
    word = np.zeros(1024, np.int32)
    words = 1
    local = np.zeros(1024, np.int32)
    locals_ = 1
    table = np.zeros(2048, np.int32)
    lists = 0

    cell_slot = np.zeros(1024, np.int64)  # place in node to fill
    cell_east = np.zeros(1024, np.int64)
    cell_north = np.zeros(1024, np.int64)
    cell_level = np.zeros(1024, np.int64)
    cell_from = np.zeros(1025, np.int64)  # the cell's candidates
    candidate = np.zeros(4096, np.int64)
    most = 1
    for slot in range(directory):
        most = max(most, start[slot + 1] - start[slot])
    scratch = np.empty(most, np.int64)
    chosen = np.empty(MOST_LOCAL, np.int32)

    for slot in range(directory):
        if start[slot] == start[slot + 1]:
            continue
        # One directory cell and all its descendants at a time: the queue stays short.
        queued = 1
        cell_slot[0] = slot
        cell_east[0] = (grid[0] + slot % grid[2]) << DIRECTORY_SHIFT
        cell_north[0] = (grid[1] + slot // grid[2]) << DIRECTORY_SHIFT
        cell_level[0] = -1
        cell_from[1] = start[slot + 1] - start[slot]
        if cell_from[1] > len(candidate):
            candidate = np.zeros(2 * cell_from[1], np.int64)
        for i in range(cell_from[1]):
            candidate[i] = member[start[slot] + i] << FENCE_SHIFT | EDGE
        done = 0
        while done < queued:
            # The first entry stands for the directory cell itself, the others for tiles to fill.
            level = cell_level[done] + 1
            shift = DIRECTORY_SHIFT - TILE_SHIFT * level
            children = TILE_CELLS if level > 0 else 1
            base = cell_slot[done]
            if level > 0:
                if nodes + TILE_CELLS > len(node):
                    node = grown(node)
                node[base] = -nodes
                base = nodes
                nodes += TILE_CELLS
            for child in range(children):
                east = cell_east[done] + ((child & 15) << shift)
                north = cell_north[done] + (child >> TILE_SHIFT << shift)
                count = 0
                for c in range(cell_from[done], cell_from[done + 1]):
                    one = candidate[c]
                    if one & CLASS_BITS != INSIDE:
                        fence = one >> FENCE_SHIFT
                        if is_beside(fences.row[fence], margin_x[fence], east, north, shift):
                            continue
                        one = fence << FENCE_SHIFT | cell_class(fences, fence, east, north, shift)
                    if one & CLASS_BITS != 0:
                        scratch[count] = one
                        count += 1
                if count == 0:
                    continue
                if is_worth_splitting(fences, scratch[:count], north, level, fineness):
                    if queued + 1 >= len(cell_from):
                        cell_slot = grown(cell_slot)
                        cell_east = grown(cell_east)
                        cell_north = grown(cell_north)
                        cell_level = grown(cell_level)
                        cell_from = grown(cell_from)
                    while cell_from[queued] + count > len(candidate):
                        candidate = grown(candidate)
                    candidate[cell_from[queued] : cell_from[queued] + count] = scratch[:count]
                    cell_slot[queued] = base + child
                    cell_east[queued] = east
                    cell_north[queued] = north
                    cell_level[queued] = level
                    cell_from[queued + 1] = cell_from[queued] + count
                    queued += 1
                else:
                    while words + 2 * count > len(word):
                        word = grown(word)
                    if 2 * lists > len(table):
                        table = rehashed(table, word)
                    length = 0
                    for i in range(count):
                        fence = scratch[i] >> FENCE_SHIFT
                        last = LAST_BIT if i == count - 1 else 0
                        edges = choose_local(fences, fence, east, north, shift, scratch[i] & CLASS_BITS == EDGE, chosen)
                        word[words + length] = scratch[i] | last
                        length += 1
                        if edges > 0:
                            while locals_ + edges > len(local):
                                local = grown(local)
                            local[locals_ : locals_ + edges] = chosen[:edges]
                            word[words + length - 1] |= LOCAL_BIT
                            word[words + length] = locals_
                            locals_ += edges
                            length += 1
                    place = find_list(table, word, words)
                    if table[place] == 0:
                        table[place] = words
                        words += length
                        lists += 1
                    bound = BOUND_MASK
                    for i in range(count):
                        bound = min(bound, scratch[i] & BOUND_MASK)
                    node[base + child] = table[place] << BOUND_BITS | bound
            done += 1
    return node[:nodes].copy(), word[:words].copy(), local[:locals_].copy()


@inlined_lean_kernel
def is_beside(row: Any, margin_x: int, east: int, north: int, shift: int) -> bool:
    """Say whether the cell lies more than NEAR_M outside the fence's bounding box, as most cells do."""
    half = 1 << (shift - 1)
    y = north + half + SOUTH_E7 - row.origin_lat_e7
    if y + half + MARGIN_Y < row.min_y or y - half - MARGIN_Y > row.max_y:
        return True
    # A wide fence may be near the other way round.
    is_wide = np.int64(row.max_x) - row.min_x > -WEST_E7
    x = relative_lon(row, east + half + WEST_E7)
    return not is_wide and (x + half + margin_x < row.min_x or x - half - margin_x > row.max_x)


@lean_kernel
def cell_class(fences: FenceArrays, fence: int, east: int, north: int, shift: int) -> int:
    """Classify one cell against one fence: 0, EDGE, INSIDE or NEAR with its bound; in doubt EDGE."""
    row = fences.row[fence]
    half = 1 << (shift - 1)
    lon_e7 = east + half + WEST_E7
    lat_e7 = north + half + SOUTH_E7
    if abs(lat_e7) + half > POLAR_LAT_E7 or row.shape == CELLS:
        return EDGE
    kx, ky = scales(max(abs(lat_e7) - half, 0) * RADIANS_PER_E7)
    corner_m = half * math.hypot(kx, ky * 1.011) * 1.01 + 1.0
    distance = signed_distance_m(fences, fence, lon_e7, lat_e7)
    if distance > corner_m:
        return INSIDE
    if distance >= -corner_m:
        return EDGE
    if distance < -corner_m - NEAR_M or row.tiling != 0:
        return 0
    return NEAR | 1 + int(min(max(-distance - corner_m, 0.0) / BOUND_M, BOUND_MASK - 1))


@lean_kernel
def is_worth_splitting(fences: FenceArrays, candidates: np.ndarray, north: int, level: int, fineness: float) -> bool:
    """Split where many edges run through the cell, or a fence fills so little of it that most points would miss."""
    shift = DIRECTORY_SHIFT - TILE_SHIFT * level
    size = 1 << shift
    if shift <= SMALLEST_SHIFT or max(abs(north + SOUTH_E7), abs(north + size + SOUTH_E7)) > POLAR_LAT_E7:
        return False
    edges = 0
    for one in candidates:
        kind = one & CLASS_BITS
        row = fences.row[one >> FENCE_SHIFT]
        if kind == EDGE:
            edges += 1
        if kind == EDGE or (kind == NEAR and level == 0):
            width = np.int64(row.max_x) - row.min_x
            height = np.int64(row.max_y) - row.min_y
            if max(width, height) + 10_000 < size * (fineness if kind == EDGE and level == 1 else 0.75):
                return True
    return bool(edges > WORTH_SPLITTING[level])


@lean_kernel
def find_list(table: np.ndarray, word: np.ndarray, first: int) -> int:
    """Place in the open-addressing table of the list that equals the one at `first`, or of the gap for it."""
    length = list_length(word, first)
    digest = 0  # wraps around in 64 bits
    for i in range(first, first + length):
        digest = (digest ^ word[i]) * 1099511628211
    place = (digest ^ digest >> 29) & (len(table) - 1)
    while table[place] != 0 and not are_equal(word, table[place], first, length):
        place = (place + 1) & (len(table) - 1)
    return int(place)


@lean_kernel
def list_length(word: np.ndarray, first: int) -> int:
    i = first
    while not word[i] & LAST_BIT:
        i += 2 if word[i] & LOCAL_BIT else 1
    return i - first + (2 if word[i] & LOCAL_BIT else 1)


@lean_kernel
def are_equal(word: np.ndarray, one: int, other: int, length: int) -> bool:
    """Compare two lists; equal so far as `length`, they end together, for the ends are marked."""
    for i in range(length):
        if word[one + i] != word[other + i]:
            break
    else:
        return True
    return False


@kernel
def rehashed(table: np.ndarray, word: np.ndarray) -> np.ndarray:
    """Twice the table, same lists."""
    wider = np.zeros(2 * len(table), table.dtype)
    for first in table:
        if first != 0:
            wider[find_list(wider, word, first)] = first
    return wider


@kernel
def grown(array: np.ndarray) -> np.ndarray:
    """Twice the array, the new half zero."""
    wider = np.zeros(2 * len(array), array.dtype)
    wider[: len(array)] = array
    return wider
