"""The embedded ledger: caps in memory, everything else in one SQLite file (docs/contracts.md, Ledger, Claim).

One transaction per micro-batch carries the journal position together with all its effects. What memory decides is a
function of the log, so after a crash replay decides the same again, and writing it again changes nothing.

Two threads use it: the engine reserves and commits, the dispatcher handoff.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from engine.errors import StoreUnavailable
from engine.ledger import handoff, schema
from engine.ledger.caps import Caps, GrantRow, Mark
from engine.ledger.database import Database
from engine.ledger.dispatch import NOT_SENT, Claim
from engine.ledger.handoff import ConsentRow, DispatchRow
from engine.model import DispatchState, Offer, ReserveAnswer, ReserveRequest

DecisionRow = tuple[str, str, bytes]
"""decision id (32 hexadecimal digits), user, body (JSON)."""


class EmbeddedLedger:
    """Reserve, commit, claim. Raises StoreUnavailable where SQLite cannot write, StoreCorrupt where it cannot read.

    assumed_consent  purposes that apply without a record (Policy.assumed_consent); may be set at any time
    fsync            `always`: every commit and claim is on the disk before it is answered; else see docs/storage.md
    """

    def __init__(
        self,
        path: Path,
        *,
        assumed_consent: frozenset[str] = frozenset(),
        fsync: Literal["always", "interval", "never"] = "interval",
    ) -> None:
        self.path = path
        self.assumed_consent = assumed_consent
        self.caps = Caps()
        self._made: list[GrantRow] = []
        self._released: list[bytes] = []
        self._database = Database(path, fsync)
        with self._database.writing() as cursor:
            self.epoch = int(_meta(cursor, "epoch", 0)) + 1
            _set_meta(cursor, "epoch", self.epoch)
            self.unsettled = handoff.settle_submitting(cursor, self.epoch)
            self._position = int(_meta(cursor, "position", -1))
            self._marks: dict[Mark, int] = {
                (scenario, category, partner, channel): mark
                for mark, scenario, category, partner, channel in cursor.execute("SELECT * FROM marks")
            }

    # --- caps -------------------------------------------------------------------------------------------------------

    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
        """Answer requests in order; what is granted becomes durable with the next `commit`."""
        return self.caps.reserve(requests, self._made)

    def release(self, offer_id: str) -> None:
        """Give back what an offer took (a definite failure, C2). Harmless where there is nothing to give back."""
        key = bytes.fromhex(offer_id)
        if self.caps.release(key):
            self._released.append(key)

    def settle(self, offer_id: str, state: DispatchState) -> None:
        """Take an outcome into account: a definite failure gives back, anything else keeps what was taken (C2)."""
        if state in NOT_SENT:
            self.release(offer_id)

    def rebuild(self, through_position: int) -> None:
        """Rebuild caps as they were after the record at this position, from what is stored (F10)."""
        self.caps = Caps()
        self._made.clear()
        self._released.clear()
        with self._database.reading() as cursor:
            longest_ms = int(_meta(cursor, "longest_ms", 0))
            rows = cursor.execute(
                "SELECT offer_id, subject, user, scenario, category, partner, channel, flags, at_ms, code, released "
                "FROM reservations JOIN marks USING (mark) WHERE position <= ? ORDER BY at_ms, position, offer_id",
                (through_position,),
            )
            self.caps.restore_grants(_grants(rows, through_position), longest_ms)

    # --- commit -----------------------------------------------------------------------------------------------------

    def commit(
        self,
        position: int,
        now_ms: int,
        *,
        decisions: Sequence[DecisionRow] = (),
        offers: Sequence[Offer] = (),
        consents: Sequence[ConsentRow] = (),
        closed_users: Sequence[str] = (),
        pauses: Sequence[tuple[str, bool]] = (),
        dispatches: Sequence[DispatchRow] = (),
    ) -> None:
        """Store everything up to and with the record at `position`, in one transaction.

        What was reserved and released since the last commit goes with it. What a replay brings again changes nothing,
        even where its batches are cut differently; above all a consent withdrawn later stays withdrawn meanwhile.
        After StoreUnavailable call it again with the same arguments; nothing was stored.
        """
        if position <= self._position:
            self._made.clear()
            self._released.clear()
            return
        with self._database.writing() as cursor:
            if self._made:
                self._put_reservations(cursor, position)
            if self._released:
                cursor.executemany(
                    "UPDATE reservations SET released = ? WHERE offer_id = ? AND released IS NULL",
                    [(position, key) for key in self._released],
                )
            if decisions:
                cursor.executemany(
                    "INSERT OR REPLACE INTO decisions VALUES (?,?,?,?)",
                    [(bytes.fromhex(key), user, position, body) for key, user, body in decisions],
                )
            if offers:
                handoff.put_offers(cursor, offers, {row[0]: row[1] for row in self._made}, position)
            handoff.put_consents(cursor, consents, closed_users)
            handoff.put_pauses(cursor, pauses, position)
            for one in dispatches:
                handoff.put_dispatch(cursor, one, self.epoch)
            _set_meta(cursor, "position", position)
            _set_meta(cursor, "now_ms", now_ms)
            _set_meta(cursor, "longest_ms", self.caps.longest_ms)
        self._position = position
        self._made.clear()
        self._released.clear()

    def position(self) -> int:
        """The last record whose effects are stored, -1 if none."""
        return self._position

    # --- hand-off ---------------------------------------------------------------------------------------------------

    def outbox(self, limit: int) -> list[Offer]:
        """List offers committed and not claimed, oldest trigger first."""
        with self._database.reading() as cursor:
            rows = cursor.execute(
                "SELECT body FROM outbox JOIN offers USING (offer_id) ORDER BY offer_id LIMIT ?", (limit,)
            ).fetchall()
        return [Offer(**orjson.loads(body)) for (body,) in rows]

    def claim(self, claims: Sequence[tuple[str, str]], now_ms: int, *, epoch: int | None = None) -> list[str]:
        """Claim pairs of offer id and dispatch id at wall time `now_ms`, in one transaction; one answer for each.

        Where the store cannot answer, all are `unavailable`, and nothing may be sent.
        """
        try:
            with self._database.writing() as cursor:
                ask = handoff.Asking(
                    now_ms=now_ms,
                    is_current=(self.epoch if epoch is None else epoch) == int(_meta(cursor, "epoch", 0)),
                    epoch=self.epoch,
                    paused=frozenset(scenario for (scenario,) in cursor.execute("SELECT scenario FROM pauses")),
                    assumed_consent=self.assumed_consent,
                )
                return [handoff.claim(cursor, ask, bytes.fromhex(offer), dispatch) for offer, dispatch in claims]
        except StoreUnavailable:
            return [Claim.UNAVAILABLE] * len(claims)

    def record_dispatch(self, records: Sequence[DispatchRow]) -> list[bool]:
        """Store what became of dispatches, in one transaction; says for each whether its state changed (G1)."""
        with self._database.writing() as cursor:
            return [handoff.put_dispatch(cursor, record, self.epoch) for record in records]

    def user_of_offer(self, offer_id: str) -> str | None:
        """Say whom an offer was made to, for receipts; None where it is unknown."""
        try:
            key = bytes.fromhex(offer_id)
        except ValueError:
            return None
        with self._database.reading() as cursor:
            row = cursor.execute("SELECT user FROM offers WHERE offer_id = ?", (key,)).fetchone()
        return None if row is None else str(row[0])

    def dispatches(self, offer_id: str) -> list[dict[str, Any]]:
        """List the states an offer's dispatches went through, in order."""
        with self._database.reading() as cursor:
            rows = cursor.execute(
                "SELECT dispatch_id, seq, state, at_ms, epoch, applied, gateway_id, code FROM dispatches "
                "WHERE offer_id = ? ORDER BY seq",
                (bytes.fromhex(offer_id),),
            ).fetchall()
        names = ("dispatch_id", "seq", "state", "at_ms", "epoch", "applied", "gateway_id", "code")
        return [dict(zip(names, row, strict=True)) for row in rows]

    # --- reading ----------------------------------------------------------------------------------------------------

    def decisions(self, *, user: str, from_ms: int, until_ms: int, limit: int = 100) -> list[bytes]:
        """List bodies of a user's decisions whose trigger lies in [from_ms, until_ms), newest first."""
        with self._database.reading() as cursor:
            rows = cursor.execute(
                "SELECT body FROM decisions WHERE decision_id >= ? AND decision_id < ? AND user = ? "
                "ORDER BY decision_id DESC LIMIT ?",
                (_id_from(from_ms), _id_from(until_ms), user, limit),
            ).fetchall()
        return [body for (body,) in rows]

    def paused(self) -> set[str]:
        """The scenarios that are paused; "*" stands for all."""
        with self._database.reading() as cursor:
            return {scenario for (scenario,) in cursor.execute("SELECT scenario FROM pauses")}

    def counts(self) -> dict[str, int]:
        """How many rows each table holds, for summaries and tests."""
        tables = ("reservations", "offers", "outbox", "dispatches", "decisions", "consents", "pauses")
        with self._database.reading() as cursor:
            return {name: cursor.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Move the write-ahead log into the file without holding up writers; for a housekeeping thread."""
        self._database.tidy()

    def expire(self, before_ms: int, reservations_before_ms: int) -> None:
        """Delete decisions, offers and dispatches with a trigger before `before_ms`, and old reservations.

        Offers must outlive the journal's retention, or a replay would queue them again. Reservations that a rule
        without a window looks at stay.
        """
        key = _id_from(before_ms)
        with self._database.writing() as cursor:
            for table, column in (("decisions", "decision_id"), ("offers", "offer_id"), ("outbox", "offer_id")):
                cursor.execute(f"DELETE FROM {table} WHERE {column} < ?", (key,))
            cursor.execute("DELETE FROM dispatches WHERE offer_id < ?", (key,))
            cursor.execute(
                "DELETE FROM reservations WHERE offer_id < ? AND at_ms < ? AND flags & 8 = 0",
                (_id_from(reservations_before_ms), reservations_before_ms),
            )

    def forget(self, user: str, subject: str | None = None) -> None:
        """Leave no trace of a user (I2): rows, caps, free pages and the write-ahead log."""
        self.caps.forget(user if subject is None else subject)
        with self._database.writing() as cursor:
            ids = [
                key
                for (key,) in cursor.execute("SELECT offer_id FROM offers WHERE user = ? OR subject = ?", (user, user))
            ]
            for table in ("outbox", "dispatches", "submitting"):
                cursor.executemany(f"DELETE FROM {table} WHERE offer_id = ?", [(key,) for key in ids])
            for table, column in schema.USER_COLUMNS:
                cursor.execute(f"DELETE FROM {table} WHERE {column} = ?", (user,))
        self._database.compact()

    def arrays(self) -> dict[str, np.ndarray]:
        """What caps are decided from, for a checkpoint; right after a commit."""
        return self.caps.arrays()

    def objects(self) -> dict[str, Any]:
        return {"caps": self.caps.objects()}

    def restore(self, arrays: dict[str, np.ndarray], objects: dict[str, Any]) -> None:
        """Take over a checkpoint's `arrays` and `objects`."""
        self._made.clear()
        self._released.clear()
        self.caps = Caps()
        self.caps.restore(arrays, objects["caps"])

    def close(self) -> None:
        """Close the file; what was not committed is decided again by replay."""
        self._database.close()

    # --- inside --------------------------------------------------------------------------------------------------

    def _put_reservations(self, cursor: sqlite3.Cursor, position: int) -> None:
        marks = self._marks
        for mark in {row[3] for row in self._made} - marks.keys():
            cursor.execute(
                "INSERT INTO marks (scenario, category, partner, channel) SELECT ?,?,?,? WHERE NOT EXISTS "
                "(SELECT 1 FROM marks WHERE (scenario, category, partner, channel) = (?,?,?,?))",
                (*mark, *mark),
            )
            (marks[mark],) = cursor.execute(
                "SELECT mark FROM marks WHERE (scenario, category, partner, channel) = (?,?,?,?)", mark
            ).fetchone()
        cursor.executemany(
            "INSERT OR IGNORE INTO reservations VALUES (?,?,?,?,?,?,?,?,NULL)",
            [
                (key, subject, None if user == subject else user, marks[mark], flags, at_ms, position, code)
                for key, subject, user, mark, flags, at_ms, code in self._made
            ],
        )


def _meta(cursor: sqlite3.Cursor, key: str, default: Any) -> Any:
    row = cursor.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if row is None else row[0]


def _set_meta(cursor: sqlite3.Cursor, key: str, value: Any) -> None:
    cursor.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (key, value))


def _grants(rows: Any, through_position: int) -> Iterator[tuple[GrantRow, bool]]:
    for key, subject, user, scenario, category, partner, channel, flags, at_ms, code, released in rows:
        mark = (scenario, category, partner, channel)
        is_released = released is not None and released <= through_position
        yield (key, subject, user or subject, mark, flags, at_ms, code), is_released


def _id_from(trigger_ms: int) -> bytes:
    """The smallest id of a trigger instant (D4)."""
    return max(trigger_ms, 0).to_bytes(6, "big") + bytes(10)
