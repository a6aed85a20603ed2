"""`opportune rekey`: a deployment copied into one with another number of partitions, or with other user ids (offline).

Events keep the instants that their broker stamped; profiles and consents of before what the topic still holds come from
the checkpoints; Redis is copied into another database. Presence and behavior are rebuilt by the first start's replay,
which decides nothing again (engine.ledger.redis.rekey). The source stays as it is.
"""

from __future__ import annotations

import asyncio
import csv
import heapq
import shutil
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import structlog
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer, TopicPartition
from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError

from engine.decide.profiles import ProfileTable
from engine.decode.envelopes import Ignored, unwrap
from engine.decode.users import UserTable
from engine.errors import EventError, OpportuneError
from engine.ledger.redis.rekey import LedgerMove
from engine.model import RecordKind
from engine.runtime import checkpoint
from engine.runtime.cluster.blocks import kind_headers, kind_of
from engine.runtime.cluster.bridge import Loop, unreachable
from engine.runtime.cluster.outputs import Outputs
from engine.runtime.cluster.profile_events import profile_events
from engine.runtime.cluster.routing import events_of, partition_of
from engine.runtime.cluster.topics import LARGEST_BYTES, ensure_topics
from engine.settings import ClusterSettings, Settings

log = structlog.get_logger("opportune.rekey")

Progress = Callable[[str, int, int], None]
"""What is being done, how much of it is done, of how much."""

_MOST_IN_FLIGHT = 5000
_AT_ONCE = 500
_POOLS = ("lease", "recall", "returned", "spent")
_KEY = "offer-id.key"


@dataclass(frozen=True, slots=True)
class Rekeyed:
    """What was copied."""

    records: int
    events: int
    profiles: int
    offers: int


def rekey(old: Settings, new: ClusterSettings, users: Mapping[str, str], progress: Progress) -> Rekeyed:
    """Copy the deployment of `old` into that of `new`, which must be empty.

    users  new ids of the users that get one
    Raises OpportuneError where the old one is not at rest or the new one is not empty, saying what to do.
    """
    if new.prefix == old.cluster.prefix:
        raise OpportuneError("the new deployment needs another prefix of topics: --prefix")
    if new.checkpoints.resolve() == old.cluster.checkpoints.resolve():
        raise OpportuneError("the new deployment needs another folder of checkpoints: --checkpoints")
    loop = Loop("opportune-rekey")
    move = LedgerMove(
        old.cluster.redis, new.redis, old.tenant, new.partitions, lambda u: partition_of(u, new.partitions), users
    )
    try:
        loop.run(_check_at_rest(old.cluster))
        ensure_topics(new)
        copied = loop.run(_copy_events(old, new, users, progress), timeout_s=1e9)
        outputs = Outputs(new)
        try:
            offers = move.run(copied.ends, outputs, lambda done, of: progress("redis", done, of))
        finally:
            outputs.close()
        new.checkpoints.mkdir(parents=True, exist_ok=True)
        # Offer ids are keyed: with another key a replay would make other offers of the same triggers (D4).
        shutil.copy2(old.cluster.checkpoints / _KEY, new.checkpoints / _KEY)
        return Rekeyed(copied.records, copied.events, copied.profiles, offers)
    except (KafkaError, OSError) as error:
        raise unreachable(new.kafka, error) from None
    finally:
        move.close()
        loop.stop()


def read_users(path: Path | None) -> dict[str, str]:
    """Read a CSV of ids now and new ids; raise OpportuneError naming the line that is not one."""
    users: dict[str, str] = {}
    if path is None:
        return users
    with path.open(newline="", encoding="utf-8-sig") as file:
        for line, row in enumerate(csv.reader(file), 1):
            if len(row) != 2 or not all(0 < len(name.encode()) <= 128 for name in row):
                raise OpportuneError(f"{path}, line {line}: two ids of 1 to 128 bytes are needed: now, new")
            if row[0] in users:
                raise OpportuneError(f"{path}, line {line}: this user stands there twice")
            users[row[0]] = row[1]
    if len(set(users.values())) < len(users):
        raise OpportuneError(f"{path}: two users would get the same id")
    return users


@dataclass(slots=True)
class _Copied:
    records: int = 0
    events: int = 0
    profiles: int = 0
    ends: dict[int, int] = field(default_factory=dict)


async def _check_at_rest(cluster: ClusterSettings) -> None:
    """Refuse while a worker or dispatcher runs, and where it left something undone."""
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka, request_timeout_ms=10_000)
    await admin.start()
    try:
        for role in ("worker", "dispatch"):
            for answer in await admin.describe_consumer_groups([f"{cluster.prefix}{role}"]):
                for group in answer.groups:
                    if group[0] == 0 and group[2] not in ("Empty", "Dead"):
                        raise OpportuneError(f"{role} of {cluster.prefix} still runs; stop all of them first")
    finally:
        await admin.close()


async def _copy_events(old: Settings, new: ClusterSettings, users: Mapping[str, str], progress: Progress) -> _Copied:
    cluster = old.cluster
    # One batch a record would be slow, one in flight too: order within a partition is kept by idempotence.
    producer = AIOKafkaProducer(
        bootstrap_servers=new.kafka, acks="all", enable_idempotence=True, linger_ms=20, max_request_size=LARGEST_BYTES
    )
    consumer = AIOKafkaConsumer(bootstrap_servers=cluster.kafka, enable_auto_commit=False, fetch_max_wait_ms=50)
    topic = new.topic("events")
    copied = _Copied()
    waiting: list[Any] = []
    await producer.start()
    await consumer.start()
    try:
        ends = await consumer.end_offsets([TopicPartition(topic, number) for number in range(new.partitions)])
        if any(ends.values()):
            raise OpportuneError(f"topic {topic} holds records already; name another prefix: --prefix")
        await _stamp(new.kafka, topic, "CreateTime")

        async def send(partition: int, value: bytes, at_ms: int, key: bytes | None, kind: RecordKind) -> None:
            headers = kind_headers(kind)
            waiting.append(
                await producer.send(topic, value, key=key, partition=partition, timestamp_ms=at_ms, headers=headers)
            )
            if len(waiting) >= _MOST_IN_FLIGHT:
                await settle()

        async def settle() -> None:
            for told in await asyncio.gather(*waiting):
                copied.ends[told.partition] = max(told.offset, copied.ends.get(told.partition, -1))
            waiting.clear()

        await _copy_control(consumer, producer, cluster, new)
        source = _Merged(consumer, cluster)
        await source.open()
        first_ms = await source.first_ms()
        for number in range(cluster.partitions):
            for user, event in _profiles(old, number, users, first_ms):
                copied.profiles += 1
                await send(partition_of(user, new.partitions), event, first_ms, user.encode(), RecordKind.EVENTS)
            progress("profiles", number + 1, cluster.partitions)
        async for partition, record in source.records():
            copied.records += 1
            kind = RecordKind(kind_of(record.headers))
            if kind == RecordKind.EVENTS:
                for whose, told in events_of(record.value or b""):
                    copied.events += 1
                    named, event = _renamed(whose, told, users)
                    where = 0 if named is None else partition_of(named, new.partitions)
                    await send(where, event, record.timestamp, named.encode() if named else None, kind)
            elif partition == 0 and kind != RecordKind.TICK and not _is_of_pools(kind, record.value):
                # Content and pauses stand in every partition; what partition 0 says goes to all.
                for where in range(new.partitions):
                    await send(where, record.value, record.timestamp, None, kind)
            if copied.records % 1000 == 0:
                progress("events", copied.records, source.total)
        await settle()
        progress("events", source.total, source.total)
    finally:
        await consumer.stop()
        await producer.stop()
        await _stamp(new.kafka, topic, "LogAppendTime")
    return copied


async def _copy_control(
    consumer: AIOKafkaConsumer, producer: AIOKafkaProducer, old: ClusterSettings, new: ClusterSettings
) -> None:
    where = TopicPartition(old.topic("control"), 0)
    consumer.assign([where])
    end = (await consumer.end_offsets([where]))[where]
    await consumer.seek_to_beginning(where)
    while await consumer.position(where) < end:
        for records in (await consumer.getmany(timeout_ms=200)).values():
            for record in records:
                await producer.send_and_wait(new.topic("control"), record.value, key=record.key, partition=0)


class _Merged:
    """All partitions of the events topic as one stream in the order of their append times."""

    def __init__(self, consumer: AIOKafkaConsumer, cluster: ClusterSettings) -> None:
        self._consumer = consumer
        self._where = [TopicPartition(cluster.topic("events"), number) for number in range(cluster.partitions)]
        self._ends: dict[TopicPartition, int] = {}
        self._held: dict[TopicPartition, list[Any]] = {}
        self.total = 0

    async def open(self) -> None:
        self._consumer.assign(self._where)
        begins = await self._consumer.beginning_offsets(self._where)
        self._ends = await self._consumer.end_offsets(self._where)
        for where in self._where:
            self._consumer.seek(where, begins[where])
            self.total += self._ends[where] - begins[where]
            await self._fill(where)

    async def first_ms(self) -> int:
        """The append time of the oldest record; 1 where there is none."""
        return min((held[-1].timestamp for held in self._held.values() if held), default=1)

    async def _fill(self, where: TopicPartition) -> None:
        """Hold the next records of a partition, newest first; none at its end."""
        while not self._held.get(where) and await self._consumer.position(where) < self._ends[where]:
            told = await self._consumer.getmany(where, timeout_ms=500, max_records=_AT_ONCE)
            found = [record for record in told.get(where, ()) if record.offset < self._ends[where]]
            self._held[where] = found[::-1]

    async def records(self) -> AsyncIterator[tuple[int, Any]]:
        heap = []
        latest: dict[TopicPartition, int] = {}
        for where in self._where:
            if held := self._held.get(where):
                heap.append((held[-1].timestamp, where.partition, held[-1].offset))
        heapq.heapify(heap)
        while heap:
            _, number, _ = heapq.heappop(heap)
            where = self._where[number]
            record = self._held[where].pop()
            yield number, record
            await self._fill(where)
            if held := self._held.get(where):
                latest[where] = max(held[-1].timestamp, latest.get(where, 0))
                heapq.heappush(heap, (latest[where], number, held[-1].offset))


def _profiles(old: Settings, number: int, users: Mapping[str, str], at_ms: int) -> Iterator[tuple[str, bytes]]:
    """Tell what a partition's newest checkpoint knows of users, under their new ids."""
    found = checkpoint.read_newest(old.cluster.checkpoints / f"partition-{number}").checkpoint
    if found is None:
        return

    def part(stage: str) -> dict[str, Any]:
        return {name.partition(".")[2]: array for name, array in found.arrays.items() if name.startswith(f"{stage}.")}

    table = UserTable.from_arrays(part("users"))
    profiles = ProfileTable()
    profiles.restore(part("profiles"), found.objects["pipeline"]["profiles"])
    for slot in range(min(table.count, profiles.count)):
        user = table.id_of(slot)
        if user:
            name = users.get(user, user)
            for event in profile_events(profiles, slot, name, old.tenant, at_ms):
                yield name, event


def _renamed(user: str | None, event: bytes, users: Mapping[str, str]) -> tuple[str | None, bytes]:
    if user is None or user not in users:
        return user, event
    try:
        inner = unwrap(orjson.loads(event))
    except EventError:
        return user, event
    if isinstance(inner, Ignored):
        return user, event
    told = {name: value for name, value in inner.items() if value is not None or inner.get("type") == "profile"}
    return users[user], orjson.dumps({**told, "user": users[user]})


def _is_of_pools(kind: RecordKind, value: bytes) -> bool:
    """Leases of codes are in the ledger, which is copied; records of them would lease again."""
    return kind == RecordKind.CONTROL and any(name in orjson.loads(value) for name in _POOLS)


async def _stamp(kafka: str, topic: str, who: str) -> None:
    """Say who stamps records: the copy brings its own instants, everything after it gets the broker's."""
    admin = AIOKafkaAdminClient(bootstrap_servers=kafka, request_timeout_ms=10_000)
    await admin.start()
    try:
        answers = await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic)])
        # An alteration replaces all that was set for the topic.
        kept = {
            row[0]: row[1]
            for answer in answers
            for resource in answer.resources
            for row in resource[4]
            if row[0] in _OWN and row[1] is not None
        }
        kept["message.timestamp.type"] = who
        await admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, kept)])
    finally:
        await admin.close()


_OWN = ("cleanup.policy", "max.message.bytes", "message.timestamp.type", "retention.ms")
