"""What phones and web pages send in their own formats, made into events (docs/contracts.md, Event)."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import msgspec
import orjson

from engine.console.intake import Refused

MOST_CALLS = 10_000
"""More than Segment's clients ever send; each becomes a record of its own, and all are written while others wait."""


def owntracks_payload(body: bytes, user: str | None) -> bytes | None:
    """Turn an OwnTracks message into a ping of feed `owntracks`; None for messages that are no location.

    user: from X-Limit-U or Basic authentication; without it the message's own topic or tid names the user.
    Values are passed on as they came, so that the decoder names what is wrong with them.
    """
    message = _document(body)
    if not isinstance(message, dict):
        raise Refused(400, "not_an_object", "an OwnTracks message is one JSON object")
    if message.get("_type") != "location":
        return None
    if user is None:
        topic = message.get("topic")
        user = topic.split("/")[1] if isinstance(topic, str) and topic.count("/") >= 1 else message.get("tid")
    stamp = message.get("tst")
    event: dict[str, Any] = {"v": 1, "type": "ping", "feed": "owntracks"}
    if user is not None:
        event["user"] = user
    if stamp is not None:
        is_number = isinstance(stamp, (int, float)) and not isinstance(stamp, bool) and abs(stamp) < 1e12
        event["at"] = round(stamp * 1000) if is_number else stamp
    for theirs, ours in (("lon", "lon"), ("lat", "lat"), ("acc", "accuracy_m"), ("_id", "id")):
        if theirs in message:
            event[ours] = message[theirs]
    return _encoded(event)


def segment_payloads(body: bytes, now_ms: int) -> list[bytes]:
    """Turn a Segment track call, or a batch of calls, into track payloads stamped with the time of receipt.

    The decoder maps them (time = receivedAt - (sentAt - originalTimestamp)). Other calls of a batch are left out.
    Raises Refused where there are more than MOST_CALLS.
    """
    call = _document(body)
    if not isinstance(call, dict):
        raise Refused(400, "not_an_object", "a track call is one JSON object")
    if isinstance(call.get("batch"), list):
        sent_at = call.get("sentAt")
        calls = [one for one in call["batch"] if isinstance(one, dict) and one.get("type") == "track"]
        calls = [{"sentAt": sent_at, **one} if sent_at is not None else one for one in calls]
    else:
        calls = [call]
    if len(calls) > MOST_CALLS:
        raise Refused(413, "too_many", f"a batch holds at most {MOST_CALLS} track calls; send several")
    stamp = {"type": "track", "receivedAt": _rfc3339(now_ms)}
    return [_encoded({**one, **stamp}) for one in calls]


def _encoded(event: dict[str, Any]) -> bytes:
    """Write an event as JSON. What is nested too deep for orjson goes on too: the decoder says so of it alone."""
    try:
        return orjson.dumps(event)
    except orjson.JSONEncodeError:
        pass
    try:
        return msgspec.json.encode(event)
    except RecursionError:
        raise Refused(400, "bad_json", "the body is nested too deep") from None


def _document(body: bytes) -> Any:
    try:
        return orjson.loads(body)
    except orjson.JSONDecodeError:
        raise Refused(400, "bad_json", "the body is not JSON") from None


def _rfc3339(instant_ms: int) -> str:
    return datetime.fromtimestamp(instant_ms / 1000, UTC).isoformat(timespec="milliseconds")
