"""The kernel that reads Kafka's record batches, against aiokafka's own iterator; bytes that are damaged are refused."""

from __future__ import annotations

from typing import Any

import google_crc32c
import numpy as np
import pytest
from aiokafka.partitioner import murmur2
from aiokafka.record.default_records import DefaultRecordBatch, DefaultRecordBatchBuilder
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.errors import StoreCorrupt
from engine.model import RecordKind
from engine.runtime.cluster import batch_kernel
from engine.runtime.cluster.blocks import KIND_HEADER, block_of_records, kind_headers
from engine.runtime.cluster.record_batches import Fetched

HEADERS = st.lists(
    st.tuples(
        st.sampled_from([KIND_HEADER, "opportune-kine", "trace", "ce_type", ""]),
        st.binary(max_size=9)
        | st.sampled_from([b"tick", b"t\0\0\0", b"tick\0", b"content", b"conTent", b"control", b"contr01"]),
    ),
    max_size=3,
) | st.sampled_from([kind_headers(kind) for kind in RecordKind])
RECORD = st.tuples(
    st.none() | st.binary(max_size=40), st.none() | st.binary(max_size=300), st.integers(0, 1 << 41), HEADERS
)


def batch(records: list[Any], base: int, compression: int = 0) -> bytes:
    builder = DefaultRecordBatchBuilder(2, compression, False, -1, -1, -1, 1 << 24)
    for row, (key, value, at_ms, headers) in enumerate(records):
        assert builder.append(row, at_ms, key, value, headers) is not None
    data = bytearray(builder.build())
    data[:8] = base.to_bytes(8, "big")
    return bytes(data)


def oracle(data: bytes, partition: int) -> Any:
    read = []
    at = 0
    while at < len(data):
        end = at + 12 + int.from_bytes(data[at + 8 : at + 12], "big")
        read += list(DefaultRecordBatch(data[at:end]))
        at = end
    return block_of_records(read, partition) if read else None


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.lists(RECORD, min_size=1, max_size=12), min_size=1, max_size=4),
    st.sampled_from([0, 1, 2, 3, 4]),
    st.integers(1, 9),
    st.integers(0, 30),
)
def test_the_kernel_finds_what_aiokafka_finds_however_it_is_cut(batches, compression, most, skip):
    """T4: values, positions, times and kinds are the same; records before the wanted offset are passed over."""
    base, data = 1000, b""
    for records in batches:
        data += batch(records, base, compression)
        base += len(records)
    expected = oracle(data, 3)
    fetched = Fetched(data + batch(batches[0], base)[:-1], "events", 3, 1000)
    assert fetched.next_offset == base
    blocks = []
    wanted = 1000 + skip
    while (block := fetched.take(wanted, most)) is not None:
        assert 0 < len(block) <= most
        blocks.append(block)
        wanted = int(block.position[-1]) + 1
    assert fetched.is_read
    got = [
        (bytes(one.data[s:e]), int(p), int(ms), int(k))
        for one in blocks
        for s, e, p, ms, k in zip(one.start, one.end, one.position, one.append_ms, one.kind, strict=True)
    ]
    rows = range(min(skip, len(expected)), len(expected))
    assert got == [
        (
            expected.data[expected.start[row] : expected.end[row]],
            int(expected.position[row]),
            int(expected.append_ms[row]),
            int(expected.kind[row]),
        )
        for row in rows
    ]


@settings(max_examples=300, deadline=None)
@given(st.lists(RECORD, min_size=1, max_size=5), st.data())
def test_damaged_records_are_refused_and_never_read_beyond_their_batch(records, data):
    """Every length is checked: what lies behind the batch in the buffer is never handed over."""
    whole = batch(records, 0)[61:]
    damaged = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    buffer = np.frombuffer(bytes(damaged) + b"\xaa" * 400, np.uint8)
    count = len(records)
    start, end, position, append_ms = (np.zeros(count, np.int64) for _ in range(4))
    kind = np.zeros(count, np.uint8)
    head = np.array([0, 0, -1, -(1 << 60), 0, 4, 0], np.int64)
    name = np.frombuffer(KIND_HEADER.encode(), np.uint8).copy()
    row = batch_kernel.read_batch(buffer, 0, len(damaged), count, head, name, 0, start, end, position, append_ms, kind)
    if row == batch_kernel.DAMAGED:
        return
    assert 0 <= row <= count
    assert (start[:row] >= 0).all()
    assert (start[:row] <= end[:row]).all()
    assert (end[:row] <= len(damaged)).all()


def test_a_wrong_checksum_names_the_place():
    data = bytearray(batch([(b"k", b"value", 5, [])], 77))
    data[-1] ^= 1
    with pytest.raises(StoreCorrupt, match="events/2: the checksum of the record batch at offset 77 is wrong"):
        Fetched(bytes(data), "events", 2, 77).take(77, 10)


def test_an_old_format_is_refused_with_what_is_read():
    data = bytearray(batch([(b"k", b"value", 5, [])], 77))
    data[16] = 1
    with pytest.raises(StoreCorrupt, match=r"events/2 at offset 77: a record batch of format 1; only .* 2"):
        Fetched(bytes(data), "events", 2, 77)


def test_an_append_time_counts_for_every_record_of_its_batch():
    """T2: the broker stamps a batch, not its records."""
    data = bytearray(batch([(b"k", b"a", 5, []), (b"k", b"b", 9, [])], 0))
    data[22] |= 0x08
    data[35:43] = (123_456).to_bytes(8, "big")
    data[17:21] = google_crc32c.value(bytes(data[21:])).to_bytes(4, "big")
    block = Fetched(bytes(data), "events", 0, 0).take(0, 10)
    assert block is not None
    assert block.append_ms.tolist() == [123_456, 123_456]


@settings(deadline=None)
@given(st.lists(st.binary(max_size=70), min_size=1, max_size=20), st.integers(1, 64))
def test_keys_are_put_where_kafkas_partitioner_puts_them(keys, partitions):
    end = np.cumsum([len(key) for key in keys], dtype=np.int64)
    start = np.concatenate(([0], end[:-1])).astype(np.int64)
    found = np.zeros(len(keys), np.int64)
    batch_kernel.partitions_of(np.frombuffer(b"".join(keys) or b"\0", np.uint8), start, end, partitions, found)
    assert found.tolist() == [(murmur2(key) & 0x7FFFFFFF) % partitions for key in keys]
    fetched = Fetched(batch([(key, b"v", 1, []) for key in keys], 0), "events", 0, 0)
    assert fetched.take(0, 100, partitions) is not None
    assert fetched.misplaced == sum(one != 0 for one in found)


def test_the_kernels_kinds_are_those_of_the_model():
    kernel = (batch_kernel.EVENTS, batch_kernel.TICK, batch_kernel.CONTENT, batch_kernel.CONTROL)
    assert kernel == tuple(RecordKind)
