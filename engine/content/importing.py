"""Other formats to geofence features: what `opportune fences import` does after a reader took the file apart.

A reader yields Draft objects: a GeoJSON geometry and whatever properties the source had. Here they get an id, a name, a
kind and a radius, are repaired where that is asked for, and checked by the same code that loads content.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
import shapely

from engine.content.faults import Faults
from engine.content.fence_model import FENCE_FIELDS, FenceFile
from engine.content.fences import check_feature
from engine.content.files import ReadLimits


@dataclass(slots=True)
class Draft:
    """One place as a reader found it; `place` says where in the source, `properties` are ours or the source's own."""

    place: str
    geometry: dict[str, Any] | None
    properties: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ImportChoices:
    """What the source does not say. `*_property` name the source's own fields for ours."""

    owner: str = "national"
    kind: str | None = None
    tags: tuple[str, ...] = ()
    radius_m: float | None = None
    buffer_m: float | None = None
    datum: str = "wgs84"
    time_zone: str | None = None
    id_property: str | None = None
    name_property: str = "name"
    kind_property: str | None = None
    repair: bool = False


@dataclass(slots=True)
class Imported:
    """Features ready to be written, and how many outlines had to be repaired."""

    features: list[dict[str, Any]]
    repaired: int = 0


def import_drafts(
    drafts: Iterable[Draft], choices: ImportChoices, file: str, faults: Faults, limits: ReadLimits | None = None
) -> Imported:
    """Turn drafts into features; those that would not load are left out and become faults at their place."""
    limits = limits or ReadLimits()
    result = Imported([])
    used: set[str] = set()
    wide = FenceFile.model_validate({"type": "FeatureCollection", "features": []})
    for draft in drafts:
        properties = _properties(draft, choices)
        properties["id"] = _unused(properties["id"], used)
        geometry = draft.geometry
        if choices.repair and geometry is not None:
            geometry, changed = _repaired(geometry)
            result.repaired += changed
        feature = {"type": "Feature", "properties": properties, "geometry": geometry}
        before = faults.error_count
        check_feature(feature, wide, file, draft.place, choices.time_zone or "UTC", limits, faults)
        if faults.error_count == before:
            result.features.append(feature)
    return result


def collection_bytes(features: Iterable[dict[str, Any]], note: str = "") -> bytes:
    """Write a geofence file with one feature a line, so that a change of one fence is a change of one line."""
    head = b'{"type":"FeatureCollection",\n' + (b'"note":' + orjson.dumps(note) + b",\n" if note else b"")
    return head + b'"features":[\n' + b",\n".join(orjson.dumps(feature) for feature in features) + b"\n]}\n"


def _properties(draft: Draft, choices: ImportChoices) -> dict[str, Any]:
    source = draft.properties
    given = {name: source[name] for name in FENCE_FIELDS if source.get(name) not in (None, "")}
    name = source.get(choices.name_property) or given.get("name")
    kind = (source.get(choices.kind_property) if choices.kind_property else None) or given.get("kind") or choices.kind
    own_id = source.get(choices.id_property) if choices.id_property else given.get("id")
    geometry_type = draft.geometry.get("type") if draft.geometry else None
    text = str(name or own_id or kind or "place")
    found: dict[str, Any] = {
        "id": _id_of(own_id or name, text, kind, draft, choices.owner),
        "name": text[:100],
        **({"kind": str(kind)} if kind else {}),
    }
    own_tags = [tag for tag in given["tags"] if isinstance(tag, str)] if isinstance(given.get("tags"), list) else []
    if choices.tags or own_tags:
        found["tags"] = sorted({*choices.tags, *own_tags})
    if choices.datum != "wgs84":
        found["datum"] = choices.datum
    if choices.time_zone:
        found["time_zone"] = choices.time_zone
    if geometry_type == "Point" and choices.radius_m is not None:
        found["radius_m"] = choices.radius_m
    if geometry_type == "LineString" and choices.buffer_m is not None:
        found["buffer_m"] = choices.buffer_m
    mine = ("id", "name", "kind", "tags")
    return {**found, **{key: value for key, value in given.items() if key not in mine}}


def _id_of(word: Any, name: str, kind: Any, draft: Draft, owner: str) -> str:
    """Keep an id that is one; else make a readable one, else one that depends on name and place alone."""
    if isinstance(word, str) and re.fullmatch(r"[a-z0-9][a-z0-9_-]*/[a-z0-9][a-z0-9._-]*", word):
        return word
    slug = _slug(str(word)) if word else ""
    if len(slug) < 2:
        text = f"{name}\0{orjson.dumps(draft.geometry).decode()}"
        slug = f"{_slug(str(kind or '')) or 'place'}-{hashlib.blake2b(text.encode(), digest_size=4).hexdigest()}"
    return f"{owner}/{slug[:80]}"


def _slug(text: str) -> str:
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def _unused(wanted: str, used: set[str]) -> str:
    found, number = wanted, 1
    while found in used:
        number += 1
        found = f"{wanted}-{number}"
    used.add(found)
    return found


def _repaired(geometry: dict[str, Any]) -> tuple[dict[str, Any], bool]:
    """Mend an outline that crosses itself, keeping what it encloses; anything else is returned as it is."""
    if geometry.get("type") not in ("Polygon", "MultiPolygon"):
        return geometry, False
    try:
        drawn = shapely.geometry.shape(geometry)
        if drawn.is_valid:
            return geometry, False
        with np.errstate(all="ignore"):  # coordinates far off the globe overflow in there
            mended = shapely.make_valid(drawn, method="structure", keep_collapsed=False)
            mended = shapely.set_precision(mended, 1e-7)
    except (ValueError, TypeError, LookupError, AttributeError, shapely.errors.ShapelyError):
        return geometry, False  # whoever checks the outline next says what is wrong with it
    parts = [part for part in shapely.get_parts(mended) if part.geom_type == "Polygon" and not part.is_empty]
    if not parts:
        return geometry, False
    whole = parts[0] if len(parts) == 1 else shapely.MultiPolygon(parts)
    # By way of JSON, because shapely's own mapping holds tuples where GeoJSON has lists.
    geometry = orjson.loads(shapely.to_geojson(whole))
    return geometry, True


def split(geometry: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Yield the places a geometry consists of: several points or lines are several places, polygons are one."""
    kind = geometry.get("type")
    if kind == "MultiPoint":
        for position in geometry["coordinates"]:
            yield {"type": "Point", "coordinates": position}
    elif kind == "MultiLineString":
        for line in geometry["coordinates"]:
            yield {"type": "LineString", "coordinates": line}
    else:
        yield geometry
