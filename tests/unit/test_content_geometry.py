"""GeoJSON geometry to rings: snapping, datums, the antimeridian (rules L3, L4)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely

from engine.content.geometry import GeometryRefused, Outline, outline_of
from engine.definitions import Shape
from engine.model import Datum


def outline(kind: str, coordinates: Any, datum: Datum = Datum.WGS84) -> Outline:
    return outline_of({"type": kind, "coordinates": coordinates}, datum, 10_000)


def drawn(found: Outline) -> Any:
    polygons = [shapely.Polygon(shell, holes) for shell, *holes in found.parts]
    return shapely.MultiPolygon(polygons)


def test_positions_are_snapped_to_the_seventh_decimal_and_altitudes_dropped() -> None:
    found = outline("Polygon", [[[0.00000004, 0, 5], [1.00000006, 0, 5], [1, 1, 5], [0.00000004, 0, 5]]])
    assert found.shape == Shape.POLYGON
    assert found.parts[0][0].tolist() == [[0, 0], [10_000_001, 0], [10_000_000, 10_000_000]]
    assert found.parts[0][0].dtype == np.int64


def test_repeated_positions_are_dropped() -> None:
    found = outline("Polygon", [[[0, 0], [0, 0], [1, 0], [1, 0], [1, 1], [0, 0], [0, 0]]])
    assert len(found.parts[0][0]) == 3


@pytest.mark.parametrize("ring", [[[0, 0], [1, 0], [1, 1], [0, 0]], [[0, 0], [1, 1], [1, 0], [0, 0]]])
def test_winding_order_is_never_a_fault(ring: list[list[float]]) -> None:
    hole = [[0.6, 0.3], [0.7, 0.3], [0.7, 0.4], [0.6, 0.3]]
    for inner in (hole, hole[::-1]):
        assert len(outline("Polygon", [ring, inner]).parts[0]) == 2


def test_a_ring_over_the_antimeridian_is_unwrapped() -> None:
    found = outline("Polygon", [[[179, -17], [-179, -17], [-179, -16], [179, -16], [179, -17]]])
    lon = found.parts[0][0][:, 0]
    assert (lon.min(), lon.max()) == (1_790_000_000, 1_810_000_000)
    assert drawn(found).area == 2e7 * 1e7
    assert abs(found.lon) >= 179


def test_a_hole_over_the_antimeridian_follows_its_shell() -> None:
    shell = [[179, -17], [-179, -17], [-179, -16], [179, -16], [179, -17]]
    hole = [[-179.6, -16.6], [-179.4, -16.6], [-179.4, -16.4], [-179.6, -16.4], [-179.6, -16.6]]
    found = outline("Polygon", [shell, hole])
    assert found.parts[0][1][:, 0].min() == 1_804_000_000


def test_parts_split_at_the_antimeridian_are_joined() -> None:  # RFC 7946, 3.1.9
    east = [[[179, -17], [180, -17], [180, -16], [179, -16], [179, -17]]]
    west = [[[-180, -17], [-179, -17], [-179, -16], [-180, -16], [-180, -17]]]
    found = outline("MultiPolygon", [east, west])
    whole = outline("Polygon", [[[179, -17], [-179, -17], [-179, -16], [179, -16], [179, -17]]])
    assert len(found.parts) == 1
    assert drawn(found).equals(drawn(whole))


def test_a_corridor_over_the_antimeridian_is_unwrapped() -> None:
    found = outline("LineString", [[179.9, 0], [-179.9, 0]])
    assert found.parts[0][0][:, 0].tolist() == [1_799_000_000, 1_801_000_000]


def test_a_circle_is_its_centre() -> None:
    found = outline("Point", [116.4, 39.9])
    assert found.shape == Shape.CIRCLE
    assert found.parts[0][0].tolist() == [[1_164_000_000, 399_000_000]]
    assert (found.lon, found.lat) == (116.4, 39.9)


def test_the_place_to_draw_a_polygon_at_is_inside_it() -> None:
    horseshoe = [[0, 0], [3, 0], [3, 3], [2, 3], [2, 1], [1, 1], [1, 3], [0, 3], [0, 0]]
    found = outline("Polygon", [horseshoe])
    assert shapely.Polygon(horseshoe).contains(shapely.Point(found.lon, found.lat))


def test_a_shape_that_only_snapping_breaks_is_mended() -> None:
    # The spike is narrower than the grid: its sides coincide after snapping.
    ring = [[0, 0], [1, 0], [1, 1], [0.50000002, 1], [0.5, 2], [0.49999998, 1], [0, 1], [0, 0]]
    assert shapely.Polygon(ring).is_valid
    found = outline("Polygon", [ring])
    assert drawn(found).is_valid
    assert drawn(found).area == pytest.approx(1e14, rel=1e-6)


def test_a_gcj02_outline_moves_by_what_the_published_pairs_say(shared_data: Path) -> None:
    pairs = json.loads((shared_data / "vectors" / "gcj02_small.json").read_text())["wgs2gcj"]["rows"]
    for wgs_lat, wgs_lon, gcj_lat, gcj_lon in pairs:
        ring = [[gcj_lon, gcj_lat], [gcj_lon + 0.01, gcj_lat], [gcj_lon, gcj_lat + 0.01], [gcj_lon, gcj_lat]]
        first = outline("Polygon", [ring], Datum.GCJ02).parts[0][0][0]
        assert np.abs(first - np.array([wgs_lon, wgs_lat]) * 1e7).max() < 20  # 2e-6 degree


def test_a_bd09_circle_moves_back_by_both_shifts(shared_data: Path) -> None:
    # Published BD-09 pairs invert in one pass and are up to 40 m off; the forward shift is the oracle.
    from engine.datum_kernel import gcj02_to_bd09

    for wgs_lat, wgs_lon, gcj_lat, gcj_lon in json.loads((shared_data / "vectors" / "gcj02_small.json").read_text())[
        "wgs2gcj"
    ]["rows"]:
        bd_lon, bd_lat = gcj02_to_bd09(gcj_lon, gcj_lat)
        centre = outline("Point", [bd_lon, bd_lat], Datum.BD09).parts[0][0][0]
        assert np.abs(centre - np.array([wgs_lon, wgs_lat]) * 1e7).max() < 20


def test_a_fault_says_where_below_the_geometry() -> None:
    good = [[[0, 0], [1, 0], [1, 1], [0, 0]]]
    with pytest.raises(GeometryRefused) as caught:
        outline("MultiPolygon", [good, [[[5, 0], [6, 0], [6, 95], [5, 0]]]])
    assert caught.value.path == ".coordinates[1][0][2]"
