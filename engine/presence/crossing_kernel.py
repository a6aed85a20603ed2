"""CROSS: two fixes outside, and the way between them through a fence (P8)."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.distance_kernel import line_m
from engine.geometry_kernel import CELLS, CIRCLE, POLYGON, FenceArrays, relative_lon, signed_distance_m
from engine.kernels import inlined_lean_kernel, lean_kernel
from engine.model import Confidence, TransitionKind
from engine.presence.layout_kernel import (
    CELL_FIX,
    MAYBE_BITS,
    NEVER,
    OUT_ROWS,
    OUTSIDE,
    TILE_SHIFT,
    Rules,
    State,
    Tiles,
)
from engine.presence.pair_kernel import closing_ms, find_visit, next_row

CROSS_MS = 1_800_000
HALF_TURN_E7 = 1_800_000_000

_CROSS, _LOW = int(TransitionKind.CROSS), int(Confidence.LOW)


@inlined_lean_kernel
def tile_of(column: int, row: int) -> int:
    """Key of a tile: column and row are degrees x 1e7 >> TILE_SHIFT."""
    return ((0 + column) << 32) + row


@inlined_lean_kernel
def hash_of(key: int) -> int:
    """Spread a tile's key over at least MAYBE_BITS."""
    return (((key >> 32) * 0x9E3779B1 + (key & 0xFFFFFFFF) * 0x85EBCA77) >> 7) & 0x7FFFFFFF


@inlined_lean_kernel
def may_hold(tiles: Tiles, key: int) -> bool:
    """Say whether a tile may hold a box; False is certain."""
    bit = hash_of(key) & (MAYBE_BITS - 1)
    return bool(tiles.maybe[bit >> 6] & (np.uint64(1) << np.uint64(bit & 63)) != 0)


@lean_kernel
def fill_slots(tiles: Tiles) -> None:
    """Enter every tile into `maybe` and `slot`, which are empty."""
    mask = tiles.slot.shape[0] - 1
    for place in range(tiles.key.shape[0]):
        code = hash_of(tiles.key[place])
        bit = code & (MAYBE_BITS - 1)
        tiles.maybe[bit >> 6] |= np.uint64(1) << np.uint64(bit & 63)
        slot = code & mask
        while tiles.slot[slot] >= 0:
            slot = (slot + 1) & mask
        tiles.slot[slot] = place


@inlined_lean_kernel
def find_tile(tiles: Tiles, key: int) -> int:
    """Place of a tile, or -1."""
    if not may_hold(tiles, key):
        return -1
    mask = tiles.slot.shape[0] - 1
    slot = hash_of(key) & mask
    while tiles.slot[slot] >= 0:
        if tiles.key[tiles.slot[slot]] == key:
            return int(tiles.slot[slot])
        slot = (slot + 1) & mask
    return -1


@inlined_lean_kernel
def is_way_empty(tiles: Tiles, user: Any, fix: Any) -> bool:
    """Say whether the way from the newest fix to this one certainly touches no fence; False proves nothing."""
    if fix.is_cell != 0 or user.flags & CELL_FIX or user.last_ms == NEVER:
        return True
    column, row = fix.lon_e7 >> TILE_SHIFT, fix.lat_e7 >> TILE_SHIFT
    if column != user.lon_e7 >> TILE_SHIFT or row != user.lat_e7 >> TILE_SHIFT or tiles.wide.shape[0] > 0:
        return bool(fix.lon_e7 == user.lon_e7 and fix.lat_e7 == user.lat_e7)
    return not may_hold(tiles, tile_of(column, row))


@lean_kernel
def write_crossings(state: State, rules: Rules, fences: FenceArrays, out: np.ndarray, fix: Any, begin: int) -> None:
    """Write a CROSS for every fence between the user's newest fix and this one, by fence, each once.

    begin  first transition of this fix: a fence that has one there is not crossed

    Called before the fix becomes the newest.  Cost: one search for a tile; 2 ns a box in the tiles on the way.
    Oracle: tests/property/test_presence.py, tests/oracle.
    """
    user = state.user[fix.user]
    if user.last_ms == NEVER or fix.is_cell != 0 or user.flags & CELL_FIX or fix.at_ms - user.last_ms > CROSS_MS:
        return
    lon, lat = 0 + user.lon_e7, 0 + user.lat_e7  # as int64
    other_lon, other_lat = 0 + fix.lon_e7, 0 + fix.lat_e7
    if (lon == other_lon and lat == other_lat) or abs(lon - other_lon) > HALF_TURN_E7:
        return
    first = state.control[OUT_ROWS]
    tiles = rules.tiles
    for number in range(tiles.wide.shape[0]):
        cross(state, rules, fences, out, fix, 0 + tiles.wide[number], begin)
    west, east = min(lon, other_lon), max(lon, other_lon)
    south, north = min(lat, other_lat), max(lat, other_lat)
    for column in range(west >> TILE_SHIFT, (east >> TILE_SHIFT) + 1):
        low, high = rows_on_the_way(lon, lat, other_lon, other_lat, column)
        for row in range(low, high + 1):
            place = find_tile(tiles, tile_of(column, row))
            if place < 0:
                continue
            for entry in range(tiles.start[place], tiles.start[place + 1]):
                box = tiles.box[entry]
                if box.west > east or box.east < west or box.south > north or box.north < south:
                    continue
                cross(state, rules, fences, out, fix, 0 + box.fence, begin)
    order_by_fence(out, first, state.control[OUT_ROWS])


@lean_kernel
def rows_on_the_way(lon: int, lat: int, other_lon: int, other_lat: int, column: int) -> tuple[int, int]:
    """Rows of tiles that a segment passes in one column, one more on either side."""
    south, north = min(lat, other_lat), max(lat, other_lat)
    if lon >> TILE_SHIFT != other_lon >> TILE_SHIFT:
        slope = (other_lat - lat) / (other_lon - lon)
        at = lat + slope * ((column << TILE_SHIFT) - lon)
        after = lat + slope * (((column + 1) << TILE_SHIFT) - lon)
        south = max(south, int(min(at, after)) - 1)
        north = min(north, int(max(at, after)) + 1)
    return south >> TILE_SHIFT, north >> TILE_SHIFT


@lean_kernel
def cross(state: State, rules: Rules, fences: FenceArrays, out: np.ndarray, fix: Any, fence: int, begin: int) -> None:
    """Write CROSS if the way to this fix touches this one fence as P8 says, and was not written already."""
    for row in range(begin, state.control[OUT_ROWS]):
        if out[row].fence == fence:
            return
    user = state.user[fix.user]
    if not is_touched(fences, fence, user, fix):
        return
    pair = find_visit(state, fix.user, fence)
    if pair >= 0 and state.visit[pair].state != OUTSIDE:
        return
    rule = rules.fence[fence]
    if rule.has_hours != 0 and closing_ms(rules, fence, fix.at_ms) == NEVER:
        return
    distance_m = 0.0
    for end in range(2):
        lon_e7, lat_e7 = (fix.lon_e7, fix.lat_e7) if end else (user.lon_e7, user.lat_e7)
        distance_m = signed_distance_m(fences, fence, lon_e7, lat_e7)
        radius_m = fix.accuracy_m if end else np.float64(user.accuracy_m)
        if distance_m > (0.0 if rule.is_tiling != 0 else -radius_m):
            return
    one = out[next_row(state, out, fix.user, fence, _CROSS)]
    one.crossed_ms = fix.at_ms
    one.confirmed_ms = fix.at_ms
    one.now_ms = fix.now_ms
    one.event = fix.event
    one.distance_m = distance_m
    one.accuracy_m = fix.accuracy_m
    one.confidence = _LOW
    one.method = fix.method


@lean_kernel
def order_by_fence(out: np.ndarray, first: int, last: int) -> None:
    """Sort a few transitions by fence; the last row of `out` is scratch space."""
    scratch = out.shape[0] - 1
    for row in range(first + 1, last):
        place = row
        out[scratch] = out[row]
        while place > first and out[place - 1].fence > out[scratch].fence:
            out[place] = out[place - 1]
            place -= 1
        out[place] = out[scratch]


@lean_kernel
def is_touched(fences: FenceArrays, fence: int, before: Any, fix: Any) -> bool:
    """Say whether the segment from one point outside to another touches the fence.

    Polygons: planar in degrees, exact (products of int64 are compared; a fence is at most some degrees wide).
    Circle, corridor: to the precision of the distance.
    """
    row = fences.row[fence]
    if row.shape == CELLS:
        return False
    ax = relative_lon(row, before.lon_e7)
    ay = np.int64(before.lat_e7) - row.origin_lat_e7
    bx = ax + np.int64(fix.lon_e7) - np.int64(before.lon_e7)
    by = np.int64(fix.lat_e7) - row.origin_lat_e7
    if min(ax, bx) > row.max_x or max(ax, bx) < row.min_x or min(ay, by) > row.max_y or max(ay, by) < row.min_y:
        return False
    if row.shape == CIRCLE:
        return bool(line_m(ax, ay, bx, by, row.origin_lat_e7) <= row.extent_m)
    vertex = fences.vertex
    for c in range(row.chunk_start, row.chunk_end):
        run = fences.chunk[c]
        if row.shape == POLYGON and (
            min(ax, bx) > run.max_x or max(ax, bx) < run.min_x or min(ay, by) > run.max_y or max(ay, by) < run.min_y
        ):
            continue
        for i in range(run.first, run.last):
            cx, cy = 0 + vertex[i, 0], 0 + vertex[i, 1]  # as int64
            dx, dy = 0 + vertex[i + 1, 0], 0 + vertex[i + 1, 1]
            if do_meet(ax, ay, bx, by, cx, cy, dx, dy):
                return True
            if row.shape != POLYGON:
                # Both ends of the way lie outside the buffer, so it is nearest at a vertex of the line.
                if line_m(ax - cx, ay - cy, bx - cx, by - cy, row.origin_lat_e7 + cy) <= row.extent_m:
                    return True
                if line_m(ax - dx, ay - dy, bx - dx, by - dy, row.origin_lat_e7 + dy) <= row.extent_m:
                    return True
    return False


@lean_kernel
def side(ax: int, ay: int, bx: int, by: int, cx: int, cy: int) -> int:
    """On which side of the line a-b the point c lies: -1, 0 or 1."""
    left = (bx - ax) * (cy - ay)
    right = (by - ay) * (cx - ax)
    if left == right:
        return 0
    return 1 if left > right else -1


@lean_kernel
def do_meet(ax: int, ay: int, bx: int, by: int, cx: int, cy: int, dx: int, dy: int) -> bool:
    """Say whether the closed segments a-b and c-d have a point in common."""
    if max(ax, bx) < min(cx, dx) or max(cx, dx) < min(ax, bx) or max(ay, by) < min(cy, dy) or max(cy, dy) < min(ay, by):
        return False
    return (
        side(ax, ay, bx, by, cx, cy) * side(ax, ay, bx, by, dx, dy) <= 0
        and side(cx, cy, dx, dy, ax, ay) * side(cx, cy, dx, dy, bx, by) <= 0
    )
