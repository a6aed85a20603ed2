"""When checkpoints are written, and the journal that they make superfluous."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import structlog

from engine import metrics
from engine.clock import monotonic_s, wall_ms
from engine.errors import StoreUnavailable
from engine.runtime import checkpoint
from engine.runtime.journal import Journal
from engine.settings import Settings

log = structlog.get_logger("opportune.service")


class Saver:
    """Write a checkpoint now and then, in the background, and drop the journal behind it. For the engine thread.

    snapshot  returns the state as of the last processed record
    """

    def __init__(
        self, folder: Path, journal: Journal, settings: Settings, snapshot: Callable[[], checkpoint.Checkpoint]
    ) -> None:
        self._folder = folder
        self._journal = journal
        self._settings = settings
        self._snapshot = snapshot
        self._pending: checkpoint.Pending | None = None
        self._due_s = self._since_s = 0.0
        self.failure: str | None = None
        """Why the newest checkpoint could not be written; the journal grows as long as there is none."""

    def save_if_due(self) -> None:
        """Begin a checkpoint when the time has come, or look whether the one under way is done."""
        if self._pending is not None:
            self._finish(wait=False)
            return
        if monotonic_s() < self._due_s:
            return
        if self._due_s:
            self._since_s = monotonic_s()
            try:
                # A checkpoint must not know of records that a power loss takes from the journal.
                self._journal.sync()
                self._pending = checkpoint.write_in_background(self._folder, self._snapshot())
            except (OSError, StoreUnavailable) as error:
                self._fail(error)
        self._due_s = monotonic_s() + self._settings.checkpoint_interval_s

    def save_last(self) -> None:
        """Write one more at the end, so that the next start replays nothing."""
        if self._pending is not None:
            self._finish(wait=True)
        self._journal.sync()
        checkpoint.write(self._folder, self._snapshot())

    def _finish(self, *, wait: bool) -> None:
        assert self._pending is not None
        try:
            if not self._pending.done(wait=wait):
                return
            metrics.CHECKPOINT_SECONDS.observe(monotonic_s() - self._since_s)
            metrics.CHECKPOINT_POSITION.set(self._pending.position)
            self._journal.drop_before(self._pending.position, now_ms=wall_ms(), hours=self._settings.journal_hours)
            self.failure = None
        except (OSError, StoreUnavailable) as error:
            self._fail(error)
        self._pending = None

    def _fail(self, error: Exception) -> None:
        self.failure = str(error)
        log.error("checkpoint failed; the journal is kept", error=self.failure)
