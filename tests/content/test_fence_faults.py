"""One bad geofence or cell file for each fault, with the place and the words `check` answers (rules L2-L5, L9)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from sets import FENCE, SQUARE, collection, fence, write_set

from engine.content import inspect_content, load_content
from engine.errors import ContentError


def polygon(*rings: Any) -> dict[str, Any]:
    return {"type": "Polygon", "coordinates": list(rings)}


def square(lon: float, lat: float, side: float = 0.01) -> list[list[float]]:
    return [[lon, lat], [lon + side, lat], [lon + side, lat + side], [lon, lat + side], [lon, lat]]


def circle_of(count: int) -> list[list[float]]:
    angles = [2 * math.pi * at / count for at in range(count)]
    ring = [[116.4 + 0.1 * math.cos(angle), 39.9 + 0.1 * math.sin(angle)] for angle in angles]
    return [*ring, ring[0]]


POINT = {"type": "Point", "coordinates": [116.4, 39.9]}
LINE = {"type": "LineString", "coordinates": [[116.4, 39.9], [116.41, 39.9]]}
BOW_TIE = [[116.40, 39.90], [116.41, 39.91], [116.41, 39.90], [116.40, 39.91], [116.40, 39.90]]
DEEP: Any = [116.4, 39.9]
for _ in range(900):
    DEEP = [DEEP]

# name: (the file, path inside it, words of the fault)
FAULTS: dict[str, tuple[Any, str, str]] = {
    "not json": ('{"type": ', "$ (line 1)", "JSON text in UTF-8"),
    "nan": ('{"type":"FeatureCollection","features":[{"x":NaN}]}', "$ (line 1)", "JSON has no NaN"),
    "a depth bomb": ("[" * 100_000, "$ (line 1)", "JSON text"),
    "a list": ("[]", "$", "mapping"),
    "another type": ({"type": "Topology", "features": []}, "$.type", "'FeatureCollection'"),
    "no features": ({"type": "FeatureCollection"}, "$.features", "found nothing, expected a value"),
    "a feature that is none": (collection(7), "$.features[0]", "a Feature with properties"),
    "a projected crs": (
        collection(FENCE, crs={"type": "name", "properties": {"name": "urn:ogc:def:crs:EPSG::32649"}}),
        "$.crs",
        "ogr2ogr -t_srs EPSG:4326",
    ),
    "metres without a crs": (
        collection(fence(geometry=polygon(square(954219.9, 4442967.6, 100.0)))),
        "$.features[0].geometry.coordinates[0][0]",
        "these look like metres of a projection",
    ),
    "swapped axes": (
        collection(fence(geometry=polygon([[lat, lon] for lon, lat in SQUARE]))),
        "$.features[0].geometry.coordinates[0][0]",
        "longitude and latitude look swapped",
    ),
    "a latitude beyond the pole": (
        collection(fence(geometry=polygon(square(116.4, 89.995)))),
        "$.features[0].geometry.coordinates[0][2]",
        "latitude -90..90",
    ),
    "text for a coordinate": (
        collection(fence(geometry=polygon([["116.4", "39.9"], *SQUARE[1:4], ["116.4", "39.9"]]))),
        "$.features[0].geometry.coordinates[0]",
        "positions [longitude, latitude] in degrees",
    ),
    "a position without latitude": (
        collection(fence(geometry=polygon([[116.4], *SQUARE[1:]]))),
        "$.features[0].geometry.coordinates[0]",
        "positions [longitude, latitude]",
    ),
    "no coordinates": (
        collection(fence(geometry={"type": "Polygon"})),
        "$.features[0].geometry.coordinates",
        "a list of polygons",
    ),
    "coordinates far too deep": (
        collection(fence(geometry=polygon(DEEP))),
        "$.features[0].geometry.coordinates[0]",
        "positions [longitude, latitude]",
    ),
    "a collection of geometries": (
        collection(fence(geometry={"type": "GeometryCollection", "geometries": [POINT]})),
        "$.features[0].geometry.type",
        "a feature of its own",
    ),
    "an open ring": (
        collection(fence(geometry=polygon(SQUARE[:4]))),
        "$.features[0].geometry.coordinates[0]",
        "repeat the first position at the end",
    ),
    "a ring of two points": (
        collection(fence(geometry=polygon([[116.4, 39.9], [116.41, 39.9], [116.41, 39.9], [116.4, 39.9]]))),
        "$.features[0].geometry.coordinates[0]",
        "2 different positions",
    ),
    "a self-crossing ring": (
        collection(fence(geometry=polygon(BOW_TIE))),
        "$.features[0].geometry.coordinates",
        "Self-intersection at [116.4050000, 39.9050000]",
    ),
    "a hole outside its ring": (
        collection(fence(geometry=polygon(SQUARE, square(117.0, 39.9, 0.001)))),
        "$.features[0].geometry.coordinates",
        "a hole lies inside its outer ring",
    ),
    "overlapping parts": (
        collection(fence(geometry={"type": "MultiPolygon", "coordinates": [[SQUARE], [square(116.405, 39.905)]]})),
        "$.features[0].geometry.coordinates",
        "an outline that does not cross itself",
    ),
    "a ring around the pole": (
        collection(fence(geometry=polygon([[0, 80], [90, 80], [180, 80], [-90, 80], [0, 80]]))),
        "$.features[0].geometry.coordinates[0]",
        "without passing a pole",
    ),
    "too many vertices": (
        collection(fence(geometry=polygon(circle_of(10_001)))),
        "$.features[0].geometry.coordinates",
        "found 10,002 vertices, expected at most 10,000 vertices",
    ),
    "a circle without radius": (
        collection(fence(geometry=POINT)),
        "$.features[0].properties.radius_m",
        "a length in metres, for a Point",
    ),
    "a radius below nothing": (
        collection(fence(geometry=POINT, radius_m=-5)),
        "$.features[0].properties.radius_m",
        "greater than 0",
    ),
    "a corridor without buffer": (
        collection(fence(geometry=LINE)),
        "$.features[0].properties.buffer_m",
        "a length in metres, for a LineString",
    ),
    "a corridor of one point": (
        collection(fence(geometry={"type": "LineString", "coordinates": [[1, 2], [1, 2]]}, buffer_m=5)),
        "$.features[0].geometry.coordinates",
        "two different points",
    ),
    "a radius on a polygon": (
        collection(fence(radius_m=50)),
        "$.features[0].properties.radius_m",
        "it belongs to a Point",
    ),
    "neither geometry nor cells": (
        collection(fence(geometry=None)),
        "$.features[0].geometry",
        "a geometry, or `cells`",
    ),
    "an unknown cell": (
        collection(fence(geometry=None, cells=["460-01-1"])),
        "$.features[0].properties.cells[0]",
        "a cell of geofences/cells/*.csv",
    ),
    "no id": (collection(fence(id=None)), "$.features[0].properties.id", "found nothing"),
    "an id without owner": (collection(fence(id="mall")), "$.features[0].properties.id", "an id such as"),
    "an id that climbs": (collection(fence(id="../../etc")), "$.features[0].properties.id", "an id such as"),
    "a duplicate id": (collection(FENCE, FENCE), "$.features[1].properties.id", "an id used once"),
    "no name": (collection(fence(name=None)), "$.features[0].properties.name", "found nothing"),
    "a number for a name": (collection(fence(name=5)), "$.features[0].properties.name", "expected text"),
    "a misspelt property": (
        collection(fence(radius=5)),
        "$.features[0].properties.radius",
        "did you mean 'radius_m'?",
    ),
    "an unknown datum": (collection(fence(datum="gcj-02")), "$.features[0].properties.datum", "'gcj02'"),
    "an unknown datum of the file": (collection(FENCE, datum="mars"), "$.datum", "'gcj02'"),
    "hours nobody can read": (
        collection(fence(opening_hours="Mo-Fr 25:99")),
        "$.features[0].properties.opening_hours",
        "not understood from line:column 1:7",
    ),
    "an unknown time zone": (
        collection(fence(time_zone="Asia/Beijing")),
        "$.features[0].properties.time_zone",
        "an IANA time zone",
    ),
    "an instant nobody can read": (
        collection(fence(valid_from="next week")),
        "$.features[0].properties.valid_from",
        "a date or an instant",
    ),
    "a validity that ends before it begins": (
        collection(fence(valid_from="2026-02-01", valid_until="2026-01-01")),
        "$.features[0].properties.valid_until",
        "an instant after valid_from",
    ),
    "an unknown confidence": (
        collection(fence(min_confidence="SURE")),
        "$.features[0].properties.min_confidence",
        "'LOW', 'MEDIUM' or 'HIGH'",
    ),
    "a tiling of circles": (
        collection(fence(geometry=POINT, radius_m=5, tiling=True)),
        "$.features[0].properties.tiling",
        "tiling only of polygons",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_fence_file_is_refused_with_its_place_and_a_reason(name: str, tmp_path: Path) -> None:
    fences, path, words = FAULTS[name]
    inspection = inspect_content(*write_set(tmp_path, fences, scenarios=[]))
    assert inspection.content is None
    found = [fault for fault in inspection.errors if fault.file == "geofences/f.geojson"]
    assert [fault.path for fault in found] == [path]
    assert words in str(found[0])


CELLS = "cell,lon,lat,radius_m\n"
CELL_FAULTS = {
    "no header": ("460-1,116.4,39.9,500\n", "row 1", "a header with cell, lon, lat, radius_m"),
    "an unknown column": ("cell,lon,lat,radius_m,azimut\n", "row 1", "did you mean 'azimuth'?"),
    "a row too short": (CELLS + "460-1,116.4,39.9\n", "row 2", "4 values, as the header has"),
    "a longitude that is none": (CELLS + "460-1,east,39.9,500\n", "row 2, column lon", "a longitude"),
    "swapped axes": (CELLS + "460-1,39.9,116.4,500\n", "row 2, column lat", "look swapped"),
    "no radius": (CELLS + "460-1,116.4,39.9,\n", "row 2, column radius_m", "a radius in metres"),
    "a radius of nan": (CELLS + "460-1,116.4,39.9,nan\n", "row 2, column radius_m", "a radius in metres"),
    "no id": (CELLS + ",116.4,39.9,500\n", "row 2, column cell", "an id of 1 to 100 characters"),
    "an indoor nobody can read": (
        "cell,lon,lat,radius_m,indoor\n460-1,116.4,39.9,500,perhaps\n",
        "row 2, column indoor",
        "1 or 0",
    ),
    "an unknown datum": (
        "cell,lon,lat,radius_m,datum\n460-1,116.4,39.9,500,mars\n",
        "row 2, column datum",
        "wgs84, gcj02 or bd09",
    ),
}


@pytest.mark.parametrize("name", CELL_FAULTS)
def test_a_bad_cell_file_is_refused_with_its_row_and_a_reason(name: str, tmp_path: Path) -> None:  # L2
    cells, path, words = CELL_FAULTS[name]
    found = [
        fault
        for fault in inspect_content(*write_set(tmp_path, cells=cells)).errors
        if fault.file == "geofences/cells/c.csv"
    ]
    assert path in [fault.path for fault in found]
    assert words in " ".join(map(str, found))


def test_a_cell_in_two_rows_is_refused(tmp_path: Path) -> None:
    twice = CELLS + "460-1,116.4,39.9,500\n460-1,116.5,39.9,500\n"
    with pytest.raises(ContentError, match="cell '460-1' in 2 rows"):
        load_content(*write_set(tmp_path, cells=twice))


def test_all_faults_of_all_files_are_told_at_once(tmp_path: Path) -> None:
    fences = collection(fence(id="bad"), fence(id="beijing/a", geometry=polygon(BOW_TIE), name=7))
    with pytest.raises(ContentError) as caught:
        load_content(*write_set(tmp_path, fences, policy={"time_zone": "Mars"}, cells="x\n"))
    files = {fault.file for fault in caught.value.faults}
    assert {"geofences/f.geojson", "geofences/cells/c.csv", "scenarios/policy.yaml"} <= files
    paths = [fault.path for fault in caught.value.faults]
    assert "$.features[0].properties.id" in paths
    assert "$.features[1].properties.name" in paths
    assert "$.features[1].geometry.coordinates" in paths


def test_a_file_that_would_be_ignored_is_a_fault(tmp_path: Path) -> None:
    files = {"geofences/more.kml": "<kml/>", "scenarios/more.yml": "id: a/b", "geofences/README.md": "words"}
    files |= {"scenarios/s0.yaml~": "an editor's", "scenarios/.s0.yaml.swp": "leftovers"}
    inspection = inspect_content(*write_set(tmp_path, files=files))
    ignored = [fault.file for fault in inspection.errors]
    assert ignored == ["geofences/more.kml", "scenarios/more.yml"]


def test_missing_folders_are_faults_and_no_traceback(tmp_path: Path) -> None:
    inspection = inspect_content(tmp_path / "a", tmp_path / "b")
    assert [str(fault) for fault in inspection.errors if fault.path == "$"] == [
        f"a: $: found no such folder, expected a folder of content (looked for {tmp_path / 'a'})",
        f"b: $: found no such folder, expected a folder of content (looked for {tmp_path / 'b'})",
    ]


def test_a_hundred_faults_of_one_file_are_enough(tmp_path: Path) -> None:
    fences = collection(*(fence(id=f"beijing/f{at}", name=at) for at in range(150)))
    errors = inspect_content(*write_set(tmp_path, fences, scenarios=[])).errors
    assert len(errors) == 101
    assert errors[-1].found == "50 more faults"


def test_an_unknown_property_is_a_warning_and_a_drawing_style_is_none(tmp_path: Path) -> None:
    inspection = inspect_content(*write_set(tmp_path, collection(fence(operator="x", stroke="#fff"))))
    assert inspection.content is not None
    assert [(fault.severity, fault.path) for fault in inspection.faults] == [
        ("warning", "$.features[0].properties.operator")
    ]


def test_a_fence_far_from_all_others_with_its_axes_swapped_is_a_warning(tmp_path: Path) -> None:  # L3
    # In Helsinki both orders are possible degrees; only the company a fence keeps gives it away.
    places = [fence(id=f"uusimaa/p{at}", geometry=polygon(square(24.9 + at / 10, 60.1))) for at in range(5)]
    places.append(fence(id="uusimaa/q", geometry=polygon([[y, x] for x, y in square(24.9, 60.1)])))
    inspection = inspect_content(*write_set(tmp_path, collection(*places)))
    assert [(fault.severity, fault.path) for fault in inspection.faults] == [("warning", "$.features[5].geometry")]
    assert "look swapped" in inspection.faults[0].hint


def test_a_geojson_bomb_is_refused_quickly(tmp_path: Path) -> None:
    import time

    ring = json.dumps(circle_of(200_000))
    text = json.dumps(collection(fence(geometry=polygon("RING")))).replace('"RING"', ring)
    folders = write_set(tmp_path, text, scenarios=[])
    start = time.process_time()
    errors = inspect_content(*folders).errors
    assert "at most 10,000 vertices" in str(errors[0])
    assert time.process_time() - start < 5
