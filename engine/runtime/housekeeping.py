"""What is done beside the engine: flush, watch the content folders, tidy, forget what is old, show how things are."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import structlog

from engine import metrics
from engine.clock import monotonic_s, wall_ms
from engine.definitions import Content
from engine.errors import ContentError, StoreError
from engine.ledger.embedded import EmbeddedLedger
from engine.model import RecordKind
from engine.pipeline import Pipeline
from engine.runtime.archive import ContentArchive, FolderWatch, content_record
from engine.runtime.crowds import CrowdWatch
from engine.runtime.journal import Journal
from engine.runtime.repeated import Repeated
from engine.settings import Settings

log = structlog.get_logger("opportune.service")

DAY_MS = 86_400_000
DECISION_DAYS = 62  # all of this month the one before can be settled
RESERVATION_DAYS = 62  # the longest calendar window, a month, and one more
_EXPIRE_EVERY_S = 3600.0


class Housekeeper:
    """The work of one thread; nothing here may end it.

    pipeline  returns the engine's pipeline, to look at only
    backlog   returns the bytes journaled and not yet processed
    supply_codes  leases the codes that a content draws on (O3)
    """

    def __init__(
        self,
        settings: Settings,
        journal: Journal,
        ledger: EmbeddedLedger,
        archive: ContentArchive,
        pipeline: Callable[[], Pipeline],
        backlog: Callable[[], int],
        supply_codes: Callable[[Content], None],
    ) -> None:
        self._settings = settings
        self._journal = journal
        self._ledger = ledger
        self._archive = archive
        self._pipeline = pipeline
        self._backlog = backlog
        self._supply_codes = supply_codes
        self._watch = FolderWatch(settings.geofences, settings.scenarios)
        self.crowds = CrowdWatch()
        self._shown_version = ""
        self._repeated = Repeated()
        self._expire_due_s = 60.0 + monotonic_s()

    def run(self, stopping: threading.Event) -> None:
        """Flush every interval, everything else once a second, until told to stop."""
        ticks = 0
        while not stopping.wait(self._settings.fsync_interval_s):
            ticks += 1
            try:
                if self._settings.fsync == "interval":
                    started = monotonic_s()
                    self._journal.sync()
                    metrics.JOURNAL_FSYNC_SECONDS.observe(monotonic_s() - started)
                if ticks % max(1, round(1.0 / self._settings.fsync_interval_s)) == 0:
                    self._ledger.tidy()
                    self._expire_if_due()
                    self.show_state()
                    self._activate_if_changed()
                    self._supply_codes(self._pipeline().content)
            except StoreError as error:
                if self._repeated.is_news(str(error)):
                    log.error("housekeeping", error=str(error))
            except Exception as error:
                # A folder that is gone or a full disk must not end flushing and watching for good.
                if self._repeated.is_news(str(error)):
                    log.exception("housekeeping", error=type(error).__name__)

    def show_state(self) -> None:
        """Set the gauges that say how things stand."""
        pipeline = self._pipeline()
        metrics.BACKLOG_BYTES.set(self._backlog())
        metrics.USERS.set(pipeline.users.live)
        metrics.EVENTS_HELD.set(pipeline.held_events)
        metrics.NOW_SECONDS.set(pipeline.now_ms / 1000)
        metrics.PRESENT_USERS.set(int(pipeline.presence.occupancy.sum()))
        metrics.COMPILED.set(1)
        self.crowds.look(pipeline.content.fences, pipeline.presence.occupancy)
        content = pipeline.content
        if content.version != self._shown_version:
            self._shown_version = content.version
            modes = Counter(scenario.mode.value for scenario in content.scenarios)
            metrics.set_content(content.version, len(content.fences), modes)

    def _expire_if_due(self) -> None:
        """Forget stored decisions and offers once no replay can name them again."""
        if monotonic_s() < self._expire_due_s:
            return
        self._expire_due_s = monotonic_s() + _EXPIRE_EVERY_S
        now_ms = self._pipeline().now_ms
        self._ledger.expire_receipts(wall_ms())
        self._ledger.expire(now_ms - DECISION_DAYS * DAY_MS, now_ms - RESERVATION_DAYS * DAY_MS)

    def _activate_if_changed(self) -> None:
        if not self._watch.has_settled_change(wall_ms()):
            return
        try:
            content = self._archive.keep(self._settings.geofences, self._settings.scenarios)
        except ContentError as error:
            log.error("content not activated; the old one stays live", faults=len(error.faults), first=str(error)[:500])
            return
        if content.version != self._pipeline().content.version:
            self._supply_codes(content)
            self._journal.append(content_record(content), wall_ms=wall_ms(), kind=RecordKind.CONTENT)
            log.info("content activated", version=content.version)
