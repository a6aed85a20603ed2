"""Files of events as lines: newline-delimited JSON or JSON arrays, plain or gzipped, sorted by when they happened."""

from __future__ import annotations

import codecs
import contextlib
import gzip
import zlib
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.decode.times import LARGEST_MS, SMALLEST_MS
from engine.errors import StoreError

NO_TIME = -1
_CHUNK = 4 << 20
_LONGEST_LINE = 64 << 20
_TIMED_AT_ONCE = 65_536
_SEARCHED_AT_ONCE = 1 << 18


class Lines(msgspec.Struct):
    """Spans of events in a buffer, half-open."""

    data: bytes
    start: np.ndarray
    end: np.ndarray


@contextlib.contextmanager
def _open(path: Path) -> Iterator[tuple[Any, Any]]:
    """Open a file once, as a pipe can be read once; yields what gives its text, and what knows how far it was read."""
    try:
        with path.open("rb") as file:
            if file.peek(2)[:2] != b"\x1f\x8b":
                yield file, file
                return
            with gzip.GzipFile(fileobj=file) as unpacked:
                yield unpacked, file
    except (OSError, EOFError, zlib.error) as error:
        # The last two: a gzip file that is damaged or cut short.
        raise StoreError(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error


def read_whole(paths: Sequence[Path], most_bytes: int) -> Lines | None:
    """Read all files as lines, or None where they are too large; raise StoreError."""
    texts: list[bytes] = []
    left = most_bytes
    for path in paths:
        with _open(path) as (file, _):
            text = file.read(left + 1)
        left -= len(text)
        if left < 0:
            _refuse_pipes(paths)
            return None
        texts.append(_as_lines(path, text.removeprefix(codecs.BOM_UTF8)))
    return _split(b"\n".join(texts))


def read_lines(path: Path) -> Iterator[tuple[Lines, int]]:
    """Read one file in chunks of whole lines, with the bytes of the file read so far; raise StoreError."""
    with _open(path) as (file, raw):
        rest = b""
        is_first = True
        while chunk := file.read(_CHUNK):
            if is_first and chunk[:256].lstrip()[:1] == b"[":
                raise StoreError(f"{path}: a JSON array of this size cannot be read in order; use one event a line")
            is_first = False
            whole, line_break, tail = chunk.rpartition(b"\n")
            if not line_break:
                rest += chunk
                if len(rest) > _LONGEST_LINE:
                    raise StoreError(f"{path}: a line has more than {_LONGEST_LINE} bytes; events are one a line")
                continue
            yield _split(rest + whole), raw.tell()
            rest = tail
        yield _split(rest), path.stat().st_size


def _refuse_pipes(paths: Sequence[Path]) -> None:
    for path in paths:
        if not path.is_file():
            raise StoreError(f"{path}: what comes out of a pipe must fit in memory; write it into a file first")


def _as_lines(path: Path, text: bytes) -> bytes:
    """Give arrays and spread-out objects the form of one event a line; leave lines alone."""
    head = text[:256].lstrip()
    if head[:1] != b"[" and not (path.name.removesuffix(".gz").endswith(".json") and head[:1] == b"{"):
        return text
    try:
        if head[:1] == b"[":
            events = [bytes(one) for one in msgspec.json.decode(text, type=list[msgspec.Raw])]
        else:
            events = [bytes(msgspec.json.decode(text, type=msgspec.Raw))]
    except (msgspec.DecodeError, RecursionError):
        return text
    return b"\n".join(msgspec.json.format(one, indent=-1) if b"\n" in one else one for one in events)


def _split(data: bytes) -> Lines:
    """Find the lines of a buffer that hold anything but white space at their start."""
    column = np.frombuffer(data, np.uint8)
    # Piece by piece: a mask of the whole would be written to memory and read back.
    pieces = range(0, len(column), _SEARCHED_AT_ONCE)
    found = [np.flatnonzero(column[first : first + _SEARCHED_AT_ONCE] == 10) + first for first in pieces]
    breaks = np.concatenate(found) if found else np.zeros(0, np.int64)
    start = np.concatenate(([0], breaks + 1)).astype(np.int64)
    end = np.concatenate((breaks, [len(column)])).astype(np.int64)
    # A carriage return before the break is white space to JSON.
    keep = end > start
    keep[keep] = column[start[keep]] != 13
    return Lines(data, start[keep], end[keep])


def sort_lines(lines: Lines) -> Lines:
    """Sort by `at`, equal instants in the order of the file; what has no readable time stays behind its neighbour."""
    at_ms = times_of(lines)
    known = np.where(at_ms != NO_TIME, np.arange(len(at_ms)), -1)
    np.maximum.accumulate(known, out=known)
    filled = np.where(known >= 0, at_ms[np.maximum(known, 0)], NO_TIME)
    if (filled[1:] >= filled[:-1]).all():
        return lines
    order = np.argsort(filled, kind="stable")
    return Lines(lines.data, lines.start[order], lines.end[order])


class _Payload(msgspec.Struct):
    at: int | float | str | None = None


class _Timed(msgspec.Struct):
    """Where the envelopes of docs/contracts.md keep their time."""

    at: int | float | str | None = None
    time: str | None = None
    timestamp: str | None = None
    tst: int | float | None = None
    data: _Payload | msgspec.UnsetType = msgspec.UNSET


_SAYING_WHEN = frozenset(("at", "time", "timestamp", "tst", "originalTimestamp", "sentAt"))


def any_says_when(lines: Lines) -> bool:
    """Say whether some line is an object with an instant, readable or not, in itself or in its `data`."""
    view = memoryview(lines.data)
    decoder = msgspec.json.Decoder(dict[str, msgspec.Raw])
    for start, end in zip(lines.start.tolist(), lines.end.tolist(), strict=True):
        try:
            fields = decoder.decode(view[start:end])
            if not _SAYING_WHEN.isdisjoint(fields):
                return True
            if "data" in fields and not _SAYING_WHEN.isdisjoint(decoder.decode(fields["data"])):
                return True
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
    return False


class _Plain(msgspec.Struct, gc=False):
    """An event with its time where nearly all have it."""

    at: int


def times_of(lines: Lines) -> np.ndarray:
    """Read the instant of every line, -1 where it has none that can be read."""
    at_ms = np.full(len(lines.start), NO_TIME, np.int64)
    view = memoryview(lines.data)
    decoder = msgspec.json.Decoder(_Plain)
    for first in range(0, len(at_ms), _TIMED_AT_ONCE):
        some = slice(first, first + _TIMED_AT_ONCE)
        start, end = lines.start[some], lines.end[some]
        try:
            # Ten times as fast as line by line, and nearly always enough.
            found = [one.at for one in decoder.decode_lines(view[int(start[0]) : int(end[-1])])]
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            found = []
        if len(found) == len(start) and min(found) >= SMALLEST_MS and max(found) <= LARGEST_MS:
            at_ms[some] = found
        else:
            at_ms[some] = _times_line_by_line(view, start, end)
    return at_ms


def _times_line_by_line(view: memoryview, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    decoder = msgspec.json.Decoder(_Timed)
    at_ms = np.full(len(starts), NO_TIME, np.int64)
    seen: dict[str, int] = {}
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        try:
            one = decoder.decode(view[start:end])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            continue
        found_ms = _instant(one, seen)
        at_ms[row] = int(found_ms) if SMALLEST_MS <= found_ms <= LARGEST_MS else NO_TIME
    return at_ms


def _instant(one: _Timed, seen: dict[str, int]) -> float:
    """Return an instant as it is said, in milliseconds; it may be of any size."""
    given: Any = one.at
    if given is None and one.data is not msgspec.UNSET:
        given = one.data.at  # type: ignore[union-attr]
    if given is None:
        given = one.time if one.time is not None else one.timestamp
    if given is None:
        return one.tst * 1000.0 if one.tst is not None else NO_TIME
    if isinstance(given, str):
        if given not in seen:
            if len(seen) > 100_000:
                seen.clear()
            seen[given] = _parse(given)
        return seen[given]
    return given  # type: ignore[no-any-return]


def _parse(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return NO_TIME
    return int(moment.timestamp() * 1000) if moment.tzinfo is not None else NO_TIME
