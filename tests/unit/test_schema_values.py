"""Values of a schema registry and CloudEvents by headers become the JSON that the decoder reads (L1; FAULTS F2)."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import fastavro
import numpy as np
import orjson
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, timestamp_pb2

from engine.errors import StoreUnavailable
from engine.model import Block, DeadReason, RecordKind
from engine.runtime.cluster.registry import SchemaRegistry
from engine.runtime.cluster.values import ValueReader

PLACE = {"type": "record", "name": "Place", "namespace": "p", "fields": [{"name": "app", "type": "string"}]}
PING = {
    "type": "record",
    "name": "Ping",
    "fields": [
        {"name": "type", "type": {"type": "enum", "name": "Kind", "symbols": ["ping", "usage"]}},
        {"name": "user", "type": "string"},
        {"name": "at", "type": {"type": "long", "logicalType": "timestamp-millis"}},
        {"name": "lon", "type": "double"},
        {"name": "lat", "type": "double"},
        {"name": "accuracy_m", "type": ["null", "float"], "default": None},
    ],
}
AT_MS = 1_700_000_000_123


class Registry:
    """A stand-in that speaks the registry's API over HTTP: /schemas/ids/ID and /subjects/NAME/versions/N."""

    def __init__(self) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.asked: list[str] = []
        self.failures = 0
        registry = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                parts = urlsplit(self.path)
                registry.asked.append(self.path)
                if registry.failures:
                    registry.failures -= 1
                    return self._tell(500, {"error_code": 50001, "message": "backend"})
                answer = registry.answers.get(parts.path)
                if answer is None:
                    return self._tell(404, {"error_code": 40403, "message": "Schema not found"})
                if parse_qs(parts.query).get("format") == ["serialized"]:
                    answer = answer | {"schema": answer["serialized"]}
                return self._tell(200, answer)

            def _tell(self, status: int, body: dict[str, Any]) -> None:
                text = orjson.dumps({key: value for key, value in body.items() if key != "serialized"})
                self.send_response(status)
                self.send_header("Content-Type", "application/vnd.schemaregistry.v1+json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            def log_message(self, *_: Any) -> None:
                return None

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def registry() -> Iterator[Registry]:
    one = Registry()
    one.answers["/schemas/ids/7"] = {"schema": orjson.dumps(PING).decode()}
    yield one
    one.close()


def varint(number: int) -> bytes:
    number = number << 1 if number >= 0 else (-number << 1) - 1
    out = b""
    while number > 0x7F:
        out += bytes([number & 0x7F | 0x80])
        number >>= 7
    return out + bytes([number])


def block_of(*records: tuple[bytes, dict[str, str]]) -> Block:
    """Records as they lie in a batch: each value with its headers behind it."""
    data, spans = b"", []
    for value, headers in records:
        spans.append((len(data), len(data) + len(value)))
        data += value + varint(len(headers))
        for name, text in headers.items():
            data += varint(len(name)) + name.encode() + varint(len(text.encode())) + text.encode()
    start, end = (np.array(one, np.int64) for one in zip(*spans, strict=True))
    count = len(records)
    kinds = np.full(count, int(RecordKind.EVENTS), np.uint8)
    return Block(data, start, end, np.arange(40, 40 + count), np.full(count, AT_MS), kinds, 3)


def events_of(block: Block) -> list[Any]:
    values = [block.data[a:b] for a, b in zip(block.start.tolist(), block.end.tolist(), strict=True)]
    return [orjson.loads(value) if value else None for value in values]


def avro(event: dict[str, Any], number: int = 7, schema: Any = PING) -> bytes:
    out = io.BytesIO()
    fastavro.schemaless_writer(out, fastavro.parse_schema(schema), event)
    return b"\0" + number.to_bytes(4, "big") + out.getvalue()


def ping(user: str) -> dict[str, Any]:
    at = datetime.fromtimestamp(AT_MS / 1000, UTC)
    return {"type": "ping", "user": user, "at": at, "lon": 116.4, "lat": 39.9, "accuracy_m": None}


def test_avro_values_become_json_and_a_schema_is_asked_for_once(registry: Registry) -> None:
    reader = ValueReader(SchemaRegistry(registry.url))
    plain = b'{"type":"ping","user":"u2"}'
    for _ in range(3):
        block, letters = reader.read(block_of((avro(ping("u1")), {}), (plain, {}), (avro(ping("u3")), {})))
        first, second, third = events_of(block)
        assert (first["user"], first["at"], first["lon"], third["user"]) == ("u1", AT_MS, 116.4, "u3")
        assert second == orjson.loads(plain)
        assert letters == []
    assert registry.asked == ["/schemas/ids/7"]


def test_references_between_avro_schemas_are_followed(registry: Registry) -> None:
    whole = {
        "type": "record",
        "name": "U",
        "fields": [{"name": "user", "type": "string"}, {"name": "place", "type": "p.Place"}],
    }
    registry.answers["/subjects/place/versions/2"] = {"id": 1, "schema": orjson.dumps(PLACE).decode()}
    registry.answers["/schemas/ids/8"] = {
        "schema": orjson.dumps(whole).decode(),
        "references": [{"name": "p.Place", "subject": "place", "version": 2}],
    }
    inline = {**whole, "fields": [{"name": "user", "type": "string"}, {"name": "place", "type": PLACE}]}
    value = avro({"user": "u", "place": {"app": "film"}}, 8, inline)
    block, letters = ValueReader(SchemaRegistry(registry.url)).read(block_of((value, {})))
    assert events_of(block) == [{"user": "u", "place": {"app": "film"}}]
    assert letters == []


def test_an_unknown_id_and_a_broken_value_are_dead_letters_and_neighbours_are_unharmed(registry: Registry) -> None:
    """F2."""
    registry.answers["/schemas/ids/9"] = {"schema": "{"}
    good = avro(ping("u1"))
    reader = ValueReader(SchemaRegistry(registry.url))
    broken = [avro(ping("u"), 99), good[:-3], good + b"x", b"\0\0", avro(ping("u"), 9)]
    block, letters = reader.read(block_of((good, {}), *((value, {}) for value in broken), (good, {})))
    events = events_of(block)
    assert (events[0]["user"], events[-1]["user"], events[1:-1]) == ("u1", "u1", [None] * 5)
    schema, value = DeadReason.UNKNOWN_SCHEMA, DeadReason.BAD_VALUE
    assert [letter.reason for letter in letters] == [schema, value, value, value, schema]
    assert [(letter.partition, letter.position) for letter in letters] == [(3, 41), (3, 42), (3, 43), (3, 44), (3, 45)]
    assert "u1" not in str(letters)


def test_while_the_registry_fails_events_wait_and_none_becomes_a_letter(registry: Registry) -> None:
    registry.failures = 2
    block, letters = ValueReader(SchemaRegistry(registry.url)).read(block_of((avro(ping("u1")), {})))
    assert events_of(block)[0]["user"] == "u1"
    assert (letters, len(registry.asked)) == ([], 3)
    gone = SchemaRegistry("http://127.0.0.1:1", is_stopped=lambda: True)
    with pytest.raises(StoreUnavailable, match=r"schema registry at http://127\.0\.0\.1:1 does not answer"):
        ValueReader(gone).read(block_of((avro(ping("u1")), {})))


def proto() -> tuple[descriptor_pb2.FileDescriptorProto, Any]:
    """Make a file with message Other, and message Event that has a nested In."""
    file = descriptor_pb2.FileDescriptorProto(name="x.proto", package="x", syntax="proto3")
    file.dependency.append("google/protobuf/timestamp.proto")
    file.message_type.add(name="Other")
    event = file.message_type.add(name="Event")
    kind = descriptor_pb2.FieldDescriptorProto
    for number, (name, type_) in enumerate(
        [("type", kind.TYPE_STRING), ("user", kind.TYPE_STRING), ("lon", kind.TYPE_DOUBLE), ("lat", kind.TYPE_DOUBLE)],
        1,
    ):
        event.field.add(name=name, number=number, type=type_, label=kind.LABEL_OPTIONAL)
    event.field.add(
        name="at", number=5, type=kind.TYPE_MESSAGE, type_name=".google.protobuf.Timestamp", label=kind.LABEL_OPTIONAL
    )
    event.field.add(name="count", number=6, type=kind.TYPE_INT64, label=kind.LABEL_OPTIONAL)
    event.field.add(name="tags", number=7, type=kind.TYPE_STRING, label=kind.LABEL_REPEATED)
    inner = event.nested_type.add(name="In")
    inner.field.add(name="user", number=1, type=kind.TYPE_STRING, label=kind.LABEL_OPTIONAL)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb))
    pool.Add(file)
    return file, message_factory.GetMessageClass(pool.FindMessageTypeByName("x.Event"))


def test_protobuf_values_become_json_by_the_message_they_name(registry: Registry) -> None:
    file, event = proto()
    serialized = base64.b64encode(file.SerializeToString()).decode()
    registry.answers["/schemas/ids/5"] = {"schemaType": "PROTOBUF", "schema": "syntax ...", "serialized": serialized}
    message = event(type="ping", user="u1", lon=116.4, count=2**60, tags=["a", "b"])
    message.at.FromMilliseconds(AT_MS)
    head = b"\0" + (5).to_bytes(4, "big")
    whole = head + varint(1) + varint(1) + message.SerializeToString()
    nested = head + varint(2) + varint(1) + varint(0) + event.In(user="u2").SerializeToString()
    first = head + b"\0" + b""
    astray = head + varint(1) + varint(9) + b""
    reader = ValueReader(SchemaRegistry(registry.url))
    block, letters = reader.read(block_of(*((value, {}) for value in (whole, nested, first, astray))))
    assert events_of(block) == [
        {"type": "ping", "user": "u1", "lon": 116.4, "lat": 0, "at": AT_MS, "count": 2**60, "tags": ["a", "b"]},
        {"user": "u2"},
        {},
        None,
    ]
    assert [letter.reason for letter in letters] == [DeadReason.BAD_VALUE]


def test_cloud_events_by_headers_are_wrapped_and_other_headers_change_nothing(registry: Registry) -> None:
    headers = {"ce_specversion": "1.0", "ce_id": "e1", "ce_source": "/tracker", "ce_type": "com.example.ping"}
    data = b'{"user":"u1",\n"lon":116.4,"lat":39.9}'
    plain = b'{"type":"ping","user":"u2"}\n{"type":"ping","user":"u3"}'
    block, letters = ValueReader(None).read(
        block_of((data, {**headers, "content-type": "application/json"}), (plain, {"traceparent": "x"}))
    )
    start, end = int(block.start[0]), int(block.end[0])
    assert orjson.loads(block.data[start:end]) == {
        "specversion": "1.0",
        "id": "e1",
        "source": "/tracker",
        "type": "com.example.ping",
        "data": orjson.loads(data),
    }
    assert b"\n" not in block.data[start:end]
    assert block.data[int(block.start[1]) : int(block.end[1])] == plain
    assert letters == []
    block, _ = ValueReader(SchemaRegistry(registry.url)).read(block_of((avro(ping("u7")), headers)))
    assert events_of(block)[0]["data"]["user"] == "u7", "binary mode may carry a registered value"


def test_plain_blocks_come_back_as_they_are() -> None:
    block = block_of((b'{"a":1}', {}), (b"", {}), (b"\0\0\0\0\7x", {}))
    assert ValueReader(None).read(block)[0] is block
