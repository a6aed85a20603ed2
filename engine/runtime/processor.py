"""The pipeline over its stores: records in, committed effects out, rebuilt from checkpoint and journal (T3, F2, F22).

For one thread at a time; `lock` is held while the pipeline changes, so that others may look.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import structlog

from engine import __version__, metrics
from engine.clock import monotonic_s
from engine.definitions import Content
from engine.effects import Effects
from engine.errors import OpportuneError, StoreCorrupt, StoreError, StoreUnavailable
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Block, DeadReason, Offer, RecordKind
from engine.pipeline import Pipeline
from engine.runtime import checkpoint
from engine.runtime.archive import ContentArchive
from engine.runtime.id_key import load_id_key
from engine.runtime.journal import Journal
from engine.runtime.outcome import count, encode_all, rows_of
from engine.runtime.quarantine import WHOLE, Quarantine, RecordFault, single_items, single_records
from engine.runtime.repeated import Repeated
from engine.runtime.source import JournalSource
from engine.settings import Settings

log = structlog.get_logger("opportune.service")

MOST_EVENTS = 4096
RETRY_S = 0.2
_POSITION_S = 1.0
"""How long the position of records without effects may wait for the next commit."""
_MOST_FAULTS = 100
"""Events set aside by one process; beyond that the fault is not in single events."""


class Processor:
    """What decides: the pipeline, where it stands in the journal, and what it has set aside.

    wanted    the content to begin with where no checkpoint names another
    clock     as of `Service`
    stopping  ends the waiting for a disk that is full
    on_done   told that the engine came further, after each live batch
    on_batch  told each live batch's effects, after they were committed
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        ledger: EmbeddedLedger,
        archive: ContentArchive,
        wanted: Content,
        *,
        clock: str,
        stopping: threading.Event,
        on_done: Callable[[], None],
        on_batch: Callable[[Effects], None] | None,
    ) -> None:
        self.failure: str | None = None
        self.recovered_records = 0
        self.done = -1
        self.lock = threading.Lock()
        self.pipeline: Pipeline
        self.source: JournalSource
        self.checkpoints: Path = settings.state / "checkpoints"
        self._settings = settings
        self._journal = journal
        self._ledger = ledger
        self._archive = archive
        self._wanted = wanted
        self._clock = clock
        self._stopping = stopping
        self._on_offers: Callable[[list[Offer]], None] = lambda offers: None
        self._on_done = on_done
        self._on_batch = on_batch
        self._quarantine = Quarantine(settings.state / "quarantine.jsonl")
        self._repeated = Repeated()
        self._is_live = False
        self._told = -1
        self._faults = 0
        self._commit_due_s = 0.0

    def go_live(self, on_offers: Callable[[list[Offer]], None]) -> None:
        """From now on tell what a batch has committed; what a start finds is past."""
        self._is_live = True
        self._on_offers = on_offers

    def recover(self) -> None:
        """Rebuild the state as of the last journaled record: checkpoint, then replay (T3)."""
        started, is_done = monotonic_s(), False
        while not is_done:
            self._rebuild()
            try:
                self._replay()
                is_done = True
            except RecordFault as fault:
                self.set_aside(fault)
        if self.recovered_records:
            log.info("replayed", records=self.recovered_records, seconds=round(monotonic_s() - started, 3))

    def _rebuild(self) -> None:
        """Take the newest checkpoint, or begin at the beginning; the source stands behind it."""
        found = checkpoint.read_newest(self.checkpoints)
        for refused in found.refused:
            log.warning("checkpoint not used", reason=refused)
        newest = found.checkpoint
        # The key is made before the first record.
        id_key = load_id_key(self._settings.state / "offer-id.key", may_make=self._journal.end == 0)
        if newest is not None:
            try:
                content = self._archive.load(newest.content_version)
            except StoreError as error:
                log.warning("checkpoint not used", reason=str(error))
                found.refused.append(f"{newest.position:020d}.checkpoint: {error}")
                newest = None
        pipeline = Pipeline(self._wanted if newest is None else content, self._settings, self._ledger, id_key=id_key)
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
            self._ledger.restore(ledger_arrays, newest.objects["ledger"])
            after = newest.position
        else:
            # No checkpoint: caps as they were before the oldest record that is still there.
            first = JournalSource(self._journal).next_position
            if first > 0 and found.refused:
                raise StoreCorrupt(
                    f"no checkpoint can be read ({'; '.join(found.refused)}), and the journal begins at position "
                    f"{first}: profiles and consents from before it would be lost. Restore a checkpoint from a copy, "
                    f"or move the damaged ones out of {self.checkpoints} to go on without"
                )
            self._ledger.rebuild(first - 1)
        self.source = JournalSource(self._journal, after=after)
        if self.source.lost_from >= 0:
            log.error(
                "the journal's end was lost; the checkpoint holds what came of it, up to its position",
                from_position=self.source.lost_from,
                checkpoint=after,
            )
        self.done = after
        self.pipeline = pipeline
        if not self._is_live and (self._ledger.lost_power or self._ledger.position() < after):
            # Behind its own checkpoint the ledger is an older copy: what it does not know may have gone out.
            self._ledger.distrust_through(self._journal.end)

    def _replay(self, before: int | None = None) -> None:
        """Process what is journaled, or what lies before a position."""
        while blocks := self.source.poll(MOST_EVENTS):
            for block in blocks:
                if before is not None and block.position[-1] >= before:
                    head = block.part(0, int(np.searchsorted(block.position, before)))
                    if len(head):
                        self.process(head, replay=True)
                    return
                self.recovered_records += len(block)
                self.process(block, replay=True)

    def set_aside(self, fault: RecordFault) -> None:
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
                self.process(record, replay=True)
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
                encode_all(self.pipeline.process(one, self._archive.load_record))
            except Exception:
                return item
        return WHOLE

    def process(self, block: Block, *, replay: bool = False) -> None:
        started = monotonic_s()
        if self._clock == "events":
            block.append_ms[:] = -1
        position = int(block.position[-1])
        try:
            with self.lock:
                effects = self.pipeline.process(self._quarantine.without(block), self._archive.load_record)
            self._ledger.assumed_consent = self.pipeline.content.policy.assumed_consent
            self._commit(position, effects)
        except (OpportuneError, MemoryError):
            raise
        except Exception as error:
            raise RecordFault(block) from error
        effects.dead = self._quarantine.named(effects.dead)
        self.done = position
        if position > self._told:
            self._told = position
            if effects.offers:
                self._on_offers(effects.offers)
        if not replay:
            self._on_done()
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
                self._ledger.commit(
                    position,
                    effects.now_ms,
                    decisions=rows,
                    redemptions=effects.redemptions,
                    changes=effects.changes,
                    **rows_of(effects),
                )
            except StoreUnavailable as error:
                # Nothing was stored and nothing is handed over: wait, the disk may come back (F22).
                self.failure = str(error)
                if self._repeated.is_news(str(error)):
                    log.error("the ledger cannot commit; nothing is sent", error=str(error))
                if self._stopping.wait(RETRY_S):
                    raise
                continue
            self.failure = None
            return

    def snapshot(self) -> checkpoint.Checkpoint:
        """Return the state as of the last processed record; call it while nothing is being processed.

        The ledger is brought up to that record first: behind a checkpoint it would pass for an older copy.
        """
        if self._ledger.position() < self.done:
            self._ledger.commit(self.done, self.pipeline.now_ms)
        arrays, objects = self.pipeline.snapshot()
        arrays.update({f"ledger.{name}": array for name, array in self._ledger.arrays().items()})
        return checkpoint.Checkpoint(
            position=self.done,
            now_ms=self.pipeline.now_ms,
            arrays=arrays,
            objects={"pipeline": objects, "ledger": self._ledger.objects()},
            engine=__version__,
            content_version=self.pipeline.content.version,
        )
