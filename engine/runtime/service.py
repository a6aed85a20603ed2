"""The embedded service: journal -> pipeline -> ledger -> dispatcher, in one process (docs/storage.md, ARCHITECTURE.md).

Three threads. The event loop takes requests, appends to the journal and hands over offers; the engine thread reads the
journal, runs the pipeline and commits its effects with the journal position; housekeeping flushes, watches the content
folders and tidies. What a crash leaves behind is rebuilt: newest checkpoint, then replay, then go on.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import orjson
import structlog

from engine import __version__, metrics
from engine.clock import monotonic_s, wall_ms
from engine.definitions import Content
from engine.effects import Effects
from engine.errors import OpportuneError, StoreCorrupt, StoreError, StoreUnavailable
from engine.ledger.codes import CodeStore
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Block, DeadReason, Offer, RecordKind
from engine.pipeline import Pipeline
from engine.runtime import checkpoint, collector
from engine.runtime.archive import ContentArchive, content_record
from engine.runtime.code_desk import CodeDesk
from engine.runtime.explaining import Explainer
from engine.runtime.housekeeping import Housekeeper
from engine.runtime.id_key import load_id_key
from engine.runtime.journal import Journal
from engine.runtime.outcome import count, dispatch_rows, encode_all
from engine.runtime.ownership import own
from engine.runtime.quarantine import WHOLE, Quarantine, RecordFault, single_items, single_records
from engine.runtime.saving import Saver
from engine.runtime.source import JournalSource
from engine.runtime.waiters import Waiters
from engine.settings import Settings

log = structlog.get_logger("opportune.service")

MOST_EVENTS = 4096
TICK_MS = 1000
_WAIT_S = 0.25
_RETRY_S = 0.2
_POSITION_S = 1.0
"""How long the position of records without effects may wait for the next commit."""
_GATHER_S = 0.002
_GATHERED_BYTES = 16_384
_MOST_FAULTS = 100
"""Events set aside by one process; beyond that the fault is not in single events."""


class Service:
    """One deployment's engine on one machine.

    clock     `log`: time is the append time, a tick record passes it while nothing arrives; `events`: time is the
              largest event time so far (demo, recorded feeds)
    takes_content  journal what the folders hold where it is new; False for whoever only looks
    on_batch  told every batch's effects, in the engine thread, after they were committed
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: str = "log",
        takes_content: bool = True,
        on_batch: Callable[[Effects], None] | None = None,
    ) -> None:
        self.settings = settings
        self._takes_content = takes_content
        self.clock = clock
        self.failure: str | None = None
        self.recovered_records = 0
        self._on_batch = on_batch
        self._on_offers: Callable[[list[Offer]], None] = lambda offers: None
        state = settings.state
        make_state(state)
        _refuse_lost_ledger(state)
        # First of all: opening the ledger takes the right to claim away from whoever has it open.
        self._owner = own(
            state / "service.lock", f"{state} is in use by another process; stop that one or use another state folder"
        )
        try:
            self._open(state)
        except BaseException:
            self._owner.close()
            raise

    def _open(self, state: Path) -> None:
        settings = self.settings
        self.archive = ContentArchive(state / "content")
        wanted = self.archive.keep(settings.geofences, settings.scenarios)
        self.ledger = EmbeddedLedger(
            state / "ledger.db", assumed_consent=wanted.policy.assumed_consent, fsync=settings.fsync
        )
        self.journal = Journal(
            state / "journal",
            fsync=settings.fsync,
            fsync_interval_s=settings.fsync_interval_s,
            not_before=self.ledger.position() + 1,
        )
        self._checkpoints = state / "checkpoints"
        self._saver = Saver(self._checkpoints, self.journal, settings, self.snapshot_checkpoint)
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()  # held while the pipeline changes; explain takes it to look
        self._done = self._told = -1
        self._quarantine = Quarantine(state / "quarantine.jsonl")
        self._faults = 0
        self._wanted = wanted
        self._has_ended = False
        self._waiters = Waiters()
        self._commit_due_s = self._gathered_s = 0.0
        self._last_activity_ms = wall_ms()
        self._recover()
        collector.settle()
        self.codes = CodeStore(state / "codes.db")
        self._desk = CodeDesk(self.codes, self.ledger, self._append_control, lambda: self._done)
        self._desk.settle()
        self.explainer = Explainer(settings, self.ledger, lambda: self.pipeline, self._lock)
        self._housekeeper = Housekeeper(
            settings,
            self.journal,
            self.ledger,
            self.archive,
            lambda: self.pipeline,
            lambda: self.backlog_bytes,
            self._supply_codes,
        )
        self._housekeeper.show_state()
        if self._takes_content:
            self._take_content(wanted)

    def _take_content(self, wanted: Content) -> None:
        """Journal what the folders hold where it is new, and what its offers draw from."""
        if self.journal.last_position >= 0:
            # Before the content that asks for them, so that its first offers find codes.
            self._desk.supply(wanted)
        if self.pipeline.content.version != wanted.version or self.journal.last_position < 0:
            # The log names the content from its first record on, so that it alone is enough to decide again.
            self.journal.append(content_record(wanted), wall_ms=wall_ms(), kind=RecordKind.CONTENT)
            self._desk.supply(wanted)

    # --- life -------------------------------------------------------------------------------------------------------

    def start(self, on_offers: Callable[[list[Offer]], None]) -> None:
        """Begin processing; `on_offers` gets what a batch has committed, in the engine thread."""
        self._on_offers = on_offers
        keep_house = partial(self._housekeeper.run, self._stopping)
        for name, work in (("engine", self._run), ("housekeeping", keep_house)):
            thread = threading.Thread(target=work, name=f"opportune-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)

    def stop(self) -> None:
        """Process what is journaled, write a checkpoint, close. Nothing may be appended any more."""
        self._stopping.set()
        for thread in self._threads:
            thread.join()
        try:
            if self._threads and self.failure is None:
                self._saver.save_last()
        except StoreError as error:
            log.error("no checkpoint at the end; the next start replays", error=str(error))
        finally:
            self.journal.close()
            self.ledger.close()
            self.codes.close()
            self._owner.close()

    # --- recovery ---------------------------------------------------------------------------------------------------

    def _recover(self) -> None:
        """Rebuild the state as of the last journaled record: checkpoint, then replay (T3)."""
        started, is_done = monotonic_s(), False
        while not is_done:
            self._rebuild()
            try:
                self._replay()
                is_done = True
            except RecordFault as fault:
                self._set_aside(fault)
        if self.recovered_records:
            log.info("replayed", records=self.recovered_records, seconds=round(monotonic_s() - started, 3))

    def _rebuild(self) -> None:
        """Take the newest checkpoint, or begin at the beginning; the source stands behind it."""
        found = checkpoint.read_newest(self._checkpoints)
        for refused in found.refused:
            log.warning("checkpoint not used", reason=refused)
        newest = found.checkpoint
        id_key = load_id_key(self.settings.state / "offer-id.key")
        if newest is not None:
            try:
                content = self.archive.load(newest.content_version)
            except StoreError as error:
                log.warning("checkpoint not used", reason=str(error))
                newest = None
        pipeline = Pipeline(self._wanted if newest is None else content, self.settings, self.ledger, id_key=id_key)
        after = -1
        if newest is not None:
            arrays = {name: array for name, array in newest.arrays.items() if not name.startswith("ledger.")}
            pipeline.restore(arrays, newest.objects["pipeline"])
            if len(self._quarantine) and pipeline.reorder is not None:
                pipeline.reorder.discard(self._quarantine.holds)
            ledger_arrays = {
                name.removeprefix("ledger."): array
                for name, array in newest.arrays.items()
                if name.startswith("ledger.")
            }
            self.ledger.restore(ledger_arrays, newest.objects["ledger"])
            after = newest.position
        else:
            # No checkpoint: caps as they were before the oldest record that is still there.
            first = JournalSource(self.journal).next_position
            self.ledger.rebuild(first - 1)
        self._source = JournalSource(self.journal, after=after)
        self._done = after
        self.pipeline = pipeline
        if not self._threads and (self.ledger.lost_power or self.ledger.position() < after):
            # Behind its own checkpoint the ledger is an older copy: what it does not know may have gone out.
            self.ledger.distrust_through(self.journal.end)

    def _replay(self, before: int | None = None) -> None:
        """Process what is journaled, or what lies before a position."""
        while blocks := self._source.poll(MOST_EVENTS):
            for block in blocks:
                if before is not None and block.position[-1] >= before:
                    head = block.part(0, int(np.searchsorted(block.position, before)))
                    if len(head):
                        self._process(head, replay=True)
                    return
                self.recovered_records += len(block)
                self._process(block, replay=True)

    def _set_aside(self, fault: RecordFault) -> None:
        """Find the event that the engine fails on and put it into quarantine; the caller rebuilds (F2).

        Nothing of the failed block is in the ledger, and its half-done changes of memory go with the rebuilding.
        """
        self._faults += 1
        if self._faults > _MOST_FAULTS:
            raise fault
        self._rebuild()
        self._replay(before=int(fault.block.position[0]))
        cause: BaseException | None = None
        for record in single_records(fault.block):
            try:
                self._process(record, replay=True)
            except RecordFault as found:
                cause, culprit = found.__cause__, record
                break
        if cause is None or culprit.kind[0] == RecordKind.CONTENT:
            raise fault
        position, item = self._failing_held(culprit) or (int(culprit.position[0]), self._failing_item(culprit))
        self._quarantine.add(position, item, type(cause).__name__)
        metrics.add_counts(metrics.DEAD_LETTERS, {DeadReason.ENGINE_FAULT.value: 1})
        log.error("an event was set aside", position=position, item=item, error=type(cause).__name__, exc_info=cause)

    def _failing_held(self, record: Block) -> tuple[int, int] | None:
        """Say whether it is an event of an earlier record, which had to wait and goes on in the middle of this one."""
        if self.pipeline.reorder is None:
            return None
        self._rebuild()
        self._replay(before=int(record.position[0]))
        return self.pipeline.first_failing_held()

    def _failing_item(self, record: Block) -> int:
        """Say which event of a record the engine fails on; WHOLE where none does alone."""
        if record.kind[0] != RecordKind.EVENTS:
            return WHOLE
        self._rebuild()
        self._replay(before=int(record.position[0]))
        for item, one in enumerate(single_items(self._quarantine.without(record))):
            try:
                encode_all(self.pipeline.process(one, self.archive.load_record))
            except Exception:
                return item
        return WHOLE

    # --- the engine thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._gather()
                blocks = self._source.poll(MOST_EVENTS)
                try:
                    for block in blocks:
                        self._process(block)
                except RecordFault as fault:
                    self._set_aside(fault)
                    self._recover()
                    self._wake()
                if blocks:
                    self._last_activity_ms = wall_ms()
                    self._save_if_due()
                    continue
                if self._stopping.is_set():
                    return
                self._save_if_due()
                if self.clock == "log" and wall_ms() - self._last_activity_ms >= TICK_MS and self._tick():
                    continue
                self._source.wait(_WAIT_S)
        except BaseException as error:
            # A store that cannot write, or our own bug: stop deciding, say so, and let a restart replay.
            self.failure = f"{type(error).__name__}: {error}"
            log.error("the engine stopped", error=self.failure, exc_info=not isinstance(error, StoreError))
        finally:
            self._has_ended = True
            self._wake()

    def _gather(self) -> None:
        """Let records come together, unless many wait: a batch of four costs little more than a batch of one.

        Without it the engine takes single events as fast as it can, and the interpreter from everybody else.
        """
        early_s = self._gathered_s + _GATHER_S - monotonic_s()
        if early_s > 0 and self.backlog_bytes < _GATHERED_BYTES:
            self._stopping.wait(early_s)
        self._gathered_s = monotonic_s()

    def _wake(self) -> None:
        self._waiters.wake(self._reached())

    def _reached(self) -> int:
        return 1 << 62 if self._has_ended else self._done

    def _save_if_due(self) -> None:
        if self._done >= 0:
            self._saver.save_if_due()

    def _tick(self) -> bool:
        """Let time pass; say whether it could be written. A full disk may have room again (F22)."""
        try:
            self.journal.tick(wall_ms())
        except StoreUnavailable as error:
            if self.journal.failure is not None:
                raise
            self.failure = str(error)
            self._stopping.wait(_RETRY_S)
            return False
        self.failure = None
        return True

    def _process(self, block: Block, *, replay: bool = False) -> None:
        started = monotonic_s()
        if self.clock == "events":
            block.append_ms[:] = -1
        position = int(block.position[-1])
        try:
            with self._lock:
                effects = self.pipeline.process(self._quarantine.without(block), self.archive.load_record)
            self.ledger.assumed_consent = self.pipeline.content.policy.assumed_consent
            self._commit(position, effects)
        except (OpportuneError, MemoryError):
            raise
        except Exception as error:
            raise RecordFault(block) from error
        effects.dead = self._quarantine.named(effects.dead)
        self._done = position
        if position > self._told:
            self._told = position
            if effects.offers:
                self._on_offers(effects.offers)
        if not replay:
            self._wake()
            metrics.BATCH_SECONDS.observe(monotonic_s() - started)
            metrics.BATCH_EVENTS.observe(effects.events)
            count(effects)
            if self._on_batch is not None:
                self._on_batch(effects)

    def _commit(self, position: int, effects: Effects) -> None:
        if not effects.is_stored and monotonic_s() < self._commit_due_s:
            # A replay of these records brings about nothing either: their position can wait for company.
            return
        self._commit_due_s = monotonic_s() + _POSITION_S
        rows = encode_all(effects)
        while True:
            try:
                self.ledger.commit(
                    position,
                    effects.now_ms,
                    decisions=rows,
                    offers=effects.offers,
                    consents=effects.consents,
                    closed_users=effects.closed_users,
                    closed_at=effects.closed_at,
                    pauses=effects.pauses,
                    redemptions=effects.redemptions,
                    changes=effects.changes,
                    dispatches=dispatch_rows(effects.receipts),
                )
            except StoreUnavailable as error:
                # Nothing was stored and nothing is handed over: wait, the disk may come back (F22).
                self.failure = str(error)
                log.error("the ledger cannot commit; nothing is sent", error=str(error))
                if self._stopping.wait(_RETRY_S):
                    raise
                continue
            self.failure = None
            return

    # --- checkpoints ------------------------------------------------------------------------------------------------

    def snapshot_checkpoint(self) -> checkpoint.Checkpoint:
        """Return the state as of the last processed record; call it while nothing is being processed.

        The ledger is brought up to that record first: behind a checkpoint it would pass for an older copy.
        """
        if self.ledger.position() < self._done:
            self.ledger.commit(self._done, self.pipeline.now_ms)
        arrays, objects = self.pipeline.snapshot()
        arrays.update({f"ledger.{name}": array for name, array in self.ledger.arrays().items()})
        return checkpoint.Checkpoint(
            position=self._done,
            now_ms=self.pipeline.now_ms,
            arrays=arrays,
            objects={"pipeline": objects, "ledger": self.ledger.objects()},
            engine=__version__,
            content_version=self.pipeline.content.version,
        )

    def _append_control(self, record: bytes) -> int:
        return self.journal.append(record, wall_ms=wall_ms(), kind=RecordKind.CONTROL)

    def _supply_codes(self, content: Content) -> None:
        with self._lock:  # the pools stand still while they are read
            self._desk.supply(content)

    # --- what the API asks ------------------------------------------------------------------------------------------

    @property
    def backlog_bytes(self) -> int:
        """Bytes journaled and not yet processed."""
        return max(0, self.journal.end - self._source.next_position)

    async def append(self, payloads: Sequence[bytes], kind: RecordKind = RecordKind.EVENTS) -> Sequence[int]:
        """Journal payloads as one record each, in one write; return their positions once they are durable."""
        metrics.JOURNAL_WRITES.inc()
        if self.settings.fsync == "always":
            return await asyncio.to_thread(self.journal.append_many, payloads, wall_ms=wall_ms(), kind=kind)
        return self.journal.append_many(payloads, wall_ms=wall_ms(), kind=kind)

    def append_at_once(self, payloads: Sequence[bytes]) -> Sequence[int] | None:
        """Journal events without waiting; None where every write waits for the disk."""
        if self.settings.fsync == "always":
            return None
        metrics.JOURNAL_WRITES.inc()
        return self.journal.append_many(payloads, wall_ms=wall_ms())

    async def drained(self) -> None:
        """Return once everything journaled so far is committed."""
        if self.journal.last_position >= 0:
            await self.processed(self.journal.last_position)

    async def processed(self, position: int) -> None:
        """Return once the record at `position` and all its effects are committed."""
        await self._waiters.until(position, self._reached)
        if self._done < position:
            raise StoreUnavailable(f"the engine stopped before position {position}: {self.failure}")

    async def pause(self, scenario: str, paused: bool, by: str = "unknown") -> None:
        """Pause or resume one scenario, or all with "*"; return once the claim store knows (D8). `by` asked for it."""
        record = orjson.dumps({"pause": scenario, "paused": paused, "by": by})
        (position,) = await self.append([record], RecordKind.CONTROL)
        await self.processed(position)

    @property
    def crowded(self) -> frozenset[str]:
        """The fences with a crowd alarm now (P9)."""
        return self._housekeeper.crowds.crowded

    def occupancy_counts(self) -> dict[str, int]:
        """Count users inside each fence now (P9)."""
        with self._lock:
            counts = self.pipeline.presence.occupancy
            return {fence.id: int(counts[row]) for row, fence in enumerate(self.pipeline.content.fences)}


def make_state(state: Path) -> None:
    """Make the state folder where it is not there; raise StoreUnavailable where that cannot be."""
    try:
        state.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreUnavailable(
            f"the state folder {state} cannot be made: {error.strerror}; name one that may be written (--state)"
        ) from None


def _refuse_lost_ledger(state: Path) -> None:
    """Refuse a journal whose ledger is gone: what was sent would be sent again."""
    if (state / "ledger.db").exists():
        return
    if any(path.stat().st_size for path in (state / "journal").glob("*.log")):
        raise StoreCorrupt(
            f"{state / 'ledger.db'} is missing and the journal beside it is not: what was sent would be sent again. "
            "Restore it from a copy, or move the whole state folder away and begin anew"
        )
