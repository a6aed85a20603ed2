"""Whatever stands in a file, loading answers with content or faults, never with a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sets import FENCE, POLICY, SQUARE, collection, scenario, write_set
from test_scenario_faults import UNBUILT

from engine.content import inspect_content
from engine.content.conditions import COMPARISONS
from engine.content.faults import Faults
from engine.content.importing import ImportChoices, collection_bytes, import_drafts
from engine.content.readers import READERS

RICH = scenario(
    audience={"all": ["a", {"attribute": "age", "at_least": 18}], "none": [{"organisation": "x/y"}]},
    limits={"caps": [{"at_most": 1, "rolling": "1 day"}], "min_gap": "1 h", "hourly": 5},
    schedule={"from": "2026-01-01", "days": ["mon"], "hours": ["10:00-12:00"]},
    quiet_hours={"from": "21:00", "to": "08:00"},
    reentry={"cooldown": "1 day"},
    holdout={"percent": 5},
    offer__placeholders={"x": {"from": "constant", "default": "1"}},
)
PATTERNS = [scenario(**changes) for changes, _ in UNBUILT.values()]
WORDS = st.sampled_from(
    """a/b|mall|10 min|21:00|10:00-22:00|2026-01-01|9999-12-31T23:59:59+14:00|0001-01-01|{x}|{|Asia/Shanghai|../..|gcj02
    Polygon|Feature|once|999999999 weeks|000||\x00""".replace("\n    ", "|").split("|")
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**70), 2**70),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=20),
    WORDS,
)
ANYTHING = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.dictionaries(st.one_of(st.text(max_size=8), WORDS, st.sampled_from(list(COMPARISONS))), inner, max_size=4),
    ),
    max_leaves=12,
)


def paths(value: Any, here: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """List the path of every value below this one."""
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [here, *(path for step, child in steps for path in paths(child, (*here, step)))]


@st.composite
def bent(draw: st.DrawFn, sound: Any) -> Any:
    """Replace, remove or add a few values of a sound document."""
    value = copy.deepcopy(sound)
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from(paths(value)))
        new = draw(ANYTHING)
        if not path:
            value = new if draw(st.booleans()) else value
            continue
        target = value
        for step in path[:-1]:
            target = target[step]
        if draw(st.integers(0, 3)) == 0 and isinstance(target, dict):
            del target[path[-1]]
        else:
            target[path[-1]] = new
    return value


def check(root: Path, **parts: Any) -> None:
    inspection = inspect_content(*write_set(root, **parts))
    assert (inspection.content is None) == bool(inspection.errors)
    for fault in inspection.faults:
        assert fault.path
        assert fault.expected
        assert len(str(fault)) < 1500
        assert "\n" not in str(fault)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@settings(max_examples=70, deadline=None)
@given(st.sampled_from([RICH, *PATTERNS]).flatmap(bent))
def test_a_bent_scenario_is_answered(root: Path, one: Any) -> None:
    check(root, scenarios=[], files={"scenarios/s.yaml": json.dumps(one, ensure_ascii=True)})


@settings(max_examples=40, deadline=None)
@given(bent({**POLICY, "caps": [{"at_most": 1, "calendar": "day"}], "quiet_hours": {"from": "21:00", "to": "08:00"}}))
def test_a_bent_policy_is_answered(root: Path, one: Any) -> None:
    check(root, files={"scenarios/policy.yaml": json.dumps(one)})


HOLED = {
    "type": "Polygon",
    "coordinates": [SQUARE, [[116.402, 39.902], [116.404, 39.902], [116.404, 39.904], [116.402, 39.902]]],
}
CRS84 = {"type": "name", "properties": {"name": "urn:ogc:def:crs:OGC:1.3:CRS84"}}
FULL = {
    **FENCE,
    "geometry": HOLED,
    "properties": {
        **FENCE["properties"],
        "opening_hours": "10:00-22:00",
        "valid_from": "2026-01-01",
        "enter_delay_s": 5,
        "cells": ["460-1"],
    },
}
MULTI = {**FENCE, "geometry": {"type": "MultiPolygon", "coordinates": [[SQUARE]]}}
LINE = {**FENCE, "geometry": {"type": "LineString", "coordinates": SQUARE[:3]}}


@settings(max_examples=70, deadline=None)
@given(st.sampled_from([collection(FULL), collection(MULTI, datum="wgs84", crs=CRS84), collection(LINE)]).flatmap(bent))
def test_a_bent_fence_file_is_answered(root: Path, one: Any) -> None:
    cells = "cell,lon,lat,radius_m\n460-1,116.4,39.9,500\n"
    check(root, fences=json.dumps(one), scenarios=[], cells=cells)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.lists(st.one_of(st.text(max_size=8), st.just("116.4"), st.just("460-1")), max_size=8), max_size=5))
def test_a_bent_cell_file_is_answered(root: Path, rows: list[list[str]]) -> None:
    text = "cell,lon,lat,radius_m,azimuth,beam,indoor,datum\n" + "\n".join(",".join(row) for row in rows)
    check(root, scenarios=[], cells=text)


WAYPOINTS = {
    "_type": "waypoints",
    "waypoints": [{"_type": "waypoint", "desc": "Home", "lat": 39.9, "lon": 116.4, "rad": 120, "rid": "6da9cf"}],
}


@settings(max_examples=70, deadline=None)
@given(st.sampled_from([("geojson", collection(FULL, LINE)), ("owntracks", WAYPOINTS)]), st.data())
def test_a_bent_import_is_answered(source: tuple[str, Any], data: st.DataObject) -> None:
    file_format, sound = source
    text = json.dumps(data.draw(bent(sound))).encode()
    faults = Faults()
    choices = ImportChoices(kind="mall", radius_m=5, buffer_m=5, repair=True)
    imported = import_drafts(READERS[file_format](text, "in", faults), choices, "in", faults)
    assert len({one["properties"]["id"] for one in imported.features}) == len(imported.features)
    assert orjson.loads(collection_bytes(imported.features))["features"] == imported.features


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(sorted(READERS)), st.one_of(st.binary(max_size=60), st.text(max_size=60).map(str.encode)))
def test_bytes_that_are_nothing_are_answered_by_every_reader(file_format: str, data: bytes) -> None:
    faults = Faults()
    import_drafts(READERS[file_format](data, "in", faults), ImportChoices(kind="x"), "in", faults)
    assert all(fault.expected for fault in faults.all())


@settings(max_examples=40, deadline=None)
@given(st.binary(max_size=60))
def test_bytes_that_are_nothing_are_answered(root: Path, data: bytes) -> None:
    check(root, fences=data or b" ", scenarios=[], files={"scenarios/s.yaml": data})
