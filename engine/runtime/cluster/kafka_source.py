"""The plain aiokafka home of the RecordSource contract: one topic, one consumer group, no Faust."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

from aiokafka import ConsumerRebalanceListener, TopicPartition
from aiokafka.errors import IllegalStateError, KafkaError

from engine.errors import StoreUnavailable
from engine.runtime.cluster.bridge import Rebalances
from engine.runtime.cluster.group_source import GroupSource
from engine.runtime.cluster.record_batches import RawConsumer


class KafkaSource(GroupSource):
    """Read a topic with aiokafka's own consumer."""

    async def _start(self, address: str, group: str, session_timeout_ms: int) -> None:
        self._consumer = RawConsumer(
            bootstrap_servers=address,
            group_id=group,
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            fetch_max_wait_ms=self.fetch_max_wait_ms,
            max_partition_fetch_bytes=4 << 20,
            session_timeout_ms=session_timeout_ms,
            heartbeat_interval_ms=max(300, session_timeout_ms // 4),
            max_poll_interval_ms=600_000,
            rebalance_timeout_ms=30_000,
        )
        self._consumer.gather_ms = self.gather_ms
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

    async def _leave(self) -> None:
        if self._has_started():
            self._pump.cancel()
            await asyncio.wait([self._pump])
        await self._consumer.stop()

    def _must_live(self) -> None:
        if self._has_started() and self._pump.done():
            error = self._pump.exception()
            raise StoreUnavailable(f"kafka cannot be read ({type(error).__name__})") from error

    async def _go_to(self, partition: int, offset: int) -> None:
        self._consumer.seek(self._at(partition), offset)

    async def _commit(self, offsets: Mapping[int, int]) -> bool:
        await self._consumer.commit({self._at(partition): offset for partition, offset in offsets.items()})
        return True

    async def _set_paused(self, partitions: Sequence[int], paused: bool) -> None:
        change = self._consumer.pause if paused else self._consumer.resume
        change(*map(self._at, partitions))

    async def _next_committed(self, partition: int) -> int:
        where = self._at(partition)
        offset = await self._consumer.committed(where)
        if offset is None:
            offset = (await self._consumer.beginning_offsets([where]))[where]
        return int(offset)

    async def _count_partitions(self) -> int:
        return len(self._consumer.partitions_for_topic(self._topic) or ())

    def _highwater(self, partition: int) -> int | None:
        with contextlib.suppress(IllegalStateError, AssertionError):
            end: int | None = self._consumer.highwater(self._at(partition))
            return end
        return None

    def _at(self, partition: int) -> Any:
        return TopicPartition(self._topic, partition)


class _Listener(ConsumerRebalanceListener):  # type: ignore[misc]
    """Holds a rebalance up until the engine has let go, or taken hold."""

    def __init__(self, rebalances: Rebalances) -> None:
        self._rebalances = rebalances

    async def on_partitions_revoked(self, revoked: Sequence[Any]) -> None:
        gone = [where.partition for where in revoked]
        await self._rebalances.announce("revoke", gone)

    async def on_partitions_assigned(self, assigned: Sequence[Any]) -> None:
        await self._rebalances.announce("assign", [where.partition for where in assigned])
