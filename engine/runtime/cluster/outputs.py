"""What a worker writes to Kafka: offers, decisions, dead letters, ticks, and the reservations log."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from aiokafka import AIOKafkaConsumer, TopicPartition
from aiokafka.errors import KafkaError as ReadError
from confluent_kafka import KafkaError, KafkaException, Message, Producer

from engine.clock import monotonic_s
from engine.errors import StoreUnavailable
from engine.model import RecordKind
from engine.runtime.cluster.blocks import kind_headers
from engine.runtime.cluster.bridge import CLIENT_LOG, Loop, unreachable
from engine.runtime.cluster.lanes import Lanes, OneByOne
from engine.runtime.cluster.topics import LARGEST_BYTES, LARGEST_COMMIT_BYTES
from engine.settings import ClusterSettings

PATIENCE_MS = 120_000
_LAST_WAIT_S = 8.0
_LOOK_S = 0.5
_REACH_S = 5.0
MOST_UNACKNOWLEDGED = 100_000
"""Records that are sent and not acknowledged yet; whoever sends more waits for all of them."""
_LATER = ("decisions", "dead-letters")
_LINGER_MS = 20
"""How long what nobody waits for may be gathered into one request."""


class Outputs:
    """Producers; what was sent is acknowledged by all replicas in sync once `flush` returns.

    A broker works on one request of a connection at a time, and what comes meanwhile waits. So there are three: for the
    reservations log, which the engine waits for; for offers, which users wait for; and for what nobody waits for.

    A broker that does not answer is waited for: two minutes, or until `is_stopped`, and some seconds more.

    is_replayed  whoever writes does it again from a checkpoint, so that once a record is lost nothing may be saved any
                 more: every call says so. Else threads that have sent something, and not flushed since, are told once.
    """

    def __init__(
        self,
        cluster: ClusterSettings,
        *,
        is_stopped: Callable[[], bool] = lambda: False,
        lanes: Lanes | OneByOne | None = None,
        is_replayed: bool = False,
    ) -> None:
        self._cluster = cluster
        self._is_replayed = is_replayed
        self._lanes = lanes or OneByOne()
        self._is_stopped = is_stopped
        self._log = self._make(0, LARGEST_COMMIT_BYTES)
        self._now, self._later = (self._make(linger_ms, LARGEST_BYTES) for linger_ms in (0, _LINGER_MS))
        try:
            self._log.reach()
        except KafkaException as error:
            raise unreachable(cluster.kafka, error) from None

    def _make(self, linger_ms: int, largest_bytes: int) -> _Producer:
        settings = {
            "bootstrap.servers": self._cluster.kafka,
            "acks": "all",
            "enable.idempotence": True,
            "message.timeout.ms": PATIENCE_MS,
            "linger.ms": linger_ms,
            "message.max.bytes": largest_bytes,
            "partitioner": "murmur2_random",
            "queue.buffering.max.messages": 0,  # we count ourselves
            "queue.buffering.max.kbytes": (1 << 31) - 1,
        }
        return _Producer(settings, self._is_stopped, self._lanes, is_replayed=self._is_replayed)

    @property
    def _producers(self) -> tuple[_Producer, ...]:
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
        producer = self._later if role in _LATER else self._now
        producer.send(self._cluster.topic(role), values, partition, keys, kind)

    def append_control(self, partition: int, payload: bytes) -> int:
        """Write one control record into a partition of the events topic; return its position once it is durable."""
        return self._now.append(self._cluster.topic("events"), partition, payload, RecordKind.CONTROL)

    def flush(self) -> None:
        """Return once everything sent so far is acknowledged; StoreUnavailable where it is not."""
        for producer in self._producers:
            producer.flush()

    def close(self) -> None:
        self.flush()

    # --- the reservations log (engine.ledger.redis.log.ReservationLog) --------------------------------------------

    def append(self, shard: int, entry: bytes) -> None:
        """Write one commit of a shard; durable on return."""
        self._log.append(self._cluster.topic("reservations"), shard, entry)

    def read(self, shard: int, after: int) -> Iterable[bytes]:
        """Give every commit of a shard that is still kept, oldest first."""
        loop = Loop("opportune-log")
        try:
            reading = read_records(self._cluster.kafka, self._cluster.topic("reservations"), shard)
            records = loop.run_until(reading, PATIENCE_MS / 1000, self._is_stopped, _LAST_WAIT_S)
        except ReadError as error:
            raise StoreUnavailable(f"kafka gives no records ({type(error).__name__})") from None
        finally:
            loop.stop()
        return [record.value for record in records]


class _Producer:
    """A producer of librdkafka, whose threads need no interpreter; may be used by several threads."""

    def __init__(
        self, settings: dict[str, Any], is_stopped: Callable[[], bool], lanes: Lanes | OneByOne, *, is_replayed: bool
    ) -> None:
        self._lanes = lanes
        self._kafka = Producer(settings, logger=CLIENT_LOG)
        self._is_stopped = is_stopped
        self._is_replayed = is_replayed
        self._lost = 0  # records, ever
        self._last_loss: StoreUnavailable | None = None
        self._mine = threading.local()  # `before`: what was lost before this thread sent what it has not flushed

    def reach(self) -> None:
        """Raise KafkaException where no broker answers."""
        self._kafka.list_topics(timeout=_REACH_S)

    def send(
        self,
        topic: str,
        values: Sequence[bytes],
        partition: int | None,
        keys: Sequence[bytes | None] | None,
        kind: RecordKind,
    ) -> None:
        self._kafka.poll(0)
        self._must_work()
        if len(self._kafka) > MOST_UNACKNOWLEDGED:
            self._wait(lambda: len(self._kafka) == 0)
        if kind != RecordKind.EVENTS:
            for row, value in enumerate(values):
                self._produce(topic, value, partition, keys[row] if keys else None, kind, self._told)
            return
        # At once: one by one each wakes the thread that sends, and the first goes out alone. Has no headers.
        records: list[dict[str, Any]] = [
            {"value": value, "key": keys[row] if keys else None} for row, value in enumerate(values)
        ]
        where = -1 if partition is None else partition
        self._kafka.produce_batch(topic, records, partition=where, on_delivery=self._told)
        for record in records:
            if (error := record.get("_error")) is not None:
                raise _refused(error, topic)

    def append(self, topic: str, partition: int, value: bytes, kind: RecordKind = RecordKind.EVENTS) -> int:
        """Write a record; return its position once it is durable."""
        positions: list[int] = []
        self._must_work()

        def told(error: KafkaError | None, record: Message) -> None:
            self._told(error, record)
            if error is None:
                positions.append(record.offset() or 0)

        self._produce(topic, value, partition, None, kind, told)
        self._wait(lambda: positions)
        return positions[0]

    def flush(self) -> None:
        try:
            self._wait(lambda: len(self._kafka) == 0)
        finally:
            self._mine.__dict__.clear()

    def _produce(
        self, topic: str, value: bytes, partition: int | None, key: bytes | None, kind: RecordKind, told: Any
    ) -> None:
        try:
            self._kafka.produce(
                topic, value, key, -1 if partition is None else partition, told, headers=kind_headers(kind)
            )
        except KafkaException as error:
            raise _refused(error.args[0], topic) from None

    def _wait(self, is_done: Callable[[], object]) -> None:
        give_up_s = monotonic_s() + PATIENCE_MS / 1000 + 10
        is_told = False
        before = self._lost_before()
        while not is_done():
            if not self._lanes.until(lambda: is_done() or self._lost > before, self._kafka.poll, _LOOK_S):
                self._kafka.poll(_LOOK_S)
            self._must_work()
            if not is_told and self._is_stopped():
                is_told, give_up_s = True, min(give_up_s, monotonic_s() + _LAST_WAIT_S)
            if monotonic_s() >= give_up_s:
                raise StoreUnavailable("kafka does not answer in time")
        self._must_work()  # whoever else polls may have heard of it

    def _told(self, error: KafkaError | None, record: Message) -> None:
        if error is not None:
            self._last_loss = _refused(error, record.topic() or "")
            self._lost += 1

    def _lost_before(self) -> int:
        if self._is_replayed:
            return 0
        before: int = self._mine.__dict__.setdefault("before", self._lost)
        return before

    def _must_work(self) -> None:
        if self._lost > self._lost_before() and self._last_loss is not None:
            self._mine.__dict__.clear()
            raise StoreUnavailable(*self._last_loss.args)


def _refused(error: KafkaError, topic: str) -> StoreUnavailable:
    if error.code() == KafkaError.MSG_SIZE_TOO_LARGE:
        return StoreUnavailable(f"a record is larger than topic {topic} takes (max.message.bytes)")
    return StoreUnavailable(f"kafka takes no records for topic {topic} ({error.name()})")


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
