"""Compile fences into the arrays of `engine.geometry_kernel` (cold; content has checked every shape)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from engine.definitions import Fence, Shape
from engine.distance_kernel import EARTH_TURN_E7, EQUATOR_M, METRES_PER_E7_LAT_MIN, RADIANS_PER_E7, SQUARED_ECCENTRICITY
from engine.geometry_kernel import CELLS, CHUNK, CIRCLE, CORRIDOR, FENCE, POLYGON, FenceArrays
from engine.locate.seams import unwrap_parts

EDGES_PER_CHUNK = 32
HALF_TURN_E7 = EARTH_TURN_E7 // 2
POLE_E7 = EARTH_TURN_E7 // 4
BESIDE_BOX_M = 10_000.0
"""`lon_metres` holds for points up to this far beside the bounding box."""

SHAPES = {Shape.POLYGON: POLYGON, Shape.CIRCLE: CIRCLE, Shape.CORRIDOR: CORRIDOR, Shape.CELLS: CELLS}


def compile_fences(fences: Sequence[Fence]) -> FenceArrays:
    """Turn a fence set, sorted by id, into arrays; row i is fences[i].

    Raises ValueError for a shape wider than the globe, which content refuses.
    """
    row = np.zeros(len(fences), FENCE)
    row["shape"] = [SHAPES[fence.shape] for fence in fences]
    row["min_confidence"] = [fence.min_confidence for fence in fences]
    row["has_cells"] = [bool(fence.cells) for fence in fences]
    row["extent_m"] = [
        fence.radius_m if fence.shape is Shape.CIRCLE else fence.buffer_m if fence.shape is Shape.CORRIDOR else 0.0
        for fence in fences
    ]
    row["tiling"] = tiling_sets(fences)
    paths = [path for i, fence in enumerate(fences) for path in paths_of(i, fence)]
    if not paths:
        return FenceArrays(row, np.zeros(0, CHUNK), np.zeros((0, 2), np.int32))

    # One long array of all paths; every further step is one numpy call over all fences.
    owner = np.array([path[0] for path in paths])
    role = np.array([path[1] for path in paths], np.float64)
    length = np.array([len(path[2]) for path in paths])
    vertex = np.concatenate([path[2] for path in paths]).astype(np.int64, copy=False)
    start = np.concatenate([[0], np.cumsum(length)])
    fences_with_path, first_path = np.unique(owner, return_index=True)

    low = np.minimum.reduceat(vertex, start[first_path])
    high = np.maximum.reduceat(vertex, start[first_path])
    if len(wide := np.flatnonzero(high[:, 0] - low[:, 0] > EARTH_TURN_E7)):
        raise ValueError(f"fence {fences[fences_with_path[wide[0]]].id} is wider than the globe")
    middle = (low + high) // 2
    vertex -= np.repeat(middle[np.searchsorted(fences_with_path, owner)], length, axis=0)
    place(row, fences_with_path, low, high, middle)
    measure(row, vertex, middle[np.searchsorted(fences_with_path, owner), 1], start, owner, role)

    edges = np.where(row["shape"][owner] == CIRCLE, 0, length - 1)
    chunk, chunk_owner = cut_into_chunks(vertex, start, edges, owner)
    row["chunk_start"] = np.searchsorted(chunk_owner, np.arange(len(row)), side="left")
    row["chunk_end"] = np.searchsorted(chunk_owner, np.arange(len(row)), side="right")
    single = np.flatnonzero(row["chunk_end"] - row["chunk_start"] == 1)
    row["first_edge"][single] = chunk["first"][row["chunk_start"][single]]
    row["last_edge"][single] = chunk["last"][row["chunk_start"][single]]
    return FenceArrays(row, chunk, np.ascontiguousarray(vertex, np.int32))


def paths_of(i: int, fence: Fence) -> Iterator[tuple[int, int, np.ndarray]]:
    """Yield (row, +1 shell or line | -1 hole, vertices); rings are closed by repeating their first vertex."""
    if fence.shape is Shape.POLYGON:
        for part in unwrap_parts(fence.parts):
            for role, ring in zip([1] + [-1] * len(part), part, strict=False):
                yield i, role, np.concatenate([ring, ring[:1]])
    elif fence.shape is not Shape.CELLS:
        yield i, 1, fence.parts[0][0]


def tiling_sets(fences: Sequence[Fence]) -> list[int]:
    """Number the tiling sets from 1: tiling fences of one kind are one set (L5)."""
    sets: dict[str, int] = {}
    return [
        sets.setdefault(fence.kind, len(sets) + 1) if fence.tiling and fence.shape is not Shape.CELLS else 0
        for fence in fences
    ]


def place(row: np.ndarray, at: np.ndarray, low: np.ndarray, high: np.ndarray, middle: np.ndarray) -> None:
    """Fill origins and bounding boxes; circles and corridors grow by their extent."""
    row["origin_lon_e7"][at] = (middle[:, 0] + HALF_TURN_E7) % EARTH_TURN_E7 - HALF_TURN_E7
    row["origin_lat_e7"][at] = middle[:, 1]
    extent_m = row["extent_m"][at]
    rise = np.where(extent_m > 0, np.ceil(extent_m / METRES_PER_E7_LAT_MIN) + 1, 0)
    south = np.maximum(low[:, 1] - rise, -POLE_E7)
    north = np.minimum(high[:, 1] + rise, POLE_E7)
    farthest = np.maximum(np.abs(south), np.abs(north))
    narrowest = lon_metres(farthest) * 0.999
    reaches_pole = (farthest > POLE_E7 - 1_000_000) & (extent_m > 0)
    widen = np.where(extent_m > 0, np.ceil(extent_m / np.maximum(narrowest, 1e-9)) + 1, 0)
    west = np.where(reaches_pole, -HALF_TURN_E7, np.maximum(low[:, 0] - middle[:, 0] - widen, -HALF_TURN_E7))
    east = np.where(reaches_pole, HALF_TURN_E7, np.minimum(high[:, 0] - middle[:, 0] + widen, HALF_TURN_E7))
    row["min_x"][at] = west
    row["max_x"][at] = east
    row["min_y"][at] = south - middle[:, 1]
    row["max_y"][at] = north - middle[:, 1]
    beside = np.minimum(farthest + BESIDE_BOX_M / METRES_PER_E7_LAT_MIN, POLE_E7)
    is_wide = east - west > HALF_TURN_E7
    row["lon_metres"][at] = np.where(is_wide, 0.0, lon_metres(beside) * 0.999)


def lon_metres(lat_e7: np.ndarray) -> np.ndarray:
    """Metres per e7 of longitude."""
    lat = lat_e7 * RADIANS_PER_E7
    root = np.sqrt(1 - SQUARED_ECCENTRICITY * np.sin(lat) ** 2)
    metres: np.ndarray = np.maximum(RADIANS_PER_E7 * EQUATOR_M * np.cos(lat) / root, 0.0)
    return metres


def measure(
    row: np.ndarray, vertex: np.ndarray, origin_lat: np.ndarray, start: np.ndarray, owner: np.ndarray, role: np.ndarray
) -> None:
    """Fill R and the largest MEDIUM accuracy (L7); areas on the ellipsoid by the equal-area cylinder."""
    sine = np.sin((vertex[:, 1] + np.repeat(origin_lat, np.diff(start))) * RADIANS_PER_E7)
    e = np.sqrt(SQUARED_ECCENTRICITY)
    height = sine / (1 - SQUARED_ECCENTRICITY * sine**2) + np.log((1 + e * sine) / (1 - e * sine)) / (2 * e)
    height *= EQUATOR_M * (1 - SQUARED_ECCENTRICITY) / 2
    # Heights relative to each path's first vertex keep the digits of small rings.
    height -= np.repeat(height[start[:-1]], np.diff(start))
    strip = np.zeros(len(vertex))
    strip[:-1] = np.diff(vertex[:, 0]) * RADIANS_PER_E7 * EQUATOR_M * (height[:-1] + height[1:]) / 2
    strip[start[1:] - 1] = 0.0
    area = np.bincount(owner, role * np.abs(np.add.reduceat(strip, start[:-1])), len(row))
    shape = row["shape"]
    is_polygon = shape == POLYGON
    row["characteristic_m"] = np.where(is_polygon, np.sqrt(np.maximum(area, 0.0) / np.pi), row["extent_m"])
    row["medium_m"] = row["characteristic_m"] / np.where(shape == CORRIDOR, 0.45, 0.78)


def cut_into_chunks(
    vertex: np.ndarray, start: np.ndarray, edges: np.ndarray, owner: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Cut every path into runs of edges with their bounding boxes; return CHUNK[C] and the fence of each."""
    count = -(-edges // EDGES_PER_CHUNK)
    path = np.repeat(np.arange(len(edges)), count)
    nth = np.arange(len(path)) - np.repeat(np.cumsum(count) - count, count)
    chunk = np.zeros(len(path), CHUNK)
    chunk["first"] = start[path] + nth * EDGES_PER_CHUNK
    chunk["last"] = np.minimum(chunk["first"] + EDGES_PER_CHUNK, start[path] + edges[path])
    if len(chunk):
        # Neighbouring runs share a vertex, so every second slice of reduceat is the one wanted.
        bounds = np.stack([chunk["first"], chunk["last"] + 1], axis=1).ravel()
        padded = np.concatenate([vertex, vertex[-1:]])
        for axis, name in enumerate("xy"):
            chunk[f"min_{name}"] = np.minimum.reduceat(padded[:, axis], bounds)[::2]
            chunk[f"max_{name}"] = np.maximum.reduceat(padded[:, axis], bounds)[::2]
    return chunk, owner[path]
