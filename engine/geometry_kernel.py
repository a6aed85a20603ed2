"""Exact membership and signed distance of points and fences: the arrays, and the kernels that read them.

Points are WGS-84 degrees x 1e7 (L3). `covers` is exact on them; distances are metres on the WGS-84 ellipsoid.
Built by `engine.locate.shapes.compile_fences`; docs/locate.md states and proves the precision.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from engine.distance_kernel import (
    EARTH_TURN_E7,
    METRES_PER_E7_LAT_MIN,
    RADIANS_PER_E7,
    bent_line_m,
    line_m,
    point_distance_m,
    scales,
)
from engine.kernels import inlined_lean_kernel, lean_kernel

POLYGON, CIRCLE, CORRIDOR, CELLS = 0, 1, 2, 3
INFINITY_BITS = 0x7FF0_0000_0000_0000
FLAT_M = 5000.0
"""Below this distance times 1 / cos(lat) the metric at the point itself is right within 0.04 %."""
POLAR_LAT_E7 = 800_000_000
"""Beyond 80 degrees a line straight in degrees is no longer straight on the ground; it is then followed in steps."""

FENCE = np.dtype(
    [
        ("origin_lon_e7", "i4"),  # middle of the bounding box (centre of a circle); every x, y below is relative to it
        ("origin_lat_e7", "i4"),
        ("min_x", "i4"),  # bounding box of what is covered, radius and buffer included
        ("max_x", "i4"),
        ("min_y", "i4"),
        ("max_y", "i4"),
        ("chunk_start", "i4"),  # the fence owns chunk[chunk_start : chunk_end]
        ("chunk_end", "i4"),
        ("first_edge", "i4"),  # where one chunk holds all edges: as in that chunk; else 0
        ("last_edge", "i4"),
        ("extent_m", "f8"),  # radius of a circle, buffer of a corridor, else 0
        ("characteristic_m", "f8"),  # R of L7: sqrt(area / pi); corridor: the buffer; cell set: 0
        ("medium_m", "f8"),  # largest accuracy with which a point inside is still MEDIUM (L7)
        ("lon_metres", "f4"),  # metres per e7 of longitude, never more than anywhere near the box
        ("tiling", "i4"),  # number of the tiling set, 0 where the fence belongs to none (L5)
        ("shape", "u1"),  # POLYGON, CIRCLE, CORRIDOR or CELLS
        ("min_confidence", "u1"),  # Confidence
        ("has_cells", "u1"),
    ],
    align=True,
)

CHUNK = np.dtype(
    [
        ("first", "i4"),  # edges first .. last - 1; edge i joins vertex i and vertex i + 1
        ("last", "i4"),
        ("min_x", "i4"),
        ("max_x", "i4"),
        ("min_y", "i4"),
        ("max_y", "i4"),
    ],
    align=True,
)


class FenceArrays(NamedTuple):
    """A fence set as arrays, in order of fence id; row i is fence i everywhere.

    row      FENCE[N]
    chunk    CHUNK[C]     runs of at most 32 edges of one ring or line, with their bounding box
    vertex   int32[V, 2]  x, y relative to the fence's origin, degrees x 1e7; rings closed (first vertex repeated)
    """

    row: np.ndarray
    chunk: np.ndarray
    vertex: np.ndarray


@lean_kernel
def covers(fences: FenceArrays, fence: int, lon_e7: int, lat_e7: int) -> bool:
    """Say whether the fence covers the point (L5): boundaries and hole edges are inside, `distance <= radius` is.

    Precision: polygons exact (int64 products are compared, never subtracted); circle and corridor to the precision
    of the distance.  A cell set covers no point.  A tiling fence answers for itself; which of several covering
    ones wins is decided by `locate`.  Oracle: shapely.covers, geopy (tests/property/test_locate.py).
    """
    row = fences.row[fence]
    x = relative_lon(row, lon_e7)
    y = np.int64(lat_e7) - row.origin_lat_e7
    if row.shape == POLYGON:
        if polygon_covers(fences, row, x, y):
            return True
        # Half a turn away from the origin one point has two names.
        return abs(x) * 2 == EARTH_TURN_E7 and polygon_covers(fences, row, -x, y)
    if row.shape == CELLS:
        return False
    if y < row.min_y or y > row.max_y:
        return False
    return extent_distance_m(fences, row, x, lon_e7, lat_e7) >= 0.0


@lean_kernel
def signed_distance_m(fences: FenceArrays, fence: int, lon_e7: int, lat_e7: int) -> float:
    """Metres from the point to the fence's boundary, positive inside, never negative for a covered point.

    Precision: within max(0.1 m, 0.1 %) of the geodesic up to 100 km; beyond that still the right order.
    A cell set answers -inf: its shape says nothing.  Cost: about 4 ns an edge looked at, 30 ns beside.
    """
    row = fences.row[fence]
    if row.shape == CELLS:
        return -np.inf
    x = relative_lon(row, lon_e7)
    if row.shape != POLYGON:
        return extent_distance_m(fences, row, x, lon_e7, lat_e7)
    distance = nearest_edge_m(fences, row, x, lat_e7)
    return distance if covers(fences, fence, lon_e7, lat_e7) else -distance


@inlined_lean_kernel
def relative_lon(row: Any, lon_e7: int) -> Any:
    """Longitude relative to the fence's origin, within half a turn, as int64."""
    x = np.int64(lon_e7) - np.int64(row.origin_lon_e7)
    if x * 2 > EARTH_TURN_E7:
        x -= EARTH_TURN_E7
    elif x * 2 < -EARTH_TURN_E7:
        x += EARTH_TURN_E7
    return x


@lean_kernel
def extent_distance_m(fences: FenceArrays, row: Any, x: int, lon_e7: int, lat_e7: int) -> float:
    """Signed distance to the edge of a circle or corridor."""
    if row.shape == CIRCLE:
        return float(row.extent_m) - point_distance_m(lon_e7, lat_e7, row.origin_lon_e7, row.origin_lat_e7)
    return float(row.extent_m) - nearest_edge_m(fences, row, x, lat_e7)


@inlined_lean_kernel
def is_farther(row: Any, x: int, y: int, limit_m: float) -> bool:
    """Say for certain that the point lies more than `limit_m` outside the bounding box; False proves nothing."""
    if (row.min_y - y) * METRES_PER_E7_LAT_MIN > limit_m or (y - row.max_y) * METRES_PER_E7_LAT_MIN > limit_m:
        return True
    return bool(max(row.min_x - x, x - row.max_x) * row.lon_metres > limit_m)


@inlined_lean_kernel
def polygon_covers(fences: FenceArrays, row: Any, x: int, y: int) -> bool:
    """Count crossings of the ray to the east over all rings; a point on any edge is covered.

    |differences| are at most 3.6e9 in x and 1.8e9 in y, so every product fits an int64; their difference would not.
    A run of edges wholly east of the point is crossed by the parity of its two ends alone.
    """
    if x < row.min_x or x > row.max_x or y < row.min_y or y > row.max_y:
        return False
    vertex = fences.vertex
    if row.last_edge > 0:
        return run_covers(vertex, row.first_edge, row.last_edge, x, y) > 0
    odd = False
    for c in range(row.chunk_start, row.chunk_end):
        run = fences.chunk[c]
        if y < run.min_y or y > run.max_y or x > run.max_x:
            continue
        if x < run.min_x:
            odd ^= (vertex[run.first, 1] > y) != (vertex[run.last, 1] > y)
            continue
        answer = run_covers(vertex, run.first, run.last, x, y)
        if answer > 1:
            return True
        odd ^= answer == 1
    return odd


@inlined_lean_kernel
def run_covers(vertex: np.ndarray, first: int, last: int, x: int, y: int) -> int:
    """2 where the point lies on an edge of the run, else the parity of the edges that the ray to the east crosses.

    No branch within the run: which side an edge lies on is a coin toss to the processor.
    """
    odd = False
    on_edge = False
    for i in range(first, last):
        crosses, touches = edge_test(vertex, i, x, y)
        odd ^= crosses
        on_edge |= touches
    return 2 if on_edge else int(odd)


@inlined_lean_kernel
def edge_test(vertex: np.ndarray, i: int, x: int, y: int) -> tuple[bool, bool]:
    """Say whether the ray to the east crosses edge i, and whether the point lies on it; exact, see polygon_covers."""
    return crosses_and_touches(0 + vertex[i, 0], 0 + vertex[i, 1], 0 + vertex[i + 1, 0], 0 + vertex[i + 1, 1], x, y)


@inlined_lean_kernel
def crosses_and_touches(ax: int, ay: int, bx: int, by: int, x: int, y: int) -> tuple[bool, bool]:
    """As `edge_test`, for the edge from a to b, int64."""
    run_east = (bx - ax) * (y - ay)
    point_east = (x - ax) * (by - ay)
    crosses = ((ay > y) != (by > y)) & ((run_east > point_east) == (by > ay))
    is_between = (((ax <= x) & (x <= bx)) | ((bx <= x) & (x <= ax))) & (
        ((ay <= y) & (y <= by)) | ((by <= y) & (y <= ay))
    )
    return crosses, (run_east == point_east) & is_between


@lean_kernel
def nearest_edge_m(fences: FenceArrays, row: Any, x: int, lat_e7: int) -> float:
    """Metres to the nearest edge of a polygon or corridor line; `x` relative to the origin."""
    if abs(lat_e7) > POLAR_LAT_E7:
        return nearest_bent_edge_m(fences, row, x, lat_e7)
    distance = nearest_flat_edge_m(fences, row, x, lat_e7)
    if (np.int64(row.max_x) - row.min_x) * 2 > EARTH_TURN_E7:
        # A fence wider than half the globe may be nearer the other way round.
        other = x - EARTH_TURN_E7 if x > 0 else x + EARTH_TURN_E7
        distance = min(distance, nearest_flat_edge_m(fences, row, other, lat_e7))
    return distance


@inlined_lean_kernel
def nearest_flat_edge_m(fences: FenceArrays, row: Any, x: int, lat_e7: int) -> float:
    """Find the nearest edge in the metric at the point; measure a far one again in the metric half-way to it."""
    vertex = fences.vertex
    north = np.float64(np.int64(lat_e7) - row.origin_lat_e7)
    east = np.float64(x)
    kx, ky = scales(lat_e7 * RADIANS_PER_E7)
    if row.last_edge > 0:
        # An edge's own square leaves out its first end; in a closed ring the edge before has it.
        best = nearest_square(vertex, row.first_edge, row.last_edge, east, north, kx, ky)
        if row.shape != POLYGON:
            best = min(best, vertex_square(vertex, row.first_edge, east, north, kx, ky))
    else:
        best = np.inf
        # One vertex of every run bounds the distance well enough to skip most runs.
        for c in range(row.chunk_start, row.chunk_end):
            best = min(best, vertex_square(vertex, fences.chunk[c].first, east, north, kx, ky))
        for c in range(row.chunk_start, row.chunk_end):
            run = fences.chunk[c]
            off_x = max(run.min_x - east, east - run.max_x, 0.0) * kx
            off_y = max(run.min_y - north, north - run.max_y, 0.0) * ky
            if off_x * off_x + off_y * off_y < best:
                best = min(best, nearest_square(vertex, run.first, run.last, east, north, kx, ky))
    best = math.sqrt(best)
    if best * ky < FLAT_M * kx:
        return best
    return remeasured_m(fences, row, east, north, lat_e7)


@inlined_lean_kernel
def vertex_square(vertex: np.ndarray, i: int, east: float, north: float, kx: float, ky: float) -> float:
    """Square of the distance to vertex i."""
    return float(((vertex[i, 0] - east) * kx) ** 2 + ((vertex[i, 1] - north) * ky) ** 2)


@inlined_lean_kernel
def nearest_square(vertex: np.ndarray, first: int, last: int, east: float, north: float, kx: float, ky: float) -> float:
    """Least `edge_square` of edges first .. last - 1.

    Floats that are not negative sort as their bits do; the least of integers the compiler finds several at a time.
    """
    best = INFINITY_BITS
    for i in range(first, last):
        ax = (vertex[i, 0] - east) * kx
        ay = (vertex[i, 1] - north) * ky
        bx = (vertex[i + 1, 0] - east) * kx
        by = (vertex[i + 1, 1] - north) * ky
        bits = int(np.float64(edge_square(ax, ay, bx, by)).view(np.int64))
        best = min(best, bits)
    return float(np.int64(best).view(np.float64))


@inlined_lean_kernel
def edge_square(ax: float, ay: float, bx: float, by: float) -> float:
    """Square of the distance from the origin to the edge a-b less its first end, without a branch."""
    ux = bx - ax
    uy = by - ay
    length = ux * ux + uy * uy + 1e-30
    along = -(ax * ux + ay * uy)
    area = ax * uy - ay * ux
    is_beside = (along > 0.0) & (along < length)
    beside = area * area / length
    end = bx * bx + by * by
    return beside if is_beside else end


@lean_kernel
def remeasured_m(fences: FenceArrays, row: Any, east: float, north: float, lat_e7: int) -> float:
    """Find the nearest edge in the metric at the point and measure it in the metric half-way to it."""
    vertex = fences.vertex
    kx, ky = scales(lat_e7 * RADIANS_PER_E7)
    best = np.inf
    distance = np.inf
    for c in range(row.chunk_start, row.chunk_end):
        run = fences.chunk[c]
        off_x = max(run.min_x - east, east - run.max_x, 0.0) * kx
        off_y = max(run.min_y - north, north - run.max_y, 0.0) * ky
        if off_x * off_x + off_y * off_y > best:
            continue
        for i in range(run.first, run.last):
            ax = vertex[i, 0] - east
            ay = vertex[i, 1] - north
            bx = vertex[i + 1, 0] - east
            by = vertex[i + 1, 1] - north
            start = (ax * kx) ** 2 + (ay * ky) ** 2
            square = min(start, edge_square(ax * kx, ay * ky, bx * kx, by * ky))
            if square < best:
                best = square
                distance = line_m(ax, ay, bx, by, lat_e7)
    return distance


@lean_kernel
def nearest_bent_edge_m(fences: FenceArrays, row: Any, x: int, lat_e7: int) -> float:
    """The same near a pole, where every edge is followed in steps: microseconds an edge."""
    vertex = fences.vertex
    y = np.int64(lat_e7) - row.origin_lat_e7
    best = np.inf
    for c in range(row.chunk_start, row.chunk_end):
        run = fences.chunk[c]
        for i in range(run.first, run.last):
            ax = np.float64(vertex[i, 0] - x)
            ay = np.float64(vertex[i, 1] - y)
            bx = np.float64(vertex[i + 1, 0] - x)
            by = np.float64(vertex[i + 1, 1] - y)
            best = min(best, bent_line_m(ax, ay, bx, by, lat_e7))
    return best
