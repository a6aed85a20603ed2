"""What waits between the fetching loop and the engine: joined, bounded, in order (RecordSource; T4, F23)."""

from __future__ import annotations

import numpy as np
import pytest

from engine.model import Block
from engine.runtime.cluster import fetch_queue
from engine.runtime.cluster.fetch_queue import FetchQueue


class Piece:
    """What a fetch brought: records that name their place."""

    def __init__(self, partition: int, offset: int, count: int, size_bytes: int = 100) -> None:
        self.partition, self.offset = partition, offset
        self.next_offset = offset + count
        self.misplaced = 0
        self.size_bytes = size_bytes

    def take(self, wanted: int, most: int, partitions: int) -> Block | None:
        first = max(wanted, self.offset)
        rows = range(first, min(self.next_offset, first + most))
        if not rows:
            return None
        values = [b"%d:%d" % (self.partition, row) for row in rows]
        # As in a record batch: something lies before and between the values.
        data, start, end = b"head", [], []
        for value in values:
            start.append(len(data))
            data += value
            end.append(len(data))
            data += b"|"
        told = (np.array(column, np.int64) for column in (start, end, rows, [7] * len(rows)))
        return Block(data, *told, np.zeros(len(rows), np.uint8), self.partition)


def waiting(*pieces: Piece) -> FetchQueue:
    queue = FetchQueue()
    for partition in {one.partition for one in pieces}:
        queue.begin(partition, 0)
    for piece in pieces:
        queue.put(piece)  # type: ignore[arg-type]
    return queue


def no_seek(partition: int, offset: int) -> None:
    raise AssertionError(f"fetched again from {offset}")


def values(block: Block) -> list[bytes]:
    return [block.data[start:end] for start, end in zip(block.start, block.end, strict=True)]


def test_what_a_partition_has_waiting_comes_as_one_block():
    """A block costs round trips: whoever takes small fetches one by one falls behind and stays behind."""
    queue = waiting(*(Piece(partition, 3 * turn, 3) for turn in range(5) for partition in (0, 1)))
    blocks = queue.take(1000, no_seek)
    assert [(one.partition, len(one)) for one in blocks] == [(0, 15), (1, 15)]
    for block in blocks:
        assert values(block) == [b"%d:%d" % (block.partition, row) for row in range(15)]
        assert block.position.tolist() == list(range(15))
        assert block.append_ms.tolist() == [7] * 15
    assert queue.next == {0: 15, 1: 15}
    assert queue.take(1000, no_seek) == []


@pytest.mark.parametrize("most", [1, 2, 4, 7])
def test_no_poll_brings_more_than_was_asked_for(most):
    """T4: however it is cut, each record once and in order."""
    queue = waiting(*(Piece(0, 3 * turn, 3) for turn in range(4)))
    found = []
    while blocks := queue.take(most, no_seek):
        assert sum(map(len, blocks)) <= most
        found += [value for block in blocks for value in values(block)]
    assert found == [b"0:%d" % row for row in range(12)]


def test_large_pieces_are_not_copied(monkeypatch):
    monkeypatch.setattr(fetch_queue, "_JOINED_BYTES", 50)
    queue = waiting(Piece(0, 0, 9), Piece(0, 9, 2), Piece(0, 11, 2), Piece(0, 13, 9))
    assert [len(one) for one in queue.take(1000, no_seek)] == [9, 4, 9]


def test_fetching_stops_by_bytes_and_by_pieces():
    """F23: a burst waits in the broker, not here."""
    queue = waiting(Piece(0, 0, 1, 5 << 20))
    assert not queue.is_full
    queue.put(Piece(0, 1, 1, 3 << 20))  # type: ignore[arg-type]
    assert queue.is_full
    queue.take(1, no_seek)
    queue = waiting(*(Piece(0, row, 1) for row in range(256)))
    assert queue.is_full
    queue.take(10, no_seek)
    assert not queue.is_full


def test_what_waits_of_a_busy_partition_stays_and_comes_in_order_once_it_is_free():
    """A partition whose block is under way is given nothing; meanwhile its fetches become one block."""
    queue = waiting(*(Piece(partition, 3 * turn, 3) for turn in range(3) for partition in (0, 1)))
    assert [(one.partition, len(one)) for one in queue.take(1000, no_seek, busy={0})] == [(1, 9)]
    assert queue.take(1000, no_seek, busy={0, 1}) == []
    queue.put(Piece(0, 9, 3))  # type: ignore[arg-type]
    (block,) = queue.take(1000, no_seek, busy={1})
    assert block.position.tolist() == list(range(12))
