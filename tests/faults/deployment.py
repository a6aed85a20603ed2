"""A cluster under load, and the audit after a fault: what was handed over against an undisturbed replay of the log."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import redis
from aiokafka import AIOKafkaProducer

from engine.clock import wall_ms
from engine.content import load_content
from engine.decide.records import encode
from engine.ledger.redis.address import read_address
from engine.ledger.redis.packing import decode
from engine.pipeline import Pipeline
from engine.runtime.cluster.blocks import block_of_records
from engine.runtime.id_key import load_id_key
from engine.settings import Settings
from tests.cluster import Cluster, Part, browse, write_content
from tests.peers.programs import need
from tests.world import MemoryLedger

CAP = 2
"""Offers a user and day, by the content of tests/cluster.py."""
_BLOCK = 1000

Users = Callable[[int], int]


class Feed(threading.Thread):
    """Produces browse events at a rate, keyed by user, until it is stopped; each is acknowledged in the end."""

    def __init__(self, kafka: str, topic: str, first: int, per_s: float, user: Users, most: int | None = None) -> None:
        super().__init__(name="feed", daemon=True)
        self.sent = 0
        self._kafka, self._topic = kafka, topic
        self._first, self._per_s, self._user, self._most = first, per_s, user, most
        self._stopping = threading.Event()
        self.failure: BaseException | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._send())
        except BaseException as error:
            self.failure = error

    async def _send(self) -> None:
        producer = AIOKafkaProducer(
            bootstrap_servers=self._kafka,
            acks="all",
            enable_idempotence=True,
            linger_ms=5,
            request_timeout_ms=120_000,
            compression_type="lz4",
        )
        await producer.start()
        began_s, waiting = time.monotonic(), set()
        while not self._stopping.is_set() and self.sent != self._most:
            due = int((time.monotonic() - began_s) * self._per_s) + 1
            for _ in range(min(due - self.sent, 1000, (self._most or 1 << 60) - self.sent)):
                number = self._first + self.sent
                user = self._user(number)
                value = browse(user, number, wall_ms())
                waiting.add(await producer.send(self._topic, value, key=f"user-{user}".encode()))
                self.sent += 1
            waiting = {one for one in waiting if not one.done() or one.exception() is not None}
            await asyncio.sleep(0.01)
        await asyncio.gather(*waiting)
        await producer.stop()

    def stop(self) -> int:
        """Return how many events were acknowledged."""
        self._stopping.set()
        return self.wait()

    def wait(self) -> int:
        self.join(180.0)
        assert not self.is_alive(), "events are not acknowledged"
        assert self.failure is None, repr(self.failure)
        return self.sent


class Deployment(Cluster):
    """A cluster that remembers what was produced, and can be audited."""

    def __init__(
        self, folder: Path, kafka: str, redis_url: str, *, users: int, partitions: int = 4, **more: str
    ) -> None:
        super().__init__(folder, kafka, redis_url, partitions=partitions, **more)
        self.redis_url = redis_url
        self.produced = 0
        self.give_addresses(users)
        self.content_folder = write_content(folder / "content", linger=True)
        self.run("content", "push", str(self.content_folder))

    # --- load -------------------------------------------------------------------------------------------------------

    def feed(self, per_s: float, user: Users, most: int | None = None) -> Feed:
        feed = Feed(self.kafka, f"{self.prefix}events", self.produced, per_s, user, most)
        feed.start()
        return feed

    def end(self, feed: Feed, *, wait: bool = False) -> None:
        self.produced += feed.wait() if wait else feed.stop()

    def settle(self, *workers: Part, handed: bool = True, timeout_s: float = 120.0) -> None:
        """Return once the workers have nothing left to read, and, if `handed`, the dispatchers nothing to hand over."""
        end_s, quiet_since_s, before = time.monotonic() + timeout_s, time.monotonic(), -1
        while time.monotonic() - quiet_since_s < 2.0:
            lags = [self.lag(one) for one in workers]
            left = {partition: lag for one in lags for partition, lag in one.items()}
            waiting = self.queued() if handed else 0
            assert time.monotonic() < end_s, f"not settled: lag {lags}, {waiting} offers wait"
            now = len(self.receiver.got)
            # A tick a second is always on its way.
            if now != before or waiting or len(left) < self.partitions or max(left.values()) > 3:
                quiet_since_s, before = time.monotonic(), now
            time.sleep(0.1)

    def queued(self) -> int:
        """How many offers are committed and not claimed."""
        client = redis.Redis.from_url(read_address(self.redis_url).current())
        waiting = sum(client.zcard(key) for key in client.scan_iter("*outbox", count=1000))
        client.close()
        return waiting

    def lag(self, worker: Part) -> dict[str, float]:
        """How many records are left, by partition that this worker has."""
        found = worker.metric("opportune_partition_lag_records")
        return {partition: lag for (partition,), lag in found.items()}

    # --- audit ------------------------------------------------------------------------------------------------------

    def audit(self, *, unknown: int = 0) -> Audit:
        """Compare everything told and handed over with what an undisturbed replay of the same log decides.

        unknown  offers at most that a fault may have cut off between claim and answer; they are never sent again
        """
        return Audit(self, unknown)

    def dispatch_states(self) -> dict[str, tuple[str, Any]]:
        """The last state of every offer that was ever claimed, and its code."""
        client = redis.Redis.from_url(read_address(self.redis_url).current())
        found = {}
        for key in client.scan_iter("*f:*", count=1000):
            packed = client.get(key)
            rows = decode(packed)[9] if packed else []
            if rows:
                found[key.decode().rpartition("f:")[2]] = (rows[-1][1], rows[-1][6])
        client.close()
        return found


class Audit:
    """What holds after every fault: nothing lost, nothing twice, no cap exceeded, the same decisions (T3, D7, C3)."""

    def __init__(self, cluster: Deployment, unknown: int) -> None:
        records = cluster.records("events")
        kept = sum(b'"type":"usage"' in (one.value or b"") for rows in records.values() for one in rows)
        assert kept == cluster.produced, f"{cluster.produced} events were acknowledged, the topic holds {kept}"
        self.expected = replay(cluster, records)
        self.told = set(cluster.values("decisions"))
        self.lost = self.expected - self.told
        assert not self.lost, f"{len(self.lost)} decisions are missing, as {next(iter(self.lost))!r}"
        strange = self.told - self.expected
        assert not strange, f"{len(strange)} decisions are others than undisturbed, as {next(iter(strange))!r}"
        got = cluster.receiver.got
        handed = Counter(webhook_id.partition("/")[0] for webhook_id in got.elements())
        assert max(handed.values(), default=0) <= 1, "an offer was handed over twice"
        decisions = [orjson.loads(body) for body in self.expected]
        self.granted = {one["decision_id"]: one for one in decisions if one["outcome"] == "offer"}
        assert set(handed) <= set(self.granted), "something was handed over that was never granted"
        per_user = Counter(self.granted[offer]["user"] for offer in handed)
        assert max(per_user.values(), default=0) <= CAP, "a cap was exceeded"
        self.missing = set(self.granted) - set(handed)
        if len(self.missing) > unknown:
            states = cluster.dispatch_states()
            why = Counter(states.get(offer, ("never claimed", None)) for offer in self.missing)
            raise AssertionError(f"{len(self.missing)} offers were never handed over: {why}")
        topic = cluster.records("offers")
        created_ms = {(told := orjson.loads(one.value))["offer_id"]: told["created_ms"] for one in _flat(topic)}
        self.ages_ms = sorted(
            came_ms - created_ms[webhook_id.partition("/")[0]]
            for webhook_id, came_ms in cluster.receiver.came_ms.items()
        )

    def age_ms(self, share: float) -> float:
        """The age of an offer's event at its hand-over, below which this share lies."""
        return self.ages_ms[min(len(self.ages_ms) - 1, int(share * len(self.ages_ms)))] if self.ages_ms else 0.0


def replay(cluster: Deployment, records: dict[int, list[Any]]) -> set[bytes]:
    """Decide the log once more: one process, a ledger in memory, no fault."""
    folder = cluster.content_folder
    content = load_content(folder / "geofences", folder / "scenarios")
    state = Path(cluster.environment["OPPORTUNE_CLUSTER__CHECKPOINTS"])
    found: set[bytes] = set()
    for number, rows in records.items():
        pipeline = Pipeline(content, Settings(), MemoryLedger(), id_key=load_id_key(state / "offer-id.key"))
        for first in range(0, len(rows), _BLOCK):
            block = block_of_records(rows[first : first + _BLOCK], number)
            effects = pipeline.process(block, lambda payload: content)
            found.update(encode(one) for one in effects.decisions if one.reason != "duplicate")
    return found


def sleeping(part: Part, seconds: float) -> None:
    """Stop a process for so long, as a machine that hangs does."""
    part.process.send_signal(signal.SIGSTOP)
    time.sleep(seconds)
    part.process.send_signal(signal.SIGCONT)


def clock_off_by(seconds: int, folder: Path) -> dict[str, str]:
    """What makes a process believe in another wall clock; something is built in a folder for it."""
    need("faketime", "faketime")
    library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")))
    waits = folder / "wrong_clock.so"
    source = Path(__file__).with_name("wrong_clock.c")
    subprocess.run([need("gcc", "gcc"), "-shared", "-fPIC", "-O1", "-o", waits, source], check=True, timeout=60)
    return {
        "LD_PRELOAD": f"{waits}:{library}",
        "FAKETIME": f"{seconds:+d}s",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
        "DONT_FAKE_MONOTONIC": "1",
    }


def waves(rng: random.Random, size: int = 200, each: int = 40) -> Users:
    """Users in waves: `size` of them share some `size * each` events, then come others, so that offers never end."""

    def user(number: int) -> int:
        return number // (size * each) * size + rng.randrange(size)

    return user


def _flat(records: dict[int, list[Any]]) -> Iterator[Any]:
    for rows in records.values():
        yield from rows


ROUNDS = int(os.environ.get("OPPORTUNE_FAULT_ROUNDS", "50"))
"""Of kills; other tests take as long as it says in proportion."""
