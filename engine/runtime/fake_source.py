"""A broker in memory, for tests and simulation: rebalances, lost membership and crashes happen when told."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from engine.model import Block, RecordKind
from engine.runtime.source import Assigned, ignore_assignment


@dataclass(frozen=True, slots=True)
class FakeRecord:
    """One record of a FakeSource; its position is its index in the partition unless given."""

    payload: bytes
    append_ms: int
    kind: int = RecordKind.EVENTS


class FakeSource:
    """A broker in memory: partitions, committed positions, generations; rebalances and crashes happen when told.

    Deterministic: partitions are handed over in turn, lowest first, and nothing depends on time.

    holds_commits  whether commits begun by `commit_soon` wait for `answer_commits`, or for a partition to be let go
    """

    def __init__(self, partitions: Mapping[int, Iterable[FakeRecord]], *, max_blocks: int = 4) -> None:
        self.on_assign: Assigned = ignore_assignment
        self.on_revoke: Assigned = ignore_assignment
        self.committed: dict[int, int] = {}
        self.generation = 0
        self.refused_commits = 0
        self.holds_commits = False
        self._in_flight: dict[int, int] = {}
        self._records = {partition: list(records) for partition, records in partitions.items()}
        self._max_blocks = max_blocks
        self._next: dict[int, int] = {}
        self._paused: set[int] = set()
        self._wanted: set[int] = set(self._records)
        self._member = True

    def append(self, partition: int, record: FakeRecord) -> int:
        """Add a record and return its position."""
        self._records[partition].append(record)
        return len(self._records[partition]) - 1

    def rebalance(self, partitions: Iterable[int]) -> None:
        """Assign exactly these partitions at the next poll, in a new generation."""
        self._wanted = set(partitions)

    def lose_membership(self) -> None:
        """Let the group go on without this member: its commits are refused, the next poll joins again."""
        self._member = False

    def crash(self) -> None:
        """Forget everything but what was committed; handlers are not called, as in a kill."""
        self._next.clear()
        self._paused.clear()
        self._in_flight.clear()
        self._member = True

    def poll(self, max_events: int, busy: Collection[int] = ()) -> list[Block]:
        self._settle_assignment()
        blocks: list[Block] = []
        left = max_events
        for partition in sorted(self._next):
            if partition in self._paused or partition in busy or left <= 0 or len(blocks) == self._max_blocks:
                continue
            first = self._next[partition]
            taken = self._records[partition][first : first + left]
            if taken:
                blocks.append(_fake_block(taken, first, partition))
                self._next[partition] = first + len(taken)
                left -= len(taken)
        return blocks

    def seek(self, partition: int, position: int) -> None:
        if partition not in self._next:
            raise ValueError(f"partition {partition} is not assigned")
        self._next[partition] = position + 1

    def commit(self, positions: Mapping[int, int]) -> None:
        for partition, position in positions.items():
            if not self._member or partition not in self._next:
                self.refused_commits += 1
                continue
            self.committed[partition] = max(position, self.committed.get(partition, -1))

    def commit_soon(self, positions: Mapping[int, int]) -> None:
        self._in_flight.update(positions)
        if not self.holds_commits:
            self.answer_commits()

    def answer_commits(self) -> None:
        """Let the broker answer what was begun."""
        positions, self._in_flight = self._in_flight, {}
        self.commit(positions)

    def pause(self, partitions: Sequence[int]) -> None:
        self._paused.update(partitions)

    def resume(self, partitions: Sequence[int]) -> None:
        self._paused.difference_update(partitions)

    def close(self) -> None:
        self.answer_commits()
        self._next.clear()

    def _settle_assignment(self) -> None:
        if not self._member:
            self.on_revoke(sorted(self._next))
            self.answer_commits()
            self._next.clear()
            self._member = True
        revoked = sorted(set(self._next) - self._wanted)
        gained = sorted(self._wanted - set(self._next))
        if not revoked and not gained:
            return
        self.generation += 1
        if revoked:
            self.on_revoke(revoked)
            self.answer_commits()
            for partition in revoked:
                del self._next[partition]
                self._paused.discard(partition)
        if gained:
            for partition in gained:
                self._next[partition] = self.committed.get(partition, -1) + 1
            self.on_assign(gained)


def _fake_block(records: Sequence[FakeRecord], first: int, partition: int) -> Block:
    lengths = np.array([len(record.payload) for record in records], np.int64)
    end = np.cumsum(lengths)
    return Block(
        data=b"".join(record.payload for record in records),
        start=end - lengths,
        end=end,
        position=np.arange(first, first + len(records), dtype=np.int64),
        append_ms=np.array([record.append_ms for record in records], np.int64),
        kind=np.array([record.kind for record in records], np.uint8),
        partition=partition,
    )
