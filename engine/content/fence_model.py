"""What may stand in a geofence file: the properties of a feature and the members of a collection (rule L4)."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from opening_hours import OpeningHours, ParserError  # type: ignore[attr-defined]
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints

from engine.content.faults import refuse
from engine.content.spans import InstantText, ZoneName

DatumName = Literal["wgs84", "gcj02", "bd09"]
ContentId = Annotated[
    str,
    StringConstraints(max_length=100),
    AfterValidator(lambda value: content_id(value)),
    Field(json_schema_extra={"pattern": "^[a-z0-9][a-z0-9_-]*/[a-z0-9][a-z0-9._-]*$"}),
]
Word = Annotated[str, StringConstraints(min_length=1, max_length=100, strip_whitespace=True)]


def content_id(value: str) -> str:
    """Check an `owner/name` id: it travels in keys, hashes and paths (rule I1)."""
    owner, slash, name = value.partition("/")
    plain = (owner + name).replace("-", "").replace("_", "").replace(".", "")
    begins = slash and owner[:1].isalnum() and name[:1].isalnum()
    if not (begins and plain.isascii() and plain.isalnum() and plain == plain.lower() and "." not in owner):
        hint = "lower-case letters, digits, '-', '_' and, in the name, '.'; the owner is 'national' or a province"
        raise refuse("an id such as 'beijing/apm-mall'", hint)
    return value


def opening_hours_text(value: str) -> str:
    """Check opening hours in the syntax of OpenStreetMap."""
    try:
        OpeningHours(value)
    except ParserError as error:
        place = str(error).partition("-->")[2].strip().partition("\n")[0].strip()
        wanted = "opening hours in OpenStreetMap syntax such as 'Mo-Fr 10:00-22:00; Sa,Su 09:00-23:00'"
        raise refuse(wanted, f"not understood from line:column {place}" if place else "") from None
    return value


OpeningHoursText = Annotated[str, StringConstraints(max_length=500), AfterValidator(opening_hours_text)]


class FenceProperties(BaseModel):
    """`properties` of one feature. Lengths in metres, delays in seconds."""

    model_config = ConfigDict(extra="ignore", strict=True)

    id: ContentId = Field(description="owner/name, unique over all files")
    name: Word = Field(description="what people call the place; may appear in offer texts")
    kind: Word = Field(description="cinema, mall, supermarket, ...; scenarios choose fences by it")
    tags: list[Word] = Field([], description="further words scenarios may choose fences by")
    datum: DatumName | None = Field(None, description="of the coordinates; overrides the file's")
    radius_m: float | None = Field(None, gt=0, le=200_000, description="Point only: the circle's radius")
    buffer_m: float | None = Field(None, gt=0, le=20_000, description="LineString only: half the corridor's width")
    cells: list[Word] = Field([], description="cells whose fixes count as inside (rule L2)")
    opening_hours: OpeningHoursText | None = Field(None, description="OpenStreetMap syntax, in time_zone")
    time_zone: ZoneName | None = Field(None, description="IANA name; default: the policy's")
    valid_from: InstantText | None = None
    valid_until: InstantText | None = None
    enter_delay_s: float | None = Field(None, ge=0, le=86_400)
    exit_delay_s: float | None = Field(None, ge=0, le=86_400)
    min_confidence: Literal["LOW", "MEDIUM", "HIGH"] = "MEDIUM"
    tiling: bool | None = Field(None, description="judged by the point alone; overrides the file's (rule L5)")
    crowd_at: int | None = Field(None, ge=10, description="an alarm when so many users are inside (rule P9)")


FENCE_FIELDS = tuple(FenceProperties.model_fields)


class FenceFeature(BaseModel):
    """One geofence: a GeoJSON feature."""

    model_config = ConfigDict(extra="ignore")

    type: Literal["Feature"]
    properties: FenceProperties
    geometry: dict[str, Any] | None = Field(
        description="Polygon, MultiPolygon, Point (circle), LineString (corridor) or null (cell set)"
    )


class FenceFile(BaseModel):
    """A file of geofences: a GeoJSON FeatureCollection."""

    model_config = ConfigDict(extra="ignore", strict=True)

    type: Literal["FeatureCollection"]
    datum: DatumName = Field("wgs84", description="of every feature that does not say otherwise (rule L3)")
    tiling: bool = Field(False, description="true: cells that share edges, judged by the point alone (rule L5)")
    features: list[Any]
