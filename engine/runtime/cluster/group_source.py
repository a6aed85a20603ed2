"""A member of a consumer group as a RecordSource: what its two homes, plain aiokafka and Faust, have in common.

The client lives in a loop and thread of its own; the engine's thread polls. Offsets of the group are ours.
"""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Future

from aiokafka.errors import KafkaError

from engine.clock import monotonic_s
from engine.errors import StoreUnavailable
from engine.model import Block
from engine.runtime.cluster.bridge import Loop, Rebalances, probe, unreachable
from engine.runtime.cluster.commits import Commits
from engine.runtime.cluster.fetch_queue import FetchQueue
from engine.runtime.source import Assigned, ignore_assignment

_LAST_COMMIT_S = 5.0


class GroupSource(ABC):
    """Read a topic as a member of a group. Committed positions are offsets of the last record done.

    fetch_max_wait_ms  how long the broker may hold a fetch back while there is nothing
    wait_ms            how long `poll` waits for the first record
    gather_ms          how long the broker may gather records while they come, instead of answering for each
    Raises StoreUnavailable where no broker answers.
    """

    thread_name = "opportune-kafka"

    def __init__(
        self,
        address: str,
        topic: str,
        group: str,
        *,
        fetch_max_wait_ms: int = 50,
        session_timeout_ms: int = 10_000,
        wait_ms: int = 0,
        gather_ms: int = 0,
    ) -> None:
        self.on_assign: Assigned = ignore_assignment
        self.on_revoke: Assigned = ignore_assignment
        self.fetch_max_wait_ms = fetch_max_wait_ms
        self.gather_ms = gather_ms
        self._topic = topic
        self._wait_s = wait_ms / 1000
        self._mine: set[int] = set()
        self._strange_commits = 0
        self._is_closed = False
        self._queue = FetchQueue()
        self._rebalances = Rebalances(self._queue.wake)
        self._commits = Commits(self._begin_commit)
        self._loop = Loop(self.thread_name)
        try:
            # Faust's own answer to an unreachable broker is to try for ever; ask first.
            self._loop.run(probe(address))
        except (KafkaError, OSError) as error:
            self._loop.stop()
            raise unreachable(address, error) from None
        # Joining a group waits for its other members, who may be waiting for this thread.
        self._started: Future[None] = self._loop.begin(self._start(address, group, session_timeout_ms))

    # --- what each home does its own way, in the loop but for `_must_live` and `_highwater` ---------------------------

    @abstractmethod
    async def _start(self, address: str, group: str, session_timeout_ms: int) -> None: ...

    @abstractmethod
    async def _leave(self) -> None: ...

    @abstractmethod
    def _must_live(self) -> None:
        """Raise StoreUnavailable where nothing will ever be fetched any more."""

    @abstractmethod
    async def _go_to(self, partition: int, offset: int) -> None: ...

    @abstractmethod
    async def _commit(self, offsets: Mapping[int, int]) -> bool:
        """Commit what to read next of each partition; say whether it was taken."""

    @abstractmethod
    async def _set_paused(self, partitions: Sequence[int], paused: bool) -> None: ...

    @abstractmethod
    async def _next_committed(self, partition: int) -> int:
        """Where reading begins: behind what was committed, else at the beginning."""

    @abstractmethod
    async def _count_partitions(self) -> int: ...

    @abstractmethod
    def _highwater(self, partition: int) -> int | None:
        """The offset behind the last record, as far as fetches have told."""

    # --- RecordSource -------------------------------------------------------------------------------------------------

    def poll(self, max_events: int, busy: Collection[int] = ()) -> list[Block]:
        give_up_s = monotonic_s() + (0.0 if busy else self._wait_s)
        self._commits.go_on()
        while True:
            self._rebalances.handle(self._assigned, self._revoked)
            self._must_live()
            blocks = self._queue.take(max_events, self._fetch_again, busy)
            left_s = give_up_s - monotonic_s()
            if blocks or left_s <= 0:
                return blocks
            self._queue.wait(left_s)

    def seek(self, partition: int, position: int) -> None:
        if partition not in self._mine:
            raise ValueError(f"partition {partition} is not assigned")
        self._queue.begin(partition, position + 1)
        self._fetch_again(partition, position + 1)

    def commit(self, positions: Mapping[int, int]) -> None:
        """Commit what is ours; what is not, or no longer, is refused and counted (F4)."""
        self.commit_soon(positions)
        self._commits.settle()

    def commit_soon(self, positions: Mapping[int, int]) -> None:
        """Begin to commit and return: reading goes on meanwhile. Before a partition is let go its commit is awaited."""
        mine = {partition: position for partition, position in positions.items() if partition in self._mine}
        self._strange_commits += len(positions) - len(mine)
        self._commits.want(mine)

    @property
    def committed(self) -> dict[int, int]:
        """What the group knows to be done, as far as this member has told it."""
        return self._commits.done

    @property
    def refused_commits(self) -> int:
        return self._strange_commits + self._commits.refused

    def pause(self, partitions: Sequence[int]) -> None:
        mine = [partition for partition in partitions if partition in self._mine]
        self._queue.pause(mine)
        self._loop.run(self._set_paused(mine, True))

    def resume(self, partitions: Sequence[int]) -> None:
        mine = [partition for partition in partitions if partition in self._queue.paused]
        self._loop.run(self._set_paused(mine, False))
        for partition in mine:
            self._queue.paused.discard(partition)
            self.seek(partition, self._queue.next[partition] - 1)

    def lag(self) -> dict[int, int]:
        """How many records of each partition are not handed over yet, as far as fetches have told.

        Below 0 the topic is shorter than what was read of it.
        """
        ends = {partition: self._highwater(partition) for partition in self._queue.next}
        return {partition: end - self._queue.next[partition] for partition, end in ends.items() if end is not None}

    @property
    def misplaced(self) -> dict[int, int]:
        """How many records of each partition belong into another, by their key."""
        return self._queue.misplaced

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._rebalances.close()
        with contextlib.suppress(StoreUnavailable):  # what is not committed comes again
            self._commits.settle(_LAST_COMMIT_S)
        self._mine.clear()
        with contextlib.suppress(StoreUnavailable, KafkaError):
            self._loop.run(self._leave(), 20.0)
        self._loop.stop()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _begin_commit(self, positions: Mapping[int, int]) -> Future[bool]:
        return self._loop.begin(self._commit({partition: position + 1 for partition, position in positions.items()}))

    def _fetch_again(self, partition: int, offset: int) -> None:
        self._loop.run(self._go_to(partition, offset))

    def _assigned(self, partitions: Sequence[int]) -> None:
        offsets = self._loop.run(self._positions(partitions))
        self._mine.update(partitions)
        for partition in partitions:
            self.seek(partition, offsets[partition] - 1)
        self.on_assign(partitions)

    async def _positions(self, partitions: Sequence[int]) -> dict[int, int]:
        found = {partition: await self._next_committed(partition) for partition in partitions}
        self._queue.partitions = await self._count_partitions()
        return found

    def _revoked(self, partitions: Sequence[int]) -> None:
        try:
            self.on_revoke(partitions)
            with contextlib.suppress(StoreUnavailable):  # whoever has them next does again what was not committed
                self._commits.settle()
        finally:
            self._mine.difference_update(partitions)
            self._commits.drop(partitions)
            self._queue.drop(partitions)
