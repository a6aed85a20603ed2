"""Where things are in the city: the content's fences and cells as arrays of points."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.definitions import Content, Fence, Shape
from engine.model import DEGREE_E7

METRES_PER_DEGREE = 111_320.0
ERRANDS = ("supermarket", "shop", "store", "restaurant", "market", "gym", "bookstore", "hospital", "school")


@dataclass(frozen=True, slots=True)
class Places:
    """Row i of every array is fences[i].

    lon, lat   float64[F]  a point inside, degrees
    inner_m    float64[F]  how far from that point people stand inside
    outer_m    float64[F]  within this distance somebody may be inside; homes and desks keep away
    use        list of rows per way of spending time: leisure, cinema, errand
    members    per fence the rows of its member cells
    """

    fences: tuple[Fence, ...]
    lon: np.ndarray
    lat: np.ndarray
    inner_m: np.ndarray
    outer_m: np.ndarray
    use: dict[str, np.ndarray]
    members: tuple[np.ndarray, ...]
    cell_ids: tuple[str, ...]
    cell_lon: np.ndarray
    cell_lat: np.ndarray
    cell_outdoor: np.ndarray  # rows of cells that serve the street

    def near(self, lon: float, lat: float, use: str, within_m: float, rng: np.random.Generator) -> int:
        """Choose a place for `use` near a point, nearer ones likelier; -1 where there is none at all."""
        rows = self.use[use]
        if not len(rows):
            return -1
        away_m = distance_m(lon, lat, self.lon[rows], self.lat[rows])
        weight = np.exp(-away_m / within_m) + 1e-9
        return int(rng.choice(rows, p=weight / weight.sum()))

    def is_free(self, lon: float, lat: float) -> bool:
        """Whether a point lies well outside every place."""
        return bool(np.all(distance_m(lon, lat, self.lon, self.lat) > self.outer_m + 60.0))


def places_of(content: Content) -> Places:
    """Read the places out of content; a fence that is nothing but cells stands where they stand."""
    row_of_cell = {cell: row for row, cell in enumerate(content.cells.ids)}
    cell_lon, cell_lat = content.cells.lon_e7 / DEGREE_E7, content.cells.lat_e7 / DEGREE_E7
    rows = []
    members = []
    for fence in content.fences:
        mine = np.array([row_of_cell[cell] for cell in fence.cells if cell in row_of_cell], np.int64)
        members.append(mine)
        if fence.shape is Shape.CELLS and len(mine):
            rows.append((float(cell_lon[mine].mean()), float(cell_lat[mine].mean()), 60.0, 0.0))
        else:
            rows.append((fence.lon, fence.lat, *_reach_m(fence)))
    table = np.array(rows, np.float64).reshape(-1, 4)
    kinds = [fence.kind for fence in content.fences]
    area = np.array(
        [fence.shape is not Shape.CORRIDOR and table[row, 3] < 3_000 for row, fence in enumerate(content.fences)]
    )
    use = {
        "cinema": _rows(kinds, area, lambda kind: "cinema" in kind),
        "errand": _rows(kinds, area, lambda kind: any(word in kind for word in ERRANDS)),
        "leisure": _rows(kinds, area, lambda kind: "cinema" not in kind and not any(word in kind for word in ERRANDS)),
    }
    every = np.flatnonzero(area)
    use = {name: chosen if len(chosen) else every for name, chosen in use.items()}
    outdoor = np.flatnonzero(~content.cells.indoor)
    return Places(
        fences=content.fences,
        lon=table[:, 0],
        lat=table[:, 1],
        inner_m=table[:, 2],
        outer_m=table[:, 3],
        use=use,
        members=tuple(members),
        cell_ids=content.cells.ids,
        cell_lon=cell_lon,
        cell_lat=cell_lat,
        cell_outdoor=outdoor if len(outdoor) else np.arange(len(content.cells.ids)),
    )


def distance_m(lon: float, lat: float, lons: np.ndarray, lats: np.ndarray) -> np.ndarray:
    """Plane distance in metres: right to a part in a thousand within a city."""
    away: np.ndarray = np.hypot((lons - lon) * math.cos(math.radians(lat)), lats - lat) * METRES_PER_DEGREE
    return away


def moved(lon: float, lat: float, east_m: float, north_m: float) -> tuple[float, float]:
    return lon + east_m / (METRES_PER_DEGREE * math.cos(math.radians(lat))), lat + north_m / METRES_PER_DEGREE


def _rows(kinds: list[str], allowed: np.ndarray, wanted) -> np.ndarray:  # type: ignore[no-untyped-def]
    return np.array([row for row, kind in enumerate(kinds) if allowed[row] and wanted(kind)], np.int64)


def _reach_m(fence: Fence) -> tuple[float, float]:
    """Return (how far from its point people stand inside, how far it reaches)."""
    if fence.shape is Shape.CIRCLE:
        return 0.5 * fence.radius_m, fence.radius_m
    vertices = np.concatenate([ring for part in fence.parts for ring in part]) / DEGREE_E7
    away_m = distance_m(fence.lon, fence.lat, vertices[:, 0], vertices[:, 1])
    if fence.shape is Shape.CORRIDOR:
        return 0.3 * fence.buffer_m, fence.buffer_m
    return 0.3 * float(away_m.min()), float(away_m.max())
