"""Recorded events as a source: newline-delimited JSON or JSON arrays, plain or gzipped (rule T2, `--clock events`).

Files have no append times, so `now` is the running maximum of `at`. Where everything fits in memory it is sorted by
`at` first; larger recordings must already be in order, and are refused where a record lies too far behind.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from engine.errors import StoreError
from engine.model import Block, RecordKind
from engine.runtime.event_files import NO_TIME, Lines, any_says_when, read_lines, read_whole, sort_lines, times_of
from engine.runtime.source import Assigned, ignore_assignment

BEHIND_MS = 300_000


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
        self._newest_ms = NO_TIME
        self._rows: Lines | None = None
        self._row = 0
        self._stream: Iterator[Lines] | None = None
        whole = read_whole(self._paths, sort_bytes)
        if whole is not None:
            self._rows = sort_lines(whole)
            self.total_bytes = int((self._rows.end - self._rows.start + 1).sum())
        else:
            self.total_bytes = sum(path.stat().st_size for path in self._paths)
            self._stream = self._read_in_order()

    def holds_no_event(self) -> bool:
        """Say whether no line can be an event, as every event says when: a file of something else.

        False where the files are too large to be looked through, and after the first poll.
        """
        return self.is_sorted and self._row == 0 and self._rows is not None and not any_says_when(self._rows)

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

    def _read_in_order(self) -> Iterator[Lines]:
        done = 0
        for path in self._paths:
            for lines, read_bytes in read_lines(path):
                self.done_bytes = done + read_bytes
                self._check_order(path, lines)
                yield lines
            done += path.stat().st_size

    def _check_order(self, path: Path, lines: Lines) -> None:
        at_ms = times_of(lines)
        newest_ms = np.maximum.accumulate(np.concatenate(([self._newest_ms], at_ms)))
        behind = np.flatnonzero((at_ms != NO_TIME) & (at_ms < newest_ms[1:] - BEHIND_MS))
        if len(behind):
            row = int(behind[0])
            late_s = (int(newest_ms[row + 1]) - int(at_ms[row])) // 1000
            raise StoreError(
                f"{path}: an event lies {late_s} s behind those before it, and the recording is too large to sort in "
                "memory; sort it by `at` first"
            )
        self._newest_ms = int(newest_ms[-1])
