"""What a worker writes to Kafka: offers, decisions, dead letters, ticks, and the reservations log."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.errors import KafkaError

from engine.errors import StoreUnavailable
from engine.model import RecordKind
from engine.runtime.cluster.blocks import kind_headers
from engine.runtime.cluster.bridge import Loop, probe, unreachable
from engine.settings import ClusterSettings

PATIENCE_MS = 120_000
_LAST_WAIT_S = 8.0
MOST_IN_FLIGHT = 1_000
"""Calls of `send` that are not acknowledged yet; the next one waits."""
_LATER = ("decisions", "dead-letters")
_LINGER_MS = 20
"""How long what nobody waits for may be gathered into one request."""
_WORTH_A_BATCH = 16


class Outputs:
    """Producers in a loop of their own; what was sent is acknowledged by all replicas in sync once `flush` returns.

    A producer has one request on its way to each broker, and what comes meanwhile waits for it. So there are three: for
    the reservations log, which the engine waits for; for offers, which users wait for; and for what nobody waits for.

    A broker that does not answer is waited for: two minutes, or until `is_stopped`, and some seconds more.
    """

    def __init__(self, cluster: ClusterSettings, *, is_stopped: Callable[[], bool] = lambda: False) -> None:
        self._cluster = cluster
        self._is_stopped = is_stopped
        self._loop = Loop("opportune-outputs")
        self._sent: deque[Future[None]] = deque()
        self._turn = threading.RLock()  # held while `_sent` changes: partitions send side by side
        try:
            self._loop.run(self._start())
        except (KafkaError, OSError) as error:
            self._loop.stop()
            raise unreachable(cluster.kafka, error) from None

    async def _start(self) -> None:
        await probe(self._cluster.kafka)
        self._log, self._now, self._later = (self._make(linger_ms) for linger_ms in (0, 0, _LINGER_MS))
        for producer in self._producers:
            await producer.start()

    def _make(self, linger_ms: int) -> AIOKafkaProducer:
        return AIOKafkaProducer(
            bootstrap_servers=self._cluster.kafka,
            acks="all",
            enable_idempotence=True,
            request_timeout_ms=PATIENCE_MS,
            linger_ms=linger_ms,
            max_request_size=8 << 20,
        )

    @property
    def _producers(self) -> tuple[AIOKafkaProducer, ...]:
        return self._log, self._now, self._later

    def send(
        self,
        role: str,
        values: Sequence[bytes],
        *,
        partition: int | None = None,
        keys: Sequence[bytes | None] | None = None,
        kind: RecordKind = RecordKind.EVENTS,
    ) -> None:
        """Hand records to the producer without waiting for it; without a partition the key decides (murmur2)."""
        with self._turn:
            while self._sent and self._sent[0].done():
                _raise_failure(self._sent.popleft())
            if len(self._sent) > MOST_IN_FLIGHT:
                self.flush()
            self._sent.append(self._loop.begin(self._send(role, values, partition, keys, kind)))

    async def _send(
        self,
        role: str,
        values: Sequence[bytes],
        partition: int | None,
        keys: Sequence[bytes | None] | None,
        kind: RecordKind,
    ) -> None:
        """Return once all are acknowledged."""
        headers = kind_headers(kind)
        topic = self._cluster.topic(role)
        producer = self._later if role in _LATER else self._now
        if partition is None or len(values) < _WORTH_A_BATCH:
            sent = [
                await producer.send(topic, value, key=keys[row] if keys else None, partition=partition, headers=headers)
                for row, value in enumerate(values)
            ]
            await asyncio.gather(*sent)
            return
        # Batches of our own cost a record a twentieth of what `send` does.
        waiting = []
        batch = producer.create_batch()
        for row, value in enumerate(values):
            key = keys[row] if keys else None
            if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                waiting.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                if batch.append(key=key, value=value, timestamp=None, headers=headers) is None:
                    raise StoreUnavailable(f"a record of {len(value)} bytes is larger than topic {topic} takes")
        waiting.append(await producer.send_batch(batch, topic, partition=partition))
        await asyncio.gather(*waiting)

    def append_control(self, partition: int, payload: bytes) -> int:
        """Write one control record into a partition of the events topic; return its position once it is durable."""

        async def write() -> int:
            headers = kind_headers(RecordKind.CONTROL)
            topic = self._cluster.topic("events")
            told = await self._now.send_and_wait(topic, payload, partition=partition, headers=headers)
            return int(told.offset)

        return int(self._run(write()))

    def flush(self) -> None:
        """Return once everything sent so far is acknowledged; StoreUnavailable where it is not."""
        with self._turn:
            waiting = [*self._sent]
            self._sent.clear()

        async def settled() -> None:
            await asyncio.gather(*(asyncio.wrap_future(one) for one in waiting))

        self._run(settled())

    def close(self) -> None:
        try:
            self._run(self._stop())
        finally:
            self._loop.stop()

    async def _stop(self) -> None:
        for producer in self._producers:
            await producer.stop()

    def _run(self, work: Any) -> Any:
        try:
            return self._loop.run_until(work, PATIENCE_MS / 1000 + 10, self._is_stopped, _LAST_WAIT_S)
        except KafkaError as error:
            raise StoreUnavailable(f"kafka takes no records ({type(error).__name__})") from None

    # --- the reservations log (engine.ledger.redis.log.ReservationLog) --------------------------------------------

    def append(self, shard: int, entry: bytes) -> None:
        """Write one commit of a shard; durable on return."""
        self.append_all({shard: entry})

    def append_all(self, entries: Mapping[int, bytes]) -> None:
        """Write a commit of each of these shards; all are durable on return."""

        async def write() -> None:
            topic = self._cluster.topic("reservations")
            sent = [await self._log.send(topic, entry, partition=shard) for shard, entry in entries.items()]
            await asyncio.gather(*sent)

        self._run(write())

    def read(self, shard: int, after: int) -> Iterable[bytes]:
        """Give every commit of a shard that is still kept, oldest first."""
        records = self._run(read_records(self._cluster.kafka, self._cluster.topic("reservations"), shard))
        return [record.value for record in records]


def _raise_failure(sent: Future[None]) -> None:
    error = sent.exception()
    if isinstance(error, KafkaError):
        raise StoreUnavailable(f"kafka takes no records ({type(error).__name__})") from None
    sent.result()


async def read_records(address: str, topic: str, partition: int, after: int = -1) -> list[Any]:
    """Read a partition's records behind an offset up to its present end."""
    consumer = AIOKafkaConsumer(bootstrap_servers=address, enable_auto_commit=False, fetch_max_wait_ms=50)
    await consumer.start()
    try:
        where = TopicPartition(topic, partition)
        consumer.assign([where])
        begin = max(after + 1, (await consumer.beginning_offsets([where]))[where])
        end = (await consumer.end_offsets([where]))[where]
        found: list[Any] = []
        if begin < end:
            consumer.seek(where, begin)
            while await consumer.position(where) < end:
                for records in (await consumer.getmany(timeout_ms=200)).values():
                    found.extend(record for record in records if record.offset < end)
        return found
    finally:
        await consumer.stop()
