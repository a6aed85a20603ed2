"""Between the loop that fetches and the engine that polls: fetched bytes wait, in order, until they are wanted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence

import numpy as np

from engine.model import Block
from engine.runtime.cluster.record_batches import Fetched

_MOST_PIECES, _MOST_BYTES = 256, 8 << 20
"""What was fetched and waits for the engine; beyond either nothing is fetched (back-pressure)."""
_JOINED_BYTES = 1 << 20
"""Pieces of a partition that wait together become one block up to this size; more is dearer to copy than to decide."""
_TRIES = 2
"""Times that a gap is fetched again. One fetch may be on its way while the first seek is made; never two."""


class FetchQueue:
    """Filled in the loop, emptied in the engine's thread; knows what comes next in each partition.

    partitions  how many the topic has; 0: not known yet
    misplaced  keyed records, by partition, that murmur2 puts elsewhere: their users' state lies in another partition
    """

    def __init__(self) -> None:
        self.partitions = 0
        self.next: dict[int, int] = {}
        self.paused: set[int] = set()
        self.misplaced: dict[int, int] = {}
        self._waiting: deque[Fetched] = deque()
        self._repaired: dict[int, tuple[int, int]] = {}
        self._lock = threading.Lock()  # held while `_waiting` changes: the loop adds, the engine takes
        self._has_news = threading.Event()

    # --- in the loop ----------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        with self._lock:
            if len(self._waiting) >= _MOST_PIECES:
                return True
            return sum(one.size_bytes for one in self._waiting) >= _MOST_BYTES

    def put(self, fetched: Fetched) -> None:
        """Keep what was fetched. What belongs to nobody here now is fetched again by a seek once it does."""
        with self._lock:
            if fetched.partition not in self.next or fetched.partition in self.paused:
                return
            self._waiting.append(fetched)
        self._has_news.set()

    def wake(self) -> None:
        """End the engine's waiting: there is something else to do."""
        self._has_news.set()

    # --- in the engine's thread -----------------------------------------------------------------------------------

    def wait(self, timeout_s: float) -> None:
        """Wait until something is put, or for this long."""
        self._has_news.wait(timeout_s)
        self._has_news.clear()

    def begin(self, partition: int, offset: int) -> None:
        """Hand over from this offset on, and nothing that was fetched before."""
        self._drop_waiting({partition})
        self._repaired.pop(partition, None)
        self.next[partition] = offset

    def pause(self, partitions: Sequence[int]) -> None:
        """Keep nothing of these: what waits must not take the place of others'."""
        self.paused.update(partitions)
        self._drop_waiting(set(partitions))

    def drop(self, partitions: Sequence[int]) -> None:
        """Forget partitions that are no longer ours."""
        for partition in partitions:
            self.next.pop(partition, None)
            self.paused.discard(partition)
        self._drop_waiting(set(partitions))

    def take(self, most: int, seek: Callable[[int, int], None], busy: Collection[int] = ()) -> list[Block]:
        """Return blocks of at most `most` records in all; those of a partition in the order in which they came.

        What a partition has waiting comes as one block: each costs some round trips, however few records it has. Else
        whoever is slower than fetches are small would answer ever later.

        seek  asked to fetch a partition from an offset again, where a piece between was fetched in vain
        busy  partitions of which nothing is wanted now
        """
        blocks: dict[int, list[Block]] = {}
        left = most
        while left > 0 and (fetched := self._next_but(busy)) is not None:
            partition = fetched.partition
            expected = self.next[partition]
            if fetched.offset > expected and self._is_worth_a_try(partition, expected):
                # Something between was fetched for an assignment that is over. What else waits of the partition goes
                # too: it was fetched before the seek, and is no sign that what is missing is gone from the topic.
                self._drop_waiting({partition})
                seek(partition, expected)
                continue
            # What was fetched before a seek, or twice around a rebalance, is passed over.
            before = fetched.misplaced
            block = fetched.take(expected, left, self.partitions)
            if fetched.misplaced > before:
                self.misplaced[partition] = self.misplaced.get(partition, 0) + fetched.misplaced - before
            if block is None:
                self.next[partition] = max(expected, fetched.next_offset)
                continue
            blocks.setdefault(partition, []).append(block)
            left -= len(block)
            self.next[partition] = int(block.position[-1]) + 1
            with self._lock:
                # What is left of it goes before what came after it.
                self._waiting.appendleft(fetched)
        return [block for pieces in blocks.values() for block in _joined(pieces)]

    def _next_but(self, busy: Collection[int]) -> Fetched | None:
        with self._lock:
            for place, fetched in enumerate(self._waiting):
                if fetched.partition not in busy:
                    del self._waiting[place]
                    return fetched
        return None

    def _is_worth_a_try(self, partition: int, expected: int) -> bool:
        place, tries = self._repaired.get(partition, (-1, 0))
        tries = tries if place == expected else 0
        self._repaired[partition] = (expected, tries + 1)
        return tries < _TRIES

    def _drop_waiting(self, partitions: set[int]) -> None:
        with self._lock:
            self._waiting = deque(one for one in self._waiting if one.partition not in partitions)


def _joined(pieces: list[Block]) -> Iterator[Block]:
    """Put small neighbours together."""
    first = 0
    while first < len(pieces):
        last, size = first + 1, len(pieces[first].data)
        while last < len(pieces) and size + len(pieces[last].data) <= _JOINED_BYTES:
            size += len(pieces[last].data)
            last += 1
        yield pieces[first] if last == first + 1 else _join(pieces[first:last])
        first = last


def _join(pieces: list[Block]) -> Block:
    sizes = np.array([len(one.data) for one in pieces[:-1]], np.int64)
    before = np.repeat(np.concatenate(([0], np.cumsum(sizes))), [len(one) for one in pieces])
    return Block(
        b"".join(one.data for one in pieces),
        np.concatenate([one.start for one in pieces]) + before,
        np.concatenate([one.end for one in pieces]) + before,
        np.concatenate([one.position for one in pieces]),
        np.concatenate([one.append_ms for one in pieces]),
        np.concatenate([one.kind for one in pieces]),
        pieces[0].partition,
    )
