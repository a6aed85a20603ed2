"""The JSON Schemas accept what the engine accepts and refuse what it refuses (docs/contracts.md)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from json_schema import faults
from sets import scenario
from test_scenario_faults import UNBUILT

from engine.content.files import ReadLimits, parse_yaml
from engine.content.schemas import SCHEMAS, schema_of
from engine.model import EVENT_TYPE_NAMES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_schema_is_closed_json(name: str) -> None:
    schema = schema_of(name)
    text = json.dumps(schema)
    assert schema["$schema"].endswith("2020-12/schema")
    assert set(_references(schema)) <= {f"#/$defs/{key}" for key in schema.get("$defs", {})}
    assert json.loads(text) == schema


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [one for child in value.values() for one in _references(child)]
    return [one for child in value for one in _references(child)] if isinstance(value, list) else []


@pytest.mark.parametrize("path", sorted((ROOT / "scenarios").rglob("*.yaml")), ids=lambda path: path.stem)
def test_the_shipped_yaml_fits_its_schema(path: Path) -> None:
    value = parse_yaml(path.read_text(), ReadLimits().depth)
    kind = "policy" if path.name == "policy.yaml" else "benefits" if path.parent.name == "benefits" else "scenario"
    assert faults(schema_of(kind), value) == []


@pytest.mark.parametrize("path", sorted((ROOT / "geofences").glob("*.geojson")), ids=lambda path: path.stem)
def test_the_shipped_fences_fit_their_schemas(path: Path) -> None:
    value = json.loads(path.read_text())
    assert faults(schema_of("fences"), value) == []
    assert [fault for one in value["features"] for fault in faults(schema_of("fence"), one)] == []


@pytest.mark.parametrize("feature", sorted(UNBUILT))
def test_the_scenario_schema_knows_every_part_of_the_format(feature: str) -> None:
    assert faults(schema_of("scenario"), scenario(**UNBUILT[feature][0])) == []


def test_the_scenario_schema_accepts_the_short_forms() -> None:
    given = scenario(
        audience={"any": ["a", {"tag": "b"}, {"none": ["c", {"attribute": "age", "at_least": 18}]}]},
        reentry="once",
        trigger={"usage": {"app": "x", "category": ["a", "b"], "props": {"price": {"at_least": 1}}}},
    )
    assert faults(schema_of("scenario"), given) == []


@pytest.mark.parametrize(
    ("changes", "where"),
    [
        ({"mode": "on"}, "$.mode"),
        ({"triger": {}}, "triger"),
        ({"priority": 0}, "$.priority"),
        ({"holdout": {"percent": 100}}, "$.holdout"),
        ({"reentry": {"cooldown": "1 day", "once": True}}, "$.reentry"),
        ({"offer__channels": []}, "$.offer.channels"),
    ],
)
def test_the_scenario_schema_refuses_what_check_refuses(changes: dict[str, Any], where: str) -> None:
    assert where in " ".join(faults(schema_of("scenario"), scenario(**changes)))


EVENTS: dict[str, dict[str, Any]] = {
    "ping": {"lon": 116.4, "lat": 39.9, "accuracy_m": 12, "method": "gps"},
    "usage": {"app": "shop", "category": "shopping", "action": "browse", "props": {"price": 5}},
    "profile": {"tags": ["a"], "attributes": {"age": 30}, "person": None, "dnd": False},
    "consent": {"purpose": "marketing.sms", "granted": True, "source": "app"},
    "receipt": {"offer_id": "0" * 32, "state": "delivered"},
    "redemption": {"offer_id": "0" * 32, "amount_fen": 500},
    "inbound-message": {"channel": "sms", "text": "R"},
    "user-closed": {},
    "address-changed": {},
}


@pytest.mark.parametrize("kind", EVENT_TYPE_NAMES)
def test_the_event_schema_knows_every_type_of_event(kind: str) -> None:
    event = {"type": kind, "user": "u1", "at": "2026-11-21T10:00:00+08:00", **EVENTS[kind]}
    assert faults(schema_of("event"), event) == []
    assert faults(schema_of("event"), {**event, "v": 2}) != []
    assert faults(schema_of("event"), {key: value for key, value in event.items() if key != "user"}) != []


def test_the_event_schema_wants_a_place_for_a_ping() -> None:
    assert faults(schema_of("event"), {"type": "ping", "user": "u", "at": 1_790_000_000_000}) != []
    assert faults(schema_of("event"), {"type": "ping", "user": "u", "at": 1_790_000_000_000, "cell": "460-1"}) == []


def test_the_published_records_fit_their_schemas() -> None:
    transition = {
        "v": 1,
        "tenant": "default",
        "user": "u",
        "fence": "beijing/one",
        "kind": "enter",
        "crossed_at": "2026-11-21T10:00:00Z",
        "confirmed_at": "2026-11-21T10:00:00Z",
        "initial": False,
        "gap_s": None,
        "threshold_s": None,
        "duration_s": None,
        "reason": "fix",
        "confidence": "HIGH",
        "method": "gps",
        "distance_m": 12.5,
        "accuracy_m": 5,
    }
    assert faults(schema_of("transition"), transition) == []
    assert faults(schema_of("transition"), {**transition, "kind": "leave"}) != []
    decision = {
        "v": 1,
        "tenant": "default",
        "decision_id": "0" * 32,
        "outcome": "refused",
        "reason": "cap:partner",
        "user": "u",
        "scenario": "national/a",
        "trigger": {"kind": "enter", "key": "k", "at": 1_790_000_000_000, "fence": "beijing/one", "values": {}},
        "at": 1_790_000_000_000,
        "content_version": "0" * 16,
        "values": {},
        "count": 1,
    }
    assert faults(schema_of("decision"), decision) == []
    assert faults(schema_of("decision"), {**decision, "reason": "cap"}) != []
