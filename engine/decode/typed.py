"""The typed reader: one event's bytes to a typed object, or an EventError that says what is wrong with which field.

It owns every reason and message. The compiled scanner accepts only what this reader accepts, with the same outcome
(tests/property/test_decode.py), and hands it everything else.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

from engine.decode.envelopes import Ignored, unwrap
from engine.decode.events import RARE_TYPES, Event, Ping, Profile, RareEvent, Receipt, Redemption, Scalar, UsageEvent
from engine.decode.times import read_instant, zone_named
from engine.errors import EventError
from engine.model import CONTRACT_VERSION, EVENT_TYPE_NAMES, DeadReason, EventType, Method
from engine.settings import FeedTable

LARGEST_EVENT = 65_536
DEEPEST_EVENT = 32
LONGEST_USER = 128
LONGEST_ID = 256
LARGEST_ACCURACY_M = 1e8

_METHODS = {"gps": Method.GPS, "wifi": Method.WIFI, "cell": Method.CELL}
_STRINGS = re.compile(rb'"(?:[^"\\]|\\.)*"?', re.DOTALL)
_CONTROL = re.compile("[\x00-\x1f]")
_JSON = msgspec.json.Decoder()


class TypedReader:
    """Reads single events of one tenant. `cell_row` maps a cell id to its row, -1 where it is unknown."""

    def __init__(self, feeds: FeedTable, tenant: str, cell_row: Any) -> None:
        self._feeds = feeds
        self._tenant = tenant
        self._cell_row = cell_row

    def read(self, raw: bytes) -> Event | Ignored:
        """Return the event that `raw` (one JSON text without the space around it) holds, mapped from its envelope.

        Ignored stands for a known envelope that carries nothing for us. Raise EventError otherwise.
        """
        fields = unwrap(parse(raw))
        if isinstance(fields, Ignored):
            return fields
        if (version := _integer(fields, "v", CONTRACT_VERSION)) != CONTRACT_VERSION or version is None:
            raise EventError(DeadReason.UNKNOWN_VERSION, "v")
        if (_text(fields, "tenant") or "default") != self._tenant:
            raise EventError(DeadReason.BAD_VALUE, "tenant")
        kind = self._kind(fields)
        feed = self._feed(fields)
        origin: dict[str, Any] = {
            "feed": feed,
            "user": _identifier(fields, "user", LONGEST_USER, required=True),
            "at_ms": self._instant(fields, feed),
            "id": _identifier(fields, "id", LONGEST_ID),
        }
        if kind == EventType.PING:
            return self._ping(fields, origin)
        if kind == EventType.USAGE:
            return _usage(fields, origin)
        return _rare(kind, fields, origin)

    def _kind(self, fields: Mapping[str, Any]) -> EventType:
        name = _text(fields, "type")
        if name is None:
            raise EventError(DeadReason.MISSING_FIELD, "type")
        if name not in EVENT_TYPE_NAMES:
            raise EventError(DeadReason.UNKNOWN_TYPE, "type")
        return EVENT_TYPE_NAMES[name]

    def _feed(self, fields: Mapping[str, Any]) -> int:
        name = _text(fields, "feed")
        row = self._feeds.row.get("default" if name is None else name)
        if row is None:
            raise EventError(DeadReason.UNKNOWN_FEED, "feed")
        return row

    def _instant(self, fields: Mapping[str, Any], feed: int) -> int:
        value = fields.get("at")
        if value is None:
            raise EventError(DeadReason.MISSING_FIELD, "at")
        return read_instant(value, self._feeds.zones[feed])

    def _ping(self, fields: Mapping[str, Any], origin: dict[str, Any]) -> Ping:
        lon, lat = _number(fields, "lon"), _number(fields, "lat")
        cell = _text(fields, "cell")
        accuracy_m = _number(fields, "accuracy_m") or 0.0
        if not 0 <= accuracy_m <= LARGEST_ACCURACY_M:
            raise EventError(DeadReason.BAD_VALUE, "accuracy_m")
        name = _text(fields, "method")
        if name is not None and name not in _METHODS:
            raise EventError(DeadReason.BAD_VALUE, "method")
        method = Method.UNKNOWN if name is None else _METHODS[name]
        if lon is None and lat is None:
            if cell is None:
                raise EventError(DeadReason.MISSING_FIELD, "lon")
            row = self._cell_row(cell)
            if row < 0:
                raise EventError(DeadReason.UNKNOWN_CELL, "cell")
            return Ping(cell=row, accuracy_m=accuracy_m, method=Method.CELL, **origin)
        if lon is None or lat is None:
            raise EventError(DeadReason.MISSING_FIELD, "lon" if lon is None else "lat")
        return Ping(lon=lon, lat=lat, accuracy_m=accuracy_m, method=method, **origin)


def parse(raw: bytes) -> dict[str, Any]:
    """Parse one event within the limits of size and depth; raise EventError where it is no JSON object."""
    if len(raw) > LARGEST_EVENT:
        raise EventError(DeadReason.TOO_LARGE, f"more than {LARGEST_EVENT} bytes")
    if raw.count(b"{") + raw.count(b"[") > DEEPEST_EVENT and depth(raw) > DEEPEST_EVENT:
        raise EventError(DeadReason.TOO_DEEP, f"more than {DEEPEST_EVENT} levels")
    try:
        value = _JSON.decode(raw)
    except msgspec.ValidationError:
        raise EventError(DeadReason.BAD_VALUE, "number out of range") from None
    except UnicodeDecodeError:
        raise EventError(DeadReason.BAD_JSON, "text that is not UTF-8") from None
    except msgspec.DecodeError as error:
        raise EventError(DeadReason.BAD_JSON, _where(error)) from None
    except RecursionError:
        raise EventError(DeadReason.TOO_DEEP, f"more than {DEEPEST_EVENT} levels") from None
    if not isinstance(value, dict):
        raise EventError(DeadReason.NOT_AN_OBJECT, "an event is a JSON object")
    return value


def depth(raw: bytes) -> int:
    """Return how deep brackets nest outside strings."""
    level = deepest = 0
    for byte in _STRINGS.sub(b"", raw):
        if byte in b"{[":
            level += 1
            deepest = max(deepest, level)
        elif byte in b"}]":
            level -= 1
    return deepest


def _where(error: msgspec.DecodeError) -> str:
    """Keep the parser's message, which names places and never values."""
    return str(error).removeprefix("JSON is malformed: ")


def _usage(fields: Mapping[str, Any], origin: dict[str, Any]) -> UsageEvent:
    app, category, action = (_text(fields, name) or None for name in ("app", "category", "action"))
    if app is None and category is None:
        raise EventError(DeadReason.MISSING_FIELD, "app")
    return UsageEvent(app=app, category=category, action=action, props=_props(fields), **origin)


def _props(fields: Mapping[str, Any]) -> dict[str, Scalar]:
    value = fields.get("props")
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise EventError(DeadReason.WRONG_TYPE, "props")
    for one in value.values():
        if isinstance(one, dict | list):
            raise EventError(DeadReason.WRONG_TYPE, "props")
    return {name: one for name, one in value.items() if one is not None}


def _rare(kind: EventType, fields: Mapping[str, Any], origin: dict[str, Any]) -> RareEvent:
    own = RARE_TYPES[kind]
    given = {name: fields[name] for name in own.__struct_fields__ if name in fields and name not in origin}
    if own is not Profile:
        given = {name: value for name, value in given.items() if value is not None}
    try:
        event = msgspec.convert({**given, **origin}, own)
    except msgspec.ValidationError as error:
        raise _classified(error) from None
    if isinstance(event, Receipt) and event.offer_id is None and event.dispatch_id is None:
        raise EventError(DeadReason.MISSING_FIELD, "offer_id")
    if isinstance(event, Redemption) and event.offer_id is None and event.benefit is None:
        raise EventError(DeadReason.MISSING_FIELD, "offer_id")
    if isinstance(event, Profile) and isinstance(event.time_zone, str):
        zone_named(event.time_zone)
    return event


def _classified(error: msgspec.ValidationError) -> EventError:
    """Turn msgspec's message into reason and field; it quotes no values but those of a closed list."""
    message = str(error)
    if found := re.search(r"missing required field `(\w+)`", message):
        return EventError(DeadReason.MISSING_FIELD, found[1])
    place = re.search(r"at `\$\.?([^`]*)`", message) or re.search(r"at `key` in `\$\.?([^`]*)`", message)
    field = place[1] if place else "event"
    is_type = re.match(r"Expected `[^`]*`, got `", message) is not None
    return EventError(DeadReason.WRONG_TYPE if is_type else DeadReason.BAD_VALUE, field)


def _text(fields: Mapping[str, Any], name: str) -> str | None:
    value = fields.get(name)
    if value is not None and not isinstance(value, str):
        raise EventError(DeadReason.WRONG_TYPE, name)
    return value


def _identifier(fields: Mapping[str, Any], name: str, longest: int, required: bool = False) -> str | None:
    """Read a text that becomes part of a key: bounded, and without control characters."""
    value = _text(fields, name)
    if value is None:
        if required:
            raise EventError(DeadReason.MISSING_FIELD, name)
        return None
    if not 1 <= len(value.encode()) <= longest or _CONTROL.search(value):
        raise EventError(DeadReason.BAD_VALUE, name)
    return value


def _integer(fields: Mapping[str, Any], name: str, default: int) -> int:
    value = fields.get(name)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int):
        raise EventError(DeadReason.WRONG_TYPE, name)
    return value


def _number(fields: Mapping[str, Any], name: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise EventError(DeadReason.WRONG_TYPE, name)
    try:
        return float(value)
    except OverflowError:
        raise EventError(DeadReason.BAD_VALUE, name) from None
