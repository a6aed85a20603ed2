"""The plain aiokafka home of the RecordSource contract: one topic, one consumer group, no Faust."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import structlog
from aiokafka import AIOKafkaConsumer, ConsumerRebalanceListener, TopicPartition
from aiokafka.client import AIOKafkaClient
from aiokafka.errors import CommitFailedError, IllegalStateError, KafkaError

from engine.errors import StoreUnavailable
from engine.model import Block
from engine.runtime.cluster.blocks import block_of_records
from engine.runtime.cluster.bridge import Loop, Rebalances
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
        self._wait_ms = wait_ms
        self._mine: set[int] = set()
        self._is_closed = False
        self._rebalances = Rebalances()
        self._loop = Loop("opportune-kafka")
        try:
            self._loop.run(probe(address))
        except (KafkaError, OSError) as error:
            self._loop.stop()
            raise unreachable(address, error) from None
        # Joining a group waits for its other members, who may be waiting for this thread.
        self._started = self._loop.begin(self._start(address, group, fetch_max_wait_ms, session_timeout_ms))

    async def _start(self, address: str, group: str, fetch_max_wait_ms: int, session_timeout_ms: int) -> None:
        self._consumer = AIOKafkaConsumer(
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
        self._rebalances.handle(self._assigned, self._revoked)
        if not self._has_started():
            return []
        try:
            found = self._loop.run(self._consumer.getmany(timeout_ms=self._wait_ms, max_records=max_events))
        except KafkaError as error:
            raise StoreUnavailable(f"kafka cannot be read ({type(error).__name__})") from None
        self._rebalances.handle(self._assigned, self._revoked)
        return [
            block_of_records(records, where.partition)
            for where, records in sorted(found.items())
            if records and where.partition in self._mine
        ]

    def seek(self, partition: int, position: int) -> None:
        where = TopicPartition(self._topic, partition)
        if partition not in self._mine:
            raise ValueError(f"partition {partition} is not assigned")
        self._loop.run(_call(self._consumer.seek, where, position + 1))

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
        self._loop.run(_call(self._consumer.pause, *self._named(partitions)))

    def resume(self, partitions: Sequence[int]) -> None:
        self._loop.run(_call(self._consumer.resume, *self._named(partitions)))

    def lag(self) -> dict[int, int]:
        """How many records of each partition are not handed over yet, as far as fetches have told."""
        found = {}
        for partition in self._mine:
            where = TopicPartition(self._topic, partition)
            with contextlib.suppress(IllegalStateError, AssertionError):
                end = self._consumer.highwater(where)
                state = self._consumer._subscription.subscription.assignment.state_value(where)
                if end is not None and state is not None and state.has_valid_position:
                    found[partition] = max(0, end - state.position)
        return found

    def close(self) -> None:
        if self._is_closed:
            return
        self._is_closed = True
        self._rebalances.close()
        self._mine.clear()
        with contextlib.suppress(StoreUnavailable, KafkaError):
            self._loop.run(self._consumer.stop(), 15.0)
        self._loop.stop()

    # --- inside --------------------------------------------------------------------------------------------------

    def _assigned(self, partitions: Sequence[int]) -> None:
        self._mine.update(partitions)
        self.on_assign(partitions)

    def _revoked(self, partitions: Sequence[int]) -> None:
        try:
            self.on_revoke(partitions)
        finally:
            self._mine.difference_update(partitions)

    def _named(self, partitions: Sequence[int]) -> list[TopicPartition]:
        return [TopicPartition(self._topic, partition) for partition in partitions if partition in self._mine]


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


async def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)
