"""Values that are not plain JSON: of a schema registry (magic byte 0 and the schema's id), and CloudEvents by headers.

They become the JSON that the decoder reads, one event a line; everything else passes through untouched.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import orjson

from engine.decode.split import on_one_line
from engine.model import Block, DeadLetter, DeadReason, RecordKind
from engine.runtime.cluster.registry import SchemaRegistry, UnknownSchema
from engine.runtime.cluster.schemas import BadValue, reader_of

_EVENTS = int(RecordKind.EVENTS)
_HEAD = 5
_MAGIC = 0
_CLOUD = b"ce_"


class ValueReader:
    """Reads blocks of events.

    registry     None: no value is of a schema
    has_headers  whether behind each value lie its headers, as in blocks of Kafka's record batches
    """

    def __init__(self, registry: SchemaRegistry | None, *, has_headers: bool = True) -> None:
        self._registry = registry
        self._has_headers = has_headers

    def read(self, block: Block) -> tuple[Block, list[DeadLetter]]:
        """Return the block with its values as JSON, and letters for those that cannot be; these are left empty.

        The same block comes back where there is nothing to do. Raises StoreUnavailable where a schema is not to be had.
        """
        data = np.frombuffer(block.data, np.uint8)
        if not len(block) or not len(data):
            return block, []
        is_event = block.kind == _EVENTS
        last = len(data) - 1
        has_headers = is_event & (data[np.minimum(block.end, last)] != 0)
        is_framed = is_event & (block.end > block.start) & (data[np.minimum(block.start, last)] == _MAGIC)
        if not self._has_headers:
            has_headers[:] = False
        if self._registry is None:
            is_framed[:] = False
        chosen = np.flatnonzero(has_headers | is_framed)
        if not len(chosen):
            return block, []
        values = [block.data[start:end] for start, end in zip(block.start.tolist(), block.end.tolist(), strict=True)]
        letters: list[DeadLetter] = []
        for row in chosen.tolist():
            try:
                if is_framed[row]:
                    values[row] = self._unframed(bytes(values[row]))
                if has_headers[row]:
                    values[row] = _with_headers(bytes(values[row]), block.data, int(block.end[row]))
            except (UnknownSchema, BadValue) as error:
                reason = DeadReason.UNKNOWN_SCHEMA if isinstance(error, UnknownSchema) else DeadReason.BAD_VALUE
                letters.append(DeadLetter(reason, str(error), int(block.position[row]), 0, block.partition))
                values[row] = b""
        end = np.cumsum(np.fromiter(map(len, values), np.int64, len(values)))
        start = np.concatenate([np.zeros(1, np.int64), end[:-1]])
        joined = b"".join(values)
        return Block(joined, start, end, block.position, block.append_ms, block.kind, block.partition), letters

    def _unframed(self, value: bytes) -> bytes:
        assert self._registry is not None
        if len(value) < _HEAD:
            raise BadValue("shorter than the head of a registered value")
        schema = self._registry.schema(int.from_bytes(value[1:_HEAD], "big"))
        return on_one_line(reader_of(schema)(value[_HEAD:]))


def _with_headers(value: bytes, data: bytes, at: int) -> bytes:
    """Put the attributes of a CloudEvent in binary mode around its data; a value without them stays as it is."""
    told = {name[3:]: text for name, text in _headers(data, at) if name.startswith("ce_")}
    if "specversion" not in told:
        return value
    # What is no JSON makes no JSON: the decoder says so.
    return orjson.dumps(told)[:-1] + b',"data":' + (on_one_line(value).strip() or b"null") + b"}"


def _headers(data: bytes, at: int) -> Iterator[tuple[str, str]]:
    """Read the headers at `at`, as the record batch has them; they were checked when the batch was read."""
    count, at = _varint(data, at)
    for _ in range(count):
        size, at = _varint(data, at)
        name = data[at : at + size]
        at += size
        size, at = _varint(data, at)
        if name.startswith(_CLOUD):
            yield bytes(name).decode("utf-8", "replace"), bytes(data[at : at + max(size, 0)]).decode("utf-8", "replace")
        at += max(size, 0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return (value >> 1) ^ -(value & 1), at
        shift += 7
