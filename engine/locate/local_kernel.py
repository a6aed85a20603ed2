"""The few edges of a large polygon that matter in one cell, chosen once when the index is built.

A list in `local` reads: number of edges to cross, parity, number of near edges, the edges to cross, the near edges.
For a point in the cell the ray to the east can only cross, or the point lie on, the edges to cross; all others to
the east are crossed by every point of the cell or by none, which `parity` sums up.  The nearest edge of any point in
the cell is one of the near edges.  So both answers are those of the whole polygon, exactly.
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
    edge_square,
    edge_test,
    nearest_edge_m,
    relative_lon,
)
from engine.kernels import inlined_lean_kernel, lean_kernel

MANY_EDGES = 9
MOST_LOCAL = 64
"""Lists longer than this save little over the whole polygon."""


@inlined_lean_kernel
def local_covers(fences: FenceArrays, local: np.ndarray, at: int, x: int, y: int) -> bool:
    """As `polygon_covers`, for a point of the cell whose list starts at `at`."""
    odd = local[at + 1] != 0
    on_edge = False
    for i in range(at + 3, at + 3 + local[at]):
        crosses, touches = edge_test(fences.vertex, local[i], x, y)
        odd ^= crosses
        on_edge |= touches
    return bool(odd | on_edge)


@inlined_lean_kernel
def local_nearest_m(fences: FenceArrays, local: np.ndarray, at: int, fence: int, x: int, lat_e7: int) -> float:
    """As `nearest_edge_m`, for a point of the cell whose list starts at `at`."""
    vertex = fences.vertex
    row = fences.row[fence]
    north = np.float64(np.int64(lat_e7) - row.origin_lat_e7)
    east = np.float64(x)
    kx, ky = scales(lat_e7 * RADIANS_PER_E7)
    best = INFINITY_BITS
    first = at + 3 + local[at]
    for n in range(first, first + local[at + 2]):
        i = local[n]
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
def choose_local(
    fences: FenceArrays, fence: int, east: int, north: int, shift: int, crosses: bool, out: np.ndarray
) -> int:
    """Write the list of a cell to `out` and return its length; 0 where the whole polygon serves as well.

    east, north, shift   the cell begins at (east, north), counted from 180 W and 90 S, and is 2^shift wide
    crosses              False where no edge can run through the cell
    """
    row = fences.row[fence]
    half = 1 << (shift - 1)
    lat_e7 = north + half - 900_000_000
    x = relative_lon(row, east + half - 1_800_000_000)
    y = lat_e7 - row.origin_lat_e7
    edges = fences.chunk[row.chunk_end - 1].last - fences.chunk[row.chunk_start].first
    is_wide = int(row.max_x) - int(row.min_x) > 1_800_000_000
    if row.shape != POLYGON or edges < MANY_EDGES or abs(lat_e7) > 700_000_000 or is_wide:
        return 0
    kx, ky = scales(lat_e7 * RADIANS_PER_E7)
    nearest = nearest_edge_m(fences, row, x, lat_e7)
    if nearest > FLAT_M:
        return 0
    # A distance changes by at most half a diagonal between the middle and any point of the cell.
    reach = (nearest + 2.0 * half * math.hypot(kx, ky) * 1.01) * 1.002 + 1.0
    length = 3
    parity = 0
    vertex = fences.vertex
    if crosses:
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
                if length == MOST_LOCAL:
                    return 0
                out[length] = i
                length += 1
    out[0] = length - 3
    out[1] = parity
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
    out[2] = length - 3 - out[0]
    return length if 2 * (length - 3) < edges else 0
