"""Event to hand-off through the cluster, open loop: worker, offers topic, dispatcher, a gateway that accepts at once.

Poisson arrivals; each latency counts from the instant the event was due, whatever was late on the way, the generator
included. One event in twenty brings an offer. `latency.RATE.pQ_ms` is at RATE events/s; the peer is a bare loop at the
same rate in the same run: produce, consume, produce what is marked, consume. Rates are shares of the sustainable one,
which is measured first, and 20,000/s. `latency.one.20000` is a worker of one partition instead of four.

20,000 offers a point; OPPORTUNE_BENCH_OFFERS for fewer. `python -m bench.latency_chart` draws the rows of `--json`.
"""

from __future__ import annotations

import asyncio
import os
import time
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from bench import workload
from bench.cluster_host import host_dispatch, host_end, host_forward, host_worker
from bench.cluster_rig import Rig, open_content, partitions, servers
from bench.processes import Part, spawn
from engine.clock import wall_ms
from engine.gateway_settings import SandboxSettings
from engine.runtime.warm import warm
from engine.settings import Settings

PARTITIONS = 4
ONE_IN = 20
SHARES = (0.10, 0.25, 0.50, 0.75, 0.90)
FIXED_RATE = 20_000
QUANTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}
STAGES = ("to_worker", "decide", "reserve_and_log", "to_dispatcher", "claim")
LEAD_S = 2.0
_TICK_S = 0.002


def run(smoke: bool) -> list[dict[str, Any]]:
    with servers("latency") as rig:
        if rig is None:
            return []
        warm()
        offers = 100 if smoke else int(os.environ.get("OPPORTUNE_BENCH_OFFERS", "20000"))
        bench = Bench(rig, fences=1_000 if smoke else 10_000, users=2_000 if smoke else 1_000_000)
        with bench:
            if not smoke:
                bench.send(1_000, ONE_IN * 50)  # tables have grown, files are read
                bench.flood(200_000)  # the broker has compiled what it does often
            sustainable = bench.flood(4_000 if smoke else 200_000)
            rates = (500,) if smoke else (*(int(share * sustainable) for share in SHARES), FIXED_RATE)
            rows = [
                {
                    "name": "latency.sustainable.events_per_s",
                    "value": sustainable,
                    "unit": f"events/s, {rig.versions}",
                }
            ]
            for rate in rates:
                rows += _point(bench, rate, offers, f"{FIXED_RATE if smoke else rate}")
        if not smoke:
            with Bench(rig, fences=10_000, users=1_000_000, partitions=1) as bench:
                bench.send(1_000, ONE_IN * 50)
                rows += _point(bench, FIXED_RATE, offers, f"one.{FIXED_RATE}")
        return rows


def _point(bench: Bench, rate: int, offers: int, name: str) -> list[dict[str, Any]]:
    """One rate: the cluster, then the bare loop."""
    ours = bench.send(rate, offers * ONE_IN)
    bare = bench.send(rate, offers * ONE_IN, bare=True)
    rows = []
    for quantile, percent in QUANTILES.items():
        value, peer = (float(np.percentile(one.total_ms, percent)) for one in (ours, bare))
        row = {"name": f"latency.{name}.{quantile}_ms", "value": value, "unit": "ms", "rate": rate}
        row |= {"peer": f"bare loop at {peer:.1f} ms", "ratio": value / peer, "offers": len(ours.total_ms)}
        rows.append(row)
    for stage, spent in ours.stages_ms.items():
        p50, p99 = (float(np.percentile(spent, percent)) for percent in (50, 99))
        rows.append({"name": f"latency.{name}.{stage}.p99_ms", "value": p99, "unit": "ms", "p50_ms": p50})
    return rows


@dataclass(frozen=True, slots=True)
class Latencies:
    """Of one point, per offer."""

    total_ms: np.ndarray
    stages_ms: dict[str, np.ndarray]


class Bench:
    """Generator here; worker, dispatcher and the bare loop's two halves in processes that live while this is open."""

    def __init__(self, rig: Rig, fences: int, users: int, partitions: int = PARTITIONS) -> None:
        self._partitions = partitions
        self._content = open_content(fences)
        self._users = users
        self._fences = fences
        self._made = 0
        self._rig = rig
        settings = rig.settings(f"latency{partitions}", partitions)
        gateways = {"sms": SandboxSettings()}
        self._settings: Settings = settings.model_copy(update={"gateways": gateways, "checkpoint_interval_s": 3600.0})
        self._topics = (f"{rig.prefix}bare{partitions}-in", f"{rig.prefix}bare{partitions}-out")
        self._parts: list[Part] = []

    def __enter__(self) -> Bench:
        asyncio.run(self._make_topics())
        return self

    def __exit__(self, *_: object) -> None:
        for part in self._parts:
            part.kill()

    async def _make_topics(self) -> None:
        admin = AIOKafkaAdminClient(bootstrap_servers=self._rig.kafka)
        await admin.start()
        settings = {"message.timestamp.type": "LogAppendTime"}
        await admin.create_topics(
            [NewTopic(name, self._partitions, 1, topic_configs=settings) for name in self._topics]
        )
        await admin.close()

    def send(self, rate: float, events: int, *, bare: bool = False) -> Latencies:
        """Send so many events at this rate and wait for every offer; a lead before them is not counted."""
        topic, started = (self._topics[0], self._bare()) if bare else (self._events, self._cluster())
        lead = int(rate * (LEAD_S if events > 10_000 else LEAD_S / 10))
        load = self._load(lead + events)
        due = np.cumsum(np.random.default_rng(events).exponential(1 / rate, lead + events))
        sent = asyncio.run(_send(self._rig.kafka, topic, load, due))
        self._wait(len(load.offers))
        for part in started:
            part.stop()
        self._parts.clear()
        wanted = {load.keys[row].decode(): due[row] + sent.begun_s for row in load.offers[load.offers >= lead].tolist()}
        if bare:
            (end,) = (part.stamps() for part in started if part.writes)
            total = np.array([end[key] - at for key, at in wanted.items()])
            return Latencies(1e3 * total, {})
        worker, dispatch = (part.stamps() for part in started)
        return _join(wanted, worker, dispatch)

    def flood(self, events: int) -> float:
        """Send all at once; return how many events a second were through to the gateway."""
        started = self._cluster()
        load = self._load(events)
        sent = asyncio.run(_send(self._rig.kafka, self._events, load, np.zeros(events)))
        self._wait(len(load.offers))
        for part in started:
            part.stop()
        self._parts.clear()
        worker, dispatch = (part.stamps() for part in started)
        assert sum(one[0].startswith("x") for one in worker.values()) == len(load.offers)
        handed = np.sort([one[1] for one in dispatch.values()])
        assert len(handed) >= len(load.offers)
        return float(events / (handed[-1] - sent.begun_s))

    # --- inside ---------------------------------------------------------------------------------------------------

    @property
    def _events(self) -> str:
        return self._settings.cluster.topic("events")

    def _cluster(self) -> list[Part]:
        folder = self._rig.folder
        arguments = (self._settings, self._fences)
        return self._start(
            Part(host_worker, arguments, folder / "worker.json"),
            Part(host_dispatch, arguments, folder / "dispatch.json", self._fresh_count()),
        )

    def _bare(self) -> list[Part]:
        kafka, (first, second) = self._rig.kafka, self._topics
        return self._start(
            Part(host_forward, (kafka, first, second), None),
            Part(host_end, (kafka, second), self._rig.folder / "end.json", self._fresh_count()),
        )

    def _fresh_count(self) -> Any:
        self._seen = spawn.Array("q", 1, lock=False)
        return self._seen

    def _wait(self, offers: int) -> None:
        """Wait until every offer is through; those that never come are missed by whoever joins the stamps."""
        end_s = perf_counter() + 120
        while self._seen[0] < offers and perf_counter() < end_s:
            time.sleep(0.01)

    def _start(self, *parts: Part) -> list[Part]:
        self._parts = list(parts)
        for part in parts:
            part.wait_ready()
        return list(parts)

    def _load(self, events: int) -> Load:
        """Every twentieth event opens the app that a scenario waits for, as a user of its own; nobody else does."""
        random = np.random.default_rng(self._made)
        user = workload.zipf_users(random, self._users, events)
        first, self._made = self._made, self._made + events
        made = workload.realistic(
            self._users,
            events,
            self._content,
            seed=first + 3,
            user=user,
            first=first,
            start_ms=wall_ms() - 30_000,
            hot_share=0.0,
        )
        marked = np.arange(ONE_IN - 1, events, ONE_IN)
        keys = [b"u%08d" % one for one in user.tolist()]
        values = [made.data[start:end] for start, end in zip(made.start.tolist(), made.end.tolist(), strict=True)]
        now_ms = wall_ms()
        for row in marked.tolist():
            keys[row] = b"x%08d" % (first + row)
            values[row] = workload.usage_line(first + row, keys[row].decode(), now_ms, f"hot{row % 85}").encode()
        return Load(keys, values, partitions(keys, self._partitions), self._partitions, marked)


@dataclass(frozen=True, slots=True)
class Load:
    keys: list[bytes]
    values: list[bytes]
    partition: np.ndarray
    partitions: int
    offers: np.ndarray  # rows of the events that bring one


@dataclass(frozen=True, slots=True)
class Sent:
    begun_s: float


async def _send(kafka: str, topic: str, load: Load, due: np.ndarray) -> Sent:
    """Send what is due every two milliseconds, one batch a partition; never wait for an answer."""
    producer = AIOKafkaProducer(bootstrap_servers=kafka, compression_type="lz4", max_batch_size=65_536, linger_ms=0)
    await producer.start()
    waiting: list[Any] = []
    row, count = 0, len(load.keys)
    begun_s = perf_counter() + 0.05
    while row < count:
        await asyncio.sleep(_TICK_S)
        until = int(np.searchsorted(due, perf_counter() - begun_s, side="right"))
        until = min(until, row + 20_000)
        if until > row:
            waiting += await _send_rows(producer, topic, load, row, until)
            row = until
            if len(waiting) > 10_000:
                waiting = [one for one in waiting if not one.done()]
    await asyncio.gather(*waiting)
    await producer.stop()
    return Sent(begun_s)


async def _send_rows(producer: AIOKafkaProducer, topic: str, load: Load, row: int, until: int) -> list[Any]:
    waiting = []
    where = load.partition[row:until]
    for partition in range(load.partitions):
        batch = producer.create_batch()
        for k in (row + np.flatnonzero(where == partition)).tolist():
            if batch.append(key=load.keys[k], value=load.values[k], timestamp=None) is None:
                waiting.append(await producer.send_batch(batch, topic, partition=partition))
                batch = producer.create_batch()
                batch.append(key=load.keys[k], value=load.values[k], timestamp=None)
        if batch.record_count():
            waiting.append(await producer.send_batch(batch, topic, partition=partition))
    return waiting


def _join(wanted: dict[str, float], worker: dict[str, Any], dispatch: dict[str, Any]) -> Latencies:
    """Put the stamps of all parts together, offer by offer."""
    rows = []
    for offer_id, (user, begun, decided, committed, _published) in worker.items():
        at = wanted.get(user)
        if at is not None:
            read, *handed = dispatch[offer_id]
            assert len(handed) == 1, f"offer {offer_id} was handed over {len(handed)} times"
            rows.append((at, begun, decided, committed, read, handed[0]))
    assert len(rows) == len(wanted), f"{len(rows)} of {len(wanted)} offers"
    stamps = 1e3 * np.array(rows)
    spent = np.diff(stamps, axis=1)
    return Latencies(stamps[:, -1] - stamps[:, 0], {stage: spent[:, k] for k, stage in enumerate(STAGES)})
