"""Between the loop that fetches and the engine that polls: fetched bytes wait, in order, until they are wanted."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence

from engine.model import Block
from engine.runtime.cluster.record_batches import Fetched

_MOST_WAITING = 8
"""Fetched pieces that wait for the engine; beyond that nothing is fetched (back-pressure)."""


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
        self._repaired: dict[int, int] = {}
        self._has_news = threading.Event()

    # --- in the loop ----------------------------------------------------------------------------------------------

    @property
    def is_full(self) -> bool:
        return len(self._waiting) >= _MOST_WAITING

    def put(self, fetched: Fetched) -> None:
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
        """Hand over from this offset on."""
        self.next[partition] = offset

    def drop(self, partitions: Sequence[int]) -> None:
        """Forget partitions that are no longer ours."""
        gone = set(partitions)
        for _ in range(len(self._waiting)):
            fetched = self._waiting.popleft()
            if fetched.partition not in gone:
                self._waiting.append(fetched)
        for partition in partitions:
            self.next.pop(partition, None)
            self.paused.discard(partition)

    def take(self, most: int, seek: Callable[[int, int], None]) -> list[Block]:
        """Return blocks of at most `most` records in all, in the order in which they came.

        seek  asked to fetch a partition from an offset again, where a piece between was fetched in vain
        """
        blocks: list[Block] = []
        kept: list[Fetched] = []
        left = most
        while self._waiting and left > 0:
            fetched = self._waiting.popleft()
            partition = fetched.partition
            expected = self.next.get(partition)
            if expected is None or partition in self.paused:
                # Not to be had now; before its assignment was announced here it only waits.
                kept.append(fetched)
                continue
            if fetched.offset > expected and self._repaired.get(partition) != expected:
                # Something between was fetched for an assignment that is over: read it again. Once: it may be gone.
                self._repaired[partition] = expected
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
            blocks.append(block)
            left -= len(block)
            self.next[partition] = int(block.position[-1]) + 1
            kept.append(fetched)
        # Oldest first; a piece that is not empty yet stays in front of what came after it.
        self._waiting.extendleft(reversed(kept))
        return blocks
