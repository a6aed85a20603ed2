"""The worker: partitions of the events topic, each with its pipeline, its ledger's shard and its checkpoints.

An offset is committed only once a checkpoint that reflects it is durable and everything sent before it is acknowledged;
what lies between is done again after a crash, with the same answers, the same ids and, by the claim, no second message.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
import structlog

from engine import __version__, metrics
from engine.clock import monotonic_s
from engine.decide.profiles import GRANTED
from engine.decide.records import encode
from engine.errors import StoreFenced, StoreUnavailable
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.shard import Authority
from engine.model import Block, DeadLetter, RecordKind
from engine.pipeline import Effects, Pipeline
from engine.runtime import checkpoint
from engine.runtime.archive import ContentArchive
from engine.runtime.cluster.control import ControlTopic
from engine.runtime.cluster.faust_source import FaustSource
from engine.runtime.cluster.kafka_source import KafkaSource
from engine.runtime.cluster.outputs import Outputs
from engine.runtime.cluster.topics import ensure_topics
from engine.runtime.id_key import load_id_key
from engine.runtime.outcome import count, dispatch_rows
from engine.settings import Settings

log = structlog.get_logger("opportune.worker")

MOST_EVENTS = 8192
TICK_S = 1.0
_FOR_EVER_S = 1e9
_WAIT_MS = 20


@dataclass(slots=True)
class Partition:
    """What a worker holds of one partition."""

    number: int
    ledger: RedisLedger
    pipeline: Pipeline
    done: int = -1
    saved: int = -1  # what the newest durable checkpoint reflects
    committed: int = -1
    due_s: float = 0.0
    last_block_s: float = 0.0
    ticking: bool = False  # a tick was sent and did not come back yet
    has_begun: bool = False  # a record was processed, or a checkpoint restored
    pending: checkpoint.Pending | None = field(default=None)


class Worker:
    """Runs in one thread; `run` returns once `stopping` is set and everything is saved.

    Raises StoreUnavailable where Kafka or Redis cannot be reached at the start, saying what to do.
    """

    def __init__(self, settings: Settings, stopping: threading.Event) -> None:
        cluster = settings.cluster
        self.settings = settings
        self.stopping = stopping
        self.failure: str | None = None
        self.partitions: dict[int, Partition] = {}
        ensure_topics(cluster)
        self.outputs = Outputs(cluster)
        self.control = ControlTopic(cluster, ContentArchive(settings.state / "content"))
        self._checkpoints = cluster.checkpoints
        self._id_key = load_id_key(cluster.checkpoints / "offer-id.key")
        self._lost: dict[int, float] = {}
        self.control.load_live()
        RedisLedger(cluster.redis, -1, tenant=settings.tenant, engine=False, dispatcher=False, patience_s=3.0).close()
        home = FaustSource if cluster.source == "faust" else KafkaSource
        self.source: FaustSource | KafkaSource = home(
            cluster.kafka,
            cluster.topic("events"),
            f"{cluster.prefix}worker",
            fetch_max_wait_ms=cluster.fetch_max_wait_ms,
            session_timeout_ms=int(cluster.session_timeout_s * 1000),
            wait_ms=_WAIT_MS,
        )
        self.source.on_assign = self._assign
        self.source.on_revoke = self._revoke

    # --- life -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to stop, or until something fails that waiting does not mend."""
        try:
            while not self.stopping.is_set():
                for block in self.source.poll(MOST_EVENTS):
                    self._process(block)
                self._look_after()
        except BaseException as error:
            if not self.stopping.is_set():
                self.failure = f"{type(error).__name__}: {error}"
                raise
        finally:
            self._close()

    def _close(self) -> None:
        if self.failure is None:
            for number in list(self.partitions):
                try:
                    self._let_go(number)
                except (StoreUnavailable, StoreFenced) as error:
                    log.error("a partition could not be saved; it is replayed", partition=number, error=str(error))
        self.source.close()
        for partition in self.partitions.values():
            partition.ledger.close()
        self.partitions.clear()
        try:
            self.outputs.close()
        finally:
            self.control.close()

    # --- partitions -------------------------------------------------------------------------------------------------

    def _assign(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            started_s = monotonic_s()
            found = checkpoint.read_newest(self._folder(number))
            for refused in found.refused:
                log.warning("checkpoint not used", partition=number, reason=refused)
            newest = found.checkpoint
            content = self.control.load_live() if newest is None else self.control.load(newest.content_version)
            ledger = RedisLedger(
                self.settings.cluster.redis,
                number,
                tenant=self.settings.tenant,
                assumed_consent=content.policy.assumed_consent,
                dispatcher=False,
                reservations=self.outputs,
                patience_s=_FOR_EVER_S,
                is_stopped=self.stopping.is_set,
            )
            pipeline = Pipeline(content, self.settings, ledger, id_key=self._id_key)
            partition = Partition(number, ledger, pipeline, last_block_s=started_s)
            ledger.authority = lambda partition=partition: _authority(partition.pipeline)  # type: ignore[misc]
            if newest is not None:
                pipeline.restore(newest.arrays, newest.objects["pipeline"])
                ledger.restore({}, newest.objects["ledger"])
                partition.done = partition.saved = partition.committed = newest.position
                partition.has_begun = True
            partition.due_s = started_s + self.settings.checkpoint_interval_s
            self.source.seek(number, partition.done)
            ledger.recover()
            self.partitions[number] = partition
            self._lost.pop(number, None)
            log.info("partition taken", partition=number, after=partition.done, users=pipeline.users.count)

    def _revoke(self, numbers: Sequence[int]) -> None:
        for number in numbers:
            if number in self.partitions:
                try:
                    self._let_go(number)
                except StoreFenced:
                    self._lose(number)

    def _let_go(self, number: int) -> None:
        """Save a partition, commit it, and give it away."""
        partition = self.partitions[number]
        if partition.pending is not None:
            partition.pending.done(wait=True)
            partition.pending = None
        if partition.done > partition.saved:
            self.outputs.flush()
            checkpoint.write(self._folder(number), self._snapshot(partition))
            partition.saved = partition.done
        self._commit(partition)
        partition.ledger.close()
        del self.partitions[number]
        log.info("partition let go", partition=number, done=partition.done)

    def _lose(self, number: int) -> None:
        """Another worker has the partition: nothing of it is saved or committed here (F4)."""
        partition = self.partitions.pop(number)
        partition.ledger.close()
        self._lost[number] = monotonic_s()
        log.warning("partition lost to another worker", partition=number)

    def _folder(self, number: int) -> Path:
        return self._checkpoints / f"partition-{number}"

    # --- records ----------------------------------------------------------------------------------------------------

    def _process(self, block: Block) -> None:
        partition = self.partitions.get(block.partition)
        if partition is None:
            return
        started_s = monotonic_s()
        if not partition.has_begun:
            # No checkpoint: numbers of requests go on from the oldest record that is still there.
            partition.ledger.rebuild(int(block.position[0]) - 1)
            partition.has_begun = True
        try:
            effects = partition.pipeline.process(block, self.control.load_record)
            partition.ledger.assumed_consent = partition.pipeline.content.policy.assumed_consent
            position = int(block.position[-1])
            if effects.is_stored:
                partition.ledger.commit(
                    position,
                    effects.now_ms,
                    offers=effects.offers,
                    consents=effects.consents,
                    closed_users=effects.closed_users,
                    closed_at=effects.closed_at,
                    pauses=effects.pauses,
                    dispatches=dispatch_rows(effects.receipts),
                )
        except StoreFenced:
            self._lose(block.partition)
            return
        self._publish(partition, effects)
        partition.done = position
        partition.last_block_s = monotonic_s()
        partition.ticking = False
        metrics.BATCH_SECONDS.observe(partition.last_block_s - started_s)
        metrics.BATCH_EVENTS.observe(effects.events)
        count(effects)

    def _publish(self, partition: Partition, effects: Effects) -> None:
        number = partition.number
        if effects.offers:
            offers = [orjson.dumps(offer) for offer in effects.offers]
            self.outputs.send("offers", offers, partition=number, keys=[o.user_id.encode() for o in effects.offers])
        if effects.decisions:
            bodies = [encode(one) for one in effects.decisions if one.reason != "duplicate"]
            self.outputs.send("decisions", bodies, partition=number)
        if effects.dead:
            self.outputs.send("dead-letters", [self._dead_letter(one) for one in effects.dead], partition=0)

    def _dead_letter(self, letter: DeadLetter) -> bytes:
        """Name where the event lies and why it was not read; never what it says."""
        return orjson.dumps(
            {
                "v": 1,
                "tenant": self.settings.tenant,
                "topic": self.settings.cluster.topic("events"),
                "partition": letter.partition,
                "offset": letter.position,
                "item": letter.item,
                "reason": letter.reason.value,
                "detail": letter.detail,
            }
        )

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        now_s = monotonic_s()
        for partition in list(self.partitions.values()):
            if now_s - partition.last_block_s >= TICK_S and not partition.ticking:
                # Nothing passes time while a partition is idle, so a record must (T2).
                self.outputs.send("events", [b""], partition=partition.number, kind=RecordKind.TICK)
                partition.ticking = True
            self._save_if_due(partition, now_s)
        for number, since_s in list(self._lost.items()):
            if now_s - since_s > self.settings.cluster.session_timeout_s:
                # Nobody took it from us by the group's own rules: it is ours again.
                del self._lost[number]
                self._assign([number])
        self._show(now_s)

    def _save_if_due(self, partition: Partition, now_s: float) -> None:
        if partition.pending is not None:
            if partition.pending.done():
                partition.saved = partition.pending.position
                partition.pending = None
                self._commit(partition)
        elif now_s >= partition.due_s and partition.done > partition.saved:
            self.outputs.flush()
            partition.pending = checkpoint.write_in_background(
                self._folder(partition.number), self._snapshot(partition)
            )
            partition.due_s = now_s + self.settings.checkpoint_interval_s

    def _commit(self, partition: Partition) -> None:
        if partition.saved > partition.committed:
            self.source.commit({partition.number: partition.saved})
            partition.committed = partition.saved

    def _snapshot(self, partition: Partition) -> checkpoint.Checkpoint:
        arrays, objects = partition.pipeline.snapshot()
        return checkpoint.Checkpoint(
            position=partition.done,
            now_ms=partition.pipeline.now_ms,
            arrays=arrays,
            objects={"pipeline": objects, "ledger": partition.ledger.objects()},
            engine=__version__,
            content_version=partition.pipeline.content.version,
            partition=partition.number,
        )

    def _show(self, now_s: float) -> None:
        for number, lag in self.source.lag().items():
            metrics.PARTITION_LAG.labels(str(number)).set(lag)
        for number, partition in self.partitions.items():
            metrics.PARTITION_NOW_SECONDS.labels(str(number)).set(partition.pipeline.now_ms / 1000)
        metrics.PARTITIONS.set(len(self.partitions))
        metrics.USERS.set(sum(one.pipeline.users.live for one in self.partitions.values()))

    def why_not_ready(self) -> str:
        """Say why this worker decides nothing now; '' where it does."""
        if self.failure is not None:
            return self.failure
        return "shutting down" if self.stopping.is_set() else "" if self.partitions else "no partition yet"


def _authority(pipeline: Pipeline) -> Authority:
    """What a rebuilt shard must know of consents and pauses: what the engine's state says (F10)."""

    def consents() -> Iterator[tuple[str, str, bool]]:
        for purpose, column in pipeline.profiles.purposes.items():
            states = column.array[: pipeline.profiles.count] & 3
            for slot in np.flatnonzero(states).tolist():
                yield pipeline.users.id_of(slot), purpose, bool(states[slot] == GRANTED)

    return Authority(consents(), sorted(pipeline.decider.pauses))
