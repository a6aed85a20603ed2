"""Other formats become geofences that load, or faults at their place; nothing is lost on the way."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.content.cells import load_cells
from engine.content.faults import Faults
from engine.content.fences import load_fences
from engine.content.files import ReadLimits
from engine.content.importing import ImportChoices, Imported, collection_bytes, import_drafts
from engine.content.readers import CSV_COLUMNS, READERS
from engine.definitions import Fence, Shape

SQUARE_WKT = "POLYGON ((116.4 39.9, 116.41 39.9, 116.41 39.91, 116.4 39.91, 116.4 39.9))"


def read(file_format: str, text: str | bytes, **choices: Any) -> tuple[Imported, Faults]:
    faults = Faults()
    data = text.encode() if isinstance(text, str) else text
    chosen = ImportChoices(**{"kind": "mall", "owner": "beijing", **choices})
    return import_drafts(READERS[file_format](data, "in", faults), chosen, "in", faults), faults


def load(folder: Path, imported: Imported) -> list[Fence]:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "f.geojson").write_bytes(collection_bytes(imported.features, "note"))
    faults = Faults()
    limits = ReadLimits()
    fences = load_fences(folder, "Asia/Shanghai", load_cells(folder, limits, faults), limits, faults)
    assert faults.all() == []
    return fences


KML = """<?xml version="1.0" encoding="UTF-8"?>
<kml xmlns="http://www.opengis.net/kml/2.2"><Document><Folder>
 <Placemark><name>一号 &amp; 二号</name>
  <ExtendedData>
   <Data name="kind"><value>cinema</value></Data>
   <Data name="opening_hours"><value>10:00-22:00</value></Data>
  </ExtendedData>
  <MultiGeometry>
   <Polygon>
    <outerBoundaryIs><LinearRing><coordinates>
     116.4,39.9,0 116.41,39.9,0 116.41,39.91,0 116.4,39.91,0 116.4,39.9,0
    </coordinates></LinearRing></outerBoundaryIs>
    <innerBoundaryIs><LinearRing><coordinates>
     116.402,39.902 116.404,39.902 116.404,39.904 116.402,39.902
    </coordinates></LinearRing></innerBoundaryIs>
   </Polygon>
   <Polygon>
    <outerBoundaryIs><LinearRing><coordinates>
     116.5,39.9 116.51,39.9 116.51,39.91 116.5,39.9
    </coordinates></LinearRing></outerBoundaryIs>
   </Polygon>
  </MultiGeometry></Placemark>
 <Placemark><name>Gate</name><Point><coordinates>116.3,39.9,12</coordinates></Point></Placemark>
 <Placemark><name>Street</name><LineString><coordinates>116.3,39.9 116.31,39.9</coordinates></LineString></Placemark>
</Folder></Document></kml>"""


def test_kml_placemarks_become_fences(tmp_path: Path) -> None:
    imported, faults = read("kml", KML, radius_m=50, buffer_m=20)
    assert faults.all() == []
    fences = load(tmp_path, imported)
    by_name = {fence.name: fence for fence in fences}
    both = by_name["一号 & 二号"]
    assert (both.kind, both.opening_hours) == ("cinema", "10:00-22:00")
    assert [len(part) for part in both.parts] == [2, 1]
    assert (by_name["Gate"].shape, by_name["Gate"].radius_m, by_name["Gate"].id) == (Shape.CIRCLE, 50, "beijing/gate")
    assert (by_name["Street"].shape, by_name["Street"].buffer_m) == (Shape.CORRIDOR, 20)


HOSTILE_XML = [
    '<!DOCTYPE a [<!ENTITY x "xxxxxxxxxx"><!ENTITY y "&x;&x;&x;&x;">]><kml><Placemark>&y;</Placemark></kml>',
    '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><kml><Placemark><name>&x;</name></Placemark></kml>',
    "<kml><Placemark>",
    "<kml/>",
    "<kml><Placemark><Point><coordinates>here</coordinates></Point></Placemark></kml>",
    "<kml><Placemark><name>x</name></Placemark></kml>",
]


@pytest.mark.parametrize("text", HOSTILE_XML)
def test_hostile_or_empty_kml_is_a_fault(text: str) -> None:
    imported, faults = read("kml", text, radius_m=5)
    assert imported.features == []
    assert faults.error_count == 1


def test_wkt_lines_become_fences(tmp_path: Path) -> None:
    text = f"# places\n\nEast Mall\t{SQUARE_WKT}\nSRID=4326;{SQUARE_WKT}\nMULTIPOINT ((1 2), (3 4))\n"
    imported, faults = read("wkt", text, radius_m=9)
    assert faults.all() == []
    fences = load(tmp_path, imported)
    assert [fence.shape for fence in fences].count(Shape.CIRCLE) == 2
    assert fences[0].id == "beijing/east-mall"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("POLYGON ((1 2, 3", "a geometry as WKT"),
        ("SRID=3857;POINT (1 2)", "SRID=4326 or none"),
        ("POLYGON EMPTY", "an empty geometry"),
        ("POLYGON ((39.9 116.4, 39.9 116.41, 39.91 116.41, 39.9 116.4))", "look swapped"),
        ("GEOMETRYCOLLECTION (POINT (1 2))", "a feature of its own"),
        ("POINT (1 2)", "a length in metres, for a Point"),
    ],
)
def test_bad_wkt_is_a_fault_at_its_line(text: str, words: str) -> None:
    imported, faults = read("wkt", f"\n{text}\n")
    assert imported.features == []
    assert words in str(faults.all()[0])
    assert "line 2" in faults.all()[0].path


def test_csv_rows_become_fences(tmp_path: Path) -> None:
    text = (
        "id,name,kind,tags,lon,lat,radius_m,wkt,min_confidence,tiling\n"
        "beijing/a,甲,cinema,film;new,116.4,39.9,45.5,,HIGH,\n"
        f',乙,,,,,,"{SQUARE_WKT}",,true\n'
        f',乙,,,,,,"{SQUARE_WKT}",,\n'
    )
    imported, faults = read("csv", text)
    assert faults.all() == []
    fences = load(tmp_path, imported)
    assert fences[0].id == "beijing/a"
    assert (fences[0].radius_m, fences[0].tags) == (45.5, {"film", "new"})
    assert [fence.name for fence in fences] == ["甲", "乙", "乙"]
    assert len({fence.id for fence in fences}) == 3
    assert sum(fence.tiling for fence in fences) == 1


@pytest.mark.parametrize(
    ("text", "where", "words"),
    [
        ("name,longitude\nx,1\n", "row 1", "known columns"),
        ("name,lon\nx\n", "row 2", "2 values, as the header has"),
        ("name,lon,lat\nx,one,2\n", "row 2, lon", "a number"),
        ("name,kind\nx,y\n", "row 2", "`lon` and `lat`, or `wkt`, or `cells`"),
        ("name,lon,lat,radius_m\nx,1,2,-3\n", "row 2.properties.radius_m", "greater than 0"),
    ],
)
def test_a_bad_csv_row_is_a_fault_at_its_row(text: str, where: str, words: str) -> None:
    _, faults = read("csv", text)
    assert faults.all()[0].path == where
    assert words in str(faults.all()[0])


def test_owntracks_waypoints_become_circles(tmp_path: Path) -> None:
    waypoints = [
        {
            "_type": "waypoint",
            "desc": "Home",
            "lat": 39.9,
            "lon": 116.4,
            "rad": 120,
            "tst": 1437552714,
            "rid": "6da9cf",
        },
        {"_type": "waypoint", "desc": "beacon:CA271EAE-5FA8-4E80-8F08-2A302A95A959:1:2", "lat": 0, "lon": 0, "rad": 0},
        {"_type": "waypoint", "desc": "spot", "lat": 39.9, "lon": 116.4, "rad": 0},
    ]
    for text in (
        json.dumps({"_type": "waypoints", "waypoints": waypoints}),
        json.dumps(waypoints),
        "\n".join(map(json.dumps, waypoints)),
    ):
        imported, faults = read("owntracks", text)
        assert [fault.severity for fault in faults.all()] == ["warning", "warning"]
        (home,) = load(tmp_path, imported)
        assert (home.id, home.name, home.radius_m) == ("beijing/6da9cf", "Home", 120)


def test_an_id_depends_on_the_place_alone_where_the_name_gives_none() -> None:
    first, _ = read("wkt", f"西单\t{SQUARE_WKT}")
    again, _ = read("wkt", f"# moved down\n西单\t{SQUARE_WKT}")
    assert first.features[0]["properties"]["id"] == again.features[0]["properties"]["id"]
    assert first.features[0]["properties"]["id"].startswith("beijing/mall-")


# --- real files -----------------------------------------------------------------------------------------------------


def real(shared_data: Path, name: str) -> bytes:
    import gzip

    path = shared_data / "polygons" / name
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


REAL: dict[str, tuple[int, dict[str, Any]]] = {
    "helsinki_osm_buildings.geojson.gz": (418, {"time_zone": "Europe/Helsinki"}),
    "helsinki_osm_pois.geojson.gz": (68, {"radius_m": 30, "time_zone": "Europe/Helsinki", "kind_property": "shop"}),
    "monaco_osm_buildings.geojson.gz": (1231, {"time_zone": "Europe/Monaco"}),
    "monaco_osm_pois.geojson.gz": (92, {"radius_m": 30, "time_zone": "Europe/Monaco"}),
    "bangalore_malls_osm.geojson": (31, {"radius_m": 50}),
    "nyc_census_tracts.geojson.gz": (2166, {}),
    "us_counties_unemployment.geojson.gz": (3220, {"name_property": "NAME"}),
    "guangzhou_districts_echarts-cities.geojson.gz": (11, {"datum": "gcj02", "repair": True}),
    "shenzhen_districts_echarts-cities.geojson.gz": (8, {"datum": "gcj02", "repair": True}),
}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.long] if name.startswith("us_") else []) for name in REAL]
)
def test_real_outlines_load_whole_and_keep_their_area(name: str, shared_data: Path, tmp_path: Path) -> None:
    count, choices = REAL[name]
    data = real(shared_data, name)
    imported, faults = read("geojson", data, **choices)
    assert faults.all() == []
    fences = load(tmp_path, imported)
    assert len(fences) == count
    source = [shapely.geometry.shape(one["geometry"]) for one in json.loads(data)["features"]]
    area = sum(shapely.make_valid(one, method="structure").area for one in source)
    found = [
        shapely.Polygon(shell / 1e7, [hole / 1e7 for hole in holes])
        for f in fences
        if f.shape == Shape.POLYGON
        for shell, *holes in f.parts
    ]
    assert shapely.is_valid(found).all()
    # Snapping moves a corner by 5 mm; leaving GCJ-02 stretches by less than a thousandth.
    assert sum(one.area for one in found) == pytest.approx(area, rel=1e-3 if "datum" in choices else 1e-4)


def test_districts_that_cross_themselves_are_refused_unless_repair_is_asked_for(shared_data: Path) -> None:
    imported, faults = read("geojson", real(shared_data, "shenzhen_districts_echarts-cities.geojson.gz"), datum="gcj02")
    assert imported.features == []
    assert all("crosses or touches itself" in fault.hint for fault in faults.all())
    assert faults.error_count == 8


def test_what_cannot_be_mended_is_told_and_the_rest_can_be_kept(shared_data: Path, tmp_path: Path) -> None:
    # Rounded to four decimals, many of these buildings have collapsed to a line or a point.
    imported, faults = read("geojson", real(shared_data, "gugong_webgis.geojson.gz"), repair=True)
    assert faults.error_count == 430
    assert imported.repaired == 79
    assert {fault.expected for fault in faults.errors()[:-1]} <= {
        "3 or more, 1e-7 degree apart",
        "an outline that does not cross itself, with its holes inside",
    }
    assert len(load(tmp_path, imported)) == 1101 - 430


def test_a_projected_file_is_never_read_as_degrees(shared_data: Path) -> None:  # L3
    data = real(shared_data, "tsinghua_campus_epsg32649.geojson")
    imported, faults = read("geojson", data)
    assert imported.features == []
    assert [(fault.path, fault.hint.partition(":")[0]) for fault in faults.all()] == [("$.crs", "reproject it")]
    undeclared = json.loads(data)
    del undeclared["crs"]
    imported, faults = read("geojson", json.dumps(undeclared))
    assert imported.features == []
    assert "metres of a projection" in faults.all()[0].hint


def test_every_tract_of_a_tiling_stays_beside_its_neighbours(shared_data: Path, tmp_path: Path) -> None:  # L5
    imported, _ = read("geojson", real(shared_data, "nyc_census_tracts.geojson.gz"))
    for feature in imported.features:
        feature["properties"]["tiling"] = True
    fences = load(tmp_path, imported)
    assert all(fence.tiling for fence in fences)
    drawn = np.array([shapely.MultiPolygon([shapely.Polygon(s, h) for s, *h in fence.parts]) for fence in fences])
    left, right = shapely.STRtree(drawn).query(drawn, predicate="intersects")
    pairs = left < right
    overlap = shapely.intersection(drawn[left[pairs]], drawn[right[pairs]])
    # Where one tract has a vertex on the other's edge, snapping leaves a sliver; none is wider than the grid.
    width = 2 * shapely.area(overlap) / np.maximum(shapely.length(overlap), 1)
    assert width.max() < 1.0


# --- there and back -------------------------------------------------------------------------------------------------

LON = st.integers(-1_799_000_000, 1_799_000_000)
LAT = st.integers(-850_000_000, 850_000_000)
SIDE = st.integers(1_000, 200_000)
NAMES = (
    st.text(st.characters(codec="utf-8", categories=("L", "N", "Zs", "P")), min_size=1, max_size=30)
    .map(lambda text: " ".join(text.replace("\t", " ").split()))
    .filter(lambda text: text and not text.startswith("#"))
)


@st.composite
def places(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a place: name, kind of shape, and its rings in degrees x 1e7."""
    lon, lat, side = draw(LON), draw(LAT), draw(SIDE)
    corners = [(0, 0), (side, 0), (side, side), (side // 2, side // 2), (0, side)]
    ring = [(lon + x, lat + y) for x, y in corners]
    hole = [(lon + x, lat + y) for x, y in ((side // 2, side // 8), (side // 2, side // 4), (side // 4, side // 8))]
    kind = draw(st.sampled_from(["polygon", "holed", "point", "line"]))
    radius_m = draw(st.integers(1, 5000))
    return {"name": draw(NAMES), "kind": kind, "ring": ring, "hole": hole, "radius_m": radius_m}


def degrees(position: tuple[int, int]) -> str:
    return f"{position[0] / 1e7:.7f} {position[1] / 1e7:.7f}"


def as_wkt(place: dict[str, Any]) -> str:
    closed = [*place["ring"], place["ring"][0]]
    rings = ["(" + ", ".join(map(degrees, closed)) + ")"]
    if place["kind"] == "holed":
        rings.append("(" + ", ".join(map(degrees, [*place["hole"], place["hole"][0]])) + ")")
    if place["kind"] == "point":
        return f"POINT ({degrees(place['ring'][0])})"
    if place["kind"] == "line":
        return f"LINESTRING ({degrees(place['ring'][0])}, {degrees(place['ring'][1])})"
    return f"POLYGON ({', '.join(rings)})"


def as_kml(place: dict[str, Any]) -> str:
    def text(ring: list[tuple[int, int]]) -> str:
        return " ".join(degrees(position).replace(" ", ",") for position in ring)

    name = f"<name>{escape(place['name'])}</name>"
    if place["kind"] == "point":
        body = f"<Point><coordinates>{text(place['ring'][:1])}</coordinates></Point>"
    elif place["kind"] == "line":
        body = f"<LineString><coordinates>{text(place['ring'][:2])}</coordinates></LineString>"
    else:

        def boundary(kind: str, ring: list[tuple[int, int]]) -> str:
            closed = text([*ring, ring[0]])
            return f"<{kind}><LinearRing><coordinates>{closed}</coordinates></LinearRing></{kind}>"

        body = boundary("outerBoundaryIs", place["ring"])
        if place["kind"] == "holed":
            body += boundary("innerBoundaryIs", place["hole"])
        body = f"<Polygon>{body}</Polygon>"
    data = f'<ExtendedData><Data name="radius_m"><value>{place["radius_m"]}</value></Data></ExtendedData>'
    return f"<Placemark>{name}{data if place['kind'] == 'point' else ''}{body}</Placemark>"


def as_csv_row(place: dict[str, Any]) -> list[str]:
    row = dict.fromkeys(CSV_COLUMNS, "")
    row["name"] = place["name"]
    row["wkt"] = as_wkt(place)
    if place["kind"] == "point":
        row["radius_m"] = str(place["radius_m"])
    return list(row.values())


def check_same(fences: list[Fence], given_places: list[dict[str, Any]], same_radius: bool) -> None:
    found = sorted(fences, key=lambda fence: (fence.name, fence.state_hash))
    expected = sorted(given_places, key=lambda place: place["name"])
    assert [fence.name for fence in found] == [place["name"] for place in expected]
    for name in {place["name"] for place in expected}:
        mine = sorted(key for fence in found if fence.name == name for key in [geometry_key(fence)])
        theirs = sorted(expected_key(place) for place in expected if place["name"] == name)
        assert mine == theirs
    if same_radius:
        radii = sorted(fence.radius_m for fence in fences if fence.shape == Shape.CIRCLE)
        assert radii == sorted(place["radius_m"] for place in given_places if place["kind"] == "point")


def geometry_key(fence: Fence) -> str:
    return repr([[sorted(map(tuple, ring.tolist())) for ring in part] for part in fence.parts])


def expected_key(place: dict[str, Any]) -> str:
    rings = {"point": [place["ring"][:1]], "line": [place["ring"][:2]], "polygon": [place["ring"]]}
    return repr([[sorted(ring) for ring in rings.get(place["kind"], [place["ring"], place["hole"]])]])


@settings(max_examples=30, deadline=None)
@given(st.lists(places(), min_size=1, max_size=6))
def test_what_is_written_in_each_format_loads_as_the_same_places(
    tmp_path_factory: pytest.TempPathFactory, given_places: list[dict[str, Any]]
) -> None:
    folder = tmp_path_factory.mktemp("there-and-back")
    wkt = "\n".join(f"{place['name']}\t{as_wkt(place)}" for place in given_places)
    kml = f"<kml>{''.join(map(as_kml, given_places))}</kml>"
    table = io.StringIO()
    csv.writer(table).writerows([CSV_COLUMNS, *map(as_csv_row, given_places)])
    for file_format, text in (("wkt", wkt), ("kml", kml), ("csv", table.getvalue())):
        imported, faults = read(file_format, text, radius_m=77, buffer_m=5)
        assert faults.all() == [], file_format
        fences = load(folder / file_format, imported)
        check_same(fences, given_places, same_radius=file_format != "wkt")
        # Once more through our own format: nothing may move a second time.
        again, faults = read("geojson", (folder / file_format / "f.geojson").read_bytes())
        assert faults.all() == []
        assert [f.state_hash for f in load(folder / "again", again)] == [f.state_hash for f in fences]
