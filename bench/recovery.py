"""A worker killed with the state of 1,000,000 users: how long until its successor makes its first decision.

`recovery.1000000.seconds`    from taking the partitions (checkpoints read, state restored, ledger taken over, records
                              since the checkpoint decided again) to the first decision on an event after the crash
`recovery.1000000.process_s`  the same from the start of the new process: interpreter, libraries, kernels, content, and
                              what is left of the dead worker's session, which the broker waits for (10 s)
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from multiprocessing.synchronize import Event as StopEvent
from pathlib import Path
from time import perf_counter
from typing import Any

import orjson
import structlog
from aiokafka import AIOKafkaProducer

from bench import workload
from bench.cluster_host import host_worker
from bench.cluster_rig import FixedContent, Rig, fill, open_content, partitions, servers
from bench.processes import Part, spawn
from engine.clock import wall_ms
from engine.runtime.cluster.worker import Worker, connect
from engine.runtime.warm import warm
from engine.settings import Settings

PARTITIONS = 4


def run(smoke: bool) -> list[dict[str, Any]]:
    users, behind, fences = (2_000, 1_000, 1_000) if smoke else (1_000_000, 200_000, 10_000)
    with servers("recovery") as rig:
        if rig is None:
            return []
        warm()
        return _measure(rig, users, behind, fences)


def _measure(rig: Rig, users: int, behind: int, fences: int) -> list[dict[str, Any]]:
    content = open_content(fences)
    session_s = 6 if users < 10_000 else 10
    settings = rig.settings("recovery", PARTITIONS, session_timeout_s=session_s)
    settings = settings.model_copy(update={"checkpoint_interval_s": 3600.0})
    fill(settings, content, users, users)
    counter = spawn.Array("q", 2 + PARTITIONS, lock=False)
    counter[-1] = 1
    first = Part(host_worker, (settings, fences), rig.folder / "first.json", counter)
    _wait(first, lambda: counter[0] >= users)
    first.stop()  # saves everything: this is the state of all users
    size = sum(path.stat().st_size for path in settings.cluster.checkpoints.rglob("*.checkpoint"))
    fill(settings, content, users, behind)
    counter[0] = 0
    killed = Part(host_worker, (settings, fences), rig.folder / "killed.json", counter)
    _wait(killed, lambda: counter[0] >= behind)
    killed.kill()
    names = asyncio.run(_trigger(settings, users))
    second = Part(_host_first_decision, (settings, fences, names), rig.folder / "second.json")
    second.wait_ready()
    second.stop()
    stamps = second.stamps()
    name = f"recovery.{users}"
    return [
        {
            "name": f"{name}.seconds",
            "value": stamps["decided"] - stamps["taking"],
            "unit": f"s, {rig.versions}",
            "checkpoint_bytes": size,
            "restored_users": stamps["users"],
            "decided_again": behind,
            "restoring_s": stamps["taken"] - stamps["taking"],
        },
        {"name": f"{name}.process_s", "value": stamps["decided"] - second.begun_s, "unit": "s"},
    ]


def _wait(part: Part, done: Callable[[], bool]) -> None:
    end_s = perf_counter() + 300
    while not done():
        part.must_live()
        assert perf_counter() < end_s, "the worker does not get on"
        time.sleep(0.01)


async def _trigger(settings: Settings, users: int) -> list[str]:
    """An event in each partition that brings an offer, after the crash."""
    cluster = settings.cluster
    producer = AIOKafkaProducer(bootstrap_servers=cluster.kafka)
    await producer.start()
    names: list[str] = []
    for number in range(1000):
        key = b"y%08d" % number
        if int(partitions([key], PARTITIONS)[0]) == len(names):
            value = workload.usage_line(10**9 + number, key.decode(), wall_ms(), "hot1").encode()
            await producer.send_and_wait(cluster.topic("events"), value, key=key)
            names.append(key.decode())
            if len(names) == PARTITIONS:
                break
    await producer.stop()
    return names


def _host_first_decision(
    settings: Settings, fences: int, names: list[str], stamps: Path, ready: StopEvent, stop: StopEvent
) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(40))
    warm()
    stopping = threading.Event()
    worker = Worker(settings, stopping, connect(settings, stopping.is_set, FixedContent(open_content(fences))))
    noted: dict[str, float] = {}
    take, publish = worker.source.on_assign, worker._publish

    def taking(numbers: Any) -> None:
        noted.setdefault("taking", perf_counter())
        take(numbers)
        noted["taken"] = perf_counter()
        noted["users"] = sum(one.pipeline.users.count for one in worker.partitions.values())

    def publishing(number: int, effects: Any, bodies: Any) -> None:
        publish(number, effects, bodies)
        if "decided" not in noted and any(one.user_id in names for one in effects.offers):
            noted["decided"] = perf_counter()
            ready.set()

    worker.source.on_assign = taking
    worker._publish = publishing  # type: ignore[method-assign]
    thread = threading.Thread(target=worker.run, name="opportune-engine")
    thread.start()
    while thread.is_alive() and not stop.wait(0.01):
        pass
    stopping.set()
    thread.join(120)
    stamps.write_bytes(orjson.dumps(noted))
