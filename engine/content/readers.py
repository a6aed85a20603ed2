"""Readers of other formats: bytes to drafts. What cannot be read becomes a fault at its place, the rest is kept."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from typing import Any
from xml.etree.ElementTree import Element, ParseError

import orjson
import shapely
from defusedxml import DefusedXmlException
from defusedxml.ElementTree import fromstring

from engine.content.faults import Faults, Shown, did_you_mean
from engine.content.fence_model import FENCE_FIELDS
from engine.content.fences import is_geographic
from engine.content.importing import Draft, split

CSV_COLUMNS = (*FENCE_FIELDS, "lon", "lat", "wkt")
_NUMBERS = ("radius_m", "buffer_m", "enter_delay_s", "exit_delay_s", "lon", "lat")
_LISTS = ("tags", "cells")


def read_kml(data: bytes, file: str, faults: Faults) -> Iterator[Draft]:
    """Read every Placemark: polygons with holes, lines, points; ExtendedData become properties."""
    try:
        root = fromstring(data)
    except (ParseError, DefusedXmlException, ValueError) as error:
        what = "entities or a document type" if isinstance(error, DefusedXmlException) else str(error)
        faults.add(file, "$", Shown(what), "KML (unzip a .kmz first)")
        return
    placemarks = [element for element in root.iter() if _tag(element) == "Placemark"]
    if not placemarks:
        faults.add(file, "$", Shown("no Placemark"), "KML with at least one Placemark")
    for number, placemark in enumerate(placemarks, 1):
        properties: dict[str, Any] = {}
        for element in placemark.iter():
            if _tag(element) in ("Data", "SimpleData") and element.get("name"):
                value = element.find("{*}value")
                text = element.text if value is None else value.text
                properties[str(element.get("name"))] = (text or "").strip()
        name = placemark.find("{*}name")
        if name is not None and name.text:
            properties["name"] = name.text.strip()
        place = f"Placemark {number}"
        properties = _typed(properties, file, place, faults)
        yield from _placemark(placemark, place, properties, file, faults)


def _placemark(
    placemark: Element, place: str, properties: dict[str, Any], file: str, faults: Faults
) -> Iterator[Draft]:
    polygons: list[Any] = []
    count = 0
    for element in placemark.iter():
        kind = _tag(element)
        try:
            if kind == "Polygon":
                outer = element.find("{*}outerBoundaryIs/{*}LinearRing/{*}coordinates")
                inner = element.findall("{*}innerBoundaryIs/{*}LinearRing/{*}coordinates")
                polygons.append([_coordinates(ring) for ring in (outer, *inner)])
            elif kind in ("Point", "LineString"):
                positions = _coordinates(element.find("{*}coordinates"))
                at = positions[0] if kind == "Point" else positions
                count += 1
                yield Draft(place, {"type": kind, "coordinates": at}, dict(properties))
        except (ValueError, IndexError):
            faults.add(file, place, Shown(f"a {kind} without readable coordinates"), "lon,lat[,altitude] ...")
            return
    if polygons:
        is_one = len(polygons) == 1
        geometry = {
            "type": "Polygon" if is_one else "MultiPolygon",
            "coordinates": polygons[0] if is_one else polygons,
        }
        yield Draft(place, geometry, dict(properties))
    elif not count:
        faults.add(file, place, Shown("no geometry"), "a Polygon, LineString or Point")


def _tag(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _coordinates(element: Element | None) -> list[list[float]]:
    text = (element.text or "") if element is not None else ""
    positions = [[float(axis) for axis in position.split(",")[:2]] for position in text.split()]
    if not positions or any(len(position) != 2 for position in positions):
        raise ValueError("no coordinates")
    return positions


def read_wkt(data: bytes, file: str, faults: Faults) -> Iterator[Draft]:
    """Read one geometry a line, `WKT` or `name<TAB>WKT`; empty lines and lines that begin with # are passed over."""
    for number, line in enumerate(_text(data, file, faults).splitlines(), 1):
        name, tab, text = line.rpartition("\t")
        if not text.strip() or line.startswith("#"):
            continue
        place = f"line {number}"
        for geometry in _from_wkt(text, file, place, faults):
            yield Draft(place, geometry, {"name": name.strip()} if tab else {})


def _from_wkt(text: str, file: str, place: str, faults: Faults) -> list[dict[str, Any]]:
    srid, semicolon, rest = text.strip().partition(";")
    if semicolon and srid.upper().startswith("SRID="):
        if srid[5:].strip() not in ("4326", "4490"):
            faults.add(file, place, srid, "SRID=4326 or none", "reproject it first: ST_Transform(geom, 4326)")
            return []
        text = rest
    try:
        drawn = shapely.from_wkt(text.strip())
    except shapely.errors.ShapelyError as error:
        faults.add(file, place, Shown(str(error).partition("\n")[0]), "a geometry as WKT, longitude first")
        return []
    if drawn.is_empty:
        faults.add(file, place, Shown("an empty geometry"), "a geometry that encloses something")
        return []
    # By way of JSON, because shapely's own mapping holds tuples where GeoJSON has lists.
    return list(split(orjson.loads(shapely.to_geojson(shapely.force_2d(drawn)))))


def read_csv(data: bytes, file: str, faults: Faults) -> Iterator[Draft]:
    """Read rows with the columns CSV_COLUMNS: `lon`, `lat` and `radius_m`, or `wkt`, or `cells` place them.

    `tags` and `cells` hold several words separated by semicolons.
    """
    try:
        rows = list(csv.reader(io.StringIO(_text(data, file, faults), newline=""), strict=True))
    except csv.Error as error:
        faults.add(file, "$", Shown(str(error)), "comma-separated values")
        return
    header = [name.strip() for name in rows[0]] if rows else []
    unknown = [name for name in header if name not in CSV_COLUMNS]
    for name in unknown:
        faults.add(file, "row 1", Shown(f"the column {name!r}"), "known columns", did_you_mean(name, CSV_COLUMNS))
    if unknown or not header:
        return
    for number, row in enumerate(rows[1:], 2):
        if not row:
            continue
        place = f"row {number}"
        if len(row) != len(header):
            faults.add(file, place, Shown(f"{len(row)} values"), f"{len(header)} values, as the header has")
            continue
        given = {name: value.strip() for name, value in zip(header, row, strict=True) if value.strip()}
        before = faults.error_count
        properties = _typed(given, file, place, faults)
        if faults.error_count > before:
            continue
        lon, lat, wkt = (properties.pop(name, None) for name in ("lon", "lat", "wkt"))
        if wkt is not None:
            geometries: list[Any] = _from_wkt(wkt, file, place, faults)
        elif lon is not None and lat is not None:
            geometries = [{"type": "Point", "coordinates": [lon, lat]}]
        elif properties.get("cells"):
            geometries = [None]
        else:
            faults.add(file, place, Shown("no place"), "`lon` and `lat`, or `wkt`, or `cells`")
            continue
        for geometry in geometries:
            yield Draft(place, geometry, dict(properties))


def read_owntracks(data: bytes, file: str, faults: Faults) -> Iterator[Draft]:
    """Read waypoints as OwnTracks exports them: one object with `waypoints`, a list, or one object a line."""
    try:
        try:
            raw = orjson.loads(data)
        except orjson.JSONDecodeError:
            raw = [orjson.loads(line) for line in data.splitlines() if line.strip()]
    except orjson.JSONDecodeError as error:
        faults.add(file, f"line {error.lineno}", Shown(error.msg), "OwnTracks waypoints as JSON")
        return
    if isinstance(raw, dict):
        raw = raw.get("waypoints", [raw])
    waypoints = raw if isinstance(raw, list) else []
    if not waypoints:
        faults.add(file, "$", Shown("no waypoints"), "an OwnTracks export with waypoints")
    for number, waypoint in enumerate(waypoints):
        place = f"$.waypoints[{number}]"
        if not isinstance(waypoint, dict) or waypoint.get("_type") != "waypoint":
            faults.add(file, place, waypoint, "an object with _type waypoint")
            continue
        name = str(waypoint.get("desc", "")).strip()
        radius_m = waypoint.get("rad", 0)
        if waypoint.get("uuid") or name.count(":") >= 2:
            faults.warn(file, place, Shown("a beacon"), "a region with a place", "left out: it has no place")
            continue
        if not isinstance(radius_m, int | float) or radius_m <= 0:
            faults.warn(
                file, place, Shown("a waypoint without radius"), "a region", "left out: OwnTracks does not watch it"
            )
            continue
        properties = {"name": name, "id": waypoint.get("rid"), "radius_m": float(radius_m)}
        yield Draft(place, {"type": "Point", "coordinates": [waypoint.get("lon"), waypoint.get("lat")]}, properties)


def read_geojson(data: bytes, file: str, faults: Faults) -> Iterator[Draft]:
    """Read features of any GeoJSON file; points and lines of a multi geometry become places of their own."""
    try:
        raw = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        faults.add(file, f"line {error.lineno}", Shown(error.msg), "GeoJSON")
        return
    if not isinstance(raw, dict) or not is_geographic(raw.get("crs"), file, faults):
        return
    features = raw.get("features", [raw]) if raw.get("type") in ("FeatureCollection", "Feature") else None
    if not isinstance(features, list):
        faults.add(file, "$.type", raw.get("type"), "FeatureCollection or Feature")
        return
    for number, feature in enumerate(features):
        place = f"$.features[{number}]"
        geometry = feature.get("geometry") if isinstance(feature, dict) else None
        if not isinstance(geometry, dict):
            faults.add(file, place, Shown("no geometry"), "a Feature with a geometry")
            continue
        properties = feature.get("properties") if isinstance(feature.get("properties"), dict) else {}
        if "id" not in properties and isinstance(feature.get("id"), str | int):
            properties = {**properties, "id": str(feature["id"])}
        for part in split(geometry):
            yield Draft(place, part, dict(properties))


def _text(data: bytes, file: str, faults: Faults) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        faults.add(file, f"$ (byte {error.start})", Shown("bytes that are not UTF-8"), "text in UTF-8")
        return ""


def _typed(given: dict[str, Any], file: str, place: str, faults: Faults) -> dict[str, Any]:
    """Turn text values of our own properties into what they are."""
    typed: dict[str, Any] = dict(given)
    for name in _NUMBERS:
        if name in typed:
            try:
                typed[name] = float(typed[name])
            except ValueError:
                faults.add(file, f"{place}, {name}", typed.pop(name), "a number")
    for name in _LISTS:
        if isinstance(typed.get(name), str):
            typed[name] = [word.strip() for word in typed[name].split(";") if word.strip()]
    if isinstance(typed.get("tiling"), str):
        typed["tiling"] = typed["tiling"].lower() in ("1", "true", "yes")
    return typed


READERS: dict[str, Callable[[bytes, str, Faults], Iterator[Draft]]] = {
    "kml": read_kml,
    "wkt": read_wkt,
    "csv": read_csv,
    "owntracks": read_owntracks,
    "geojson": read_geojson,
}
