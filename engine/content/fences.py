"""Geofence files to checked fences."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import ValidationError

from engine.content.faults import Faults, Shown, near_miss
from engine.content.fence_model import FENCE_FIELDS, FenceFile, FenceProperties
from engine.content.files import ReadLimits, read_json
from engine.content.geometry import GeometryRefused, Outline, outline_of
from engine.content.spans import instant_ms
from engine.content.versions import state_hash
from engine.definitions import CellTable, Fence, Shape
from engine.model import DEGREE_E7, Confidence, Datum

# Names a coordinate reference system may bear that means longitude and latitude of WGS-84. CGCS2000 (EPSG:4490) agrees
# with it to within centimetres.
_GEOGRAPHIC = ("CRS84", "CRS:84", "EPSG::4326", "EPSG:4326", "EPSG::4490", "EPSG:4490")
# What drawing tools write beside our properties (the simplestyle convention).
_STYLE = ("stroke", "stroke-width", "stroke-opacity", "fill", "fill-opacity", "marker-color", "marker-size")
_STYLE_FIELDS = frozenset((*_STYLE, "marker-symbol", "title", "description", "note", "comment"))


def load_fences(folder: Path, zone: str, cells: CellTable, limits: ReadLimits, faults: Faults) -> list[Fence]:
    """Read every geofences/**/*.geojson, sorted by fence id. `zone` is the deployment's, for fences that name none."""
    rows = {cell: row for row, cell in enumerate(cells.ids)}
    found: dict[str, tuple[str, Fence]] = {}
    for path in sorted(folder.rglob("*.geojson")):
        shown_as = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        for where, fence in _file(read_json(path, shown_as, limits, faults), shown_as, zone, limits, faults):
            for at, cell in enumerate(fence.cells):
                if cell not in rows:
                    spot = f"{where}.properties.cells[{at}]"
                    faults.add(shown_as, spot, cell, "a cell of geofences/cells/*.csv", "add its row, or mend the id")
            if fence.shape == Shape.CELLS:
                fence = _drawn_at_its_cells(fence, rows, cells)
            if fence.id in found:
                first = found[fence.id][0]
                faults.add(shown_as, f"{where}.properties.id", fence.id, "an id used once", f"it is also in {first}")
            found.setdefault(fence.id, (f"{shown_as} {where}", fence))
    if len(found) > limits.fences:
        faults.add(folder.name, "$", Shown(f"{len(found):,} fences"), f"at most {limits.fences:,} fences")
    fences = [found[key][1] for key in sorted(found)]
    _warn_of_strangers(found, faults)
    return fences


def _file(raw: Any, file: str, zone: str, limits: ReadLimits, faults: Faults) -> list[tuple[str, Fence]]:
    if raw is None:
        return []
    if isinstance(raw, dict) and raw.get("type") == "Feature":
        raw = {"type": "FeatureCollection", "features": [raw], "crs": raw.get("crs")}
    try:
        collection = FenceFile.model_validate(raw)
    except ValidationError as error:
        faults.add_validation(file, "$", error)
        return []
    if not is_geographic(raw.get("crs"), file, faults):
        return []
    fences = []
    for number, feature in enumerate(collection.features):
        where = f"$.features[{number}]"
        fence = check_feature(feature, collection, file, where, zone, limits, faults)
        if fence is not None:
            fences.append((where, fence))
    return fences


def is_geographic(crs: Any, file: str, faults: Faults) -> bool:
    if crs is None:
        return True
    properties = crs.get("properties") if isinstance(crs, dict) else None
    name = properties.get("name") if isinstance(properties, dict) else crs
    if isinstance(name, str) and name.upper().endswith(_GEOGRAPHIC):
        return True
    hint = "reproject it: ogr2ogr -t_srs EPSG:4326 OUT.geojson IN.geojson"
    faults.add(file, "$.crs", name, "no crs, or WGS-84 in longitude and latitude (CRS84)", hint)
    return False


def check_feature(
    feature: Any, collection: FenceFile, file: str, where: str, zone: str, limits: ReadLimits, faults: Faults
) -> Fence | None:
    """Turn one feature of a file into a fence; None after a fault."""
    raw = feature.get("properties") if isinstance(feature, dict) and feature.get("type") == "Feature" else None
    if not isinstance(raw, dict):
        faults.add(file, where, feature, "a Feature with properties")
        return None
    if "id" not in raw and isinstance(feature.get("id"), str):
        raw = {**raw, "id": feature["id"]}
    _check_unknown(raw, file, where, faults)
    properties: FenceProperties | None = None
    try:
        properties = FenceProperties.model_validate(raw)
    except ValidationError as error:
        faults.add_validation(file, f"{where}.properties", error)
    own = raw.get("datum")
    datum = Datum[str(own if own in ("wgs84", "gcj02", "bd09") else collection.datum).upper()]
    geometry = feature.get("geometry")
    outline: Outline | None = None
    if geometry is not None:
        try:
            outline = outline_of(geometry, datum, limits.vertices)
        except GeometryRefused as error:
            faults.add(file, f"{where}.geometry{error.path}", error.found, error.expected, error.hint)
            return None
    if properties is None:
        return None
    return _fence(properties, outline, collection, file, where, zone, faults)


def _check_unknown(raw: Mapping[str, Any], file: str, where: str, faults: Faults) -> None:
    for name in raw:
        if name in FENCE_FIELDS or name in _STYLE_FIELDS:
            continue
        meant = near_miss(name, FENCE_FIELDS)
        spot = f"{where}.properties.{name}"
        if meant:
            faults.add(file, spot, Shown(f"unknown property {name!r}"), "a known property", f"did you mean {meant!r}?")
        else:
            faults.warn(file, spot, Shown(f"unknown property {name!r}"), "a known property", "it has no effect")


def _fence(
    given: FenceProperties,
    outline: Outline | None,
    file_wide: FenceFile,
    file: str,
    where: str,
    zone: str,
    faults: Faults,
) -> Fence | None:
    shape = outline.shape if outline else Shape.CELLS
    before = faults.error_count
    spot = f"{where}.properties"
    if outline is None and not given.cells:
        faults.add(file, f"{where}.geometry", None, "a geometry, or `cells` in the properties")
    for name, value, needs in (
        ("radius_m", given.radius_m, Shape.CIRCLE),
        ("buffer_m", given.buffer_m, Shape.CORRIDOR),
    ):
        geometry = "Point" if needs == Shape.CIRCLE else "LineString"
        if shape == needs and value is None:
            faults.add(file, f"{spot}.{name}", Shown("nothing"), f"a length in metres, for a {geometry}")
        elif shape != needs and value is not None:
            faults.add(file, f"{spot}.{name}", value, f"no {name} here", f"it belongs to a {geometry}")
    own_zone = given.time_zone or zone
    valid_from_ms = instant_ms(given.valid_from, own_zone) if given.valid_from else None
    valid_until_ms = instant_ms(given.valid_until, own_zone) if given.valid_until else None
    if valid_from_ms is not None and valid_until_ms is not None and valid_from_ms >= valid_until_ms:
        faults.add(file, f"{spot}.valid_until", given.valid_until, f"an instant after valid_from ({given.valid_from})")
    tiling = given.tiling if given.tiling is not None else file_wide.tiling
    if tiling and shape != Shape.POLYGON:
        faults.add(file, f"{spot}.tiling", True, "tiling only of polygons")
    if faults.error_count > before:
        return None
    settings = {
        "radius_m": given.radius_m or 0.0,
        "buffer_m": given.buffer_m or 0.0,
        "cells": tuple(sorted(set(given.cells))),
        "opening_hours": given.opening_hours,
        "valid_from_ms": valid_from_ms,
        "valid_until_ms": valid_until_ms,
        "enter_delay_s": given.enter_delay_s,
        "exit_delay_s": given.exit_delay_s,
        "tiling": tiling,
    }
    parts = outline.parts if outline else ()
    # The zone is a matter of presence only where hours are read in it.
    hours_zone = own_zone if given.opening_hours else None
    words = {"shape": shape.value, "zone": hours_zone, "min_confidence": given.min_confidence}
    return Fence(
        id=given.id,
        name=given.name,
        kind=given.kind,
        shape=shape,
        parts=parts,
        tags=frozenset(given.tags),
        time_zone=own_zone,
        min_confidence=Confidence[given.min_confidence],
        crowd_at=given.crowd_at,
        lon=outline.lon if outline else 0.0,
        lat=outline.lat if outline else 0.0,
        state_hash=state_hash(parts, {**settings, **words}),
        **settings,  # type: ignore[arg-type]
    )


def _drawn_at_its_cells(fence: Fence, rows: Mapping[str, int], cells: CellTable) -> Fence:
    members = [rows[cell] for cell in fence.cells if cell in rows]
    if not members:
        return fence
    lon, lat = (float(np.mean(axis[members])) / DEGREE_E7 for axis in (cells.lon_e7, cells.lat_e7))
    return replace(fence, lon=round(lon, 7), lat=round(lat, 7))


def _warn_of_strangers(found: Mapping[str, tuple[str, Fence]], faults: Faults) -> None:
    """Warn of a fence far from all others of its owner that would lie among them with its axes swapped."""
    by_owner: dict[str, list[tuple[str, Fence]]] = {}
    for shown_as, fence in found.values():
        by_owner.setdefault(fence.id.partition("/")[0], []).append((shown_as, fence))
    for members in by_owner.values():
        if len(members) < 3:
            continue
        middle = np.median([(fence.lon, fence.lat) for _, fence in members], axis=0)
        for shown_as, fence in members:
            here = np.abs(np.array([fence.lon, fence.lat]) - middle).max()
            swapped = np.abs(np.array([fence.lat, fence.lon]) - middle).max()
            if here > 10 and swapped < here / 4:
                file, _, where = shown_as.partition(" ")
                hint = "longitude and latitude look swapped: GeoJSON puts longitude first"
                found_at = Shown(f"[{fence.lon:g}, {fence.lat:g}]")
                faults.warn(file, f"{where}.geometry", found_at, "a place near this owner's other fences", hint)
