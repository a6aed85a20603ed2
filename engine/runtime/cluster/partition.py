"""What a worker holds of one partition: its pipeline, its ledger's shard, its checkpoints and what was set aside."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import orjson
import structlog

from engine import __version__, metrics
from engine.clock import monotonic_s
from engine.decide.profiles import GRANTED
from engine.decode.split import split
from engine.definitions import Content
from engine.effects import Effects
from engine.errors import StoreUnavailable
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.shard import Authority
from engine.model import Block, DeadLetter, RecordKind
from engine.pipeline import Pipeline
from engine.runtime import checkpoint
from engine.runtime.cluster.intake import Intake
from engine.runtime.code_desk import CodeDesk
from engine.runtime.quarantine import Quarantine, single_records
from engine.settings import Settings

log = structlog.get_logger("opportune.worker")

_NOWHERE = (-1, -1)


@dataclass(frozen=True, slots=True)
class Decided:
    """A block whose effects are not committed yet."""

    block: Block
    effects: Effects
    decisions: list[bytes]
    position: int  # of its last record
    waited_ms: int  # from the broker until it was taken up
    started_s: float
    decided_s: float


class Partition:
    """One partition of the events topic while it is ours; `restore` gives it its state, at first and after a fault.

    done       the last record that is processed
    saved      what the newest durable checkpoint reflects
    committed  what the source was told to commit
    told       the last record whose effects were published by this process
    is_whole   False while a block is under way: the state is then neither that before nor that after it
    stopped    why nothing more is read of it; '' while it is
    """

    pipeline: Pipeline
    intake: Intake

    def __init__(
        self, number: int, folder: Path, settings: Settings, ledger: RedisLedger, id_key: bytes, now_s: float
    ) -> None:
        self.number = number
        self.folder = folder
        self.ledger = ledger
        self.done = self.saved = self.committed = self.told = -1
        self.is_whole = True
        self.desk: CodeDesk | None = None
        self.unread: list[DeadLetter] = []  # of the block under way: what no schema could read
        self.has_begun = False  # a record was processed, or a checkpoint restored
        self.ticking = False  # a tick was sent and did not come back yet
        self.stopped = ""
        self.faults = 0
        self.shorter_since_s: float | None = None  # since when its topic seems to have lost records
        self.last_block_s = now_s
        self.due_s = self.last_block_s + settings.checkpoint_interval_s
        self._settings = settings
        self._id_key = id_key
        self._pending: checkpoint.Pending | None = None
        self._watched = _NOWHERE
        self._probed = -1
        self.quarantine = Quarantine(folder / "quarantine.jsonl")
        self.measured = Measured(number)
        ledger.authority = lambda: _authority(self.pipeline)

    def _fresh(self, content: Content) -> Pipeline:
        pipeline = Pipeline(content, self._settings, self.ledger, id_key=self._id_key)
        cluster = self._settings.cluster
        self.intake = Intake(percent=cluster.dead_letter_percent, in_a_row=cluster.dead_letters_in_a_row)
        pipeline.on_decoded = self.intake.watch
        return pipeline

    # --- state ------------------------------------------------------------------------------------------------------

    def restore(self, newest: checkpoint.Checkpoint | None, content: Content) -> None:
        """Take the state of a checkpoint made with this content, or begin at the beginning."""
        self.pipeline = self._fresh(content)
        self.has_begun = newest is not None
        self.is_whole = True
        self.done = -1
        if newest is not None:
            self.pipeline.restore(newest.arrays, newest.objects["pipeline"])
            if len(self.quarantine) and self.pipeline.reorder is not None:
                self.pipeline.reorder.discard(self.quarantine.holds)
            self.ledger.restore({}, newest.objects["ledger"])
            self.intake.restore(newest.objects.get("intake", {}))
            self.done = self.saved = newest.position

    def begin(self, first: int) -> None:
        """Without a checkpoint, numbers of requests go on from the oldest record that is still there."""
        if not self.has_begun:
            self.ledger.rebuild(first - 1)
            self.has_begun = True

    def _snapshot(self) -> checkpoint.Checkpoint:
        assert self.is_whole, "a block is under way"
        arrays, objects = self.pipeline.snapshot()
        return checkpoint.Checkpoint(
            position=self.done,
            now_ms=self.pipeline.now_ms,
            arrays=arrays,
            objects={"pipeline": objects, "ledger": self.ledger.objects(), "intake": self.intake.objects()},
            engine=__version__,
            content_version=self.pipeline.content.version,
            partition=self.number,
        )

    def save(self) -> None:
        """Write a checkpoint of what is done, and wait until it is durable. What it follows from is acknowledged."""
        self.end_saving()
        if self.done > self.saved:
            started_s = monotonic_s()
            checkpoint.write(self.folder, self._snapshot())
            metrics.CHECKPOINT_SECONDS.observe(monotonic_s() - started_s)
            self.saved = self.done

    def begin_saving(self) -> None:
        self._pending = checkpoint.write_in_background(self.folder, self._snapshot())

    @property
    def is_stopped(self) -> bool:
        """Whether nothing more is read of it."""
        return self.stopped != ""

    @property
    def is_saving(self) -> bool:
        return self._pending is not None

    def has_saved(self) -> bool:
        """Say whether the checkpoint under way is durable by now."""
        return self._end_pending(wait=False)

    def end_saving(self) -> None:
        """Wait for the checkpoint under way."""
        self._end_pending(wait=True)

    def _end_pending(self, *, wait: bool) -> bool:
        if self._pending is None:
            return False
        try:
            if not self._pending.done(wait=wait):
                return False
        except checkpoint.WriterStuck as error:
            log.warning("a checkpoint is begun anew", partition=self.number, reason=str(error))
            self.due_s, self._pending = 0.0, None
            return False
        self.saved, self._pending = max(self.saved, self._pending.position), None
        return True

    # --- events that wake a fault of ours (F2) ------------------------------------------------------------------------

    def leave_history(self, first: int) -> None:
        """Before the first record that no earlier deployment has decided (`rekey`): grant again."""
        end = self.ledger.history_end
        if end is not None and first > end:
            self.ledger.end_history()

    def pieces(self, block: Block) -> Iterator[Block]:
        """Cut a block at the end of history, and so that what is watched comes a record at a time."""
        end = self.ledger.history_end
        cut = 0 if end is None else int(np.searchsorted(block.position, end + 1))
        if 0 < cut < len(block):
            yield from self._watched_pieces(block.part(0, cut))
            block = block.part(cut, len(block))
        yield from self._watched_pieces(block)

    def _watched_pieces(self, block: Block) -> Iterator[Block]:
        first, last = (int(np.searchsorted(block.position, at)) for at in (self._watched[0], self._watched[1] + 1))
        if first == last:
            yield block
            return
        if first:
            yield block.part(0, first)
        yield from single_records(block.part(first, last))
        if last < len(block):
            yield block.part(last, len(block))

    def is_worth_saving_before(self, block: Block) -> bool:
        """Whether the state may have to come back to here: what is watched begins, or cannot be left out."""
        first = int(block.position[0])
        is_content = block.kind[0] == RecordKind.CONTENT and self._watched[0] <= first <= self._watched[1]
        return self.done > self.saved and (first == self._watched[0] or bool(is_content))

    def is_probed(self, position: int) -> bool:
        """Whether the events of this record must be tried one by one."""
        return position == self._probed

    def suspect(self, block: Block) -> tuple[int, int] | None:
        """Narrow down what the engine failed on; position and item once it is found, else the state must go back."""
        position = int(block.position[0])
        if len(block) > 1:
            self._watched = (position, int(block.position[-1]))
            return None
        if self.pipeline.reorder is None:  # else it may be an event of an earlier record, which went on with this one
            if block.kind[0] != RecordKind.EVENTS:
                return position, -1
            begin, end = int(block.start[0]), int(block.end[0])
            if len(list(split(bytes(block.data[begin:end])))) <= 1:
                return position, 0
        self._probed = position
        return None

    def failing_held(self) -> tuple[int, int] | None:
        """Say which of the held events the engine fails on, by position and item, asking a copy of the state (T5)."""
        if not self.pipeline.held_events:
            return None
        arrays, objects = self.pipeline.snapshot()
        twin = Pipeline(self.pipeline.content, self._settings, self.ledger, id_key=self._id_key)
        twin.restore({name: array.copy() for name, array in arrays.items()}, orjson.loads(orjson.dumps(objects)))
        return twin.first_failing_held()

    def set_aside(self, position: int, item: int, error: BaseException) -> None:
        """Leave an event out of this and every later replay; durable on return."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._probed = -1
        self.faults += 1
        self.quarantine.add(position, item, type(error).__name__)

    def close(self) -> None:
        try:
            self.end_saving()
        except StoreUnavailable as error:
            log.error("a checkpoint failed; the records are replayed", partition=self.number, error=str(error))
        self.ledger.close()
        self.measured.forget()


class Measured:
    """The metrics of one partition; gone with it, so that nobody shows what another worker knows better."""

    def __init__(self, number: int) -> None:
        self._label = str(number)
        self.lag = metrics.PARTITION_LAG.labels(self._label)
        self.now = metrics.PARTITION_NOW_SECONDS.labels(self._label)
        self.stopped = metrics.PARTITION_STOPPED.labels(self._label)
        self.events = metrics.PARTITION_BATCH_EVENTS.labels(self._label)
        self._misplaced = metrics.PARTITION_MISPLACED.labels(self._label)
        self._misplaced_before = 0
        stages = ("waited", "decide", "commit", "publish")
        self.stage = {stage: metrics.PARTITION_STAGE_SECONDS.labels(self._label, stage) for stage in stages}
        self.stopped.set(0)

    def misplaced(self, records: int) -> int:
        """Take over how many records of other partitions there were so far; returns how many are new."""
        new = max(0, records - self._misplaced_before)
        self._misplaced_before = records
        self._misplaced.inc(new)
        return new

    def forget(self) -> None:
        for gauge in (metrics.PARTITION_LAG, metrics.PARTITION_NOW_SECONDS, metrics.PARTITION_STOPPED):
            gauge.remove(self._label)


def _authority(pipeline: Pipeline) -> Authority:
    """What a rebuilt shard must know of consents and pauses: what the engine's state says (F10)."""

    def consents() -> Iterator[tuple[str, str, bool]]:
        for purpose, column in list(pipeline.profiles.purposes.items()):
            states = column.array[: pipeline.profiles.count] & 3
            for slot in np.flatnonzero(states).tolist():
                yield pipeline.users.id_of(slot), purpose, bool(states[slot] == GRANTED)

    return Authority(consents(), sorted(pipeline.decider.pauses))
