"""The topics of a deployment: created where they are missing, compared with the settings where they are not."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

import structlog
from aiokafka.admin import AIOKafkaAdminClient, NewTopic
from aiokafka.admin.config_resource import ConfigResource, ConfigResourceType
from aiokafka.errors import KafkaError, TopicAlreadyExistsError

from engine.errors import SettingsError
from engine.runtime.cluster.bridge import Loop, unreachable
from engine.settings import ClusterSettings

log = structlog.get_logger("opportune.kafka")

STAMPS = "message.timestamp.type"
LARGEST_BYTES = 8 << 20
LARGEST_COMMIT_BYTES = 32 << 20
"""Of the reservations log: a block of a backlog is one commit, and each of its events may be granted something."""
_DAY_MS = 86_400_000


@dataclass(frozen=True, slots=True)
class Topic:
    name: str
    partitions: int
    settings: dict[str, str]


def topics(cluster: ClusterSettings) -> dict[str, Topic]:
    """Return every topic by its role. The broker stamps all of them: time is in the log (T2)."""
    stamped = {STAMPS: "LogAppendTime"}
    hours = {"retention.ms": str(72 * 3_600_000)}
    kept = {"retention.ms": str(cluster.reservation_days * _DAY_MS)}
    compacted = {"cleanup.policy": "compact"}
    large = {"max.message.bytes": str(LARGEST_BYTES)}
    largest = {"max.message.bytes": str(LARGEST_COMMIT_BYTES)}
    many = cluster.partitions
    return {
        "events": Topic(cluster.topic("events"), many, stamped | hours | large),
        "control": Topic(cluster.topic("control"), 1, stamped | compacted | large),
        "offers": Topic(cluster.topic("offers"), many, stamped | hours),
        "decisions": Topic(cluster.topic("decisions"), many, stamped | kept),
        "reservations": Topic(cluster.topic("reservations"), many, stamped | kept | largest),
        "dead-letters": Topic(cluster.topic("dead-letters"), 1, stamped | kept),
    }


def ensure_topics(cluster: ClusterSettings) -> None:
    """Create what is missing; raise SettingsError where a topic is not what the settings say."""
    loop = Loop("opportune-topics")
    try:
        loop.run(_ensure(cluster), 60.0)
    except (KafkaError, OSError) as error:
        raise unreachable(cluster.kafka, error) from None
    finally:
        loop.stop()


async def _ensure(cluster: ClusterSettings) -> None:
    wanted = topics(cluster)
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.kafka, request_timeout_ms=10_000)
    await admin.start()
    try:
        known = set(await admin.list_topics())
        missing = [topic for topic in wanted.values() if topic.name not in known]
        if missing:
            try:
                answer = await admin.create_topics(
                    [
                        NewTopic(one.name, one.partitions, cluster.replication, topic_configs=one.settings)
                        for one in missing
                    ]
                )
                faults = [row for row in getattr(answer, "topic_errors", ()) if row[1] not in (0, 36)]
                if faults:
                    raise SettingsError(f"kafka refuses to create topic {faults[0][0]}: {faults[0][2]}")
            except TopicAlreadyExistsError:
                pass
            log.info("topics created", topics=[one.name for one in missing])
        found = await _described(admin, [one.name for one in wanted.values()])
        for one in wanted.values():
            replicas = found.get(one.name, [])
            if len(replicas) != one.partitions:
                raise SettingsError(
                    f"topic {one.name} has {len(replicas)} partitions, the settings say {one.partitions}: users belong "
                    "to partitions, so set OPPORTUNE_CLUSTER__PARTITIONS to what is there"
                )
            if min(replicas) < cluster.replication:
                log.warning(
                    "a topic has fewer replicas than the settings say; reassign its partitions",
                    topic=one.name,
                    replicas=min(replicas),
                    wanted=cluster.replication,
                )
            await _compare(admin, one)
    finally:
        await admin.close()


async def _described(admin: Any, names: list[str]) -> dict[str, list[int]]:
    """Count the replicas of every partition; a topic just made may take a moment to be known."""
    for _ in range(50):
        rows = await admin.describe_topics(names)
        found = {row["topic"]: [len(one["replicas"]) for one in row["partitions"]] for row in rows}
        if all(found.get(name) for name in names):
            return found
        await asyncio.sleep(0.1)
    return found


async def _compare(admin: Any, topic: Topic) -> None:
    """Report every setting of a topic that is not as it would be created; refuse stamps by producers."""
    for answer in await admin.describe_configs([ConfigResource(ConfigResourceType.TOPIC, topic.name)]):
        for resource in answer.resources:
            there = {row[0]: row[1] for row in resource[4]}
            for name, wanted in topic.settings.items():
                found = there.get(name, wanted)
                if found == wanted:
                    continue
                if name == STAMPS:
                    raise SettingsError(
                        f"topic {topic.name} is stamped by its producers; set its {STAMPS} to LogAppendTime (T2)"
                    )
                log.warning(
                    "a topic is not set as it should be", topic=topic.name, setting=name, found=found, wanted=wanted
                )
