"""CloudEvents, OwnTracks and Segment payloads, mapped before they are checked (docs/contracts.md, Event)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from decode_blocks import FEEDS, NOW, block_of, decode, decoder, ping, without

from engine.decode.events import Ping, UsageEvent
from engine.hashing_kernel import combine_hashes, hash_text
from engine.model import DeadReason, Drop, EventType


def cloud_event(**fields: Any) -> dict[str, Any]:
    event = {"specversion": "1.0", "id": "7", "source": "/phones", "type": "com.example.ping"}
    return {**event, "data": without(ping(), "type"), **fields}


def location(**fields: Any) -> dict[str, Any]:
    return {"_type": "location", "tst": NOW // 1000, "lon": 10.02, "lat": 52.37, "acc": 30, "tid": "NE", **fields}


def track(**fields: Any) -> dict[str, Any]:
    call = {"type": "track", "userId": "u1", "event": "Order Completed", "messageId": "m1", "timestamp": NOW}
    return {**call, "properties": {"category": "ecommerce", "revenue": 19.9}, **fields}


def test_a_cloud_event_is_identified_by_source_and_id() -> None:
    decoded = decode(cloud_event(), cloud_event(source="/other"), cloud_event(data=ping(id="inner")))
    assert decoded.dead == []
    identity = combine_hashes(hash_text("default"), hash_text("default"), hash_text("/phones 7"))
    assert decoded.events["id_hash"][0] == decoded.events["id_hash"][2] == identity
    assert decoded.events["id_hash"][1] != identity
    assert decoded.events["type"].tolist() == [EventType.PING] * 3


def test_its_time_type_and_subject_stand_in_for_what_data_leaves_out() -> None:
    data = {"app": "taobao"}
    event = cloud_event(type="org.operator.usage", subject="u5", time="2025-10-09T08:53:20Z", data=data)
    reader, block = decoder(), block_of([json.dumps(event).encode()])
    row = reader.decode(block, 0).events[0]
    assert (row["at_ms"], row["type"]) == (NOW, EventType.USAGE)
    read = reader.read(block.data, row)
    assert isinstance(read, UsageEvent)
    assert (read.user, read.app, read.id) == ("u5", "taobao", "/phones 7")


def test_a_batch_is_an_array_and_one_bad_event_harms_no_other() -> None:
    batch = [cloud_event(id="1"), cloud_event(specversion="0.3"), cloud_event(id="3")]
    decoded = decode(json.dumps(batch, indent=1).encode())
    assert decoded.events["item"].tolist() == [0, 2]
    assert [(one.reason, one.detail, one.item) for one in decoded.dead] == [
        (DeadReason.UNKNOWN_VERSION, "specversion", 1)
    ]


@pytest.mark.parametrize(
    ("event", "reason", "detail"),
    [
        (without(cloud_event(), "id"), DeadReason.MISSING_FIELD, "id"),
        (without(cloud_event(), "source"), DeadReason.MISSING_FIELD, "source"),
        (without(cloud_event(), "data"), DeadReason.MISSING_FIELD, "data"),
        (cloud_event(data="text"), DeadReason.WRONG_TYPE, "data"),
        (cloud_event(data_base64="e30="), DeadReason.BAD_VALUE, "data_base64"),
        (cloud_event(type="com.example.weather"), DeadReason.UNKNOWN_TYPE, "type"),
        (cloud_event(specversion=1.0), DeadReason.WRONG_TYPE, "specversion"),
        (without(location(), "tid"), DeadReason.MISSING_FIELD, "tid"),
        (without(location(), "lat"), DeadReason.MISSING_FIELD, "lat"),
        (without(location(), "tst"), DeadReason.MISSING_FIELD, "tst"),
        (location(tst=str(NOW)), DeadReason.WRONG_TYPE, "tst"),
        (location(tst=NOW), DeadReason.BAD_TIME, "tst"),
        (location(_type=1), DeadReason.WRONG_TYPE, "_type"),
        (without(track(), "event"), DeadReason.MISSING_FIELD, "event"),
        (without(track(), "timestamp"), DeadReason.MISSING_FIELD, "timestamp"),
        (track(properties=[1]), DeadReason.WRONG_TYPE, "properties"),
        (track(timestamp="yesterday"), DeadReason.BAD_TIME, "timestamp"),
    ],
)
def test_a_faulty_envelope_is_a_letter_naming_its_field(event: Any, reason: DeadReason, detail: str) -> None:
    assert [(one.reason, one.detail) for one in decode(event).dead] == [(reason, detail)]


def test_an_owntracks_location_is_a_ping_of_its_feed() -> None:
    reader = decoder()
    events = [location(), location(topic="owntracks/jane/phone", acc=-1, _id="x")]
    block = block_of([json.dumps(one).encode() for one in events])
    rows = reader.decode(block, 0).events
    assert rows["feed"].tolist() == [FEEDS.row["owntracks"]] * 2
    assert rows["accuracy_m"].tolist() == [30.0, 1000.0]
    assert rows["lon_e7"].tolist() == [100_200_000] * 2
    assert [reader.read(block.data, row).user for row in rows] == ["NE", "jane"]
    assert rows["id_hash"][1] == combine_hashes(hash_text("default"), hash_text("owntracks"), hash_text("x"))


def test_other_owntracks_messages_are_counted_and_nothing_else() -> None:
    decoded = decode({"_type": "lwt", "tst": "1440363922"}, {"_type": "transition"}, location(), {"_type": "encrypted"})
    assert (decoded.ignored, len(decoded.events), decoded.dead) == (3, 1, [])


def test_what_phones_really_send_is_read(shared_data: Path) -> None:
    lines = (shared_data / "traces" / "owntracks_demo_iphone.rec").read_text().splitlines()
    payloads = [line.split("\t")[2].encode() for line in lines]
    reader = decoder()
    block = block_of([b"\n".join(payloads)], -1)
    decoded = reader.decode(block, 0)
    assert (len(decoded.events), decoded.ignored, decoded.dead) == (23, 2, [])
    sent = [json.loads(one) for one in payloads if b"location" in one]
    assert decoded.events["at_ms"].tolist() == [one["tst"] * 1000 for one in sent]
    assert decoded.events["lon_e7"].tolist() == [round(one["lon"] * 1e7) for one in sent]
    assert decoded.events["accuracy_m"].tolist() == [one["acc"] for one in sent]
    assert set(decoded.events["drop"].tolist()) == {Drop.NONE}
    assert isinstance(reader.read(block.data, decoded.events[0]), Ping)


def test_a_segment_track_is_usage_at_the_devices_corrected_time() -> None:
    call = track(
        receivedAt="2025-10-09T08:53:20Z",
        sentAt="2025-10-09T09:00:10.000Z",
        originalTimestamp="2025-10-09T09:00:00.000Z",
        context={"app": {"name": "Shop"}},
    )
    reader, block = decoder(), block_of([json.dumps(call).encode()])
    decoded = reader.decode(block, 0)
    event = reader.read(block.data, decoded.events[0])
    assert isinstance(event, UsageEvent)
    assert event.at_ms == NOW - 10_000
    assert (event.app, event.category, event.action) == ("Shop", "ecommerce", "Order Completed")
    assert (event.id, event.user, event.props["revenue"]) == ("m1", "u1", 19.9)
    assert decoded.events["feed"].tolist() == [FEEDS.row["segment"]]


def test_a_track_without_app_and_category_is_of_category_track() -> None:
    row = decode(track(properties={"list": [1], "n": 1})).events[0]
    assert row["category_hash"] == hash_text("track")
    anonymous = decode({**without(track(), "userId"), "anonymousId": "a1"})
    assert len(anonymous.events) == 1


def test_a_plain_event_of_type_track_is_still_unknown() -> None:
    assert [one.reason for one in decode({"type": "track", "user": "u", "at": NOW}).dead] == [DeadReason.UNKNOWN_TYPE]
