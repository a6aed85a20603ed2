"""The journal: the embedded deployment's log, append-only segment files written by one process (rules T2, F22).

What a power loss may cost under each fsync policy is in docs/storage.md. Reading is in `source.py`.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from engine.errors import StoreCorrupt, StoreUnavailable
from engine.model import RecordKind
from engine.runtime.ownership import own, sync_folder
from engine.runtime.segment import (
    HEADER,
    MAX_PAYLOAD,
    Segment,
    damaged,
    edited,
    frame,
    holds_later_record,
    list_segments,
    read_records,
    segment_path,
)

Fsync = Literal["always", "interval", "never"]
_REWRITTEN = ".rewritten"


class Journal:
    """Append records, stamped with a never falling append time; thread-safe.

    A position is the byte offset of a record over all segments. `not_before` is the first position that may be
    given out: after a power loss the ledger can know of records that the journal lost, and theirs are not reused.

    Raises StoreUnavailable where the disk is full or fails, or another process writes; StoreCorrupt where records
    are damaged anywhere but at the torn end, which is cut off at open.
    """

    def __init__(
        self,
        folder: Path,
        *,
        fsync: Fsync = "interval",
        fsync_interval_s: float = 0.05,
        segment_bytes: int = 64 << 20,
        segment_span_ms: int = 3_600_000,
        not_before: int = 0,
    ) -> None:
        self.folder = folder
        self.cut_bytes = 0  # torn end removed at open
        self.last_position = -1
        self.last_append_ms = -1
        self._fsync = fsync
        self._fsync_interval_ms = int(fsync_interval_s * 1000)
        self._segment_bytes = segment_bytes
        self._segment_span_ms = segment_span_ms
        self._lock = threading.Lock()
        self._grown = threading.Condition(self._lock)
        self._waiting = 0
        self._synced_ms = -1
        self._dirty = False
        self._failure: str | None = None
        self._fd = -1
        self._base = self._end = 0
        self._first_append_ms: int | None = None  # of the segment being written
        folder.mkdir(parents=True, exist_ok=True)
        self._owner = own(
            folder / "journal.lock",
            f"journal {folder} is being written by another process; stop that one or use another state folder",
        )
        try:
            for left_over in folder.glob(f"*{_REWRITTEN}"):  # whoever is forgotten later must not live on in it
                left_over.unlink()
            self._segments = list_segments(folder)
            if self._segments:
                self._recover()
            if not self._segments or self.end < not_before:
                self._open_segment(max(not_before, self.end), gap=bool(self._segments))
        except BaseException:
            self.close()
            raise

    @property
    def end(self) -> int:
        """The position the next record will get; everything below it is readable."""
        return self._end

    @property
    def failure(self) -> str | None:
        """Why nothing can be appended any more until a restart, or None."""
        return self._failure

    def append(self, payload: bytes, *, wall_ms: int, kind: int = RecordKind.EVENTS) -> int:
        """Append one record and return its position."""
        return self.append_many((payload,), wall_ms=wall_ms, kind=kind)[0]

    def append_many(self, payloads: Sequence[bytes], *, wall_ms: int, kind: int = RecordKind.EVENTS) -> list[int]:
        """Append a group with one write (and under `always` one fsync) and return the records' positions."""
        with self._lock:
            if self._failure is not None:
                raise StoreUnavailable(self._failure)
            append_ms = max(wall_ms, self.last_append_ms)
            positions, records, position = [], [], self._end
            for payload in payloads:
                if len(payload) > MAX_PAYLOAD:
                    raise ValueError(f"a record of {len(payload)} bytes is larger than {MAX_PAYLOAD}")
                positions.append(position)
                records.append(frame(payload, kind, append_ms))
                position += HEADER.size + len(payload)
            if not positions:
                return positions
            first = self._first_append_ms
            if self._end > self._base and (
                position - self._base > self._segment_bytes
                or (first is not None and append_ms - first > self._segment_span_ms)
            ):
                self._roll()
            self._write(records[0] if len(records) == 1 else b"".join(records))
            if self._first_append_ms is None:
                self._first_append_ms = append_ms
            self._end = position
            self.last_position = positions[-1]
            self.last_append_ms = append_ms
            self._sync_after_append(append_ms)
            if self._waiting:
                self._grown.notify_all()
            return positions

    def tick(self, wall_ms: int) -> int:
        """Append the record that lets time pass while nothing arrives (T2)."""
        return self.append(b"", wall_ms=wall_ms, kind=RecordKind.TICK)

    def wait(self, beyond: int, timeout_s: float) -> bool:
        """Wait until the journal's end is beyond this position; say whether it is."""
        with self._grown:
            if self._end <= beyond:
                self._waiting += 1
                try:
                    self._grown.wait_for(lambda: self._end > beyond, timeout_s)
                finally:
                    self._waiting -= 1
            return self._end > beyond

    def sync(self) -> None:
        """Flush what was appended to the disk. Called by a housekeeping thread it takes the wait off `append`."""
        with self._lock:
            if not self._dirty or self._failure is not None:
                return
            fd = os.dup(self._fd)
            self._dirty = False
            self._synced_ms = self.last_append_ms
        try:
            os.fdatasync(fd)
        except OSError as error:
            # After a failed fsync the kernel may have dropped the pages: what is on disk is no longer known.
            self._failure = (
                f"journal {self.folder}: fsync failed ({error.strerror}); nothing is accepted until a restart"
            )
            raise StoreUnavailable(self._failure) from error
        finally:
            os.close(fd)

    def drop_before(self, position: int, *, now_ms: int, hours: float) -> int:
        """Delete segments that lie wholly below `position` (of a durable checkpoint) and are older than `hours`.

        Returns how many were deleted. A segment's age is that of the first record after it, so that one may stay
        for the span of a segment longer.
        """
        oldest_ms = now_ms - int(hours * 3_600_000)
        dropped = 0
        with self._lock:
            while len(self._segments) > 1:
                after = self._segments[1]
                newest_ms = after.first_append_ms()
                if after.base > position or newest_ms is None or newest_ms >= oldest_ms:
                    break
                self._segments[0].path.unlink()
                del self._segments[0]
                dropped += 1
        return dropped

    def rewrite(self, edit: Callable[[bytes], bytes]) -> int:
        """Replace payloads: `edit` returns new bytes of the same length. Returns how many changed (I2).

        For forgetting a user while nothing else reads. Positions and append times stay as they are; whatever comes in
        between, a segment is the old one or the new one. Raises StoreCorrupt where a record cannot be read.
        """
        changed = 0
        with self._lock:
            for segment in self._segments:
                data, edits = edited(segment, edit)
                if edits:
                    self._replace(segment, data)
                changed += edits
        return changed

    def _replace(self, segment: Segment, data: bytearray) -> None:
        new = segment.path.with_suffix(_REWRITTEN)
        try:
            with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(new, segment.path)
            sync_folder(self.folder)
        except OSError as error:
            raise StoreUnavailable(f"journal {self.folder}: cannot rewrite a segment ({error.strerror})") from error
        if segment is self._segments[-1]:
            os.close(self._fd)
            self._fd = os.open(segment.path, os.O_WRONLY | os.O_APPEND)

    def close(self) -> None:
        """Flush and let another process write."""
        if self._fd >= 0:
            if self._fsync != "never" and self._failure is None:
                with contextlib.suppress(StoreUnavailable):
                    self.sync()
            os.close(self._fd)
            self._fd = -1
            self._failure = f"journal {self.folder} is closed"
        self._owner.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Cut a torn end off and find the last append time."""
        last = self._segments[-1]
        data = last.path.read_bytes()
        records = read_records(data)
        if records.consumed < len(data):
            newest_ms = records.append_ms[-1] if records.append_ms else -1
            if holds_later_record(data, records.consumed, newest_ms):
                raise StoreCorrupt(
                    f"{last.path}: the record at offset {records.consumed} (position {last.base + records.consumed}) "
                    "is damaged and records follow it; restore the segment from a copy"
                )
            self.cut_bytes = len(data) - records.consumed
            os.truncate(last.path, records.consumed)
        self._first_append_ms = records.append_ms[0] if records.append_ms else None
        for segment in reversed(self._segments):
            if segment is not last:
                data = segment.path.read_bytes()
                records = read_records(data)
                if records.consumed < len(data):
                    raise damaged(segment, records.consumed)
            if records.offset:
                self.last_position = segment.base + records.offset[-1]
                self.last_append_ms = records.append_ms[-1]
                break
        self._base = last.base
        self._end = last.base + last.size()
        self._fd = os.open(last.path, os.O_WRONLY | os.O_APPEND)

    def _open_segment(self, base: int, *, gap: bool = False) -> None:
        path = segment_path(self.folder, base, gap=gap)
        try:
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
            if self._fsync != "never":
                sync_folder(self.folder)
        except OSError as error:
            raise StoreUnavailable(f"journal {self.folder}: cannot start a segment ({error.strerror})") from error
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = fd
        self._segments.append(Segment(base, path, gap))
        self._base = self._end = base
        self._first_append_ms = None

    def _roll(self) -> None:
        if self._fsync != "never":
            self._flush()
        self._open_segment(self._end)

    def _write(self, data: bytes) -> None:
        """Write all or nothing: a half-written group is cut off again before the error is reported."""
        written = 0
        try:
            while written < len(data):
                written += os.write(self._fd, data[written:] if written else data)
        except OSError as error:
            if written:
                try:
                    os.ftruncate(self._fd, self._end - self._base)
                except OSError as again:
                    self._failure = (
                        f"journal {self.folder}: a half-written record could not be removed ({again.strerror}); "
                        "nothing is accepted until a restart"
                    )
            raise StoreUnavailable(f"journal {self.folder}: cannot append ({error.strerror})") from error

    def _sync_after_append(self, append_ms: int) -> None:
        if self._fsync == "never":
            return
        self._dirty = True
        if self._synced_ms < 0:
            self._synced_ms = append_ms
        # A housekeeping thread normally calls `sync` every interval; without one the append itself does, late.
        if self._fsync == "always" or append_ms - self._synced_ms >= 2 * self._fsync_interval_ms:
            self._flush()
            self._synced_ms = append_ms

    def _flush(self) -> None:
        try:
            os.fdatasync(self._fd)
        except OSError as error:
            self._failure = (
                f"journal {self.folder}: fsync failed ({error.strerror}); nothing is accepted until a restart"
            )
            raise StoreUnavailable(self._failure) from error
        self._dirty = False
