"""Partitions side by side: while one waits for Redis or the broker, the others decide."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

T = TypeVar("T")

MOST_LANES = 16
"""More wait for each other's turn at the interpreter longer than for the stores."""


class Lanes:
    """Threads for the partitions of a worker. Each block costs some round trips, which would add up one after another.

    What is done in them touches one partition, and of what they share only what is made for it.
    """

    def __init__(self, most: int) -> None:
        self._threads = ThreadPoolExecutor(min(most, MOST_LANES), "opportune-partition")

    def each(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        """Do the work for every item, the first in this thread; returns or raises once all of them are through."""
        if not items:
            return
        others = [self._threads.submit(work, item) for item in items[1:]]
        try:
            work(items[0])
        finally:
            wait(others)
        for other in others:
            other.result()

    def close(self) -> None:
        self._threads.shutdown()


class OneByOne:
    """The same in one thread: for whoever must have the same order every time."""

    def each(self, work: Callable[[T], None], items: Sequence[T]) -> None:
        for item in items:
            work(item)

    def close(self) -> None:
        return None
