"""One event per Kafka message, drained by the worker: from the first fetch to the last committed offset.

`faust.pipeline.events_per_s`  Faust batch consumer, the whole pipeline, Redis reserving one event in 200, offers and
decisions produced, checkpoints written; peer: a stock Faust agent calling the same pipeline with batches of one.
Beside it, on the same topic in the same run: Faust batch with a handler that does nothing, plain aiokafka with orjson.

1,000,000 users, 4 partitions; 2 M messages, OPPORTUNE_BENCH_EVENTS=10000000 for the full size. The decisions are
compared with those of an undisturbed replay of the same log.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import faust
import numpy as np
import orjson
from aiokafka import AIOKafkaConsumer

from bench.cluster_rig import FixedContent, Rig, fill, open_content, servers
from engine.decide.records import encode
from engine.definitions import Content
from engine.effects import Effects
from engine.ledger.embedded import EmbeddedLedger
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.log import MemoryLog
from engine.model import Block
from engine.pipeline import Pipeline
from engine.runtime.cluster.bridge import Loop
from engine.runtime.cluster.faust_source import FaustSource
from engine.runtime.cluster.kafka_source import KafkaSource
from engine.runtime.cluster.outputs import read_records
from engine.runtime.cluster.worker import Worker, connect
from engine.runtime.id_key import load_id_key
from engine.runtime.warm import warm
from engine.settings import Settings

PARTITIONS = 4


def run(smoke: bool) -> list[dict[str, Any]]:
    events = 20_000 if smoke else int(os.environ.get("OPPORTUNE_BENCH_EVENTS", "2000000"))
    users = 2_000 if smoke else 1_000_000
    with servers("faust") as rig:
        return [] if rig is None else _measure(rig, users, events, 300 if smoke else 10_000)


def _measure(rig: Rig, users: int, events: int, stock_events: int) -> list[dict[str, Any]]:
    warm()
    content = open_content(1_000 if events < 100_000 else 10_000)
    settings = rig.settings("faust", PARTITIONS)
    ends, size = fill(settings, content, users, events)
    drained = drain(settings, content, ends)
    noop = _noop(settings, events)
    ceiling = asyncio.run(_orjson(settings, min(events, 1_000_000)))
    stock = _stock(settings, content, stock_events)
    made = _hash(_decisions(settings))
    again = _hash(_replay(settings, content, rig.folder, drained.done))
    assert made == again, "the worker decided otherwise than an undisturbed replay"
    rate = events / drained.seconds
    return [
        {
            "name": "faust.pipeline.events_per_s",
            "value": rate,
            "unit": f"events/s, {rig.versions}",
            "peer": f"stock Faust agent at {stock:,.0f}/s",
            "ratio": rate / stock,
            "events": events,
            "bytes_per_event": round(size, 1),
            "events_per_reservation": round(events / max(drained.asked, 1)),
            "decisions": drained.decisions,
            "hash": made,
        },
        {"name": "faust.noop.events_per_s", "value": noop, "unit": "events/s"},
        {"name": "faust.aiokafka_orjson.events_per_s", "value": ceiling, "unit": "events/s"},
        {"name": "faust.stock.events_per_s", "value": stock, "unit": "events/s"},
    ]


class Drained:
    """What a worker made of a topic."""

    def __init__(self, seconds: float, done: dict[int, int], asked: int, decisions: int) -> None:
        self.seconds = seconds
        self.done = done
        self.asked = asked
        self.decisions = decisions


def drain(settings: Settings, content: Content, ends: list[int]) -> Drained:
    """Let a worker work until everything is decided, saved and committed."""
    stopping = threading.Event()
    worker = Worker(settings, stopping, connect(settings, stopping.is_set, FixedContent(content)))
    begun: list[float] = []
    counts = {"asked": 0, "decisions": 0}
    take_hold, publish = worker.source.on_assign, worker._publish

    def assigned(numbers: Any) -> None:
        take_hold(numbers)
        begun.append(time.perf_counter())
        for number in numbers:
            _count_asked(worker.partitions[number].pipeline, counts)

    def published(number: int, effects: Effects, bodies: Any) -> None:
        assert not effects.dead, effects.dead[0]
        counts["decisions"] += len(effects.decisions)
        publish(number, effects, bodies)

    worker.source.on_assign = assigned
    worker._publish = published  # type: ignore[method-assign]
    thread = threading.Thread(target=worker.run, name="opportune-engine")
    thread.start()
    try:
        while not worker.partitions or any(one.done < ends[one.number] - 1 for one in list(worker.partitions.values())):
            assert thread.is_alive(), worker.failure
            time.sleep(0.005)
        done = {number: one.done for number, one in worker.partitions.items()}
        assert len(done) == len(ends)
    finally:
        stopping.set()
        thread.join(120)
    seconds = time.perf_counter() - begun[-1]
    committed = worker.source.committed
    assert all(committed[number] >= end - 1 for number, end in enumerate(ends)), committed
    return Drained(seconds, dict(committed), counts["asked"], counts["decisions"])


def _count_asked(pipeline: Pipeline, counts: dict[str, int]) -> None:
    ask = pipeline.decider.reserve

    def asked(requests: Any) -> Any:
        counts["asked"] += len(requests)
        return ask(requests)

    pipeline.decider.reserve = asked


# --- peers ------------------------------------------------------------------------------------------------------------


def _noop(settings: Settings, events: int) -> float:
    cluster = settings.cluster
    source = FaustSource(cluster.kafka, cluster.topic("events"), f"{cluster.prefix}noop", wait_ms=20)
    begun: list[float] = []
    source.on_assign = lambda _numbers: begun.append(time.perf_counter())
    seen = 0
    while seen < events:
        for block in source.poll(8192):
            seen += len(block)
    seconds = time.perf_counter() - begun[0]
    source.close()
    return events / seconds


async def _orjson(settings: Settings, events: int) -> float:
    cluster = settings.cluster
    consumer = AIOKafkaConsumer(
        cluster.topic("events"),
        bootstrap_servers=cluster.kafka,
        group_id=f"{cluster.prefix}orjson",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        max_partition_fetch_bytes=4 << 20,
    )
    await consumer.start()
    seen, begun = 0, 0.0
    while seen < events:
        found = await consumer.getmany(timeout_ms=100)
        begun = begun or time.perf_counter()
        for records in found.values():
            seen += len([orjson.loads(record.value) for record in records if record.value])
    await consumer.commit()
    seconds = time.perf_counter() - begun
    await consumer.stop()
    return seen / seconds


def _stock(settings: Settings, content: Content, events: int) -> float:
    """The same pipeline behind a stock agent: what everybody writes first."""
    cluster = settings.cluster
    parts: dict[int, tuple[Pipeline, RedisLedger]] = {}
    stamps: list[float] = []
    enough = threading.Event()

    for number in range(PARTITIONS):
        assumed = content.policy.assumed_consent
        ledger = RedisLedger(
            f"{cluster.redis.rpartition('/')[0]}/15", number, assumed_consent=assumed, reservations=MemoryLog()
        )
        parts[number] = Pipeline(content, settings, ledger, id_key=b"bench bench bench bench"), ledger

    app = faust.App(
        f"{cluster.prefix}stock",
        broker=f"kafka://{cluster.kafka}",
        store="memory://",
        web_enabled=False,
        topic_disable_leader=True,
        topic_allow_declare=False,
        consumer_auto_offset_reset="earliest",
        stream_wait_empty=False,
    )

    @app.agent(app.topic(cluster.topic("events"), value_type=bytes, value_serializer="raw"))  # type: ignore[misc]
    async def decide(stream: Any) -> None:
        async for event in stream.events():
            message = event.message
            pipeline, ledger = parts[message.partition]
            effects = pipeline.process(_block_of_one(message))
            if effects.is_stored:
                ledger.commit(message.offset, effects.now_ms, offers=effects.offers, consents=effects.consents)
            stamps.append(time.perf_counter())
            if len(stamps) >= events:
                enough.set()

    loop = Loop("stock")
    app.loop = loop.loop
    loop.run(app.start(), 60.0)
    assert enough.wait(300), f"{len(stamps)} of {events}"
    loop.run(app.stop(), 60.0)
    loop.stop()
    for _, ledger in parts.values():
        ledger.close()
    return (events - 1) / (stamps[events - 1] - stamps[0])


def _block_of_one(message: Any) -> Block:
    value = message.value
    return Block(
        value,
        np.zeros(1, np.int64),
        np.full(1, len(value), np.int64),
        np.full(1, message.offset, np.int64),
        np.full(1, int(message.timestamp * 1000), np.int64),
        np.ones(1, np.uint8),
        message.partition,
    )


# --- the same log once more -------------------------------------------------------------------------------------------


def _decisions(settings: Settings) -> Iterable[bytes]:
    cluster = settings.cluster
    for partition in range(cluster.partitions):
        records = asyncio.run(read_records(cluster.kafka, cluster.topic("decisions"), partition))
        yield from (record.value for record in records)


def _replay(settings: Settings, content: Content, folder: Path, done: dict[int, int]) -> Iterable[bytes]:
    """Decide the log again, in one go, with the embedded ledger."""
    cluster = settings.cluster
    source = KafkaSource(cluster.kafka, cluster.topic("events"), f"{cluster.prefix}replay", wait_ms=20)
    key = load_id_key(cluster.checkpoints / "offer-id.key")
    pipelines: dict[int, Pipeline] = {}
    ledgers = [EmbeddedLedger(folder / f"replay-{number}.db", fsync="never") for number in done]
    left = dict(done)
    while left:
        for block in source.poll(65_536):
            number = block.partition
            if number not in left:
                continue
            inside = int(np.searchsorted(block.position, done[number], side="right"))
            rows = slice(0, inside)
            block = Block(
                block.data,
                block.start[rows],
                block.end[rows],
                block.position[rows],
                block.append_ms[rows],
                block.kind[rows],
                number,
            )
            if number not in pipelines:
                ledgers[number].assumed_consent = content.policy.assumed_consent
                pipelines[number] = Pipeline(content, settings, ledgers[number], id_key=key)
            if inside:
                effects = pipelines[number].process(block)
                yield from (encode(one) for one in effects.decisions if one.reason != "duplicate")
                if int(block.position[-1]) >= done[number]:
                    del left[number]
    source.close()
    for ledger in ledgers:
        ledger.close()


def _hash(bodies: Iterable[bytes]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for body in sorted(bodies):
        digest.update(body)
    return digest.hexdigest()
