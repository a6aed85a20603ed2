"""Parts of a cluster as processes of their own, which note when what happened; all clocks are the machine's one.

Each part is a function for a spawned process: it says `ready`, works until `stop`, and writes its stamps to a file.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Mapping, Sequence
from itertools import chain
from multiprocessing.synchronize import Event as StopEvent
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
import structlog
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from bench.cluster_rig import FixedContent, open_content
from engine.deliver.contract import Dispatch
from engine.deliver.gateways.sandbox import SandboxGateway
from engine.model import Offer
from engine.runtime.cluster.dispatch import DispatchHost
from engine.runtime.cluster.worker import Worker, connect
from engine.runtime.warm import warm
from engine.settings import Settings


def host_worker(
    settings: Settings, fences: int, stamps: Path, ready: StopEvent, stop: StopEvent, done: Any = None
) -> None:
    """Run a worker.

    stamps  offer id -> user, block begun, decided, committed, published
    done    shared int64[2 + partitions], where given: how many records this worker decided; which partitions it has;
            whether it may begin, until which it only takes part in the group
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    warm()
    stopping = threading.Event()
    worker = Worker(settings, stopping, connect(settings, stopping.is_set, FixedContent(open_content(fences))))
    noted: dict[str, tuple[str, float, float, float, float]] = {}
    counting = threading.Lock()
    decide, conclude, publish = worker._decide, worker._conclude, worker._publish
    at: dict[int, list[float]] = {number: [0.0, 0.0, 0.0] for number in range(settings.cluster.partitions)}

    def deciding(partition: Any, block: Any) -> Any:
        at[partition.number][0] = perf_counter()
        decided = decide(partition, block)
        at[partition.number][1] = perf_counter()
        return decided

    def concluding(partition: Any, decided: Any, *arguments: Any) -> None:
        conclude(partition, decided, *arguments)
        if done is not None:
            with counting:
                done[0] += len(decided.block)

    def publishing(number: int, effects: Any, bodies: Any) -> None:
        at[number][2] = perf_counter()
        publish(number, effects, bodies)
        for offer in effects.offers:
            noted[offer.offer_id] = (offer.user_id, *at[number], perf_counter())

    if done is not None:
        poll = worker.source.poll
        worker.source.poll = lambda most, busy=(): poll(most if done[-1] else 0, busy)
    worker._decide = deciding  # type: ignore[method-assign]
    worker._conclude = concluding  # type: ignore[method-assign]
    worker._publish = publishing  # type: ignore[method-assign]
    thread = threading.Thread(target=worker.run, name="opportune-engine")
    thread.start()
    while thread.is_alive() and not stop.is_set():
        if worker.partitions:
            ready.set()
        if done is not None:
            held = set(worker.partitions)
            for number in range(settings.cluster.partitions):
                done[1 + number] = number in held
        stop.wait(0.05)
    stopping.set()
    thread.join(120)
    stamps.write_bytes(orjson.dumps(noted))


class AnyAddress:
    """Everybody has one."""

    def lookup(self, user_id: str, channel: str) -> str | None:
        return f"138{hash(user_id) % 10**8:08d}"

    def user_of(self, channel: str, address: str) -> str | None:
        return None

    def drop(self, user_id: str, channel: str) -> bool:
        return False


def host_dispatch(settings: Settings, fences: int, stamps: Path, ready: StopEvent, stop: StopEvent, seen: Any) -> None:
    """Run a dispatcher with a gateway in its own process that accepts at once.

    stamps  offer id -> read from the topic, handed over (once more for each time, if ever)
    seen    shared int64[1]: how many offers to marked users, whose ids begin with x, were handed over
    """
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    noted: dict[str, list[float]] = {}
    marked: set[str] = set()
    submit = SandboxGateway.submit

    async def submitting(gateway: SandboxGateway, dispatch: Dispatch) -> Any:
        noted.setdefault(dispatch.offer_id, [0.0]).append(perf_counter())
        seen[0] += dispatch.offer_id in marked
        return await submit(gateway, dispatch)

    SandboxGateway.submit = submitting  # type: ignore[method-assign]

    async def work() -> None:
        host = DispatchHost(settings, AnyAddress(), control=FixedContent(open_content(fences)))
        enqueue = host.enqueue

        def handing(offers: Mapping[int, Sequence[Offer]]) -> None:
            now = perf_counter()
            for offer in chain.from_iterable(offers.values()):
                noted.setdefault(offer.offer_id, [now])
                if offer.user_id[:1] == "x":
                    marked.add(offer.offer_id)
            enqueue(offers)

        host.enqueue = handing  # type: ignore[method-assign]
        await host.start()
        while not stop.is_set() and host.failure is None:
            if len(host.store.shards) == settings.cluster.partitions:
                ready.set()
            await asyncio.sleep(0.05)
        await host.stop()
        assert host.failure is None, host.failure

    uvloop.run(work())
    stamps.write_bytes(orjson.dumps(noted))


def host_forward(address: str, from_topic: str, to_topic: str, ready: StopEvent, stop: StopEvent) -> None:
    """The first half of the bare loop: consume everything, produce what is marked by its first byte."""

    async def work() -> None:
        consumer = AIOKafkaConsumer(from_topic, bootstrap_servers=address, auto_offset_reset="latest")
        producer = AIOKafkaProducer(bootstrap_servers=address, acks="all")
        await consumer.start()
        await producer.start()
        await _positioned(consumer)
        ready.set()
        while not stop.is_set():
            for where, records in (await consumer.getmany(timeout_ms=50)).items():
                for record in records:
                    if record.key[:1] == b"x":
                        await producer.send(to_topic, record.key, partition=where.partition)
        await producer.stop()
        await consumer.stop()

    uvloop.run(work())


def host_end(address: str, topic: str, stamps: Path, ready: StopEvent, stop: StopEvent, seen: Any) -> None:
    """The second half of the bare loop: consume, note when."""
    noted: dict[str, float] = {}

    async def work() -> None:
        consumer = AIOKafkaConsumer(topic, bootstrap_servers=address, auto_offset_reset="latest")
        await consumer.start()
        await _positioned(consumer)
        ready.set()
        while not stop.is_set():
            for records in (await consumer.getmany(timeout_ms=50)).values():
                now = perf_counter()
                for record in records:
                    noted[record.value.decode()] = now
            seen[0] = len(noted)
        await consumer.stop()

    uvloop.run(work())
    stamps.write_bytes(orjson.dumps(noted))


async def _positioned(consumer: AIOKafkaConsumer) -> None:
    """Wait until every partition has a place to read from: what comes later is not missed."""
    while not consumer.assignment():
        await asyncio.sleep(0.01)
    for where in consumer.assignment():
        await consumer.position(where)
