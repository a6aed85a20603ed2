"""The plain aiokafka home of the RecordSource contract: one topic, one consumer group, no Faust."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from engine.clock import monotonic_s
from engine.errors import StoreUnavailable
from engine.model import Block
from engine.runtime.cluster.bridge import Loop, Rebalances
from engine.runtime.cluster.fetch_queue import FetchQueue
from engine.runtime.cluster.record_batches import RawConsumer
from engine.runtime.source import Assigned, ignore_assignment

log = structlog.get_logger("opportune.kafka")


class KafkaSource:
    """Read a topic as a member of a group. Committed positions are offsets of the last record done.

    fetch_max_wait_ms  how long the broker may hold a fetch back while there is nothing
    wait_ms            how long `poll` waits for the first record
    """

    def __init__(
        self,
        address: str,
        topic: str,
        group: str,
        *,
        fetch_max_wait_ms: int = 50,
        session_timeout_ms: int = 10_000,
        wait_ms: int = 0,
    ) -> None:
        self.on_assign: Assigned = ignore_assignment
        self.on_revoke: Assigned = ignore_assignment
        self.committed: dict[int, int] = {}
        self.refused_commits = 0
        self._topic = topic
        self._wait_s = wait_ms / 1000
        self._mine: set[int] = set()
        self._is_closed = False
        self._queue = FetchQueue()
        self._rebalances = Rebalances(self._queue.wake)
        self._loop = Loop("opportune-kafka")
        try:
            self._loop.run(probe(address))
        except (KafkaError, OSError) as error:
            self._loop.stop()
            raise unreachable(address, error) from None
        # Joining a group waits for its other members, who may be waiting for this thread.
        self._started = self._loop.begin(self._start(address, group, fetch_max_wait_ms, session_timeout_ms))

    async def _start(self, address: str, group: str, fetch_max_wait_ms: int, session_timeout_ms: int) -> None:
        self._consumer = RawConsumer(
            bootstrap_servers=address,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=fetch_max_wait_ms,
            max_partition_fetch_bytes=4 << 20,
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=max(300, session_timeout_ms // 4),
            max_poll_interval_ms=600_000,
            rebalance_timeout_ms=30_000,
        )
        self._consumer.subscribe([self._topic], listener=_Listener(self._rebalances))
        try:
            await self._consumer.start()
        except BaseException:
            await self._consumer.stop()
            raise
        self._pump = asyncio.create_task(self._fetch())

    async def _fetch(self) -> None:
        """In the loop: fetch ahead of the engine, as far as the queue allows."""
        try:
            while True:
                while self._queue.is_full:
                    await asyncio.sleep(0.001)
                for found in (await self._consumer.getmany(timeout_ms=1000)).values():
                    for fetched in found:
                        self._queue.put(fetched)
        finally:
            self._queue.wake()

    def _has_started(self) -> bool:
        if not self._started.done():
            return False
        try:
            self._started.result()
        except (KafkaError, OSError) as error:
            raise StoreUnavailable(f"kafka does not let this member in ({type(error).__name__})") from None
        return True

    @property
    def generation(self) -> int:
        """The group's generation that this member belongs to."""
        return int(self._consumer._coordinator.generation)

    def poll(self, max_events: int) -> list[Block]:
        give_up_s = monotonic_s() + self._wait_s
        while True:
            self._rebalances.handle(self._assigned, self._revoked)
            if self._has_started() and self._pump.done():
                error = self._pump.exception()
                raise StoreUnavailable(f"kafka cannot be read ({type(error).__name__})") from error
            blocks = self._queue.take(max_events, self._fetch_again)
            left_s = give_up_s - monotonic_s()
            if blocks or left_s <= 0:
                return blocks
            self._queue.wait(left_s)

    def _fetch_again(self, partition: int, offset: int) -> None:
        self._loop.run(call(self._consumer.seek, TopicPartition(self._topic, partition), offset))

    def seek(self, partition: int, position: int) -> None:
        if partition not in self._mine:
            raise ValueError(f"partition {partition} is not assigned")
        self._queue.begin(partition, position + 1)
        self._fetch_again(partition, position + 1)

    def commit(self, positions: Mapping[int, int]) -> None:
        """Commit what is ours; what is not, or no longer, is refused and counted (F4)."""
        mine = {partition: position for partition, position in positions.items() if partition in self._mine}
        self.refused_commits += len(positions) - len(mine)
        offsets = {TopicPartition(self._topic, partition): position + 1 for partition, position in mine.items()}
        if not offsets:
            return
        try:
            self._loop.run(self._consumer.commit(offsets))
        except (CommitFailedError, IllegalStateError):
            self.refused_commits += len(mine)
            return
        except KafkaError as error:
            raise StoreUnavailable(f"kafka took no commit ({type(error).__name__})") from None
        self.committed.update(mine)

    def pause(self, partitions: Sequence[int]) -> None:
        mine = [partition for partition in partitions if partition in self._mine]
        self._queue.pause(mine)
        self._loop.run(call(self._consumer.pause, *(TopicPartition(self._topic, one) for one in mine)))

    def resume(self, partitions: Sequence[int]) -> None:
        mine = [partition for partition in partitions if partition in self._queue.paused]
        self._loop.run(call(self._consumer.resume, *(TopicPartition(self._topic, one) for one in mine)))
        for partition in mine:
            self._queue.paused.discard(partition)
            self.seek(partition, self._queue.next[partition] - 1)

    def lag(self) -> dict[int, int]:
        """How many records of each partition are not handed over yet, as far as fetches have told.

        Below 0 the topic is shorter than what was read of it.
        """
        found = {}
        for partition, following in self._queue.next.items():
            with contextlib.suppress(IllegalStateError, AssertionError):
                end = self._consumer.highwater(TopicPartition(self._topic, partition))
                if end is not None:
                    found[partition] = end - following
        return found

    @property
    def misplaced(self) -> dict[int, int]:
        """How many records of each partition belong into another, by their key."""
        return self._queue.misplaced

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._rebalances.close()
        self._mine.clear()
        with contextlib.suppress(StoreUnavailable, KafkaError):
            self._loop.run(self._leave(), 15.0)
        self._loop.stop()

    async def _leave(self) -> None:
        if self._has_started():
            self._pump.cancel()
            await asyncio.wait([self._pump])
        await self._consumer.stop()

    # --- inside --------------------------------------------------------------------------------------------------

    def _assigned(self, partitions: Sequence[int]) -> None:
        offsets = self._loop.run(self._positions(partitions))
        self._mine.update(partitions)
        for partition in partitions:
            self.seek(partition, offsets[partition] - 1)
        self.on_assign(partitions)

    async def _positions(self, partitions: Sequence[int]) -> dict[int, int]:
        """Where reading begins: behind what was committed, else at the beginning."""
        found = {}
        for partition in partitions:
            where = TopicPartition(self._topic, partition)
            offset = await self._consumer.committed(where)
            if offset is None:
                offset = (await self._consumer.beginning_offsets([where]))[where]
            found[partition] = int(offset)
        self._queue.partitions = len(self._consumer.partitions_for_topic(self._topic) or ())
        return found

    def _revoked(self, partitions: Sequence[int]) -> None:
        try:
            self.on_revoke(partitions)
        finally:
            self._mine.difference_update(partitions)
            self._queue.drop(partitions)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Holds a rebalance up until the engine has let go, or taken hold."""

    def __init__(self, rebalances: Rebalances) -> None:
        self._rebalances = rebalances

    async def on_partitions_revoked(self, revoked: Sequence[Any]) -> None:
        gone = [where.partition for where in revoked]
        await self._rebalances.announce("revoke", gone)

    async def on_partitions_assigned(self, assigned: Sequence[Any]) -> None:
        await self._rebalances.announce("assign", [where.partition for where in assigned])


def unreachable(address: str, error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"kafka at {address} cannot be reached ({type(error).__name__}): start it, or name another with "
        "OPPORTUNE_CLUSTER__KAFKA=host:port"
    )


async def probe(address: str) -> None:
    """Raise KafkaError where no broker answers."""
    client = AIOKafkaClient(bootstrap_servers=address, request_timeout_ms=5000)
    try:
        await client.bootstrap()
    finally:
        await client.close()


async def call(function: Any, *arguments: Any) -> Any:
    """Call a plain function in the loop."""
    return function(*arguments)
