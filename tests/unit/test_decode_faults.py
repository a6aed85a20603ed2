"""Every malformed event is a letter with its reason and place, its neighbours unharmed (docs/contracts.md, Event)."""

from __future__ import annotations

import json
from typing import Any

import pytest
from decode_blocks import NOW, decode, ping, usage, without

from engine.model import DeadReason as R

PING = json.dumps(ping()).encode()


def consent(**fields: Any) -> dict[str, Any]:
    return {"type": "consent", "user": "u1", "at": NOW, "purpose": "marketing.sms", "granted": True, **fields}


def receipt(**fields: Any) -> dict[str, Any]:
    return {"type": "receipt", "user": "u1", "at": NOW, "state": "delivered", "offer_id": "o1", **fields}


def profile(**fields: Any) -> dict[str, Any]:
    return {"type": "profile", "user": "u1", "at": NOW, **fields}


FAULTS: list[tuple[str, bytes | dict[str, Any], R, str | None]] = [
    ("no JSON", b"hello", R.BAD_JSON, None),
    ("cut off", PING[:-5], R.BAD_JSON, None),
    ("a comma too many", PING[:-1] + b",}", R.BAD_JSON, None),
    ("something after it", PING + b" {}", R.BAD_JSON, None),
    ("NaN", PING.replace(b"116.39", b"NaN"), R.BAD_JSON, None),
    ("Infinity", PING.replace(b"116.39", b"-Infinity"), R.BAD_JSON, None),
    ("a leading zero", PING.replace(b"116.39", b"0116.39"), R.BAD_JSON, None),
    ("bytes that are not UTF-8", PING.replace(b"u1", b"u\xff"), R.BAD_JSON, None),
    ("a surrogate in UTF-8", PING.replace(b"u1", b"u\xed\xa0\x80"), R.BAD_JSON, None),
    ("a lone surrogate by escape", PING.replace(b"u1", b"u\\ud800"), R.BAD_JSON, None),
    ("a byte order mark", b"\xef\xbb\xbf" + PING, R.BAD_JSON, None),
    ("a NUL", PING.replace(b"u1", b"u\x00"), R.BAD_JSON, None),
    ("a NUL behind it", PING + b"\x00", R.BAD_JSON, None),
    ("a number beyond doubles", PING.replace(b"116.39", b"1e400"), R.BAD_VALUE, None),
    ("1 MB in a field", ping(app="x" * 1_000_000), R.TOO_LARGE, None),
    ("65,537 bytes", PING[:-1] + b" " * (65_537 - len(PING)) + b"}", R.TOO_LARGE, None),
    ("100,000 brackets", b"[" * 100_000, R.TOO_LARGE, None),
    ("33 levels", PING[:-1] + b',"x":' + b"[" * 32 + b"]" * 32 + b"}", R.TOO_DEEP, None),
    ("2,000 levels", b'{"a":' * 2_000, R.TOO_DEEP, None),
    ("a text", b'"ping"', R.NOT_AN_OBJECT, None),
    ("a number", b"17", R.NOT_AN_OBJECT, None),
    ("null", b"null", R.NOT_AN_OBJECT, None),
    ("no type", without(ping(), "type"), R.MISSING_FIELD, "type"),
    ("an empty object", b"{}", R.MISSING_FIELD, "type"),
    ("another type", ping(type="pong"), R.UNKNOWN_TYPE, "type"),
    ("a type of the wrong type", ping(type=1), R.WRONG_TYPE, "type"),
    ("version 2", ping(v=2), R.UNKNOWN_VERSION, "v"),
    ("version 1.0", ping(v=1.0), R.WRONG_TYPE, "v"),
    ("version true", ping(v=True), R.WRONG_TYPE, "v"),
    ("version as text", ping(v="1"), R.WRONG_TYPE, "v"),
    ("another tenant", ping(tenant="other"), R.BAD_VALUE, "tenant"),
    ("a feed nobody declared", ping(feed="radio"), R.UNKNOWN_FEED, "feed"),
    ("no user", without(ping(), "user"), R.MISSING_FIELD, "user"),
    ("a user that is null", ping(user=None), R.MISSING_FIELD, "user"),
    ("a user that is a number", ping(user=7), R.WRONG_TYPE, "user"),
    ("an empty user", ping(user=""), R.BAD_VALUE, "user"),
    ("a user of 129 bytes", ping(user="é" * 64 + "x"), R.BAD_VALUE, "user"),
    ("a control character in the user", ping(user="a\0b"), R.BAD_VALUE, "user"),
    ("an empty id", ping(id=""), R.BAD_VALUE, "id"),
    ("an id that is a number", ping(id=7), R.WRONG_TYPE, "id"),
    ("no time", without(ping(), "at"), R.MISSING_FIELD, "at"),
    ("seconds", ping(at=NOW // 1000), R.SECONDS_NOT_MS, "at"),
    ("no zone", ping(at="2025-10-09T08:53:20"), R.NO_ZONE, "at"),
    ("no place", without(ping(), "lon", "lat"), R.MISSING_FIELD, "lon"),
    ("half a place", without(ping(cell="460-01-1-1"), "lat"), R.MISSING_FIELD, "lat"),
    ("a place as text", ping(lon="116.39"), R.WRONG_TYPE, "lon"),
    ("a place that is true", ping(lat=True), R.WRONG_TYPE, "lat"),
    ("a cell nobody knows", without(ping(cell="460-99"), "lon", "lat"), R.UNKNOWN_CELL, "cell"),
    ("a cell that is a number", without(ping(cell=460), "lon", "lat"), R.WRONG_TYPE, "cell"),
    ("a negative accuracy", ping(accuracy_m=-1), R.BAD_VALUE, "accuracy_m"),
    ("an accuracy as text", ping(accuracy_m="5"), R.WRONG_TYPE, "accuracy_m"),
    ("another method", ping(method="guess"), R.BAD_VALUE, "method"),
    ("usage without app and category", without(usage(action="open"), "app"), R.MISSING_FIELD, "app"),
    ("usage with an empty app", usage(app=""), R.MISSING_FIELD, "app"),
    ("an app that is a list", usage(app=["a"]), R.WRONG_TYPE, "app"),
    ("props that are a list", usage(props=[1]), R.WRONG_TYPE, "props"),
    ("props within props", usage(props={"a": {"b": 1}}), R.WRONG_TYPE, "props"),
    ("a purpose nobody declared", consent(purpose="everything"), R.BAD_VALUE, "purpose"),
    ("no purpose", without(consent(), "purpose"), R.MISSING_FIELD, "purpose"),
    ("granted as text", consent(granted="yes"), R.WRONG_TYPE, "granted"),
    ("a state nobody declared", receipt(state="lost"), R.BAD_VALUE, "state"),
    ("a receipt of nothing", without(receipt(), "offer_id"), R.MISSING_FIELD, "offer_id"),
    ("a redemption of nothing", {**profile(), "type": "redemption"}, R.MISSING_FIELD, "offer_id"),
    ("a negative amount", {**receipt(), "type": "redemption", "amount_fen": -1}, R.BAD_VALUE, "amount_fen"),
    ("a message without text", {**profile(channel="sms"), "type": "inbound-message"}, R.MISSING_FIELD, "text"),
    ("a tag that is a number", profile(tags=["a", 1]), R.WRONG_TYPE, "tags[1]"),
    ("attributes that are a text", profile(attributes="x"), R.WRONG_TYPE, "attributes"),
    ("a zone nobody knows", profile(time_zone="Mars/Olympus"), R.BAD_VALUE, "time_zone"),
    ("a home beyond the pole", profile(home={"lon": 0, "lat": 91}), R.BAD_VALUE, "home.lat"),
    ("half a home", profile(home={"lon": 0}), R.MISSING_FIELD, "lat"),
]


@pytest.mark.parametrize("reader", ["scanner", "typed"])
@pytest.mark.parametrize(("event", "reason", "detail"), [one[1:] for one in FAULTS], ids=[one[0] for one in FAULTS])
def test_a_malformed_event_is_a_letter_and_its_neighbours_are_read(
    event: bytes | dict[str, Any], reason: R, detail: str | None, reader: str
) -> None:
    raw = event if isinstance(event, bytes) else json.dumps(event).encode()
    lines = b"\n".join([PING, raw, PING])
    decoded = decode(PING, lines, PING, reader=reader)
    (letter,) = decoded.dead
    assert (letter.reason, letter.position, letter.item, letter.partition) == (reason, 7, 1, 3)
    assert detail is None or letter.detail == detail
    assert decoded.events[["record", "item"]].tolist() == [(0, 0), (1, 0), (1, 2), (2, 0)]


@pytest.mark.parametrize("reader", ["scanner", "typed"])
def test_no_letter_quotes_a_value(reader: str) -> None:
    """I2: letters name fields and places, never what stood there."""
    events = [event if isinstance(event, bytes) else json.dumps(event).encode() for _, event, _, _ in FAULTS]
    secret = [event.replace(b"u1", b"13800138000") for event in events]
    decoded = decode(*secret, reader=reader)
    assert len(decoded.dead) >= len(FAULTS) - 5
    assert not any("1380013" in one.detail for one in decoded.dead)


def test_events_at_the_limits_are_read() -> None:
    decoded = decode(
        PING[:-1] + b" " * (65_536 - len(PING)) + b"}",
        PING[:-1] + b',"x":' + b"[" * 31 + b"]" * 31 + b"}",
        ping(user="é" * 64),
        ping(lon=-0.0, lat=1e-9),
        ping(user="\x7f", id="x" * 256),
        PING.replace(b'"user"', b'"us\\u0065r"'),
        PING.replace(b'"lat"', b'"lat": 1, "lat"'),
    )
    assert decoded.dead == []
    assert len(decoded.events) == 7
    assert decoded.events["lat_e7"][-1] == 399_000_000


def test_a_repeated_key_counts_by_its_last_value() -> None:
    for reader in ("scanner", "typed"):
        decoded = decode(PING.replace(b'"lon"', b'"lon": "east", "lon"'), reader=reader)
        assert decoded.dead == []
        decoded = decode(PING[:-1] + b',"lon":null}', reader=reader)
        assert [one.detail for one in decoded.dead] == ["lon"]
