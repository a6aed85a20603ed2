"""What the benches of the cluster share: a real broker and a real Redis, topics filled with one event a message.

Kafka's and Redis' processes run on the same cores as what is measured. Events are keyed by user (murmur2), stamped by
the broker, in lz4 batches of 64 kB.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from aiokafka import AIOKafkaProducer

from bench import workload
from engine.clock import wall_ms
from engine.definitions import Content, QuietHours
from engine.runtime.cluster.batch_kernel import partitions_of
from engine.runtime.cluster.topics import ensure_topics
from engine.settings import ClusterSettings, Settings
from tests.servers import KAFKA, KafkaServer, RedisServer

CHUNK = 500_000
BATCH_BYTES = 65_536
HOT_SHARE = 0.015
"""Of usage events; with what presence adds, one event in some two hundred asks Redis for a reservation."""


@dataclass(frozen=True, slots=True)
class Rig:
    """Servers of one run."""

    folder: Path
    kafka: str
    redis: str
    versions: str
    prefix: str  # of topics and groups, nobody else's

    def settings(self, name: str, partitions: int, **more: Any) -> Settings:
        """A deployment of its own on these servers; its topics are made."""
        made = Settings(
            state=self.folder / name / "state",
            cluster=ClusterSettings(
                kafka=self.kafka,
                redis=f"{self.redis.rpartition('/')[0]}/{len(list(self.folder.glob('*/state')))}",
                partitions=partitions,
                prefix=f"{self.prefix}{name}.",
                checkpoints=self.folder / name / "checkpoints",
                **more,
            ),
        )
        (self.folder / name / "state").mkdir(parents=True)
        ensure_topics(made.cluster)
        return made


@contextmanager
def servers(bench: str) -> Iterator[Rig | None]:
    """Start broker and Redis; None, said on stderr, where a program is missing.

    OPPORTUNE_KAFKA names a broker to use instead of one of our own.
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    given = os.environ.get("OPPORTUNE_KAFKA")
    with tempfile.TemporaryDirectory(prefix="opportune-bench-") as name:
        folder = Path(name)
        kafka, redis = KafkaServer(folder / "kafka", swift=False), RedisServer(folder / "redis")
        try:
            redis.start()
            if not given:
                kafka.start()
        except (pytest.skip.Exception, pytest.fail.Exception) as absent:
            print(f"{bench}: not measured: {absent}", file=sys.stderr)
            redis.kill()
            yield None
            return
        told = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
        libraries = ", ".join(f"{one} {version(one)}" for one in ("faust-streaming", "aiokafka"))
        broker = f"the broker at {given}" if given else f"Kafka {KAFKA}"
        versions = f"{broker}, Redis {told.split('v=')[1].split()[0]}, {libraries}"
        try:
            yield Rig(folder, given or kafka.address, redis.url, versions, f"bench-{os.getpid()}-")
        finally:
            kafka.kill()
            redis.kill()


class FixedContent:
    """One content for every worker, instead of the control topic."""

    def __init__(self, content: Content) -> None:
        self._content = content

    def refresh(self) -> None:
        """Nothing is pushed."""

    def load_live(self) -> Content:
        return self._content

    def load(self, version: str) -> Content:
        return self._content

    def load_record(self, payload: bytes) -> Content:
        return self._content

    def close(self) -> None:
        """Nothing is open."""


def open_content(fences: int, scenarios: int = 255) -> Content:
    """The content of `pipeline`, for everybody: whoever is a candidate is asked of Redis, and nobody is withheld.

    No quiet hour is near.
    """
    content = workload.make_content(fences, scenarios, audience=None)
    far = (time.gmtime().tm_hour + 8 + 12) % 24 * 60
    policy = replace(
        content.policy,
        assumed_consent=content.policy.assumed_consent | {"marketing.sms"},
        quiet_hours=QuietHours(far, far + 1),
        universal_holdout_percent=0.0,
    )
    all_of_them = tuple(replace(scenario, holdout_percent=0.0) for scenario in content.scenarios)
    return replace(content, policy=policy, scenarios=all_of_them)


def fill(settings: Settings, content: Content, users: int, events: int) -> tuple[list[int], float]:
    """Put events into the events topic; return how many lie in each partition and the mean bytes of a value.

    The first events are one of each user, in random order; users of the rest are drawn by Zipf 1.1.
    """
    return asyncio.run(_fill(settings, content, users, events))


async def _fill(settings: Settings, content: Content, users: int, events: int) -> tuple[list[int], float]:
    cluster = settings.cluster
    producer = AIOKafkaProducer(
        bootstrap_servers=cluster.kafka, compression_type="lz4", max_batch_size=BATCH_BYTES, linger_ms=0
    )
    await producer.start()
    random = np.random.default_rng(7)
    order = random.permutation(users)
    put = [0] * cluster.partitions
    size = 0
    try:
        for begin in range(0, events, CHUNK):
            count = min(CHUNK, events - begin)
            each = order[begin : begin + count]
            drawn = np.concatenate((each, workload.zipf_users(random, users, count - len(each))))
            made = workload.realistic(
                users,
                count,
                content,
                seed=begin + 3,
                user=drawn,
                first=begin,
                start_ms=wall_ms() - 60_000,
                hot_share=HOT_SHARE,
            )
            size += len(made.data) - count
            await _send(producer, cluster, made, drawn, put)
    finally:
        await producer.stop()
    return put, size / events


async def _send(
    producer: AIOKafkaProducer, cluster: ClusterSettings, made: workload.Workload, users: np.ndarray, put: list[int]
) -> None:
    keys = [b"u%08d" % user for user in users.tolist()]
    where = partitions(keys, cluster.partitions)
    topic = cluster.topic("events")
    waiting: list[Any] = []
    for partition in range(cluster.partitions):
        rows = np.flatnonzero(where == partition).tolist()
        put[partition] += len(rows)
        batch = producer.create_batch()
        for row in rows:
            value = made.data[made.start[row] : made.end[row]]
            if batch.append(key=keys[row], value=value, timestamp=None) is None:
                waiting.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(key=keys[row], value=value, timestamp=None)
        if batch.record_count():
            waiting.append(await producer.send_batch(batch, topic, partition=partition))
    await asyncio.gather(*waiting)


def partitions(keys: list[bytes], count: int) -> np.ndarray:
    """The partition of each key, as Kafka's own partitioner has it."""
    end = np.cumsum(np.fromiter(map(len, keys), np.int64, len(keys)))
    start = np.concatenate((np.zeros(1, np.int64), end[:-1]))
    found = np.zeros(len(keys), np.int64)
    partitions_of(np.frombuffer(b"".join(keys) or b"\0", np.uint8), start, end, count, found)
    return found
