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

import orjson
import structlog

from engine import metrics
from engine.clock import monotonic_s, wall_ms
from engine.definitions import Content
from engine.effects import Effects
from engine.errors import StoreError, StoreUnavailable
from engine.ledger.codes import CodeStore
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Offer, RecordKind
from engine.pipeline import Pipeline
from engine.runtime import collector
from engine.runtime.archive import ContentArchive, content_record
from engine.runtime.checkpoint import Checkpoint
from engine.runtime.code_desk import CodeDesk
from engine.runtime.explaining import Explainer
from engine.runtime.housekeeping import Housekeeper
from engine.runtime.journal import Journal
from engine.runtime.ownership import make_state, own, refuse_lost_ledger
from engine.runtime.processor import MOST_EVENTS, RETRY_S, Processor
from engine.runtime.quarantine import RecordFault
from engine.runtime.saving import Saver
from engine.runtime.waiters import Waiters
from engine.settings import Settings

log = structlog.get_logger("opportune.service")

TICK_MS = 1000
_WAIT_S = 0.25
_GATHER_S = 0.002
_GATHERED_BYTES = 16_384


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
        self._on_batch = on_batch
        state = settings.state
        make_state(state)
        refuse_lost_ledger(state)
        # First of all: opening the ledger takes the right to claim away from whoever has it open.
        self._owner = own(
            state / "service.lock", f"{state} is in use by another process; stop that one or use another state folder"
        )
        try:
            self._open(state)
        except BaseException:
            self._close_stores()
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
        self._stopping = threading.Event()
        self._threads: list[threading.Thread] = []
        self._has_ended = False
        self._waiters = Waiters()
        self._gathered_s = 0.0
        self._last_activity_ms = wall_ms()
        self._processor = Processor(
            settings,
            self.journal,
            self.ledger,
            self.archive,
            wanted,
            clock=self.clock,
            stopping=self._stopping,
            on_done=self._wake,
            on_batch=self._on_batch,
        )
        self._saver = Saver(state / "checkpoints", self.journal, settings, self._processor.snapshot)
        self._processor.recover()
        collector.settle()
        self.codes = CodeStore(state / "codes.db")
        self._desk = CodeDesk(self.codes, self.ledger, self._append_control, lambda: self._processor.done)
        self._desk.settle()
        self.explainer = Explainer(settings, self.ledger, lambda: self.pipeline, self._processor.lock)
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
        self._processor.go_live(on_offers)
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
            self._close_stores()

    def _close_stores(self) -> None:
        """Close what is open: all of it, or what a failed start came to."""
        for name in ("journal", "ledger", "codes"):
            store = getattr(self, name, None)
            if store is not None:
                store.close()
        self._owner.close()

    # --- how it stands ----------------------------------------------------------------------------------------------

    @property
    def pipeline(self) -> Pipeline:
        return self._processor.pipeline

    @property
    def failure(self) -> str | None:
        """Why nothing is decided any more, or just now; None while all is well."""
        return self._processor.failure

    @property
    def checkpoint_failure(self) -> str | None:
        """Why the newest checkpoint could not be written, None where it was."""
        return self._saver.failure

    @property
    def clock_behind_s(self) -> float:
        """How far the machine's clock is behind the log, which never goes back: it was set back, or had been ahead."""
        return max(0, self.journal.last_append_ms - wall_ms()) / 1000 if self.clock == "log" else 0.0

    @property
    def recovered_records(self) -> int:
        return self._processor.recovered_records

    def snapshot_checkpoint(self) -> Checkpoint:
        """Return the state as of the last processed record; call it while nothing is being processed."""
        return self._processor.snapshot()

    # --- the engine thread ------------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while True:
                self._gather()
                blocks = self._processor.source.poll(MOST_EVENTS)
                try:
                    for block in blocks:
                        self._processor.process(block)
                except RecordFault as fault:
                    self._processor.set_aside(fault)
                    self._processor.recover()
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
                self._processor.source.wait(_WAIT_S)
        except BaseException as error:
            # A store that cannot write, or our own bug: stop deciding, say so, and let a restart replay.
            self._processor.failure = f"{type(error).__name__}: {error}"
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
        return 1 << 62 if self._has_ended else self._processor.done

    def _save_if_due(self) -> None:
        if self._processor.done >= 0:
            self._saver.save_if_due()

    def _tick(self) -> bool:
        """Let time pass; say whether it could be written. A full disk may have room again (F22)."""
        try:
            self.journal.tick(wall_ms())
        except StoreUnavailable as error:
            if self.journal.failure is not None:
                raise
            self._processor.failure = str(error)
            self._stopping.wait(RETRY_S)
            return False
        self._processor.failure = None
        return True

    def _append_control(self, record: bytes) -> int:
        return self.journal.append(record, wall_ms=wall_ms(), kind=RecordKind.CONTROL)

    def _supply_codes(self, content: Content) -> None:
        with self._processor.lock:  # the pools stand still while they are read
            self._desk.supply(content)

    # --- what the API asks ------------------------------------------------------------------------------------------

    @property
    def backlog_bytes(self) -> int:
        """Bytes journaled and not yet processed."""
        return max(0, self.journal.end - self._processor.source.next_position)

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
        if self._processor.done < position:
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
        with self._processor.lock:
            counts = self.pipeline.presence.occupancy
            return {fence.id: int(counts[row]) for row, fence in enumerate(self.pipeline.content.fences)}
