"""The few edges of a polygon that matter in one cell, chosen once when the index is built.

*Edges to cross*: for a point in the cell the ray to the east can only cross, or the point lie on, these; all others to
the east are crossed by every point of the cell or by none, which `parity` sums up.  They stand in the list itself, so
that to cover a point reads neither the fence nor its vertices: two words an edge (x, y of either end from the corner of
the point's 46 m cell, 16 bits each) where they all fit, else four (longitudes and latitudes as they are).
A list in `near` reads: number of edges, the edges; the nearest edge of any point in the cell is one of them.
So both answers are those of the whole polygon, exactly.
"""

from __future__ import annotations

import math

import numpy as np

from engine.distance_kernel import RADIANS_PER_E7, scales
from engine.geometry_kernel import (
    FLAT_M,
    INFINITY_BITS,
    POLYGON,
    FenceArrays,
    crosses_and_touches,
    edge_square,
    nearest_edge_m,
    relative_lon,
)
from engine.kernels import inlined_lean_kernel, lean_kernel

MANY_EDGES = 9
MOST_LOCAL = 64
"""Lists longer than this save little over the whole polygon."""
COUNT_MASK, PARITY_BIT, NO_CHOICE, SMALL_BIT, NEAR_BIT = 255, 1 << 8, 1 << 9, 1 << 10, 1 << 11
"""Of a header: how many edges to cross; parity; no choice of them; each in two words; a place in near follows."""
CORNER_MASK = (1 << 12) - 1
LARGEST_E7 = 2_147_000_000
"""Beyond the antimeridian an edge keeps the cell's turn; so far it fits 32 bits."""


@inlined_lean_kernel
def list_covers(word: np.ndarray, at: int, header: int, lon_e7: int, lat_e7: int) -> bool:
    """As `polygon_covers`, for a point of the cell whose edges to cross begin at `at`."""
    odd = header & PARITY_BIT != 0
    on_edge = False
    x = 0 + lon_e7
    y = 0 + lat_e7
    if header & SMALL_BIT:
        x = (x + 1_800_000_000) & CORNER_MASK
        y = (y + 900_000_000) & CORNER_MASK
        for i in range(at, at + 2 * (header & COUNT_MASK), 2):
            a = 0 + word[i]
            b = 0 + word[i + 1]
            crosses, touches = crosses_and_touches(low_half(a), a >> 16, low_half(b), b >> 16, x, y)
            odd ^= crosses
            on_edge |= touches
    else:
        for i in range(at, at + 4 * (header & COUNT_MASK), 4):
            crosses, touches = crosses_and_touches(0 + word[i], 0 + word[i + 1], 0 + word[i + 2], 0 + word[i + 3], x, y)
            odd ^= crosses
            on_edge |= touches
    return bool(odd | on_edge)


@inlined_lean_kernel
def low_half(packed: int) -> int:
    """The low 16 bits, signed."""
    return ((packed & 0xFFFF) ^ 0x8000) - 0x8000


@inlined_lean_kernel
def words_of(header: int) -> int:
    """How many words follow a header."""
    edges = header & COUNT_MASK
    return (2 * edges if header & SMALL_BIT else 4 * edges) + (header & NEAR_BIT != 0)


@inlined_lean_kernel
def local_nearest_m(fences: FenceArrays, near: np.ndarray, at: int, fence: int, x: int, lat_e7: int) -> float:
    """As `nearest_edge_m`, for a point of the cell whose list starts at `at`."""
    vertex = fences.vertex
    row = fences.row[fence]
    north = np.float64(np.int64(lat_e7) - row.origin_lat_e7)
    east = np.float64(x)
    kx, ky = scales(lat_e7 * RADIANS_PER_E7)
    best = INFINITY_BITS
    for n in range(at + 1, at + 1 + near[at]):
        i = near[n]
        ax = (vertex[i, 0] - east) * kx
        ay = (vertex[i, 1] - north) * ky
        bx = (vertex[i + 1, 0] - east) * kx
        by = (vertex[i + 1, 1] - north) * ky
        square = min(ax * ax + ay * ay, edge_square(ax, ay, bx, by))
        best = min(best, int(np.float64(square).view(np.int64)))
    distance = math.sqrt(np.int64(best).view(np.float64))
    if distance * ky < FLAT_M * kx:
        return distance
    return nearest_edge_m(fences, row, x, lat_e7)


@lean_kernel
def choose_crossed(fences: FenceArrays, fence: int, east: int, north: int, shift: int, out: np.ndarray) -> int:
    """Write the edges to cross within a cell to `out`; return the header (its number of words: `words_of`).

    east, north, shift   the cell begins at (east, north), counted from 180 W and 90 S, and is 2^shift wide
    """
    row = fences.row[fence]
    half = 1 << (shift - 1)
    lon_e7 = east + half - 1_800_000_000
    lat_e7 = north + half - 900_000_000
    x = relative_lon(row, lon_e7)
    y = lat_e7 - row.origin_lat_e7
    if row.shape != POLYGON or np.int64(row.max_x) - row.min_x > 1_800_000_000:
        return NO_CHOICE
    if max(abs(lon_e7 - x + row.min_x), abs(lon_e7 - x + row.max_x)) > LARGEST_E7:
        return NO_CHOICE
    edges = 0
    parity = 0
    vertex = fences.vertex
    for c in range(row.chunk_start, row.chunk_end):
        run = fences.chunk[c]
        if run.max_y < y - half or run.min_y > y + half or run.max_x < x - half:
            continue
        for i in range(run.first, run.last):
            low = min(vertex[i, 1], vertex[i + 1, 1])
            high = max(vertex[i, 1], vertex[i + 1, 1])
            if high < y - half or low > y + half or max(vertex[i, 0], vertex[i + 1, 0]) < x - half:
                continue
            if min(vertex[i, 0], vertex[i + 1, 0]) > x + half and low <= y - half and high > y + half:
                parity ^= 1
                continue
            if 4 * edges == len(out):
                return NO_CHOICE
            out[4 * edges] = lon_e7 - x + vertex[i, 0]
            out[4 * edges + 1] = lat_e7 - y + vertex[i, 1]
            out[4 * edges + 2] = lon_e7 - x + vertex[i + 1, 0]
            out[4 * edges + 3] = lat_e7 - y + vertex[i + 1, 1]
            edges += 1
    header = parity * PARITY_BIT | edges
    if 1 << shift <= CORNER_MASK + 1 and are_made_small(out, edges, east, north):
        header |= SMALL_BIT
    return header


@lean_kernel
def are_made_small(out: np.ndarray, edges: int, east: int, north: int) -> bool:
    """Turn edges of four words into two if all of them lie within 16 bits of the corner of the 46 m cell."""
    corner_lon = (east & ~CORNER_MASK) - 1_800_000_000
    corner_lat = (north & ~CORNER_MASK) - 900_000_000
    for i in range(0, 4 * edges, 2):
        if abs(out[i] - corner_lon) > 32_767 or abs(out[i + 1] - corner_lat) > 32_767:
            return False
    for i in range(2 * edges):
        out[i] = (out[2 * i + 1] - corner_lat) << 16 | (out[2 * i] - corner_lon) & 0xFFFF
    return True


@lean_kernel
def choose_near(fences: FenceArrays, fence: int, east: int, north: int, shift: int, out: np.ndarray) -> int:
    """Write the edges that may be nearest to a point of the cell; return the length, 0 where the whole serves as well.

    Cells as in `choose_crossed`.
    """
    row = fences.row[fence]
    half = 1 << (shift - 1)
    lat_e7 = north + half - 900_000_000
    x = relative_lon(row, east + half - 1_800_000_000)
    y = lat_e7 - row.origin_lat_e7
    is_wide = np.int64(row.max_x) - row.min_x > 1_800_000_000
    if row.shape != POLYGON or abs(lat_e7) > 700_000_000 or is_wide:
        return 0
    edges = fences.chunk[row.chunk_end - 1].last - fences.chunk[row.chunk_start].first
    if edges < MANY_EDGES:
        return 0
    kx, ky = scales(lat_e7 * RADIANS_PER_E7)
    nearest = nearest_edge_m(fences, row, x, lat_e7)
    if nearest > FLAT_M:
        return 0
    # A distance changes by at most half a diagonal between the middle and any point of the cell.
    reach = (nearest + 2.0 * half * math.hypot(kx, ky) * 1.01) * 1.002 + 1.0
    length = 1
    vertex = fences.vertex
    for c in range(row.chunk_start, row.chunk_end):
        run = fences.chunk[c]
        off_x = max(run.min_x - x, x - run.max_x, 0) * kx
        off_y = max(run.min_y - y, y - run.max_y, 0) * ky
        if off_x * off_x + off_y * off_y > reach * reach:
            continue
        for i in range(run.first, run.last):
            ax = (vertex[i, 0] - x) * kx
            ay = (vertex[i, 1] - y) * ky
            bx = (vertex[i + 1, 0] - x) * kx
            by = (vertex[i + 1, 1] - y) * ky
            if min(ax * ax + ay * ay, edge_square(ax, ay, bx, by)) <= reach * reach:
                if length == MOST_LOCAL:
                    return 0
                out[length] = i
                length += 1
    out[0] = length - 1
    return length if 2 * (length - 1) < edges else 0
