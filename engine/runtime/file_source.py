"""Recorded events as a source: newline-delimited JSON or JSON arrays, plain or gzipped (rule T2, `--clock events`).

Files have no append times, so `now` is the running maximum of `at`. Where everything fits in memory it is sorted by
`at` first; larger recordings must already be in order, and are refused where a record lies too far behind.
"""

from __future__ import annotations

import gzip
import io
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec
import numpy as np

from engine.errors import StoreError
from engine.model import Block, RecordKind
from engine.runtime.source import Assigned, ignore_assignment

BEHIND_MS = 300_000
_CHUNK = 4 << 20
_NO_TIME = -1
_TIMED_AT_ONCE = 65_536
_SEARCHED_AT_ONCE = 1 << 18


class FileSource:
    """Hand over the events of files, one record a line; a position is the number of bytes handed over before it.

    sort_bytes  what may be sorted in memory; beyond it files are read in order, as they are given
    Raises StoreError where a file cannot be read, or lies out of order and is too large to sort.
    """

    def __init__(self, paths: Sequence[Path], *, sort_bytes: int = 1 << 30, after: int = -1) -> None:
        self.on_assign: Assigned = ignore_assignment
        self.on_revoke: Assigned = ignore_assignment
        self.committed = after
        self.done_bytes = 0
        self.total_bytes = 0
        self._paths = list(paths)
        self._paused = False
        self._assigned = False
        self._skip_through = after
        self._next = 0
        self._newest_ms = _NO_TIME
        self._rows: _Lines | None = None
        self._row = 0
        self._stream: Iterator[_Lines] | None = None
        whole = _read_whole(self._paths, sort_bytes)
        if whole is not None:
            self._rows = _sorted(whole)
            self.total_bytes = int((self._rows.end - self._rows.start + 1).sum())
        else:
            self.total_bytes = sum(path.stat().st_size for path in self._paths)
            self._stream = self._read_in_order()

    @property
    def is_sorted(self) -> bool:
        """Whether everything was sorted by `at`; otherwise it is read as it stands."""
        return self._stream is None

    def poll(self, max_events: int) -> list[Block]:
        if not self._assigned:
            self._assigned = True
            self.on_assign((0,))
        if self._paused:
            return []
        while True:
            if self._rows is None or self._row >= len(self._rows.start):
                self._rows = next(self._stream, None) if self._stream is not None else None
                self._row = 0
                if self._rows is None:
                    self.done_bytes = self.total_bytes
                    return []
            rows, first = self._rows, self._row
            last = min(first + max_events, len(rows.start))
            self._row = last
            start, end = rows.start[first:last], rows.end[first:last]
            position = self._next + np.concatenate(([0], np.cumsum(end - start + 1)))
            self._next = int(position[-1])
            if self.is_sorted:
                self.done_bytes = self._next
            fresh = int(np.searchsorted(position[:-1], self._skip_through, side="right"))
            if fresh == len(start):
                continue
            count = len(start) - fresh
            return [
                Block(
                    data=rows.data,
                    start=start[fresh:],
                    end=end[fresh:],
                    position=position[fresh:-1],
                    append_ms=np.full(count, -1, np.int64),
                    kind=np.full(count, RecordKind.EVENTS, np.uint8),
                )
            ]

    def seek(self, partition: int, position: int) -> None:
        """Go on behind this position; only forward."""
        self._skip_through = max(self._skip_through, position)

    def commit(self, positions: Mapping[int, int]) -> None:
        self.committed = max(self.committed, positions.get(0, -1))

    def pause(self, partitions: Sequence[int]) -> None:
        self._paused = self._paused or 0 in partitions

    def resume(self, partitions: Sequence[int]) -> None:
        self._paused = self._paused and 0 not in partitions

    def close(self) -> None:
        self._rows = self._stream = None

    def _read_in_order(self) -> Iterator[_Lines]:
        done = 0
        for path in self._paths:
            for lines, read_bytes in _read_lines(path):
                self.done_bytes = done + read_bytes
                self._check_order(path, lines)
                yield lines
            done += path.stat().st_size

    def _check_order(self, path: Path, lines: _Lines) -> None:
        at_ms = _times(lines)
        newest_ms = np.maximum.accumulate(np.concatenate(([self._newest_ms], at_ms)))
        behind = np.flatnonzero((at_ms != _NO_TIME) & (at_ms < newest_ms[1:] - BEHIND_MS))
        if len(behind):
            row = int(behind[0])
            late_s = (int(newest_ms[row + 1]) - int(at_ms[row])) // 1000
            raise StoreError(
                f"{path}: an event lies {late_s} s behind those before it, and the recording is too large to sort in "
                "memory; sort it by `at` first"
            )
        self._newest_ms = int(newest_ms[-1])


class _Lines(msgspec.Struct):
    """Spans of events in a buffer, half-open."""

    data: bytes
    start: np.ndarray
    end: np.ndarray


def _open(path: Path) -> gzip.GzipFile | io.BufferedReader:
    try:
        with path.open("rb") as file:
            is_gzip = file.read(2) == b"\x1f\x8b"
        return gzip.GzipFile(path) if is_gzip else path.open("rb")
    except OSError as error:
        raise StoreError(f"{path}: cannot be read ({error.strerror})") from error


def _read_whole(paths: Sequence[Path], most_bytes: int) -> _Lines | None:
    """Read all files as lines, or None where they are too large."""
    texts: list[bytes] = []
    left = most_bytes
    for path in paths:
        with _open(path) as file:
            try:
                text = file.read(left + 1)
            except (OSError, EOFError) as error:
                raise StoreError(f"{path}: cannot be read ({error})") from error
        left -= len(text)
        if left < 0:
            return None
        texts.append(_as_lines(path, text))
    return _split(b"\n".join(texts))


def _read_lines(path: Path) -> Iterator[tuple[_Lines, int]]:
    """Read one file in chunks of whole lines, with the bytes of the file read so far."""
    with _open(path) as file:
        raw: Any = file.fileobj if isinstance(file, gzip.GzipFile) else file
        if _starts_array(path):
            raise StoreError(f"{path}: a JSON array of this size cannot be read in order; use one event a line")
        rest = b""
        while chunk := file.read(_CHUNK):
            whole, _, tail = chunk.rpartition(b"\n")
            if not whole and b"\n" not in chunk:
                rest += chunk
                continue
            yield _split(rest + whole), raw.tell()
            rest = tail
        yield _split(rest), path.stat().st_size


def _starts_array(path: Path) -> bool:
    with _open(path) as file:
        return file.read(256).lstrip()[:1] == b"["


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
    except msgspec.DecodeError:
        return text
    return b"\n".join(msgspec.json.format(one, indent=-1) if b"\n" in one else one for one in events)


def _split(data: bytes) -> _Lines:
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
    return _Lines(data, start[keep], end[keep])


def _sorted(lines: _Lines) -> _Lines:
    """Sort by `at`, equal instants in the order of the file; what has no readable time stays behind its neighbour."""
    at_ms = _times(lines)
    known = np.where(at_ms != _NO_TIME, np.arange(len(at_ms)), -1)
    np.maximum.accumulate(known, out=known)
    filled = np.where(known >= 0, at_ms[np.maximum(known, 0)], _NO_TIME)
    if (filled[1:] >= filled[:-1]).all():
        return lines
    order = np.argsort(filled, kind="stable")
    return _Lines(lines.data, lines.start[order], lines.end[order])


class _Payload(msgspec.Struct):
    at: int | float | str | None = None


class _Timed(msgspec.Struct):
    """Where the envelopes of docs/contracts.md keep their time."""

    at: int | float | str | None = None
    time: str | None = None
    timestamp: str | None = None
    tst: int | float | None = None
    data: _Payload | msgspec.UnsetType = msgspec.UNSET


class _Plain(msgspec.Struct, gc=False):
    """An event with its time where nearly all have it."""

    at: int


def _times(lines: _Lines) -> np.ndarray:
    """Read the instant of every line, -1 where it has none that can be read."""
    at_ms = np.full(len(lines.start), _NO_TIME, np.int64)
    view = memoryview(lines.data)
    decoder = msgspec.json.Decoder(_Plain)
    for first in range(0, len(at_ms), _TIMED_AT_ONCE):
        some = slice(first, first + _TIMED_AT_ONCE)
        start, end = lines.start[some], lines.end[some]
        try:
            # Ten times as fast as line by line, and nearly always enough.
            found = [one.at for one in decoder.decode_lines(view[int(start[0]) : int(end[-1])])]
        except (msgspec.DecodeError, RecursionError):
            found = []
        if len(found) == len(start) and min(found) >= 1e11 and max(found) < 1 << 62:
            at_ms[some] = found
        else:
            at_ms[some] = _times_line_by_line(view, start, end)
    return at_ms


def _times_line_by_line(view: memoryview, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    decoder = msgspec.json.Decoder(_Timed)
    at_ms = np.full(len(starts), _NO_TIME, np.int64)
    seen: dict[str, int] = {}
    for row, (start, end) in enumerate(zip(starts.tolist(), ends.tolist(), strict=True)):
        try:
            one = decoder.decode(view[start:end])
        except (msgspec.DecodeError, RecursionError):
            continue
        at_ms[row] = _instant(one, seen)
    return at_ms


def _instant(one: _Timed, seen: dict[str, int]) -> int:
    given: Any = one.at
    if given is None and one.data is not msgspec.UNSET:
        given = one.data.at  # type: ignore[union-attr]
    if given is None:
        given = one.time if one.time is not None else one.timestamp
    if given is None:
        return int(one.tst * 1000) if one.tst is not None else _NO_TIME
    if isinstance(given, str):
        if given not in seen:
            if len(seen) > 100_000:
                seen.clear()
            seen[given] = _parse(given)
        return seen[given]
    return int(given) if given >= 1e11 else _NO_TIME


def _parse(text: str) -> int:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return _NO_TIME
    return int(moment.timestamp() * 1000) if moment.tzinfo is not None else _NO_TIME
