"""Kafka's records, found in the bytes of a record batch (format v2): spans of values, positions, times, kinds."""

from __future__ import annotations

from typing import Any

import numpy as np

from engine.kernels import inlined_lean_kernel, kernel

EVENTS, TICK, CONTENT, CONTROL = 1, 2, 3, 4  # engine.model.RecordKind; a test holds them equal
DAMAGED = -1
_KIND_BYTES = 14
_LONGEST_VARINT = 10
_TICK, _CONTENT, _CONTROL = (int.from_bytes(name, "big") for name in (b"tick", b"content", b"control"))


@inlined_lean_kernel
def _varint(data: np.ndarray, at: int, end: int) -> tuple[Any, int]:
    """Return a zigzag varint and where it ends; -1 where it does not end before `end`."""
    value = np.uint64(0)
    shift = np.uint64(0)
    for step in range(_LONGEST_VARINT):
        if at + step >= end:
            break
        byte = np.uint64(data[at + step])
        value |= (byte & np.uint64(0x7F)) << shift
        if byte < np.uint64(0x80):
            half = np.int64(value >> np.uint64(1))
            return (-half - 1 if value & np.uint64(1) else half), at + step + 1
        shift += np.uint64(7)
    return 0, -1


@inlined_lean_kernel
def _kind(data: np.ndarray, at: int, name: np.ndarray, value_at: int, length: int) -> int:
    """Say what the header `opportune-kind` names; a name that is not known is events. 0: another header."""
    for k in range(_KIND_BYTES):
        if data[at + k] != name[k]:
            return 0
    if length != 4 and length != 7:
        return EVENTS
    said = np.int64(0)
    for k in range(length):
        said = said << 8 | np.int64(data[value_at + k])
    if said == _TICK:
        return TICK
    if said == _CONTENT:
        return CONTENT
    return CONTROL if said == _CONTROL else EVENTS


@inlined_lean_kernel
def _hash(data: np.ndarray, at: int, stop: int) -> Any:
    """Hash a key as Kafka's own partitioner does (murmur2). Oracle: aiokafka.partitioner.murmur2."""
    mix = np.uint32(0x5BD1E995)
    length = stop - at
    value = np.uint32(0x9747B28C) ^ np.uint32(length)
    for _ in range(length // 4):
        word = np.uint32(data[at]) | np.uint32(data[at + 1]) << np.uint32(8)
        word |= np.uint32(data[at + 2]) << np.uint32(16) | np.uint32(data[at + 3]) << np.uint32(24)
        word = np.uint32(word * mix)
        word = np.uint32(word ^ (word >> np.uint32(24)))
        word = np.uint32(word * mix)
        value = np.uint32(np.uint32(value * mix) ^ word)
        at += 4
    left = stop - at
    if left == 3:
        value = np.uint32(value ^ np.uint32(data[at + 2]) << np.uint32(16))
    if left >= 2:
        value = np.uint32(value ^ np.uint32(data[at + 1]) << np.uint32(8))
    if left >= 1:
        value = np.uint32(np.uint32(value ^ np.uint32(data[at])) * mix)
    value = np.uint32(value ^ (value >> np.uint32(13)))
    value = np.uint32(value * mix)
    return np.int64(value ^ (value >> np.uint32(15)))


@kernel
def partitions_of(data: np.ndarray, start: np.ndarray, end: np.ndarray, partitions: int, out: np.ndarray) -> None:
    """Write the partition of each key, data[start[i]:end[i]], to out[i] (uint8[...], int64[N], int64[N], int64[N])."""
    for row in range(len(start)):
        out[row] = (_hash(data, start[row], end[row]) & 0x7FFFFFFF) % partitions


@kernel
def read_batch(
    data: np.ndarray,
    at: int,
    stop: int,
    count: int,
    head: np.ndarray,
    name: np.ndarray,
    row: int,
    start: np.ndarray,
    end: np.ndarray,
    position: np.ndarray,
    append_ms: np.ndarray,
    kind: np.ndarray,
) -> int:
    """Write a row for each record of one batch that lies at or behind an offset; return the next row, or DAMAGED.

    data         uint8[...]   decompressed records in data[at:stop], nothing else
    count        records that the batch's head promises
    head         int64[7]     offset of the first; time of the first; time of all (-1: each its own); least offset
                              wanted; this partition; how many the topic has (0: unknown); out: += keyed records that
                              murmur2 puts into another partition
    name         uint8[14]    the header's name
    row          where to begin in the five outputs, each with room for `count` more

    Every length is checked against the batch: bytes from outside never lead beyond it.  Cost: one pass, no allocation.
    Oracle: aiokafka's own iterator (tests/property/test_record_batches.py).
    """
    base, base_ms, all_ms, wanted = head[0], head[1], head[2], head[3]
    mine, partitions = head[4], head[5]
    for _ in range(count):
        length, at = _varint(data, at, stop)
        if at < 0 or length < 1 or length > stop - at:
            return DAMAGED
        limit = at + length
        at += 1  # attributes, unused
        delta_ms, at = _varint(data, at, limit)
        if at < 0:
            return DAMAGED
        delta, at = _varint(data, at, limit)
        if at < 0:
            return DAMAGED
        size, at = _varint(data, at, limit)
        if at < 0 or size > limit - at:
            return DAMAGED
        if size >= 0 and partitions > 0 and (_hash(data, at, at + size) & 0x7FFFFFFF) % partitions != mine:
            head[6] += base + delta >= wanted
        at += max(size, 0)
        size, at = _varint(data, at, limit)
        if at < 0 or size > limit - at:
            return DAMAGED
        value_at = at
        at += max(size, 0)
        value_end = at
        headers, at = _varint(data, at, limit)
        if at < 0 or headers < 0:
            return DAMAGED
        what = 0
        for _ in range(headers):
            key_size, at = _varint(data, at, limit)
            if at < 0 or key_size < 0 or key_size > limit - at:
                return DAMAGED
            key_at = at
            at += key_size
            told_size, at = _varint(data, at, limit)
            if at < 0 or told_size > limit - at:
                return DAMAGED
            if key_size == _KIND_BYTES and what == 0:
                what = _kind(data, key_at, name, at, told_size)
            at += max(told_size, 0)
        if at != limit:
            return DAMAGED
        if base + delta >= wanted:
            start[row] = value_at
            end[row] = value_end
            position[row] = base + delta
            append_ms[row] = all_ms if all_ms >= 0 else base_ms + delta_ms
            kind[row] = what if what else EVENTS
            row += 1
    return row if at == stop else DAMAGED
