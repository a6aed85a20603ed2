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
from engine.locate.kernel import CLASS_BITS, EDGE, FENCE_SHIFT, INSIDE, LAST_BIT, MORE_BIT, NEAR
from engine.locate.local_kernel import MOST_LOCAL, NEAR_BIT, choose_crossed, choose_near, words_of
from engine.locate.walk_kernel import (
    BOUND_BITS,
    BOUND_M,
    BOUND_MASK,
    DIRECTORY_SHIFT,
    SMALLEST_SHIFT,
    SOUTH_E7,
    TILE_CELLS,
    TILE_SHIFT,
    WEST_E7,
)
from engine.model import FINE_ACCURACY_M

NEAR_M = FINE_ACCURACY_M * 1.01 + 1.0
MARGIN_Y = int(NEAR_M / METRES_PER_E7_LAT_MIN) + 1
WORTH_SPLITTING = np.array([6, 6, 40])
"""More fences' edges than this through a cell of the level make it worth a tile of its own (1 kB)."""
MOST_CROSSED = 16
"""A cell that more edges of one fence run through keeps none of them: it asks the whole polygon."""


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
    """Return `node`, from which `laid_out` makes directory and tiles, and `word` and `near` of IndexArrays.

    node      the directory's cells of 12 km row by row, then tiles: a leaf, or minus the place of a tile in `node`

    margin_x  int64[N]  e7 of longitude that reach NEAR_M beyond the box
    fineness  a cell is split where a fence whose edge runs through it is less than this many times its size
    Cells wait in a queue with their candidates (words without LAST_BIT and MORE_BIT) until they become a list or tile.
    """
    directory = grid[2] * grid[3]
    node = np.zeros(directory + TILE_CELLS, np.int32)
    nodes = directory
    word = np.zeros(1024, np.int32)
    words = 1
    near = np.zeros(1024, np.int32)
    nears = 1
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
    crossed = np.empty(4 * MOST_CROSSED, np.int32)
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
                    while words + (3 + len(crossed)) * count > len(word):
                        word = grown(word)
                    if 2 * lists > len(table):
                        table = rehashed(table, word)
                    length = 0
                    for i in range(count):
                        fence = scratch[i] >> FENCE_SHIFT
                        one = scratch[i] | (LAST_BIT if i == count - 1 else 0)
                        edges = choose_near(fences, fence, east, north, shift, chosen)
                        first = words + length
                        length += 1
                        if edges > 0 or one & CLASS_BITS == EDGE:
                            one |= MORE_BIT
                            header = 0
                            if one & CLASS_BITS == EDGE:
                                header = choose_crossed(fences, fence, east, north, shift, crossed)
                            more = words_of(header)
                            word[first + 2 : first + 2 + more] = crossed[:more]
                            length += 1 + more
                            if edges > 0:
                                header |= NEAR_BIT
                                word[words + length] = nears
                                length += 1
                                while nears + edges > len(near):
                                    near = grown(near)
                                near[nears : nears + edges] = chosen[:edges]
                                nears += edges
                            word[first + 1] = header
                        word[first] = one
                    place = find_list(table, word, words)
                    if table[place] == 0:
                        table[place] = words
                        words += length
                        lists += 1
                    bound = BOUND_MASK
                    for i in range(count):
                        bound = min(bound, scratch[i] & BOUND_MASK if scratch[i] & CLASS_BITS == NEAR else 0)
                    node[base + child] = table[place] << BOUND_BITS | bound
            done += 1
    # Who touches a list ahead reads a line beyond its beginning.
    return node[:nodes].copy(), word[: words + 16].copy(), near[:nears].copy()


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
        return INSIDE | int(min((distance - corner_m) / BOUND_M, BOUND_MASK))
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
    while True:
        one = word[i]
        i += 1
        if one & MORE_BIT:
            i += 1 + words_of(word[i])
        if one & LAST_BIT:
            return i - first


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


@kernel
def laid_out(grid: np.ndarray, node: np.ndarray, shift: int) -> tuple[np.ndarray, np.ndarray]:
    """Return `directory` and `tile` of IndexArrays for a directory of cells 2^shift e7 wide: 12 km or 730 m.

    grid  of the 12 km cells in `node`; columns and lines of the result are 16 times as many at 730 m
    """
    columns, lines = grid[2], grid[3]
    tile = np.zeros(1024, np.int32)
    tiles = 1
    if shift == DIRECTORY_SHIFT:
        directory = np.zeros(columns * lines + 1, np.int32)
        for slot in range(columns * lines):
            value = node[slot]
            if value > 0:
                tile, tiles, step = added(tile, tiles, 0 + value)
                tile, tiles, step = added(tile, tiles, step)
                directory[slot] = step
            elif value < 0:
                tile, base = reserved(tile, tiles)
                tiles = base + TILE_CELLS
                directory[slot] = base << 1 | 1
                for child in range(TILE_CELLS):
                    tile, tiles, step = step_to(node, tile, tiles, 0 + node[child - value])
                    tile[base + child] = step
        return directory, tile[:tiles].copy()
    wide = columns << TILE_SHIFT
    directory = np.zeros(TILE_CELLS * columns * lines + 1, np.int32)
    for slot in range(columns * lines):
        value = node[slot]
        if value == 0:
            continue
        whole = 0
        if value > 0:
            tile, tiles, whole = added(tile, tiles, 0 + value)
        for child in range(TILE_CELLS):
            step = whole
            if value < 0:
                tile, tiles, step = step_to(node, tile, tiles, 0 + node[child - value])
            line = (slot // columns << TILE_SHIFT) + (child >> TILE_SHIFT)
            directory[line * wide + (slot % columns << TILE_SHIFT) + (child & 15)] = step
    return directory, tile[:tiles].copy()


@kernel
def step_to(node: np.ndarray, tile: np.ndarray, tiles: int, value: int) -> tuple[np.ndarray, int, int]:
    """Append what the cell of 730 m with this value leads to; return tile, its length and the step."""
    if value == 0:
        return tile, tiles, 0
    if value > 0:
        return added(tile, tiles, value)
    tile, base = reserved(tile, tiles)
    tiles = base + TILE_CELLS
    for child in range(TILE_CELLS):
        leaf = 0 + node[child - value]
        if leaf < 0:
            tile, smallest = reserved(tile, tiles)
            tiles = smallest + TILE_CELLS
            tile[smallest:tiles] = node[-leaf : TILE_CELLS - leaf]
            leaf = -smallest
        tile[base + child] = leaf
    return tile, tiles, base << 1 | 1


@kernel
def added(tile: np.ndarray, tiles: int, value: int) -> tuple[np.ndarray, int, int]:
    """Append one word; return tile, its length and the step to the word."""
    if tiles + 1 > len(tile):
        tile = grown(tile)
    tile[tiles] = value
    return tile, tiles + 1, tiles << 1


@kernel
def reserved(tile: np.ndarray, tiles: int) -> tuple[np.ndarray, int]:
    """Make room for a tile at a cache line's beginning; return tile and the tile's place."""
    base = (tiles + 15) >> 4 << 4
    while base + TILE_CELLS > len(tile):
        tile = grown(tile)
    return tile, base
