"""What becomes of well-formed events: rows, typed objects, accuracy, datum, ids."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import numpy as np
import pytest
from decode_blocks import CELLS, FEEDS, NOW, block_of, decode, decoder, ping, usage, without

from engine.datum_kernel import to_wgs84
from engine.decode.decoder import Decoder
from engine.decode.events import Consent, InboundMessage, Ping, Profile, Receipt, Redemption, UsageEvent, UserClosed
from engine.decode.users import UserTable
from engine.definitions import CellTable
from engine.hashing_kernel import combine_hashes, hash_text
from engine.model import EVENT, Datum, Drop, EventType, Method

BOTH = pytest.mark.parametrize("reader", ["scanner", "typed"])


def one(event: dict[str, Any] | bytes, reader: str = "scanner", **options: Any) -> np.void:
    decoded = decode(event, reader=reader, **options)
    assert decoded.dead == []
    return decoded.events[0]


@BOTH
def test_a_ping_becomes_a_row_with_everything_in_its_place(reader: str) -> None:
    raw = b' {"v":1,"type":"ping","feed":"gcj","id":"p1","user":"u1","at":1760000000001,"lon":2.5,"lat":-1.25} '
    row = one(raw, reader, append_ms=NOW + 7)
    assert row.dtype == EVENT
    assert {name: row[name].item() for name in EVENT.names or ()} == {
        "at_ms": NOW + 1,
        "now_ms": NOW + 7,
        "id_hash": combine_hashes(hash_text("default"), hash_text("gcj"), hash_text("p1")),
        "app_hash": 0,
        "category_hash": 0,
        "action_hash": 0,
        "span_start": 1,
        "span_end": len(raw) - 1,
        "lon_e7": 25_000_000,
        "lat_e7": -12_500_000,
        "accuracy_m": 1000.0,
        "user": 0,
        "cell": -1,
        "record": 0,
        "item": 0,
        "feed": 3,
        "method": Method.UNKNOWN,
        "type": EventType.PING,
        "drop": Drop.NONE,
    }


@BOTH
def test_usage_becomes_hashes_of_its_decoded_text(reader: str) -> None:
    rows = decode(
        usage(app="淘宝", category="ecommerce", action="open"),
        b'{"type":"usage","user":"u1","at":1760000000000,"app":"\\u6dd8\\u5b9d","category":""}',
        reader=reader,
    ).events
    assert rows["app_hash"].tolist() == [hash_text("淘宝")] * 2
    assert rows["category_hash"].tolist() == [hash_text("ecommerce"), 0]
    assert rows["action_hash"].tolist() == [hash_text("open"), 0]
    assert rows["type"].tolist() == [EventType.USAGE] * 2


ACCURACY = [
    (ping(accuracy_m=12.5), 12.5),
    (ping(accuracy_m=0), 1000.0),
    (ping(accuracy_m=None), 1000.0),
    (ping(accuracy_m=-0.0, method="gps"), 20.0),
    (ping(method="gps"), 20.0),
    (ping(method="wifi"), 60.0),
    (ping(method="cell"), 1000.0),
    (ping(accuracy_m=162, feed="signalling"), 100.0),
    (ping(feed="signalling"), 1000.0),
    (without(ping(cell="460-01-1-1", accuracy_m=50), "lon", "lat"), 500.0),
    (without(ping(cell="460-01-1-2", accuracy_m=162, feed="signalling"), "lon", "lat"), 100.0),
    (without(ping(cell="460-01-1-2"), "lon", "lat"), 1000.0),
]


@BOTH
@pytest.mark.parametrize(("event", "accuracy_m"), ACCURACY)
def test_accuracy_is_the_stated_the_cells_or_the_default_of_the_method(
    event: dict[str, Any], accuracy_m: float, reader: str
) -> None:
    """L6, in the feed's convention."""
    assert one(event, reader)["accuracy_m"] == np.float32(accuracy_m)


@BOTH
def test_a_cell_places_the_ping_and_is_named_in_the_row(reader: str) -> None:
    """L2; coordinates win where a ping carries both."""
    cell = without(ping(cell="塔", method="gps"), "lon", "lat")
    row = one(cell, reader)
    assert (row["cell"], row["method"], row["lon_e7"], row["lat_e7"]) == (2, Method.CELL, -1163900000, -399000000)
    assert one(ping(cell="nobody knows it"), reader)["cell"] == -1


DROPS = [
    (ping(lon=180.0000001), Drop.OUT_OF_RANGE),
    (ping(lat=-91), Drop.OUT_OF_RANGE),
    (ping(lon=1e300), Drop.OUT_OF_RANGE),
    (ping(lon=0, lat=-0.0), Drop.NULL_ISLAND),
    (ping(lon=0, lat=1e-9), Drop.NONE),
    (ping(feed="app", accuracy_m=100), Drop.NONE),
    (ping(feed="app", accuracy_m=100.01), Drop.TOO_COARSE),
    (ping(feed="app"), Drop.TOO_COARSE),
    (ping(lon=-180, lat=90), Drop.NONE),
]


@BOTH
@pytest.mark.parametrize(("event", "drop"), DROPS)
def test_what_is_not_admitted_keeps_its_row_with_the_cause(event: dict[str, Any], drop: Drop, reader: str) -> None:
    """L8: counted, never a letter."""
    assert one(event, reader)["drop"] == drop


@BOTH
@pytest.mark.parametrize(("feed", "datum"), [("gcj", Datum.GCJ02), ("bd", Datum.BD09)])
def test_the_feeds_datum_is_taken_out_before_snapping(feed: str, datum: Datum, reader: str) -> None:
    """L3."""
    lon, lat = to_wgs84(116.404, 39.915, int(datum))
    row = one(ping(feed=feed, lon=116.404, lat=39.915), reader)
    assert (row["lon_e7"], row["lat_e7"]) == (round(lon * 1e7), round(lat * 1e7))
    assert abs(row["lon_e7"] - 1_164_040_000) > 40_000


def test_coordinates_of_17_digits_snap_as_their_doubles_do() -> None:
    texts = ["116.39742812345678", "-0.00000004999999999", "39.909234512345674", "179.99999999999997", "1.5", "-7"]
    for text in texts:
        row = one(json.dumps(ping()).replace("116.39", text).encode())
        assert row["lon_e7"] == round(float(text) * 1e7)


@BOTH
def test_an_id_makes_the_event_else_its_feed_user_instant_and_bytes(reader: str) -> None:
    """T7, with tenant and feed first (I1)."""
    rows = decode(
        ping(id="x"),
        ping(id="x", lon=1.0, user="other"),
        ping(id="x", feed="bd"),
        ping(),
        ping(),
        ping(lat=39.91),
        reader=reader,
    ).events["id_hash"]
    assert rows[0] == rows[1] != rows[2]
    assert rows[3] == rows[4] != rows[5]
    elsewhere = Decoder(FEEDS, CELLS, UserTable(), "other", reader)  # type: ignore[arg-type]
    event = json.dumps(ping(id="x", tenant="other")).encode()
    assert elsewhere.decode(block_of([event]), 0).events["id_hash"][0] != rows[0]


RARE = [
    (
        {"type": "profile", "tags": ["a"], "attributes": {"age": 30}, "home": {"lon": 116.4, "lat": 39.9}, "dnd": None},
        Profile,
    ),
    ({"type": "consent", "purpose": "marketing.sms", "granted": False, "source": "web"}, Consent),
    ({"type": "receipt", "state": "delivered", "dispatch_id": "o/sms/1", "code": "DELIVRD"}, Receipt),
    ({"type": "redemption", "offer_id": "o", "benefit": "national/b", "amount_fen": 990}, Redemption),
    ({"type": "inbound-message", "channel": "sms", "text": "退订"}, InboundMessage),
    ({"type": "user-closed"}, UserClosed),
]


@BOTH
@pytest.mark.parametrize(("fields", "kind"), RARE)
def test_a_rare_event_is_a_row_and_a_typed_object(fields: dict[str, Any], kind: type, reader: str) -> None:
    decoded = decode(ping(), {"user": "u9", "at": NOW, "id": "r1", "feed": "app", **fields}, reader=reader)
    assert list(decoded.rare) == [1]
    event = decoded.rare[1]
    assert type(event) is kind
    assert (event.user, event.at_ms, event.id, event.feed) == ("u9", NOW, "r1", 1)
    assert decoded.events["type"][1] > EventType.USAGE
    for name, value in fields.items():
        if name != "type":
            assert json.loads(msgspec.json.encode(getattr(event, name))) == value


def test_a_profile_tells_absent_from_null() -> None:
    """A1: absent stays, null clears."""
    event = decode({"type": "profile", "user": "u", "at": NOW, "tags": None, "person": "p1"}).rare[0]
    assert isinstance(event, Profile)
    assert event.tags is None
    assert event.person == "p1"
    assert event.attributes is msgspec.UNSET
    assert event.dnd is msgspec.UNSET


def test_the_whole_event_can_be_read_again_from_its_row() -> None:
    raw = [
        json.dumps(one).encode() for one in (usage(props={"price": 9.5, "gone": None, "new": True}), ping(method="gps"))
    ]
    block = block_of([b"[" + b",".join(raw) + b"]"])
    reader = decoder()
    rows = reader.decode(block, 0).events
    shop, fix = (reader.read(block.data, row) for row in rows)
    assert isinstance(shop, UsageEvent)
    assert (shop.app, shop.props) == ("taobao", {"price": 9.5, "new": True})
    assert isinstance(fix, Ping)
    assert (fix.lon, fix.lat, fix.method) == (116.39, 39.9, Method.GPS)


def test_cells_can_be_exchanged_between_blocks() -> None:
    """L10: from the next block on."""
    reader = decoder()
    block = block_of([json.dumps(without(ping(cell="new"), "lon", "lat")).encode()])
    assert len(reader.decode(block, 0).dead) == 1
    reader.set_cells(
        CellTable(("new",), np.array([7], np.int32), np.array([8], np.int32), np.array([9.0]), np.zeros(1, bool))
    )
    row = reader.decode(block, 0).events[0]
    assert (row["lon_e7"], row["lat_e7"], row["accuracy_m"]) == (7, 8, 9.0)


def test_users_get_slots_in_log_order_whichever_reader_reads_them() -> None:
    events = [ping(user=f"u{k}") if k % 3 else usage(user=f"ü\t{k}"[: 1 + k], app="é\n") for k in range(6)]
    decoded = decode(*events)
    assert decoded.events["user"].tolist() == list(range(len(decoded.events)))


def test_records_of_other_kinds_and_empty_ones_give_no_rows() -> None:
    block = block_of([b"", b"\n \r\n", b"[]", b'{"pause":"*"}', b"[ ]\n"], kinds=[1, 1, 1, 4, 1])
    decoded = decoder().decode(block, 0)
    assert (len(decoded.events), decoded.dead, decoded.now_ms) == (0, [], NOW)


def test_a_block_may_hold_any_buffer() -> None:
    block = block_of([json.dumps(ping()).encode()])
    block.data = memoryview(bytearray(block.data))  # type: ignore[assignment]
    block.start.flags.writeable = False
    assert len(decoder().decode(block, 0).events) == 1
