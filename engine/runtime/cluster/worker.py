"""The worker: partitions of the events topic, each with its pipeline, its ledger's shard and its checkpoints.

An offset is committed only once a checkpoint that reflects it is durable and everything sent before it is acknowledged;
what lies between is done again after a crash, with the same answers, the same ids and, by the claim, no second message.
An event that the engine fails on is found by bisection and set aside; other partitions go on meanwhile.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import orjson
import structlog

from engine import metrics
from engine.clock import monotonic_s, wall_ms
from engine.decide.records import encode
from engine.effects import Effects
from engine.errors import OpportuneError, StoreFenced, StoreUnavailable
from engine.ledger.codes import CodeStore
from engine.ledger.redis.deployment import must_serve
from engine.ledger.redis.ledger import RedisLedger
from engine.model import Block, DeadLetter, DeadReason, Reason, RecordKind
from engine.runtime import checkpoint, collector
from engine.runtime.archive import ContentArchive
from engine.runtime.cluster.control import Contents, ControlTopic
from engine.runtime.cluster.faust_source import FaustSource
from engine.runtime.cluster.kafka_source import KafkaSource
from engine.runtime.cluster.lanes import Lanes, OneByOne
from engine.runtime.cluster.outputs import Outputs
from engine.runtime.cluster.partition import Decided, Partition
from engine.runtime.cluster.registry import SchemaRegistry
from engine.runtime.cluster.topics import ensure_topics
from engine.runtime.cluster.values import ValueReader
from engine.runtime.code_desk import CodeDesk, pools_of
from engine.runtime.id_key import load_id_key
from engine.runtime.outcome import count, rows_of
from engine.runtime.quarantine import single_items
from engine.settings import Settings

log = structlog.get_logger("opportune.worker")

MOST_EVENTS = 32_768
"""In a poll. Only a backlog makes blocks so large; each costs some round trips, however many events it has."""
TICK_S = SUPPLY_S = 1.0
MOST_CODES = 10_000
"""Codes leased to a partition at once."""
MOST_FAULTS = 100
"""Events of one partition set aside by one process; beyond that the fault is not in single events."""
_ALARM_S = 60.0
_SHORTER_S = 10.0
_FOR_EVER_S = 1e9
_NO_ANSWER = Reason.STORE_UNAVAILABLE.value
_WAIT_MS = 20
_GATHER_MS = 8
"""Four is as quick on an idle machine; eight costs a worker a quarter less, and so is quicker on a busy one."""


@dataclass(slots=True)
class Parts:
    """What a worker works with; `connect` makes the real ones, tests and the simulation their own."""

    source: Any  # a CommitsSoon that also tells its `lag` and what is `misplaced`
    outputs: Any
    control: Any
    open_ledger: Callable[[int, frozenset[str]], RedisLedger]
    id_key: bytes
    has_headers: bool = False  # whether behind each value lie its headers, as in Kafka's record batches
    codes: CodeStore | None = None  # texts and numbers of vouchers; None: there are none
    settle: Callable[[], None] = lambda: None  # told once partitions came or went and nothing waits for that
    monotonic_s: Callable[[], float] = monotonic_s  # for ticks and checkpoints; nothing that is decided knows it
    lanes: Lanes | OneByOne = field(default_factory=OneByOne)


def connect(settings: Settings, is_stopped: Callable[[], bool], control: Contents | None = None) -> Parts:
    """Reach Kafka and Redis; StoreUnavailable where they cannot be, SettingsError where they do not fit.

    control  where contents come from, if not from the control topic
    """
    cluster = settings.cluster
    ensure_topics(cluster)
    lanes = Lanes()
    outputs = Outputs(cluster, is_stopped=is_stopped, lanes=lanes, is_replayed=True)
    control = control or ControlTopic(cluster, ContentArchive(settings.state / "content"))
    control.load_live()
    must_serve(cluster.redis, settings.tenant)

    def open_ledger(shard: int, assumed_consent: frozenset[str]) -> RedisLedger:
        return RedisLedger(
            cluster.redis,
            shard,
            tenant=settings.tenant,
            shards=cluster.partitions,
            assumed_consent=assumed_consent,
            dispatcher=False,
            reservations=outputs,
            patience_s=_FOR_EVER_S,
            is_stopped=is_stopped,
            meanwhile=lanes,
        )

    home = FaustSource if cluster.source == "faust" else KafkaSource
    source = home(
        cluster.kafka,
        cluster.topic("events"),
        f"{cluster.prefix}worker",
        fetch_max_wait_ms=cluster.fetch_max_wait_ms,
        session_timeout_ms=int(cluster.session_timeout_s * 1000),
        wait_ms=_WAIT_MS,
        gather_ms=_GATHER_MS,
    )
    id_key = load_id_key(cluster.checkpoints / "offer-id.key")
    codes = CodeStore(settings.state / "codes.db")
    return Parts(source, outputs, control, open_ledger, id_key, True, codes, collector.settle, lanes=lanes)


class Worker:
    """Runs in one thread; `run` returns once `stopping` is set and everything is saved."""

    def __init__(self, settings: Settings, stopping: threading.Event, parts: Parts | None = None) -> None:
        parts = parts or connect(settings, stopping.is_set)
        self.settings = settings
        self.stopping = stopping
        self.failure: str | None = None
        self.partitions: dict[int, Partition] = {}
        self.source, self.outputs, self.control = parts.source, parts.outputs, parts.control
        self._open_ledger = parts.open_ledger
        self._id_key = parts.id_key
        self._codes = parts.codes
        self._settle, self._has_moved = parts.settle, False
        self._lanes = parts.lanes
        self._busy: set[int] = set()  # partitions whose blocks are under way, each in its lane
        self._supplied_s = 0.0
        registry = settings.cluster.schema_registry
        self.values = ValueReader(
            SchemaRegistry(registry, is_stopped=stopping.is_set) if registry else None, has_headers=parts.has_headers
        )
        self._monotonic_s = parts.monotonic_s
        self._lost: dict[int, float] = {}
        self._sought: set[int] = set()
        self._alarm_due_s = 0.0
        self.source.on_assign = self._assign
        self.source.on_revoke = self._revoke

    # --- life -------------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Work until told to stop, or until something fails that waiting does not mend."""
        try:
            while not self.stopping.is_set():
                self.step()
        except BaseException as error:
            if not self.stopping.is_set():
                self.failure = f"{type(error).__name__}: {error}"
                raise
        finally:
            self._close()

    def step(self) -> None:
        """Take what there is for partitions that have nothing under way, and let those that have go on."""
        taken: dict[int, list[Block]] = {}
        for block in self.source.poll(MOST_EVENTS, self._busy):
            taken.setdefault(block.partition, []).append(block)
        for number, blocks in taken.items():
            self._busy.add(number)
            self._lanes.begin(partial(self._process_all, number, blocks))
        before = len(self._busy)
        self._lanes.go_on()
        if self.stopping.is_set() or (self._busy and len(self._busy) == before):
            return
        self._look_after()
        if self._has_moved and not self._busy:
            self._has_moved = False
            self._settle()

    def _close(self) -> None:
        if self.failure is None:
            with suppress(OpportuneError):  # what is not done is replayed
                self._lanes.finish()
            for number in list(self.partitions):
                try:
                    self._let_go(number)
                except StoreFenced:
                    self._lose(number)
                except StoreUnavailable as error:
                    log.error("partitions could not be saved; they are replayed", first=number, error=str(error))
                    break  # the others would wait as long
        self.source.close()
        self._lanes.close()
        for partition in self.partitions.values():
            partition.close()
        self.partitions.clear()
        try:
            self.outputs.close()
        finally:
            self.control.close()
            if self._codes is not None:
                self._codes.close()

    # --- partitions -------------------------------------------------------------------------------------------------

    def _assign(self, numbers: Sequence[int]) -> None:
        self._lanes.finish()  # else who takes hold could wait for what only they can end
        for number in numbers:
            newest, content = self._newest(number)
            ledger = self._open_ledger(number, content.policy.assumed_consent)
            folder = self.settings.cluster.checkpoints / f"partition-{number}"
            partition = Partition(number, folder, self.settings, ledger, self._id_key, self._monotonic_s())
            partition.restore(newest, content)
            partition.committed = partition.saved
            self._seek(partition)
            ledger.peers = lambda: [one.ledger for one in list(self.partitions.values())]
            if self._codes is not None:
                partition.desk = self._desk(self._codes, partition)
            self.partitions[number] = partition
            self._has_moved = True
            self._lost.pop(number, None)
            try:
                ledger.recover()
            except StoreFenced:
                self._lose(number)
                continue
            users = partition.pipeline.users.count
            log.info("partition taken", partition=number, after=partition.done, users=users)
            self._stop_if_bad(partition)

    def _desk(self, codes: CodeStore, partition: Partition) -> CodeDesk:
        return CodeDesk(
            codes,
            partition.ledger,
            lambda record: self.outputs.append_control(partition.number, record),
            lambda: partition.done,
            lease_codes=MOST_CODES,
            shares=self.settings.cluster.partitions,
        )

    def _newest(self, number: int) -> tuple[checkpoint.Checkpoint | None, Any]:
        found = checkpoint.read_newest(self.settings.cluster.checkpoints / f"partition-{number}")
        for refused in found.refused:
            log.warning("checkpoint not used", partition=number, reason=refused)
        newest = found.checkpoint
        return newest, self.control.load_live() if newest is None else self.control.load(newest.content_version)

    def _seek(self, partition: Partition) -> None:
        self.source.seek(partition.number, partition.done)
        self._sought.add(partition.number)

    def _revoke(self, numbers: Sequence[int]) -> None:
        self._lanes.finish()
        for number in numbers:
            if number in self.partitions:
                try:
                    self._let_go(number)
                except StoreFenced:
                    self._lose(number)
                except StoreUnavailable as error:
                    log.error("a partition could not be saved; it is replayed", partition=number, error=str(error))
                    self._give_up(number)
            self._lost.pop(number, None)  # the group has said whose it is: it does not come back by itself

    def _give_up(self, number: int) -> None:
        self.partitions.pop(number).close()
        self._has_moved = True

    def _let_go(self, number: int) -> None:
        """Save a partition, commit it, and give it away."""
        partition = self.partitions[number]
        if partition.is_whole:
            if partition.done > partition.saved:
                self.outputs.flush()
            partition.save()
            self._commit(partition)
        self._give_up(number)
        log.info("partition let go", partition=number, done=partition.done)

    def _lose(self, number: int) -> None:
        """Another worker has the partition: nothing of it is saved or committed here (F4)."""
        self._give_up(number)
        self._lost[number] = self._monotonic_s()
        log.warning("partition lost to another worker", partition=number)

    def _stop_if_bad(self, partition: Partition) -> None:
        if not partition.is_stopped and (reason := partition.intake.alarm()):
            self._stop(partition, reason)

    def _stop_if_shorter(self, partition: Partition, lag: int) -> None:
        """A topic that lost what was read of it must not be read on: its offsets mean other records now (F5).

        A new leader may tell of less for a moment.
        """
        if lag >= 0 or partition.is_stopped:
            partition.shorter_since_s = None
            return
        now_s = self._monotonic_s()
        partition.shorter_since_s = partition.shorter_since_s or now_s
        if now_s - partition.shorter_since_s > _SHORTER_S:
            self._stop(partition, f"the topic ends {-lag} records behind its checkpoint; restore the topic")

    def _stop(self, partition: Partition, reason: str) -> None:
        """Read nothing more of a partition until somebody has looked (F2)."""
        partition.stopped = reason
        self.source.pause([partition.number])
        partition.measured.stopped.set(1)
        log.error("partition stopped", partition=partition.number, after=partition.done, reason=reason)

    # --- records ----------------------------------------------------------------------------------------------------

    def _process_all(self, number: int, blocks: Sequence[Block]) -> None:
        """Decide and commit blocks of one partition, in its lane."""
        self._sought.discard(number)
        try:
            for block in blocks:
                if self.stopping.is_set():
                    return
                self._process(block)
        finally:
            self._busy.discard(number)

    def _process(self, block: Block) -> None:
        partition = self.partitions.get(block.partition)
        if partition is None:
            return
        block, partition.unread = self.values.read(block)
        for piece in partition.pieces(block):
            # Whatever was fetched before the state went back, or was given up, is fetched again.
            is_ours = self.partitions.get(block.partition) is partition
            if not is_ours or partition.is_stopped or block.partition in self._sought:
                return
            with self._guarding(partition, piece):
                self._process_piece(partition, piece)

    def _process_piece(self, partition: Partition, block: Block) -> None:
        first = int(block.position[0])
        partition.leave_history(first)
        if partition.is_worth_saving_before(block):
            self.outputs.flush()
            partition.save()
        if partition.is_probed(first):
            self._probe(partition, block)
            return
        partition.is_whole = False
        self._conclude(partition, self._decide(partition, block))

    @contextmanager
    def _guarding(self, partition: Partition, block: Block) -> Iterator[None]:
        """A partition that is another's by now, or that the engine fails on, does not harm the others."""
        try:
            yield
        except StoreFenced:
            self._lose(partition.number)
        except (OpportuneError, MemoryError):
            raise
        except Exception as error:
            self._suspect(partition, block, error)

    def _decide(self, partition: Partition, block: Block) -> Decided:
        started_s = monotonic_s()
        waited_ms = wall_ms() - int(block.append_ms[0])
        partition.begin(int(block.position[0]))
        clean = partition.quarantine.without(block)
        effects = partition.pipeline.process(clean, self.control.load_record)
        if any(one.reason == _NO_ANSWER for one in effects.decisions):
            # The ledger is waited for, for ever; only who is told to stop hears this, and must not decide by it.
            raise StoreUnavailable("the ledger did not answer; the batch is decided again")
        first, last = int(block.position[0]), int(block.position[-1])
        unread = [letter for letter in partition.unread if first <= letter.position <= last]
        partition.intake.add_dead(len(unread))
        effects.dead = [*partition.quarantine.named(effects.dead), *unread]
        decisions = [encode(one) for one in effects.decisions if one.reason != "duplicate"]
        partition.ledger.assumed_consent = partition.pipeline.content.policy.assumed_consent
        return Decided(block, effects, decisions, last, waited_ms, started_s, monotonic_s())

    def _conclude(self, partition: Partition, decided: Decided) -> None:
        effects, position = decided.effects, decided.position
        if effects.is_stored:
            partition.ledger.commit(position, effects.now_ms, **rows_of(effects))
        committed_s = monotonic_s()
        if position > partition.told:
            self._publish(partition.number, effects, decided.decisions)
            partition.told = position
            count(effects)
        self._measure(partition, decided, committed_s)
        partition.done = position
        partition.is_whole = True
        partition.last_block_s = self._monotonic_s()
        partition.ticking = False
        self._stop_if_bad(partition)

    def _measure(self, partition: Partition, decided: Decided, committed_s: float) -> None:
        now_s = monotonic_s()
        stage = partition.measured.stage
        stage["waited"].observe(max(0, decided.waited_ms) / 1000)
        stage["decide"].observe(decided.decided_s - decided.started_s)
        stage["commit"].observe(committed_s - decided.decided_s)
        stage["publish"].observe(now_s - committed_s)
        metrics.BATCH_SECONDS.observe(now_s - decided.started_s)
        metrics.BATCH_EVENTS.observe(decided.effects.events)
        partition.measured.events.observe(decided.effects.events)

    def _publish(self, number: int, effects: Effects, decisions: Sequence[bytes]) -> None:
        if effects.offers:
            offers = [orjson.dumps(offer) for offer in effects.offers]
            self.outputs.send("offers", offers, partition=number, keys=[o.user_id.encode() for o in effects.offers])
        if decisions:
            self.outputs.send("decisions", decisions, partition=number)
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

    # --- events that wake a fault of ours (F2) ------------------------------------------------------------------------

    def _suspect(self, partition: Partition, block: Block, error: Exception) -> None:
        """Go back to before a block that the engine failed on, to find the one event; it is set aside once found.

        Nothing of the failed block is published; what it was granted is taken back with the state.
        """
        first, last = int(block.position[0]), int(block.position[-1])
        log.warning("the engine failed", partition=partition.number, first=first, last=last, error=type(error).__name__)
        is_content = len(block) == 1 and block.kind[0] == RecordKind.CONTENT
        if is_content or partition.faults >= MOST_FAULTS:
            self._go_back(partition)
            self._stop(partition, f"the engine fails at offset {first}: {type(error).__name__}")
            return
        found = partition.suspect(block)
        if found is not None:
            self._set_aside(partition, *found, error)
        self._go_back(partition)

    def _probe(self, partition: Partition, record: Block) -> None:
        """Try the events of one record one by one; the state goes back whatever comes of it."""
        partition.is_whole = False
        if (held := partition.failing_held()) is not None:
            self._set_aside(partition, *held, RuntimeError("an event that had waited to be sorted"))
            self._go_back(partition)
            return
        found, cause = -1, None
        for item, one in enumerate(single_items(partition.quarantine.without(record))):
            try:
                for decision in partition.pipeline.process(one, self.control.load_record).decisions:
                    encode(decision)
            except OpportuneError:
                raise
            except Exception as error:
                found, cause = item, error
                break
        self._set_aside(partition, int(record.position[0]), found, cause or RuntimeError("all events together"))
        self._go_back(partition)

    def _set_aside(self, partition: Partition, position: int, item: int, error: BaseException) -> None:
        partition.set_aside(position, item, error)
        log.error(
            "an event was set aside",
            partition=partition.number,
            offset=position,
            item=item,
            error=type(error).__name__,
            exc_info=error,
        )
        if item < 0 or position <= partition.told:
            # The whole record leaves no dead letter when it is passed over, nor does what was told of before.
            letter = DeadLetter(DeadReason.ENGINE_FAULT, "", position, item, partition.number)
            metrics.add_counts(metrics.DEAD_LETTERS, {letter.reason.value: 1})
            self.outputs.send("dead-letters", [self._dead_letter(letter)], partition=0)

    def _go_back(self, partition: Partition) -> None:
        """Return to the newest checkpoint; what lies behind it is read again."""
        partition.end_saving()
        partition.ledger.rebuild(-1)  # what the failed block was granted is taken back
        partition.restore(*self._newest(partition.number))
        self._seek(partition)

    def _supply(self, codes: CodeStore) -> None:
        """Keep every partition supplied with codes that its content draws on (O3)."""
        try:
            pools = {pool.name for pool in codes.pools()}
            for partition in self.partitions.values() if pools else ():
                # A partition that replays what it decided before knows its leases from the log.
                if (
                    partition.desk is None
                    or partition.number in self._busy
                    or partition.is_stopped
                    or partition.done < partition.ledger.position()
                ):
                    continue
                if pools_of(partition.pipeline.content) & pools or partition.ledger.stock.pools():
                    partition.desk.supply(partition.pipeline.content)
        except StoreUnavailable as error:
            log.warning("codes are not supplied now", error=str(error))

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def _look_after(self) -> None:
        now_s = self._monotonic_s()
        if self._codes is not None and now_s - self._supplied_s >= SUPPLY_S:
            self._supplied_s = now_s
            self._supply(self._codes)
        for partition in [one for number, one in self.partitions.items() if number not in self._busy]:
            if now_s - partition.last_block_s >= TICK_S and not partition.ticking and not partition.is_stopped:
                # Nothing passes time while a partition is idle, so a record must (T2).
                self.outputs.send("events", [b""], partition=partition.number, kind=RecordKind.TICK)
                partition.ticking = True
            self._save_if_due(partition, now_s)
        for number, since_s in list(self._lost.items()):
            if now_s - since_s > self.settings.cluster.session_timeout_s:
                # Nobody took it from us by the group's own rules: it is ours again.
                del self._lost[number]
                self._assign([number])
        self._show()

    def _save_if_due(self, partition: Partition, now_s: float) -> None:
        if partition.is_saving:
            if partition.has_saved():
                self._commit(partition)
        elif now_s >= partition.due_s and partition.done > partition.saved:
            self.outputs.flush()
            partition.begin_saving()
            partition.due_s = now_s + self.settings.checkpoint_interval_s
        elif partition.saved > partition.committed:
            self._commit(partition)

    def _commit(self, partition: Partition) -> None:
        """Commit what the newest checkpoint reflects, without waiting; the source lets go of nothing before it is."""
        if partition.saved > partition.committed:
            self.source.commit_soon({partition.number: partition.saved})
            partition.committed = partition.saved

    def _show(self) -> None:
        for number, lag in self.source.lag().items():
            if number in self.partitions:
                self.partitions[number].measured.lag.set(max(0, lag))
                self._stop_if_shorter(self.partitions[number], lag)
        for number, records in self.source.misplaced.items():
            if number in self.partitions and self.partitions[number].measured.misplaced(records):
                self._alarm_misplaced(number)
        for partition in self.partitions.values():
            partition.measured.now.set(partition.pipeline.now_ms / 1000)
        metrics.PARTITIONS.set(len(self.partitions))
        metrics.EVENTS_HELD.set(sum(one.pipeline.held_events for one in self.partitions.values()))
        metrics.USERS.set(sum(one.pipeline.users.live for one in self.partitions.values()))

    def _alarm_misplaced(self, number: int) -> None:
        now_s = monotonic_s()
        if now_s >= self._alarm_due_s:
            self._alarm_due_s = now_s + _ALARM_S
            log.error(
                "records that belong to another partition: key them by user, partition them by murmur2",
                partition=number,
            )

    def why_not_ready(self) -> str:
        """Say why this worker decides nothing now, or not all it should; '' where it does."""
        if self.failure is not None:
            return self.failure
        if self.stopping.is_set():
            return "shutting down"
        partitions = self.partitions.copy().values()
        stopped = [f"partition {one.number} stopped: {one.stopped}" for one in partitions if one.is_stopped]
        return "; ".join(stopped) if stopped else "" if partitions else "no partition yet"
