"""One day through the real journal, pipeline and ledger, in world time: no threads, no wall clock, no sleeping.

The loop is the service's, taken apart so that it can be killed between any two steps: append, process, commit, claim,
submit, write down. A killed service is rebuilt as the service does it: snapshot, replay, outbox.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from engine.definitions import Content
from engine.errors import StoreUnavailable
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Block, Offer, RecordKind, ReserveAnswer, ReserveRequest
from engine.pipeline import Pipeline
from engine.runtime.journal import Journal
from engine.runtime.outcome import rows_of
from engine.runtime.source import JournalSource
from engine.settings import FeedSettings, Settings
from tests.simulation.day import Event
from tests.simulation.desk import Desk
from tests.simulation.dispatch import Dispatcher
from tests.simulation.faults import Crash, Trouble
from tests.simulation.forgetting import forget
from tests.simulation.plan import HOUR_MS, KEY, START_MS
from tests.simulation.scanning import Scanners, open_desk
from tests.simulation.sizes import Size
from tests.simulation.story import LogRecord, Story
from tests.simulation.told import tell
from tests.simulation.watch import FEEDS

BOOT_ID = "the simulated machine"
BEHIND_MS = 150_000
SEGMENT_MS = 4 * HOUR_MS  # of the journal
LONG_TICK_MS = 1_200_000  # when little comes any more


class Killed(Exception):
    """The service dies here."""


class LedgerSeam:
    """What the pipeline asks of the ledger, with a store that is sometimes not there (C4)."""

    def __init__(self, ledger: EmbeddedLedger, outages: list[tuple[int, int]]) -> None:
        self.ledger = ledger
        self.position = 0
        self._outages = outages

    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
        if any(first <= self.position < end for first, end in self._outages):
            raise StoreUnavailable("the simulated store does not answer")
        return self.ledger.reserve(requests)

    def release(self, offer_id: str) -> None:
        self.ledger.release(offer_id)

    def delivered(self, offer_id: str) -> None:
        self.ledger.delivered(offer_id)

    def lease_codes(self, pool: str, first: int, count: int, epoch: int) -> None:
        self.ledger.lease_codes(pool, first, count, epoch)

    def recall_codes(self, pool: str, epoch: int) -> None:
        self.ledger.recall_codes(pool, epoch)

    def accept_return(self, pool: str, spans: Sequence[Sequence[int]]) -> None:
        self.ledger.accept_return(pool, spans)

    def spend_codes(self, pool: str, spans: Sequence[Sequence[int]]) -> None:
        self.ledger.spend_codes(pool, spans)


def settings_in(folder: Path) -> Settings:
    """Feeds report as rarely as a small city's do, else every absence would meet a silent feed (T8)."""
    feeds = {
        name: FeedSettings(period_s=period_ms / 1000, expected_delay_s=delay_ms / 1000, signalling=name == "signalling")
        for name, (period_ms, delay_ms) in FEEDS.items()
    }
    return Settings(state=folder, feeds=feeds)


@dataclass
class Snapshot:
    position: int
    version: str
    arrays: dict[str, np.ndarray]
    objects: bytes
    caps_arrays: dict[str, np.ndarray]
    caps_objects: bytes


class Live:
    """Run a day; `story` then holds what happened."""

    def __init__(
        self,
        seed: int,
        events: list[Event],
        trouble: Trouble,
        contents: dict[str, Content],
        folder: Path,
        end_ms: int,
        size: Size,
    ) -> None:
        self.dice = random.Random(f"{seed}/live")
        self._size = size
        self.trouble = trouble
        self.contents = contents
        self.folder = folder
        self.end_ms = end_ms
        self.settings = settings_in(folder)
        self.story = Story()
        self.now_ms = events[0].arrival_ms
        self.arrivals: list[tuple[int, int, Event]] = [(one.arrival_ms, row, one) for row, one in enumerate(events)]
        self._number = len(events)
        self.again: list[tuple[int, int, LogRecord]] = []
        self.snapshots: list[Snapshot] = []
        self.crashes = list(trouble.crashes)
        self._changes = sorted(
            [(at, RecordKind.CONTENT, {"version": version}) for at, version in trouble.contents]
            + [(at, RecordKind.CONTROL, {"pause": name, "paused": on}) for at, name, on in trouble.controls],
            key=lambda change: change[0],
        )
        self._evening_ms = START_MS + size.hours * HOUR_MS
        self._snapshot_due_ms = self.now_ms
        self._behind_since_ms: int | None = None  # when the first record came that is not processed yet
        self._outage_from: int | None = None
        self._dying = Crash(0, "", 0)
        self.scanners = Scanners(self, seed)
        self._start(None)

    # --- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> Story:
        while self.now_ms < self.end_ms:
            try:
                self._step()
            except Killed:
                self._restart()
        self.crashes.clear()
        self.trouble.spans.clear()
        self._turn_outage()
        self.dispatcher.hand_over(self.now_ms + 1)
        self._process()
        self._close()
        return self.story

    def _step(self) -> None:
        self.now_ms = self._step_after_ms()
        began_ms = self.now_ms if self._behind_since_ms is None else self._behind_since_ms
        self._turn_outage()
        self._forget_if_due()
        self._append_due()
        self.scanners.scan(self.links, self.now_ms)
        self._die_at("appended")
        # Sometimes the engine is behind: then several records make one block, and nobody hands over meanwhile.
        if self._step_after_ms() - began_ms < BEHIND_MS and self.dice.random() < 0.6:
            self._behind_since_ms = began_ms
            return
        self._behind_since_ms = None
        self._process()
        self.dispatcher.hand_over(self.now_ms)
        if self.trouble.recalls and self.trouble.recalls[0] <= self.now_ms:
            self.trouble.recalls.pop(0)
            self.story.note("codes_recalled")
            self.desk.recall()
        self.desk.supply(self.now_ms)
        self._snapshot_if_due()

    def _step_after_ms(self) -> int:
        tick_ms = self._size.tick_ms if self.now_ms < self._evening_ms else LONG_TICK_MS
        return max(self.now_ms, min(self._next_arrival_ms(), self.now_ms + tick_ms))

    def _next_arrival_ms(self) -> int:
        due = [heap[0][0] for heap in (self.arrivals, self.again) if heap]
        due += [self._changes[0][0]] if self._changes else []
        return min(due, default=self.end_ms)

    def _append_due(self) -> None:
        """Journal what has arrived by now, bundled as it comes; a tick where nothing has."""
        appended = False
        while self._changes and self._changes[0][0] <= self.now_ms:
            _, kind, body = self._changes.pop(0)
            self._append(orjson.dumps(body), kind)
            self.story.note("content_change" if kind == RecordKind.CONTENT else "pause")
            appended = True
        while self.again and self.again[0][0] <= self.now_ms:
            _, _, record = heapq.heappop(self.again)
            self._append(record.payload, record.kind, record.poison)
            self.story.note("redelivered_record")
            appended = True
        until_ms = self.now_ms + self.dice.choice((0, 4_000, 20_000, 45_000))
        bundle: list[Event] = []
        while self.arrivals and self.arrivals[0][0] <= until_ms:
            at_ms, _, event = heapq.heappop(self.arrivals)
            self.now_ms = max(self.now_ms, at_ms)
            kind = _bundled_as(event)
            if len(bundle) >= 24 or (bundle and kind != _bundled_as(bundle[0])) or kind == "alone":
                self._append_bundle(bundle)
            bundle.append(event)
            appended = True
        self._append_bundle(bundle)
        if not appended:
            self._append(b"", RecordKind.TICK)

    def _append_bundle(self, bundle: list[Event]) -> None:
        if not bundle:
            return
        lines = [one.value if isinstance(one.value, bytes) else orjson.dumps(one.value) for one in bundle]
        poison = frozenset(row for row, one in enumerate(bundle) if one.is_poison)
        record = self._append(b"\n".join(lines), RecordKind.EVENTS, poison)
        fixed = any(one.is_fixed for one in bundle)
        if not fixed and self.trouble.redeliver and self.dice.random() < self.trouble.redeliver:
            delay_ms = self.dice.choice((500, 8_000, 120_000, 1_200_000))
            self._number += 1
            heapq.heappush(self.again, (self.now_ms + delay_ms, self._number, record))
        bundle.clear()

    def _append(self, payload: bytes, kind: int, poison: frozenset[int] = frozenset()) -> LogRecord:
        position = self.journal.append(payload, wall_ms=self.now_ms, kind=kind)
        record = LogRecord(position, self.journal.last_append_ms, int(kind), payload, poison)
        self.story.records.append(record)
        return record

    def send(self, at_ms: int, value: dict[str, Any]) -> None:
        """Let an event arrive later: receipts, mostly."""
        self._number += 1
        heapq.heappush(self.arrivals, (at_ms, self._number, Event(at_ms, value)))

    def journal_now(self, value: dict[str, Any]) -> None:
        """Journal our own receipt before the ledger hears of it, as the settler does."""
        self.append_events(orjson.dumps(value))

    def append_events(self, lines: bytes) -> int:
        return self._append(lines, RecordKind.EVENTS).position

    def append_control(self, record: bytes) -> int:
        return self._append(record, RecordKind.CONTROL).position

    # --- processing -------------------------------------------------------------------------------------------------

    def _process(self) -> None:
        while self.source.next_position < self.journal.end:
            for block in self.source.poll(self.dice.choice((1, 3, 40, 400, 4096))):
                for piece in cut_at(block, self._edges()):
                    self._process_block(piece)

    def _process_block(self, block: Block) -> None:
        self.seam.position = int(block.position[0])
        effects = self.pipeline.process(block, self._load)
        self.ledger.assumed_consent = self.pipeline.content.policy.assumed_consent
        last = int(block.position[-1])
        self.story.blocks.append((int(block.position[0]), last, tell(self.pipeline, effects)))
        self._die_at("processed")
        if any(one.code is not None for one in effects.offers):
            self._die_at("drawn")
        self.done = last
        if not effects.is_stored and self.dice.random() < 0.8:
            return  # nothing happened: as in the service, the position waits for the next commit
        if self.trouble.is_down("commit_unavailable", self.now_ms):
            self._commit_once_it_answers()
        rows = [(one, orjson.loads(one)) for one in self.story.blocks[-1][2].decisions]
        decisions = [(body["decision_id"], body["user"], one) for one, body in rows if body["reason"] != "duplicate"]
        self.ledger.commit(
            last,
            effects.now_ms,
            decisions=decisions,
            redemptions=effects.redemptions,
            changes=effects.changes,
            **rows_of(effects),
        )
        self.story.committed.append(self.ledger.position())
        if effects.offers:
            self.dispatcher.wake()
        self._die_at("committed")

    def _commit_once_it_answers(self) -> None:
        """A full disk: the commit fails, nothing is stored, and it is repeated until it succeeds (F22)."""
        self.story.note("commit_unavailable")
        before = self.ledger.position()
        writing = self.ledger._database.writing

        def full(*_: Any) -> Any:
            raise StoreUnavailable("the simulated disk is full")

        self.ledger._database.writing = full  # type: ignore[method-assign]
        try:
            self.ledger.commit(self.story.blocks[-1][1], self.now_ms, closed_users=["nobody"])
        except StoreUnavailable:
            pass
        finally:
            self.ledger._database.writing = writing  # type: ignore[method-assign]
        assert self.ledger.position() == before, "a commit that failed moved the position"

    def _load(self, payload: bytes) -> Content:
        return self.contents[orjson.loads(payload)["version"]]

    def _turn_outage(self) -> None:
        """Begin or end the time in which nothing can be reserved; everything journaled is processed before."""
        is_down = self.trouble.is_down("reserve_unavailable", self.now_ms)
        if is_down == (self._outage_from is not None):
            return
        self._process()
        if is_down:
            self._outage_from = self.journal.end
            self.story.outages.append((self.journal.end, 1 << 62))
            self.story.note("reserve_unavailable")
        else:
            self.story.outages[-1] = (self.story.outages[-1][0], self.journal.end)
            self._outage_from = None

    def _edges(self) -> list[int]:
        return [edge for span in self.story.outages for edge in span]

    def _forget_if_due(self) -> None:
        if not self.trouble.forgets or self.trouble.forgets[0][0] > self.now_ms:
            return
        self._process()
        _, user = self.trouble.forgets.pop(0)
        forget(self, user)
        self._dying = Crash(self.now_ms, "forgotten", 2_000)
        raise Killed  # it is done while the service is stopped

    # --- dying and coming back --------------------------------------------------------------------------------------

    def _die_at(self, step: str) -> None:
        """Die if a crash at this step is due."""
        for crash in self.crashes:
            if crash.at_ms <= self.now_ms and crash.step == step:
                self.crashes.remove(crash)
                self._dying = crash
                raise Killed

    def die_between(self, step: str) -> Callable[[], None]:
        return lambda: self._die_at(step)

    def _restart(self) -> None:
        """Come back; whoever dies while replaying comes back again."""
        while True:
            try:
                return self._come_back(self._dying)
            except Killed:
                continue

    def _come_back(self, crash: Crash) -> None:
        self.story.note(_crash_name(crash))
        if crash.rebuild_caps or crash.snapshot == "none":
            self.story.note("caps_rebuilt_from_ledger")
        self._kill(crash)
        self.now_ms += crash.down_ms
        # Clients wait while the door is closed, and come back when they please.
        waiting = [entry for entry in self.arrivals if entry[0] < self.now_ms]
        self.arrivals = [entry for entry in self.arrivals if entry[0] >= self.now_ms]
        for _, number, event in sorted(waiting, key=lambda entry: entry[:2]):
            self.arrivals.append((self.now_ms + self.dice.randrange(1, 1500), number, event))
        heapq.heapify(self.arrivals)
        self._start(crash)

    def _kill(self, crash: Crash) -> None:
        self.source.close()
        self.journal.close()
        self.ledger._database.close()
        self.desk.store.close()
        if crash.torn:
            newest = max(self.folder.glob("journal/*.log"))
            with newest.open("ab") as file:
                file.write(b"\x40\x00\x00\x00half of a record"[: self.dice.randrange(1, 20)])

    def _start(self, crash: Crash | None) -> None:
        """Open everything, and rebuild the state of the last journaled record (T3)."""
        self.ledger = EmbeddedLedger(self.folder / "ledger.db", fsync="never", boot_id=BOOT_ID)
        self.seam = LedgerSeam(self.ledger, self.story.outages)
        self.journal = Journal(
            self.folder / "journal",
            fsync="never",
            segment_bytes=1 << 19,
            segment_span_ms=SEGMENT_MS,
            not_before=self.ledger.position() + 1,
        )
        snapshot = self._choose(crash)
        content = self.contents["v1" if snapshot is None else snapshot.version]
        self.pipeline = Pipeline(content, self.settings, self.seam, id_key=KEY)
        self.done = -1
        if snapshot is not None:
            arrays = {name: array.copy() for name, array in snapshot.arrays.items()}
            self.pipeline.restore(arrays, orjson.loads(snapshot.objects))
            self.done = snapshot.position
            if crash is not None and crash.rebuild_caps:
                self.ledger.rebuild(snapshot.position)
            else:
                caps = {name: array.copy() for name, array in snapshot.caps_arrays.items()}
                self.ledger.restore(caps, orjson.loads(snapshot.caps_objects))
        elif self.ledger.position() >= 0:
            self.ledger.rebuild(-1)
        self.ledger.assumed_consent = self.pipeline.content.policy.assumed_consent
        self.source = JournalSource(self.journal, after=self.done)
        self.dispatcher = Dispatcher(self, self.dice.getrandbits(32))
        self.desk = Desk(self) if crash is None else self.desk
        self._process()
        self._behind_since_ms = None
        if crash is not None:
            self.desk = Desk(self)
        self.links = open_desk(self)
        self.scanners.ask_again(self.now_ms)

    def _choose(self, crash: Crash | None) -> Snapshot | None:
        if crash is None or not self.snapshots:
            return None
        if crash.snapshot == "none" and not self.story.forgotten:
            return None  # a journal with blanks tells no more what was decided before them
        if crash.snapshot == "older" and len(self.snapshots) > 1:
            return self.snapshots[-2]
        return self.snapshots[-1]

    def _snapshot_if_due(self) -> None:
        if self.now_ms < self._snapshot_due_ms or self.done < 0:
            return
        self._snapshot_due_ms = self.now_ms + self.dice.randrange(self._size.snapshot_ms // 3, self._size.snapshot_ms)
        self.snapshots.append(self.take_snapshot())
        del self.snapshots[:-2]

    def take_snapshot(self) -> Snapshot:
        """The state as of the last processed record, up to which the ledger is brought first."""
        if self.ledger.position() < self.done:
            self.ledger.commit(self.done, self.pipeline.now_ms)
        arrays, objects = self.pipeline.snapshot()
        return Snapshot(
            self.done,
            self.pipeline.content.version,
            {name: array.copy() for name, array in arrays.items()},
            orjson.dumps(objects),
            {name: array.copy() for name, array in self.ledger.arrays().items()},
            orjson.dumps(self.ledger.objects()),
        )

    def _close(self) -> None:
        self.story.end_ms = self.now_ms
        self.story.left_in_outbox = [offer.offer_id for offer in self.ledger.outbox(100_000)]
        ids = {offer[0] for _, _, told in self.story.blocks for offer in told.offers}
        self.story.endings = {one: self.ledger.dispatches(one) for one in sorted(ids)}
        self.story.stored_decisions = self.ledger.counts()["decisions"]
        for is_refund, rows in ((False, self.ledger.redemptions), (True, self.ledger.refunds)):
            for one in rows(from_ms=0, until_ms=1 << 60):
                told = (one.user, one.at_ms, one.offer_id, one.benefit, one.amount_fen)
                self.story.redemptions.append((is_refund, *told))
        self.source.close()
        self.desk.store.close()
        self.journal.close()
        self.ledger.close()

    def claim(self, offers: list[Offer]) -> list[str]:
        """Ask the claim store, unless this is one of its bad hours."""
        if self.trouble.is_down("claim_unavailable", self.now_ms):
            self.story.note("claim_unavailable")
            answers = ["unavailable"] * len(offers)
        else:
            claims = [(offer.offer_id, f"{offer.offer_id}/{offer.channel}/1") for offer in offers]
            answers = [str(answer) for answer in self.ledger.claim(claims, self.now_ms)]
        self.story.claims += [(self.now_ms, one.offer_id, answer) for one, answer in zip(offers, answers, strict=True)]
        return answers


def _bundled_as(event: Event) -> str:
    """With what an event may share a record: what is heard of users, what changes what is known, or with nothing."""
    if isinstance(event.value, bytes) or event.value["type"] in ("ping", "usage"):
        return "heard"
    return "alone" if event.value["type"] in ("user-closed", "address-changed") else "changes"


def _crash_name(crash: Crash) -> str:
    if crash.torn:
        return "crash_torn_journal"
    names = {
        "committed": "crash_between_commit_and_dispatch",
        "claimed": "crash_between_claim_and_submit",
        "submitted": "crash_after_submit",
        "leased": "crash_between_lease_and_log",
        "drawn": "crash_between_grant_and_stock",
        "forgotten": "forget",
        "early": "crash_before_early_receipt_is_told",
        "redeemed": "crash_between_redeem_and_log",
        "told": "crash_between_redeem_and_log",
    }
    return names.get(crash.step, "crash")


def cut_at(block: Block, edges: list[int]) -> Iterator[Block]:
    """Cut a block so that no piece lies on both sides of an edge."""
    places = sorted({int(np.searchsorted(block.position, edge)) for edge in edges} | {0, len(block)})
    for first, last in itertools.pairwise(places):
        yield block.part(first, last)
