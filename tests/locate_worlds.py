"""Fences, events and a slow oracle for the tests of locate; shares no code with the engine's geometry."""

from __future__ import annotations

import gzip
import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from geopy.distance import geodesic

from engine.definitions import CellTable, Fence, Shape
from engine.model import EVENT, Confidence, EventType

Ring = Sequence[tuple[int, int]]


def polygon(id: str, *parts: Sequence[Ring], **settings: Any) -> Fence:
    """A polygon fence; every part is (outer ring, holes...), in degrees x 1e7."""
    arrays = tuple(tuple(np.array(ring, np.int64) for ring in part) for part in parts)
    return Fence(id=id, name=id, kind=settings.pop("kind", "shop"), shape=Shape.POLYGON, parts=arrays, **settings)


def square(id: str, lon_e7: int, lat_e7: int, half_e7: int, **settings: Any) -> Fence:
    west, east, south, north = lon_e7 - half_e7, lon_e7 + half_e7, lat_e7 - half_e7, lat_e7 + half_e7
    return polygon(id, [[(west, south), (east, south), (east, north), (west, north)]], **settings)


def circle(id: str, lon_e7: int, lat_e7: int, radius_m: float, **settings: Any) -> Fence:
    parts = ((np.array([[lon_e7, lat_e7]], np.int64),),)
    return Fence(id=id, name=id, kind="shop", shape=Shape.CIRCLE, parts=parts, radius_m=radius_m, **settings)


def corridor(id: str, line: Ring, buffer_m: float, **settings: Any) -> Fence:
    parts = ((np.array(line, np.int64),),)
    return Fence(id=id, name=id, kind="road", shape=Shape.CORRIDOR, parts=parts, buffer_m=buffer_m, **settings)


def cell_set(id: str, *cells: str, **settings: Any) -> Fence:
    return Fence(id=id, name=id, kind="shop", shape=Shape.CELLS, cells=cells, **settings)


def cell_table(*ids: str) -> CellTable:
    n = len(ids)
    return CellTable(ids, np.zeros(n, np.int32), np.zeros(n, np.int32), np.zeros(n), np.zeros(n, bool))


def pings(points: Any, accuracy_m: Any = 20.0, cell: Any = -1) -> np.ndarray:
    """EVENT rows at (lon_e7, lat_e7)."""
    points = np.asarray(points)
    events = np.zeros(len(points), EVENT)
    events["lon_e7"], events["lat_e7"] = points[:, 0], points[:, 1]
    events["accuracy_m"] = accuracy_m
    events["cell"] = cell
    events["type"] = EventType.PING
    return events


def inside_pairs(located: tuple[np.ndarray, np.ndarray]) -> set[tuple[int, int]]:
    """(event row, fence row) of every hit whose point is inside."""
    hit_start, hits = located
    event = np.repeat(np.arange(len(hit_start) - 1), np.diff(hit_start))
    inside = hits["inside"] == 1
    return set(zip(event[inside].tolist(), hits["fence"][inside].tolist(), strict=True))


def read_polygons(path: Path, **settings: Any) -> list[Fence]:
    """The polygons of a GeoJSON file, snapped to 1e-7 degree; what is no longer valid then is left out."""
    raw = path.read_bytes()
    features = json.loads(gzip.decompress(raw) if path.suffix == ".gz" else raw)["features"]
    fences = []
    for i, feature in enumerate(features):
        geometry = feature["geometry"] or {"type": ""}
        if geometry["type"] not in ("Polygon", "MultiPolygon"):
            continue
        parts = [geometry["coordinates"]] if geometry["type"] == "Polygon" else geometry["coordinates"]
        snapped = [[np.rint(np.array(ring)[:-1, :2] * 1e7).astype(np.int64) for ring in part] for part in parts]
        fence = polygon(f"real/{i:05d}", *snapped, **settings)
        if shape_of(fence).is_valid:
            fences.append(fence)
    return fences


def shape_of(fence: Fence) -> shapely.MultiPolygon:
    return shapely.MultiPolygon([shapely.Polygon(part[0], part[1:]) for part in fence.parts])


def exactly_covers(fence: Fence, lon_e7: int, lat_e7: int) -> bool:
    """Winding over Python's integers, part by part: no overflow, no rounding."""
    for part in fence.parts:
        for turn in (-3_600_000_000, 0, 3_600_000_000):
            where = [winding(ring.tolist(), lon_e7 + turn, lat_e7) for ring in part]
            if where[0] != 0 and all(one != 1 for one in where[1:]):
                return True
    return False


def winding(ring: list[list[int]], x: int, y: int) -> int:
    """1 strictly inside, -1 on the ring, 0 outside."""
    turns = 0
    for (ax, ay), (bx, by) in zip(ring, ring[1:] + ring[:1], strict=True):
        side = (bx - ax) * (y - ay) - (x - ax) * (by - ay)
        if side == 0 and min(ax, bx) <= x <= max(ax, bx) and min(ay, by) <= y <= max(ay, by):
            return -1
        if ay <= y < by and side < 0:
            turns += 1
        elif by <= y < ay and side > 0:
            turns -= 1
    return 1 if turns else 0


def edge_distance_m(fence: Fence, lon_e7: int, lat_e7: int, steps: int = 400) -> float:
    """Geodesic distance to the nearest edge, by walking every edge (straight in degrees) and refining the best step."""
    best = math.inf
    for part in fence.parts:
        for ring in part:
            ends = np.vstack([ring, ring[:1]]) if fence.shape is Shape.POLYGON else ring
            for a, b in pairwise(ends):
                shares = np.linspace(0, 1, steps + 1)
                line = a + shares[:, None] * (b - a)
                lon = (line[:, 0] - lon_e7 + 1_800_000_000) % 3_600_000_000 - 1_800_000_000
                rough = np.hypot(lon * math.cos(math.radians(lat_e7 * 1e-7)), line[:, 1] - lat_e7)
                at = int(np.argmin(rough))
                low, high = shares[max(at - 2, 0)], shares[min(at + 2, steps)]
                for _ in range(40):
                    left, right = low + (high - low) / 3, high - (high - low) / 3
                    d_left, d_right = (metres(a + s * (b - a), lon_e7, lat_e7) for s in (left, right))
                    low, high = (low, right) if d_left <= d_right else (left, high)
                    best = min(best, d_left, d_right)
    return best


def metres(point: Any, lon_e7: int, lat_e7: int) -> float:
    lon = (point[0] * 1e-7 + 180) % 360 - 180
    return float(geodesic((point[1] * 1e-7, lon), (lat_e7 * 1e-7, lon_e7 * 1e-7)).m)


def true_distance_m(fence: Fence, lon_e7: int, lat_e7: int) -> float:
    """Signed distance of L7 by geopy."""
    if fence.shape is Shape.CIRCLE:
        return fence.radius_m - metres(fence.parts[0][0][0], lon_e7, lat_e7)
    distance = edge_distance_m(fence, lon_e7, lat_e7)
    if fence.shape is Shape.CORRIDOR:
        return fence.buffer_m - distance
    return distance if exactly_covers(fence, lon_e7, lat_e7) else -distance


def confidence_of(fence: Fence, distance_m: float, is_inside: bool, accuracy_m: float, r_m: float) -> Confidence:
    """L7 in four lines."""
    if fence.tiling:
        return Confidence.HIGH if is_inside else Confidence.OUT
    if distance_m >= accuracy_m:
        return Confidence.HIGH
    if is_inside and accuracy_m <= (fence.buffer_m / 0.45 if fence.shape is Shape.CORRIDOR else r_m / 0.78):
        return Confidence.MEDIUM
    return Confidence.LOW if is_inside or -distance_m < accuracy_m else Confidence.OUT
