"""Where a point stands against a fence: Shapely for *covers*, geopy for metres (rules L2, L5, L6, L7).

Everything is asked one point and one fence at a time. Nothing here is shared with the engine but the enums of model.py
and the Fence definition that is read.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any

import shapely
from geopy.distance import geodesic
from shapely import Geometry, affinity

from engine.definitions import Fence, Shape
from engine.model import Confidence, Method

DEFAULT_ACCURACY_M = {"gps": 20.0, "wifi": 60.0, "cell": 1000.0, None: 1000.0, "unknown": 1000.0}
MEDIUM_DISC = 0.78  # L7: a <= R / 0.78
MEDIUM_CORRIDOR = 0.45  # L7: a <= buffer / 0.45


@dataclass(frozen=True)
class Evidence:
    """What one fix says about one fence. `is_cell`: the cell id alone decided, not the distance."""

    confidence: Confidence
    is_inside: bool
    distance_m: float
    is_cell: bool = False


def accuracy_of(accuracy_m: float | None, method: str | None) -> float:
    """L6: zero or none is unknown and takes the default of the method."""
    if accuracy_m is None or not accuracy_m > 0:
        return DEFAULT_ACCURACY_M[method]
    return float(accuracy_m)


def metres_per_degree(lat: float) -> tuple[float, float]:
    """Length of one degree of longitude and of latitude on the WGS-84 ellipsoid at this latitude."""
    a, f = 6378137.0, 1 / 298.257223563
    e2 = f * (2 - f)
    sine = math.sin(math.radians(lat))
    w = math.sqrt(1 - e2 * sine * sine)
    return (math.pi / 180 * a / w * math.cos(math.radians(lat)), math.pi / 180 * a * (1 - e2) / w**3)


def geodesic_m(lon_a: float, lat_a: float, lon_b: float, lat_b: float) -> float:
    return float(geodesic((lat_a, lon_a), (lat_b, lon_b)).meters)


class FenceShape:
    """One fence in Shapely, in units of 1e-7 degree: whole numbers, so that *covers* is asked about snapped values."""

    def __init__(self, fence: Fence) -> None:
        self.fence = fence
        self.geometry = self._geometry(fence)
        self.lon, self.lat = (0.0, 0.0)
        if self.geometry is not None:
            centre = self.geometry.centroid
            self.lon, self.lat = centre.x / 1e7, centre.y / 1e7
            shapely.prepare(self.geometry)

    @staticmethod
    def _geometry(fence: Fence) -> Geometry | None:
        if fence.shape is Shape.CELLS:
            return None
        if fence.shape is Shape.POLYGON:
            polygons = [
                shapely.Polygon(part[0].astype(float), [hole.astype(float) for hole in part[1:]])
                for part in fence.parts
            ]
            return polygons[0] if len(polygons) == 1 else shapely.union_all(polygons)
        vertices = fence.parts[0][0].astype(float)
        return shapely.Point(vertices[0]) if fence.shape is Shape.CIRCLE else shapely.LineString(vertices)

    @functools.cached_property
    def characteristic_m(self) -> float:
        """R of rule L7: the radius of the circle of equal area; a corridor's is its buffer."""
        if self.fence.shape is Shape.CIRCLE:
            return self.fence.radius_m
        if self.fence.shape is Shape.CORRIDOR:
            return self.fence.buffer_m
        metres_lon, metres_lat = metres_per_degree(self.lat)
        area = affinity.scale(self.geometry, metres_lon / 1e7, metres_lat / 1e7, origin=(0, 0)).area
        return math.sqrt(area / math.pi)

    def _near(self, lon_e7: int) -> float:
        """The longitude on the side of the antimeridian where the unwrapped fence lies."""
        turns = round((self.lon - lon_e7 / 1e7) / 360)
        return lon_e7 + turns * 360e7

    @functools.cached_property
    def bounds(self) -> tuple[float, float, float, float]:
        return tuple(self.geometry.bounds)

    @functools.cached_property
    def least_metres_lon(self) -> float:
        """A degree of longitude is nowhere shorter within one degree of latitude beside the fence."""
        return metres_per_degree(min(89.9, max(abs(self.bounds[1]), abs(self.bounds[3])) / 1e7 + 1.0))[0]

    def planar_gap_m(self, lon_e7: int, lat_e7: int) -> float:
        """A cheap underestimate of the distance to the drawn geometry; 0 where the bounding boxes touch."""
        x = self._near(lon_e7)
        low_x, low_y, high_x, high_y = self.bounds
        gap_lat = max(low_y - lat_e7, lat_e7 - high_y, 0.0) / 1e7
        gap_lon = max(low_x - x, x - high_x, 0.0) / 1e7
        return 0.98 * max(gap_lat * 110_500, gap_lon * self.least_metres_lon if gap_lat < 1 else 0.0)

    def edge_m(self, lon_e7: int, lat_e7: int) -> float:
        """Geodesic distance from the point to the nearest point of the outline, the centre or the line.

        Edges are straight in degrees (L4), so the nearest point is sought in a frame scaled to metres at the
        query and measured on the ellipsoid; the search is repeated with the scale at the middle of both.
        """
        x, y = self._near(lon_e7), float(lat_e7)
        outline = self.geometry.boundary if self.fence.shape is Shape.POLYGON else self.geometry
        if self.fence.shape is Shape.CIRCLE:
            return geodesic_m(x / 1e7, y / 1e7, outline.x / 1e7, outline.y / 1e7)
        best = math.inf
        lat = y / 1e7
        for _ in range(2):
            metres_lon, metres_lat = metres_per_degree(lat)
            moved = affinity.affine_transform(
                outline, [metres_lon / 1e7, 0, 0, metres_lat / 1e7, -x * metres_lon / 1e7, -y * metres_lat / 1e7]
            )
            nearest = shapely.shortest_line(shapely.Point(0, 0), moved).coords[1]
            near_lon, near_lat = x / 1e7 + nearest[0] / metres_lon, y / 1e7 + nearest[1] / metres_lat
            best = min(best, geodesic_m(x / 1e7, y / 1e7, near_lon, near_lat))
            lat = (y / 1e7 + near_lat) / 2
        return best

    @functools.lru_cache(maxsize=200_000)  # noqa: B019  (one shape lives as long as the test run)
    def signed_m(self, lon_e7: int, lat_e7: int) -> float:
        """Signed distance to the boundary, + inside (L7)."""
        edge = self.edge_m(lon_e7, lat_e7)
        if self.fence.shape is Shape.CIRCLE:
            return self.fence.radius_m - edge
        if self.fence.shape is Shape.CORRIDOR:
            return self.fence.buffer_m - edge
        return edge if self.covers(lon_e7, lat_e7) else -edge

    def covers(self, lon_e7: int, lat_e7: int) -> bool:
        """L5: the boundary belongs to the fence."""
        if self.fence.shape is Shape.POLYGON:
            return bool(self.geometry.covers(shapely.Point(self._near(lon_e7), float(lat_e7))))
        return self.signed_m(lon_e7, lat_e7) >= 0

    def segment_touches(self, lon_a_e7: int, lat_a_e7: int, lon_b_e7: int, lat_b_e7: int) -> bool:
        """P8: whether the straight way between two points touches the fence; in degrees, for discs in local metres."""
        ends = [(self._near(lon_a_e7), float(lat_a_e7)), (self._near(lon_b_e7), float(lat_b_e7))]
        low_x, low_y, high_x, high_y = self.bounds
        margin_y = self.reach_m() / 110_000 * 1e7
        margin_x = self.reach_m() / self.least_metres_lon * 1e7
        if max(ends[0][0], ends[1][0]) < low_x - margin_x or min(ends[0][0], ends[1][0]) > high_x + margin_x:
            return False
        if max(ends[0][1], ends[1][1]) < low_y - margin_y or min(ends[0][1], ends[1][1]) > high_y + margin_y:
            return False
        way = shapely.LineString(ends)
        if self.fence.shape is Shape.POLYGON:
            return bool(self.geometry.intersects(way))
        metres_lon, metres_lat = metres_per_degree(self.lat)
        scale = [metres_lon / 1e7, 0, 0, metres_lat / 1e7, 0, 0]
        gap = affinity.affine_transform(way, scale).distance(affinity.affine_transform(self.geometry, scale))
        return bool(gap <= self.reach_m())

    def reach_m(self) -> float:
        return self.fence.radius_m + self.fence.buffer_m

    def evidence(
        self, lon_e7: int, lat_e7: int, accuracy_m: float, cell: str | None, is_visited: bool = True
    ) -> Evidence | None:
        """What a fix says; None where it says nothing (a fix without a cell, asked about a cell set).

        Where no visit is open, OUT is all that matters of a fix far away, and its distance is left nan.
        """
        if cell is not None and cell in self.fence.cells:
            return Evidence(Confidence.HIGH, True, math.inf, is_cell=True)
        if self.geometry is None:
            return None if cell is None else Evidence(Confidence.OUT, False, -math.inf, is_cell=True)
        if not is_visited and self.planar_gap_m(lon_e7, lat_e7) > accuracy_m + self.reach_m() + 10.0:
            return Evidence(Confidence.OUT, False, math.nan)
        signed = self.signed_m(lon_e7, lat_e7)
        inside = self.covers(lon_e7, lat_e7)
        return Evidence(self.confidence(signed, inside, accuracy_m), inside, signed)

    def confidence(self, signed_m: float, is_inside: bool, accuracy_m: float) -> Confidence:
        if signed_m >= accuracy_m:
            return Confidence.HIGH
        limit = MEDIUM_CORRIDOR if self.fence.shape is Shape.CORRIDOR else MEDIUM_DISC
        if is_inside and accuracy_m <= self.characteristic_m / limit:
            return Confidence.MEDIUM
        if signed_m <= -accuracy_m:
            return Confidence.OUT
        return Confidence.LOW


def method_name(method: Any) -> str | None:
    """The name of a Method or a text; unknown is None."""
    if method is None or method == Method.UNKNOWN:
        return None
    return method.name.lower() if isinstance(method, Method) else str(method)
