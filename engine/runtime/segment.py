"""How records lie in a journal segment: the layout of docs/contracts.md (Log record), written and read.

A record is a header (length, crc32c, append_ms, kind; little-endian) and its payload. The checksum covers every
byte behind it: append time, kind and payload. A segment is named by the position of its first byte.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import google_crc32c
import numpy as np

from engine.errors import StoreCorrupt
from engine.model import RecordKind

HEADER = struct.Struct("<IIqB")
_CHECKED = struct.Struct("<qB")
_START = struct.Struct("<II")
MAX_PAYLOAD = 64 << 20
_KINDS = frozenset(int(kind) for kind in RecordKind)
_crc32c = google_crc32c.value


def frame(payload: bytes, kind: int, append_ms: int) -> bytes:
    """Return the bytes of one record."""
    checked = _CHECKED.pack(append_ms, kind) + payload
    return _START.pack(len(payload), _crc32c(checked)) + checked


@dataclass(slots=True)
class Records:
    """Whole, checked records found in a buffer: spans of their payloads, and how far reading came.

    `consumed` bytes hold the records; what follows is either not yet whole or, where `broken`, fails its checksum.
    """

    start: list[int]
    end: list[int]
    offset: list[int]
    append_ms: list[int]
    kind: list[int]
    consumed: int
    broken: bool


def read_records(data: bytes, max_events: int | None = None) -> Records:
    """Read records from the start of `data` until it ends, fails, or `max_events` events are collected.

    A record is never split, so one that holds more events than `max_events` comes alone.
    """
    start: list[int] = []
    end: list[int] = []
    offset: list[int] = []
    append_ms: list[int] = []
    kind: list[int] = []
    at, size, left, broken = 0, len(data), max_events, False
    unpack, header_bytes = HEADER.unpack_from, HEADER.size
    while at + header_bytes <= size:
        length, crc, record_append_ms, record_kind = unpack(data, at)
        payload = at + header_bytes
        stop = payload + length
        if length > MAX_PAYLOAD or record_kind not in _KINDS:
            broken = True
            break
        if stop > size:
            break
        if _crc32c(data[at + 8 : stop]) != crc:
            broken = True
            break
        if left is not None:
            events = data.count(b"\n", payload, stop) + 1
            if events > left and start:
                break
            left -= events
        start.append(payload)
        end.append(stop)
        offset.append(at)
        append_ms.append(record_append_ms)
        kind.append(record_kind)
        at = stop
        if left is not None and left <= 0:
            break
    return Records(start, end, offset, append_ms, kind, at, broken)


def holds_later_record(data: bytes, after: int, append_ms: int) -> bool:
    """Say whether a whole record starts anywhere behind `after`.

    What separates a torn end (nothing readable follows) from damage in the middle (acknowledged records follow).
    Only places whose length, kind and append time are plausible are checksummed.
    """
    tail = np.frombuffer(data, np.uint8)[after + 1 :]
    count = len(tail) - HEADER.size + 1
    if count <= 0:
        return False
    low = np.zeros(count, np.uint32)
    for byte in range(4):
        low |= tail[byte : byte + count].astype(np.uint32) << np.uint32(8 * byte)
    kinds = tail[16 : 16 + count]
    places = np.flatnonzero(
        (low <= np.arange(count - 1, -1, -1, dtype=np.int64)) & (kinds >= 1) & (kinds <= max(_KINDS))
    )
    for place in places.tolist():
        at = after + 1 + place
        length, crc, stamped_ms, _ = HEADER.unpack_from(data, at)
        if append_ms <= stamped_ms and _crc32c(data[at + 8 : at + HEADER.size + length]) == crc:
            return True
    return False


@dataclass(slots=True)
class Segment:
    """One file of the journal; `gap` says that the positions before `base` were given up on purpose."""

    base: int
    path: Path
    gap: bool = False

    def size(self) -> int:
        return os.stat(self.path).st_size

    def first_append_ms(self) -> int | None:
        """Return the append time of the first record, or None while the segment holds none."""
        with self.path.open("rb") as file:
            head = file.read(HEADER.size)
        return HEADER.unpack(head)[2] if len(head) == HEADER.size else None


def edited(segment: Segment, edit: Callable[[bytes], bytes]) -> tuple[bytearray, int]:
    """Return a segment's bytes with its payloads edited, and how many were; raise StoreCorrupt where one is damaged.

    edit  returns new bytes of the same length
    """
    data = bytearray(segment.path.read_bytes())
    records = read_records(bytes(data))
    if records.consumed < len(data):
        raise damaged(segment, records.consumed)
    edits = 0
    for row, (start, end) in enumerate(zip(records.start, records.end, strict=True)):
        payload = bytes(data[start:end])
        made = edit(payload)
        if made == payload:
            continue
        if len(made) != len(payload):
            raise ValueError("a payload must keep its length")
        data[records.offset[row] : end] = frame(made, records.kind[row], records.append_ms[row])
        edits += 1
    return data, edits


def damaged(segment: Segment, offset: int) -> StoreCorrupt:
    """Make the error that names the place."""
    return StoreCorrupt(
        f"{segment.path}: the record at offset {offset} (position {segment.base + offset}) is damaged; "
        "restore the segment from a copy"
    )


def segment_path(folder: Path, base: int, *, gap: bool = False) -> Path:
    return folder / f"{base:020d}{'.gap' if gap else ''}.log"


def list_segments(folder: Path) -> list[Segment]:
    """List the segments in order; raise StoreCorrupt where one is missing between two others."""
    found = []
    # Not `Path.glob`: a reader asks at the end of every segment.
    for file in sorted(os.listdir(folder)) if folder.is_dir() else ():
        name = file.split(".")
        if name[-1] != "log":
            continue
        if not name[0].isdigit():
            raise StoreCorrupt(f"{folder / file} is not a journal segment; move it out of the journal's folder")
        found.append(Segment(int(name[0]), folder / file, gap="gap" in name[1:-1]))
    for before, after in itertools.pairwise(found):
        end = before.base + before.size()
        if end != after.base and not (after.gap and end < after.base):
            raise StoreCorrupt(
                f"{before.path} ends at position {end}, but the next segment {after.path.name} starts elsewhere: "
                "a segment is missing, cut or doubled; restore it from a copy"
            )
    return found
