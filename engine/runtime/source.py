"""Where records come from: one contract, and its home over the journal. Others: `file_source`, `fake_source`.

A source hands over blocks (engine.model.Block). A committed position is that of the last record that is done; reading
starts behind it, -1 stands for nothing done yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from engine.errors import StoreCorrupt
from engine.model import Block
from engine.runtime.journal import Journal
from engine.runtime.segment import HEADER, Records, Segment, list_segments, read_records

Assigned = Callable[[Sequence[int]], None]


class RecordSource(Protocol):
    """What a worker reads from (docs/contracts.md, RecordSource).

    `on_assign` and `on_revoke` are called by the source, from within `poll`, with the partitions gained or lost. The
    worker sets them; a handler of `on_assign` may `seek`. A revoked partition can still be committed from within
    `on_revoke`, and no longer after it.
    """

    on_assign: Assigned
    on_revoke: Assigned

    def poll(self, max_events: int) -> list[Block]:
        """Return what is there, at most about `max_events` events in all; never waits."""

    def seek(self, partition: int, position: int) -> None:
        """Go on behind this position of an assigned partition."""

    def commit(self, positions: Mapping[int, int]) -> None:
        """Remember as done everything up to these positions."""

    def pause(self, partitions: Sequence[int]) -> None:
        """Hand over nothing of these partitions until they are resumed."""

    def resume(self, partitions: Sequence[int]) -> None: ...

    def close(self) -> None: ...


class CommitsSoon(RecordSource, Protocol):
    """A source whose commits are answered by somebody else: a member of a consumer group."""

    def poll(self, max_events: int, busy: Collection[int] = ()) -> list[Block]:
        """Return what is there but of `busy` partitions; while there are some it never waits."""

    def commit_soon(self, positions: Mapping[int, int]) -> None:
        """Begin to commit and return; never raises.

        At most one commit is in flight. What the broker could not take is sent again. A partition is let go, and the
        source closed, only once what was begun before was answered.
        """


def ignore_assignment(partitions: Sequence[int]) -> None:
    """Stand in for a handler that nobody set."""


def block_of(data: bytes, records: Records, base: int, partition: int = 0) -> Block:
    """Make a block of records found in `data`, whose first byte lies at position `base`."""
    return Block(
        data=data,
        start=np.array(records.start, np.int64),
        end=np.array(records.end, np.int64),
        position=np.array(records.offset, np.int64) + base,
        append_ms=np.array(records.append_ms, np.int64),
        kind=np.array(records.kind, np.uint8),
        partition=partition,
    )


class JournalSource:
    """Read a journal from behind `after`: the one that this process writes, or a folder nobody writes.

    lost_from  where the records end that were lost before the position asked for, -1: none are missing

    Raises StoreCorrupt, naming segment and offset, where a record is damaged.
    """

    def __init__(self, journal: Journal | Path, *, after: int = -1, chunk_bytes: int = 1 << 20) -> None:
        self.on_assign: Assigned = ignore_assignment
        self.on_revoke: Assigned = ignore_assignment
        self.committed = after
        self._journal = journal if isinstance(journal, Journal) else None
        self._folder = journal.folder if isinstance(journal, Journal) else journal
        self._chunk_bytes = chunk_bytes
        self._paused = False
        self._fd = -1
        self._segment = Segment(0, self._folder)
        self._next_base: int | None = None
        self._assigned = False
        self._next = 0
        self.lost_from = -1
        self.seek(0, after)

    @property
    def next_position(self) -> int:
        """The position that is read next."""
        return self._next

    def seek(self, partition: int, position: int) -> None:
        self._close_segment()
        if position < 0:
            segments = list_segments(self._folder)
            self._next = segments[0].base if segments else 0
            return
        self._next = position
        segment = self._open_segment()
        head = os.pread(self._fd, HEADER.size, position - segment.base) if segment else b""
        if segment is not None and len(head) < HEADER.size and self._leads_into_gap():
            # What lay there is lost, and so declared; whoever stands at `position` has it behind.
            self.lost_from = segment.base + segment.size()
            assert self._next_base is not None
            self._next = self._next_base
            self._close_segment()
            return
        if segment is None or len(head) < HEADER.size:
            raise StoreCorrupt(
                f"journal {self._folder} holds no record at position {position}; it is behind its readers: "
                "restore its newest segment from a copy"
            )
        self._next = position + HEADER.size + HEADER.unpack(head)[0]

    def wait(self, timeout_s: float) -> bool:
        """Wait until there is something to poll; only beside the writing journal."""
        assert self._journal is not None, "only the writer's own process can wait"
        return self._journal.wait(self._next, timeout_s)

    def poll(self, max_events: int) -> list[Block]:
        if not self._assigned:
            self._assigned = True
            self.on_assign((0,))
        if self._paused or (self._journal is not None and self._journal.end <= self._next):
            return []
        while True:
            if self._fd < 0 and self._open_segment() is None:
                return []
            end = self._readable_end()
            if end > self._next:
                break
            if not self._leave_segment():
                return []
        data = self._read(min(end - self._next, self._chunk_bytes))
        records = read_records(data, max_events)
        if not records.offset and not records.broken and len(data) >= HEADER.size:
            length = HEADER.size + HEADER.unpack_from(data)[0]
            if length > len(data) and self._next + length <= end:
                data = self._read(length)
                records = read_records(data, max_events)
        if records.broken and not records.offset:
            # Another process may still be writing its last record; beside the writer nothing is ever half there.
            if self._journal is None and self._is_last_segment():
                return []
            raise StoreCorrupt(
                f"{self._segment.path}: the record at offset {self._next - self._segment.base} (position {self._next}) "
                "is damaged; restore the segment from a copy"
            )
        if not records.offset:
            return []
        block = block_of(data, records, self._next)
        self._next += records.consumed
        return [block]

    def commit(self, positions: Mapping[int, int]) -> None:
        self.committed = max(self.committed, positions.get(0, -1))

    def pause(self, partitions: Sequence[int]) -> None:
        self._paused = self._paused or 0 in partitions

    def resume(self, partitions: Sequence[int]) -> None:
        self._paused = self._paused and 0 not in partitions

    def close(self) -> None:
        self._close_segment()

    # --- inside --------------------------------------------------------------------------------------------------

    def _readable_end(self) -> int:
        """Where the current segment ends, as far as whole records are known to reach."""
        end = self._segment.base + os.fstat(self._fd).st_size
        return min(end, self._journal.end) if self._journal is not None else end

    def _read(self, size: int) -> bytes:
        return os.pread(self._fd, size, self._next - self._segment.base)

    def _open_segment(self) -> Segment | None:
        segments = list_segments(self._folder)
        for row, segment in enumerate(segments):
            following = segments[row + 1].base if row + 1 < len(segments) else None
            if segment.base <= self._next and (following is None or self._next < following):
                self._fd = os.open(segment.path, os.O_RDONLY)
                self._segment, self._next_base = segment, following
                return segment
        if segments and self._next < segments[0].base:
            raise StoreCorrupt(
                f"journal {self._folder} begins at position {segments[0].base}, position {self._next} was deleted: "
                "no checkpoint reaches that far"
            )
        return None

    def _leave_segment(self) -> bool:
        """Move on to the next segment if there is one, over a gap if it declares one."""
        if self._next_base is None:
            self._next_base = next(
                (one.base for one in list_segments(self._folder) if one.base > self._segment.base), None
            )
            # What the writer appended to the old segment just before it went on must be read first.
            if self._next_base is None or self._readable_end() > self._next:
                return self._next_base is not None
        self._next = self._next_base
        self._close_segment()
        return self._open_segment() is not None

    def _leads_into_gap(self) -> bool:
        return any(one.gap and one.base == self._next_base for one in list_segments(self._folder))

    def _is_last_segment(self) -> bool:
        return list_segments(self._folder)[-1].base == self._segment.base

    def _close_segment(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1
