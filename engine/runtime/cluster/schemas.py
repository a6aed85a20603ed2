"""Avro and Protobuf values as the JSON of docs/contracts.md: fields keep names, instants are epoch milliseconds."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import Any

import fastavro
import orjson
from fastavro.schema import SchemaParseException
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import DecodeError, Message

from engine.runtime.cluster.registry import Schema, UnknownSchema

_PAIR = {"lon": "lat", "lat": "lon"}


class BadValue(Exception):
    """The bytes are not what their schema says."""


@cache
def reader_of(schema: Schema) -> Callable[[bytes], bytes]:
    """Return what turns a value, without its five bytes of head, into JSON; UnknownSchema where that cannot be."""
    if schema.kind == "AVRO":
        return _avro(schema)
    if schema.kind == "PROTOBUF":
        return _protobuf(schema)
    if schema.kind == "JSON":
        return lambda value: value
    raise UnknownSchema(f"a schema of type {schema.kind[:20]}")


# --- Avro -----------------------------------------------------------------------------------------------------------


def _avro(schema: Schema) -> Callable[[bytes], bytes]:
    named: dict[str, Any] = {}
    try:
        _add_references(schema, named)
        parsed = fastavro.parse_schema(json.loads(schema.text), named_schemas=named)
    except (SchemaParseException, ValueError, KeyError, TypeError) as error:
        raise UnknownSchema(f"an Avro schema that cannot be read ({type(error).__name__})") from None

    def read(value: bytes) -> bytes:
        stream = io.BytesIO(value)
        try:
            event = fastavro.schemaless_reader(stream, parsed, None)
            if stream.tell() != len(value):
                raise BadValue("bytes are left")
            return orjson.dumps(event, default=_plain, option=orjson.OPT_PASSTHROUGH_DATETIME)
        except (EOFError, IndexError, ValueError, TypeError, KeyError, OverflowError, UnicodeDecodeError, MemoryError):
            raise BadValue("not what its Avro schema says") from None

    return read


def _add_references(schema: Schema, named: dict[str, Any]) -> None:
    for _, one in schema.references:
        _add_references(one, named)
        fastavro.parse_schema(json.loads(one.text), named_schemas=named)


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
    if isinstance(value, Decimal):
        return float(value)
    if isinstance(value, date):
        return value.isoformat()
    raise TypeError


# --- Protobuf -------------------------------------------------------------------------------------------------------


def _protobuf(schema: Schema) -> Callable[[bytes], bytes]:
    pool = descriptor_pool.DescriptorPool()
    try:
        name = _add_file(pool, schema, "event.proto")
        messages = list(pool.FindFileByName(name).message_types_by_name.values())
    except (DecodeError, TypeError, ValueError, KeyError) as error:
        raise UnknownSchema(f"a Protobuf schema that cannot be read ({type(error).__name__})") from None

    def read(value: bytes) -> bytes:
        try:
            path, at = _message_path(value)
            descriptor = messages[path[0]]
            for index in path[1:]:
                descriptor = descriptor.nested_types[index]
            message = message_factory.GetMessageClass(descriptor)()
            message.ParseFromString(value[at:])
            return orjson.dumps(_fields(message))
        except (DecodeError, IndexError, TypeError, ValueError):
            raise BadValue("not what its Protobuf schema says") from None

    return read


def _add_file(pool: descriptor_pool.DescriptorPool, schema: Schema, name: str) -> str:
    for imported, one in schema.references:
        _add_file(pool, one, imported)
    file = descriptor_pb2.FileDescriptorProto.FromString(base64.b64decode(schema.text))
    file.name = name
    for imported in file.dependency:
        if imported == "google/protobuf/timestamp.proto":
            _add_timestamp(pool)
    try:
        pool.Add(file)
    except TypeError:
        pool.FindFileByName(name)  # added before, by another reference
    return name


def _add_timestamp(pool: descriptor_pool.DescriptorPool) -> None:
    from google.protobuf import timestamp_pb2

    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(timestamp_pb2.DESCRIPTOR.serialized_pb))


def _message_path(value: bytes) -> tuple[list[int], int]:
    """Read which message of the file it is: a count and indexes as zigzag varints; a single 0 is the first."""
    count, at = _zigzag(value, 0)
    if count == 0:
        return [0], at
    if not 0 < count <= 32:
        raise ValueError
    path = []
    for _ in range(count):
        index, at = _zigzag(value, at)
        if index < 0:
            raise ValueError
        path.append(index)
    return path, at


def _zigzag(value: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = value[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (number >> 1) ^ -(number & 1), at
        shift += 7
        if shift > 63:
            raise ValueError


def _fields(message: Message) -> dict[str, Any]:
    """The fields that are set. Of a place whose one coordinate is 0, which a plain field does not send, both are."""
    found = {field.name: _value(field, value) for field, value in message.ListFields()}
    descriptor = message.DESCRIPTOR
    for name, other in _PAIR.items():
        if name in found and other not in found and other in descriptor.fields_by_name:
            found[other] = 0
    return found


def _value(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        inner = field.message_type.fields_by_name["value"]
        return {str(key): _one(inner, value[key]) for key in value}
    if field.is_repeated:
        return [_one(field, one) for one in value]
    return _one(field, value)


def _one(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return value.seconds * 1000 + value.nanos // 1_000_000
        return _fields(value)
    if field.enum_type is not None:
        known = field.enum_type.values_by_number.get(value)
        return known.name if known is not None else value
    if isinstance(value, bytes):
        raise TypeError
    return value
