"""JSON Schemas: of content, for editors; of events, transitions and decisions, for integrators (docs/contracts.md)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.content.benefit_model import BenefitFile
from engine.content.fence_model import FenceFeature, FenceFile
from engine.content.scenario_model import PolicyModel, ScenarioModel
from engine.model import EVENT_TYPE_NAMES, Outcome, Reason, Scope, TransitionKind, TransitionReason

DIALECT = "https://json-schema.org/draft/2020-12/schema"
SCHEMAS = {
    "scenario": "a file scenarios/*.yaml",
    "policy": "the file scenarios/policy.yaml",
    "benefits": "a file scenarios/benefits/*.yaml",
    "fence": "one feature of geofences/*.geojson",
    "fences": "a file geofences/*.geojson",
    "event": "what the engine takes in",
    "transition": "presence changes it publishes",
    "decision": "decisions it publishes",
}


def schema_of(name: str) -> dict[str, Any]:
    """Return the JSON Schema called `name`, one of SCHEMAS."""
    return {"$schema": DIALECT, "$id": f"opportune:{name}:v1", **_BUILDERS[name]()}


def _fences() -> dict[str, Any]:
    file = FenceFile.model_json_schema()
    feature = FenceFeature.model_json_schema()
    definitions = {**file.pop("$defs", {}), **feature.pop("$defs", {}), "FenceFeature": feature}
    file["properties"]["features"]["items"] = {"$ref": "#/$defs/FenceFeature"}
    return {**file, "$defs": definitions}


def _text(**more: Any) -> dict[str, Any]:
    return {"type": "string", **more}


_INSTANT = {
    "anyOf": [_text(format="date-time"), {"type": "integer", "minimum": 100_000_000_000}],
    "description": "RFC 3339 with offset, or epoch milliseconds",
}
_SCALARS = {"type": "object", "additionalProperties": {"type": ["string", "number", "boolean", "null"]}}
_COMMON = {
    "v": {"type": "integer", "const": 1, "default": 1},
    "tenant": _text(default="default"),
    "feed": _text(default="default", description="declared in the settings"),
    "id": _text(description="unique within its feed; a repeated one counts once"),
    "user": _text(minLength=1, maxLength=128, description="pseudonymous"),
    "at": _INSTANT,
}
_EVENT_FIELDS: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {
    "ping": (
        {
            "lon": {"type": "number", "minimum": -180, "maximum": 180},
            "lat": {"type": "number", "minimum": -90, "maximum": 90},
            "cell": _text(),
            "accuracy_m": {"type": "number", "minimum": 0},
            "method": {"enum": ["gps", "wifi", "cell"]},
        },
        [{"anyOf": [{"required": ["lon", "lat"]}, {"required": ["cell"]}]}],
    ),
    "usage": (
        {"app": _text(), "category": _text(), "action": _text(), "props": _SCALARS},
        [{"anyOf": [{"required": ["app"]}, {"required": ["category"]}]}],
    ),
    "profile": (
        {
            "tags": {"type": ["array", "null"], "items": _text()},
            "add_tags": {"type": ["array", "null"], "items": _text()},
            "remove_tags": {"type": ["array", "null"], "items": _text()},
            "attributes": {**_SCALARS, "type": ["object", "null"]},
            "person": {"type": ["string", "null"]},
            "organisation": {"type": ["string", "null"]},
            "home": {"type": ["object", "null"], "properties": {"lon": {"type": "number"}, "lat": {"type": "number"}}},
            "time_zone": {"type": ["string", "null"]},
            "dnd": {"type": ["boolean", "null"]},
            "province": {"type": ["string", "null"]},
        },
        [],
    ),
    "consent": (
        {
            "purpose": _text(pattern=r"^(marketing\..+|location|usage)$"),
            "granted": {"type": "boolean"},
            "source": _text(),
        },
        [{"required": ["purpose", "granted"]}],
    ),
    "receipt": (
        {
            "offer_id": _text(),
            "dispatch_id": _text(),
            "state": {"enum": ["accepted", "rejected", "delivered", "failed", "expired", "unknown"]},
            "code": _text(),
            "definite": {"type": "boolean"},
        },
        [{"required": ["state"]}, {"anyOf": [{"required": ["offer_id"]}, {"required": ["dispatch_id"]}]}],
    ),
    "redemption": (
        {"offer_id": _text(), "benefit": _text(), "amount_fen": {"type": "integer"}, "refund": {"type": "boolean"}},
        [],
    ),
    "inbound-message": ({"channel": _text(), "text": _text()}, [{"required": ["channel", "text"]}]),
    "user-closed": ({}, []),
    "address-changed": ({}, []),
}


def _event() -> dict[str, Any]:
    assert set(_EVENT_FIELDS) == set(EVENT_TYPE_NAMES)
    kinds = []
    for name, (properties, rules) in _EVENT_FIELDS.items():
        kind: dict[str, Any] = {
            "title": name,
            "properties": {"type": {"const": name}, **_COMMON, **properties},
            "required": ["type", "user", "at"],
        }
        kinds.append({**kind, "allOf": rules} if rules else kind)
    return {"title": "Event", "type": "object", "oneOf": kinds}


def _transition() -> dict[str, Any]:
    nullable = {"type": ["number", "null"]}
    properties: dict[str, Any] = {
        "v": {"const": 1},
        "tenant": _text(),
        "user": _text(),
        "fence": _text(),
        "kind": {"enum": [kind.name.lower() for kind in TransitionKind]},
        "crossed_at": _INSTANT,
        "confirmed_at": _INSTANT,
        "initial": {"type": "boolean"},
        "gap_s": nullable,
        "threshold_s": {"type": ["integer", "null"]},
        "duration_s": nullable,
        "reason": {"enum": [reason.name.lower() for reason in TransitionReason]},
        "confidence": {"enum": ["LOW", "MEDIUM", "HIGH"]},
        "method": _text(),
        "distance_m": nullable,
        "accuracy_m": nullable,
    }
    return {"title": "Transition", "type": "object", "properties": properties, "required": list(properties)}


def _decision() -> dict[str, Any]:
    reasons = [reason.value for reason in Reason if reason != Reason.CAP]
    reasons += [f"cap:{scope.name.lower()}" for scope in Scope]
    trigger = {
        "type": "object",
        "properties": {
            "kind": {"enum": ["enter", "dwell", "exit", "usage", "pattern", "absence"]},
            "key": _text(),
            "at": _INSTANT,
            "fence": {"type": ["string", "null"]},
            "values": {"type": "object"},
        },
        "required": ["kind", "key", "at"],
    }
    properties: dict[str, Any] = {
        "v": {"const": 1},
        "tenant": _text(),
        "decision_id": _text(pattern="^[0-9a-f]{32}$"),
        "outcome": {"enum": [outcome.value for outcome in Outcome]},
        "reason": {"enum": reasons},
        "user": _text(),
        "scenario": _text(),
        "trigger": trigger,
        "at": _INSTANT,
        "content_version": _text(),
        "values": {"type": "object"},
        "count": {"type": "integer", "minimum": 1},
        "first": _INSTANT,
        "last": _INSTANT,
    }
    required = [
        "v",
        "tenant",
        "decision_id",
        "outcome",
        "reason",
        "user",
        "scenario",
        "trigger",
        "at",
        "content_version",
    ]
    return {"title": "Decision", "type": "object", "properties": properties, "required": required}


_BUILDERS: dict[str, Callable[[], dict[str, Any]]] = {
    "scenario": ScenarioModel.model_json_schema,
    "policy": PolicyModel.model_json_schema,
    "benefits": BenefitFile.model_json_schema,
    "fence": FenceFeature.model_json_schema,
    "fences": _fences,
    "event": _event,
    "transition": _transition,
    "decision": _decision,
}
