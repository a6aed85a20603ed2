"""GeoJSON geometry to checked rings in degrees x 1e7, WGS-84, snapped and unwrapped (rules L3, L4)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import shapely

from engine.content.faults import Shown
from engine.definitions import Shape
from engine.model import DEGREE_E7, Datum

FULL_TURN_E7 = 360 * DEGREE_E7
HALF_TURN_E7 = 180 * DEGREE_E7

_SHAPES = {
    "Polygon": Shape.POLYGON,
    "MultiPolygon": Shape.POLYGON,
    "Point": Shape.CIRCLE,
    "LineString": Shape.CORRIDOR,
}


class GeometryRefused(Exception):
    """A geometry that cannot be a fence; `path` is below the feature's geometry."""

    def __init__(self, path: str, found: Any, expected: str, hint: str = "") -> None:
        self.path = path
        self.found = found
        self.expected = expected
        self.hint = hint
        super().__init__(expected)


@dataclass(frozen=True, slots=True)
class Outline:
    """A checked geometry; `parts` as in engine.definitions.Fence; lon, lat: a point to draw it at, in degrees."""

    shape: Shape
    parts: tuple[tuple[np.ndarray, ...], ...]
    lon: float
    lat: float


def outline_of(geometry: Any, datum: Datum, most_vertices: int) -> Outline:
    """Check one GeoJSON geometry and bring it into the engine's form; raise GeometryRefused.

    Winding order is never a fault. Positions may carry an altitude, which is dropped. Rings whose edge jumps over 180
    degrees are unwrapped, polygons split at the antimeridian (RFC 7946, 3.1.9) are joined again.
    """
    if not isinstance(geometry, dict) or str(geometry.get("type")) not in _SHAPES:
        found = geometry.get("type", "no type") if isinstance(geometry, dict) else geometry
        hint = "give every part of a collection a feature of its own" if "Collection" in str(found) else ""
        raise GeometryRefused(".type", found, "Polygon, MultiPolygon, Point, LineString or null", hint)
    kind = geometry["type"]
    coordinates = geometry.get("coordinates")
    if kind == "Point":
        centre = _positions([coordinates], "", datum)
        return _drawn(Shape.CIRCLE, ((centre,),), centre[0])
    if kind == "LineString":
        line = _unwrapped(_without_repeats(_positions(coordinates, ".coordinates", datum)))
        _check_count(len(line), most_vertices)
        if len(line) < 2:
            raise GeometryRefused(".coordinates", Shown("one point"), "two different points or more")
        return _drawn(Shape.CORRIDOR, ((line,),), line[len(line) // 2])
    many: list[Any] = coordinates if kind == "MultiPolygon" else [coordinates]  # type: ignore[assignment]
    if not many or not _is_nested(many, 3):
        raise GeometryRefused(".coordinates", many, "a list of polygons, each a list of rings, the outer one first")
    _check_count(sum(len(ring) for rings in many for ring in rings), most_vertices)
    parts = []
    for number, rings in enumerate(many):
        where = f".coordinates[{number}]" if kind == "MultiPolygon" else ".coordinates"
        if not rings:
            raise GeometryRefused(where, rings, "a list of rings, the outer one first")
        parts.append(tuple(_ring(ring, f"{where}[{at}]", datum) for at, ring in enumerate(rings)))
    return _polygon(_holes_beside_their_shell(parts), geometry)


def _is_nested(value: Any, depth: int) -> bool:
    """Say whether this is a list of lists of lists, down to `depth`."""
    return isinstance(value, list) and (depth == 1 or all(_is_nested(child, depth - 1) for child in value))


def _check_count(count: int, most: int) -> None:
    if count > most:
        hint = "simplify the outline (1 m is finer than any fix) or split the fence"
        raise GeometryRefused(".coordinates", Shown(f"{count:,} vertices"), f"at most {most:,} vertices", hint)


def _ring(ring: Any, path: str, datum: Datum) -> np.ndarray:
    """Read one ring as int64[V, 2], open, unwrapped."""
    positions = _positions(ring, path, datum)
    if len(positions) < 4 or (positions[0] != positions[-1]).any():
        found = Shown(f"{len(positions)} positions" + (", the last unlike the first" if len(positions) > 3 else ""))
        hint = "repeat the first position at the end"
        raise GeometryRefused(path, found, "a closed ring of 4 positions or more", hint)
    open_ring = _without_repeats(positions[:-1])
    while len(open_ring) > 1 and (open_ring[0] == open_ring[-1]).all():
        open_ring = open_ring[:-1]
    if len(open_ring) < 3:
        raise GeometryRefused(path, Shown(f"{len(open_ring)} different positions"), "3 or more, 1e-7 degree apart")
    unwrapped = _unwrapped(open_ring)
    if abs(int(unwrapped[-1, 0]) - int(unwrapped[0, 0])) > HALF_TURN_E7:
        raise GeometryRefused(path, Shown("a ring around a pole"), "a ring that closes without passing a pole")
    return unwrapped


def _positions(raw: Any, path: str, datum: Datum) -> np.ndarray:
    """Read positions as int64[N, 2] of lon_e7, lat_e7 in WGS-84; raise where they cannot be degrees."""
    where = path or ".coordinates"
    if not isinstance(raw, list) or not raw:
        raise GeometryRefused(where, raw, "positions [longitude, latitude] in degrees")
    if not all(_is_position(position) for position in raw):
        raise GeometryRefused(where, raw, "positions [longitude, latitude] in degrees")
    degrees = np.array([(float(position[0]), float(position[1])) for position in raw])
    lon, lat = degrees[:, 0], degrees[:, 1]
    wrong = ~((np.abs(lon) <= 180) & (np.abs(lat) <= 90))
    if wrong.any():
        at = int(np.argmax(wrong))
        spot = f"{where}[{at}]" if path else where
        found = Shown(f"[{lon[at]:g}, {lat[at]:g}]")
        if np.abs(degrees).max() > 1000:
            hint = "these look like metres of a projection: ogr2ogr -t_srs EPSG:4326 OUT.geojson IN.geojson"
        elif (np.abs(lon) <= 90).all() and (np.abs(lat) <= 180).all():
            hint = "longitude and latitude look swapped: GeoJSON puts longitude first"
        else:
            hint = ""
        raise GeometryRefused(spot, found, "longitude -180..180, then latitude -90..90", hint)
    if datum != Datum.WGS84:
        lon, lat = to_wgs84(lon, lat, datum)
    snapped: np.ndarray = np.rint(np.column_stack((lon, lat)) * DEGREE_E7).astype(np.int64)
    return snapped


def _is_position(value: Any) -> bool:
    """Say whether this is a list that begins with two numbers; an integer of any size would not fit a float."""
    return (
        isinstance(value, list)
        and len(value) >= 2
        and all(type(axis) is float or (type(axis) is int and abs(axis) < 1 << 62) for axis in value[:2])
    )


def to_wgs84(lon: np.ndarray, lat: np.ndarray, datum: Datum) -> tuple[np.ndarray, np.ndarray]:
    """Convert degrees float64[N] of another datum, point by point."""
    # Imported here so that content in WGS-84 loads without the compiler.
    from engine.datum_kernel import convert_to_wgs84

    lon, lat = lon.copy(), lat.copy()
    convert_to_wgs84(lon, lat, int(datum))  # type: ignore[no-untyped-call]
    return lon, lat


def _without_repeats(positions: np.ndarray) -> np.ndarray:
    keep = np.ones(len(positions), bool)
    keep[1:] = (positions[1:] != positions[:-1]).any(axis=1)
    return positions[keep]


def _unwrapped(positions: np.ndarray) -> np.ndarray:
    """Carry longitudes on over the antimeridian, so that no edge jumps by more than half a turn."""
    steps = np.diff(positions[:, 0])
    if not (np.abs(steps) > HALF_TURN_E7).any():
        return positions
    turns = np.zeros(len(positions), np.int64)
    turns[1:] = np.cumsum(np.where(steps > HALF_TURN_E7, -1, np.where(steps < -HALF_TURN_E7, 1, 0)))
    turns -= turns.min()
    unwrapped = positions.copy()
    unwrapped[:, 0] += turns * FULL_TURN_E7
    return unwrapped


def _holes_beside_their_shell(parts: list[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
    """Shift each hole by whole turns into the range of longitudes of its shell."""
    moved = []
    for shell, *holes in parts:
        low, high = shell[:, 0].min(), shell[:, 0].max()
        rings = [shell]
        for hole in holes:
            for shift in (0, FULL_TURN_E7, -FULL_TURN_E7):
                if low <= hole[:, 0].min() + shift and hole[:, 0].max() + shift <= high:
                    hole = hole + np.array([shift, 0])
                    break
            rings.append(hole)
        moved.append(tuple(rings))
    return moved


def _polygon(parts: list[tuple[np.ndarray, ...]], geometry: Any) -> Outline:
    parts = _joined_at_the_antimeridian(parts)
    drawn = _shapely(parts)
    if not drawn.is_valid:
        drawn = _mended(drawn, geometry)
        parts = _rings_of(drawn)
    spot = drawn.representative_point()
    return _drawn(Shape.POLYGON, tuple(parts), np.array([round(spot.x), round(spot.y)]))


def _shapely(parts: list[tuple[np.ndarray, ...]]) -> Any:
    """Build the shape in units of 1e-7 degree; such integers are exact in float64."""
    polygons = [shapely.Polygon(shell, holes) for shell, *holes in parts]
    return polygons[0] if len(polygons) == 1 else shapely.MultiPolygon(polygons)


def _mended(drawn: Any, geometry: Any) -> Any:
    """Snap-round a shape that only snapping made invalid; raise where the outline was wrong before."""
    if _raw(geometry).is_valid:
        fixed = shapely.set_precision(shapely.make_valid(drawn, method="structure", keep_collapsed=False), 1.0)
        if fixed.is_valid and not fixed.is_empty and fixed.geom_type in ("Polygon", "MultiPolygon"):
            return fixed
    what, _, spot = shapely.is_valid_reason(drawn).partition("[")
    place = ""
    if spot:
        x, y = (float(axis) / DEGREE_E7 for axis in spot.rstrip("]").split()[:2])
        place = f" at [{x:.7f}, {y:.7f}]"
    if what.startswith("Hole"):
        hint = "a hole lies inside its outer ring; put separate outlines into a MultiPolygon"
    elif "self" in what.lower():
        hint = "the outline crosses or touches itself there: put its corners in order"
    else:
        hint = "parts may neither overlap nor lie within each other: join them, or make the inner one a hole"
    expected = "an outline that does not cross itself, with its holes inside"
    raise GeometryRefused(".coordinates", Shown(what.strip() + place), expected, hint)


def _raw(geometry: Any) -> Any:
    """Draw a checked geometry as it was before snapping."""
    many = geometry["coordinates"] if geometry["type"] == "MultiPolygon" else [geometry["coordinates"]]
    flat = [[[position[:2] for position in ring] for ring in rings] for rings in many]
    return shapely.MultiPolygon([shapely.Polygon(shell, holes) for shell, *holes in flat])


def _rings_of(drawn: Any) -> list[tuple[np.ndarray, ...]]:
    return [
        tuple(np.rint(np.asarray(ring.coords)[:-1]).astype(np.int64) for ring in (part.exterior, *part.interiors))
        for part in shapely.get_parts(drawn)
    ]


def _joined_at_the_antimeridian(parts: list[tuple[np.ndarray, ...]]) -> list[tuple[np.ndarray, ...]]:
    """Join what RFC 7946 asks writers to split: parts that end at 180 and parts that begin at -180."""
    highs = [int(rings[0][:, 0].max()) for rings in parts]
    lows = [int(rings[0][:, 0].min()) for rings in parts]
    if HALF_TURN_E7 not in highs or -HALF_TURN_E7 not in lows:
        return parts
    turn = np.array([FULL_TURN_E7, 0])
    moved = [
        tuple(ring + turn for ring in rings) if high < 0 else rings for rings, high in zip(parts, highs, strict=True)
    ]
    pieces = [shapely.Polygon(shell, holes) for shell, *holes in moved]
    if not all(piece.is_valid for piece in pieces):
        return moved
    return _rings_of(shapely.normalize(shapely.union_all(pieces)))


def _drawn(shape: Shape, parts: tuple[tuple[np.ndarray, ...], ...], spot: np.ndarray) -> Outline:
    lon_e7 = (int(spot[0]) + HALF_TURN_E7) % FULL_TURN_E7 - HALF_TURN_E7
    return Outline(shape, parts, lon_e7 / DEGREE_E7, int(spot[1]) / DEGREE_E7)
