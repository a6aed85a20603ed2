"""Recognise envelopes and map what they carry to the fields of docs/contracts.md, before those are checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from engine.decode.times import LARGEST_MS, read_instant
from engine.errors import EventError
from engine.model import EVENT_TYPE_NAMES, DeadReason


@dataclass(frozen=True, slots=True)
class Ignored:
    """A known payload that carries no event for us: counted, no dead letter."""

    what: str


def unwrap(payload: dict[str, Any]) -> dict[str, Any] | Ignored:
    """Return the fields of the event in `payload`; a plain event is returned as it is."""
    if "specversion" in payload:
        return _cloud_event(payload)
    if "_type" in payload:
        return _owntracks(payload)
    if payload.get("type") == "track" and ("userId" in payload or "anonymousId" in payload):
        return _segment_track(payload)
    return payload


def _cloud_event(envelope: Mapping[str, Any]) -> dict[str, Any] | Ignored:
    """CloudEvents 1.0, structured: `source` and `id` identify, `data` is the event, `time` stands in for `at`.

    Where `data` names no type, the last part of the envelope's `type` does (`com.example.ping`); where it names no
    user, `subject` does. A batch is an array of these and needs nothing more. `data` may be an OwnTracks payload.
    """
    version = _needed_text(envelope, "specversion")
    if version != "1.0":
        raise EventError(DeadReason.UNKNOWN_VERSION, "specversion")
    source, identity, kind = (_needed_text(envelope, name) for name in ("source", "id", "type"))
    if "data_base64" in envelope:
        raise EventError(DeadReason.BAD_VALUE, "data_base64")
    if envelope.get("data") is None:
        raise EventError(DeadReason.MISSING_FIELD, "data")
    if not isinstance(envelope["data"], dict):
        raise EventError(DeadReason.WRONG_TYPE, "data")
    inner = dict(envelope["data"])
    if "_type" in inner:
        mapped = _owntracks(inner)
        if isinstance(mapped, Ignored):
            return mapped
        inner = mapped
    # A source is a URI reference and holds no space, so the pair stays one to one.
    inner["id"] = f"{source} {identity}"
    if inner.get("at") is None:
        inner["at"] = envelope.get("time")
    if inner.get("type") is None:
        name = kind.rpartition(".")[2]
        inner["type"] = name if name in EVENT_TYPE_NAMES else kind
    if inner.get("user") is None:
        inner["user"] = envelope.get("subject")
    return inner


def _owntracks(payload: Mapping[str, Any]) -> dict[str, Any] | Ignored:
    """OwnTracks: a location becomes a ping of feed `owntracks`; everything else is ignored.

    The user is that of the topic (`owntracks/user/device`) where the payload names it, else the tracker id. A
    negative or missing accuracy is unknown. `tst` is in seconds.
    """
    kind = payload["_type"]
    if not isinstance(kind, str):
        raise EventError(DeadReason.WRONG_TYPE, "_type")
    if kind != "location":
        return Ignored(f"owntracks {kind}" if kind.isidentifier() and len(kind) <= 16 else "owntracks")
    topic = payload.get("topic")
    if topic is not None and not isinstance(topic, str):
        raise EventError(DeadReason.WRONG_TYPE, "topic")
    user = topic.split("/")[1] if topic and "/" in topic else payload.get("tid")
    if user is None:
        raise EventError(DeadReason.MISSING_FIELD, "tid")
    accuracy_m = payload.get("acc")
    if isinstance(accuracy_m, int | float) and accuracy_m < 0:
        accuracy_m = None
    return {
        "type": "ping",
        "feed": "owntracks",
        "tenant": payload.get("tenant"),
        "id": payload.get("_id"),
        "user": user,
        "at": _from_seconds(payload.get("tst"), "tst"),
        "lon": _present(payload, "lon"),
        "lat": _present(payload, "lat"),
        "accuracy_m": accuracy_m,
    }


def _segment_track(call: Mapping[str, Any]) -> dict[str, Any]:
    """Segment `track`: a usage event of feed `segment`, `event` its action, flat `properties` its props.

    `app` is `properties.app` or `context.app.name`, `category` is `properties.category`; with neither, category is
    `track`. Time = receivedAt - (sentAt - originalTimestamp), which takes the device's clock error out; without all
    three: `timestamp`, `originalTimestamp`, `receivedAt`, in that order.
    """
    properties = _object(call, "properties")
    app = properties.get("app") or _object(_object(call, "context"), "app").get("name")
    category = properties.get("category")
    return {
        "type": "usage",
        "feed": "segment",
        "tenant": call.get("tenant"),
        "id": call.get("messageId"),
        "user": call.get("userId") or call.get("anonymousId"),
        "at": _track_instant(call),
        "app": app,
        "category": category if app or category else "track",
        "action": _needed_text(call, "event"),
        "props": {name: one for name, one in properties.items() if not isinstance(one, dict | list)},
    }


def _track_instant(call: Mapping[str, Any]) -> int:
    stamps = {
        name: read_instant(call[name], None, name)
        for name in ("receivedAt", "sentAt", "originalTimestamp", "timestamp")
        if call.get(name) is not None
    }
    if {"receivedAt", "sentAt", "originalTimestamp"} <= stamps.keys():
        return stamps["receivedAt"] - (stamps["sentAt"] - stamps["originalTimestamp"])
    for name in ("timestamp", "originalTimestamp", "receivedAt"):
        if name in stamps:
            return stamps[name]
    raise EventError(DeadReason.MISSING_FIELD, "timestamp")


def _from_seconds(value: Any, field: str) -> int:
    if value is None:
        raise EventError(DeadReason.MISSING_FIELD, field)
    if not _is_number(value):
        raise EventError(DeadReason.WRONG_TYPE, field)
    if not 1e8 <= value <= LARGEST_MS // 1000:
        raise EventError(DeadReason.BAD_TIME, field)
    return int(value * 1000) if isinstance(value, int) else round(value * 1000)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _present(payload: Mapping[str, Any], name: str) -> Any:
    if payload.get(name) is None:
        raise EventError(DeadReason.MISSING_FIELD, name)
    return payload[name]


def _needed_text(payload: Mapping[str, Any], name: str) -> str:
    value = _present(payload, name)
    if not isinstance(value, str):
        raise EventError(DeadReason.WRONG_TYPE, name)
    if not value:
        raise EventError(DeadReason.BAD_VALUE, name)
    return value


def _object(payload: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = payload.get(name)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise EventError(DeadReason.WRONG_TYPE, name)
    return value
