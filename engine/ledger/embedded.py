"""The embedded ledger: caps in memory, everything else in one SQLite file (docs/contracts.md, Ledger, Claim).

One transaction per micro-batch carries the journal position together with all its effects. What memory decides is a
function of the log, so after a crash replay decides the same again, and writing it again changes nothing.

Two threads use it: the engine reserves and commits, the dispatcher claims. Writes go through one connection under one
lock, held for a transaction (well below a millisecond); reads have a connection of their own and wait for nobody.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import orjson

from engine.errors import StoreCorrupt, StoreUnavailable
from engine.ledger import schema
from engine.ledger.caps import Caps, Grant
from engine.ledger.dispatch import NOT_SENT, Claim, may_follow
from engine.model import DispatchState, Offer, ReserveAnswer, ReserveRequest

DecisionRow = tuple[str, str, bytes]
"""decision id (32 hexadecimal digits), user, body (JSON)."""


class ConsentRow(Protocol):
    """One change of consent; `granted` None voids it, as if it had never been given."""

    user_id: str
    purpose: str
    granted: bool | None
    at_ms: int
    source: str


class DispatchRow(Protocol):
    """What became of one dispatch."""

    @property
    def dispatch_id(self) -> str: ...
    @property
    def offer_id(self) -> str: ...
    @property
    def state(self) -> DispatchState: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def gateway_id(self) -> str | None: ...
    @property
    def code(self) -> str | None: ...


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
        self._made: list[Grant] = []
        self._released: list[bytes] = []
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        synchronous = {"always": "FULL", "interval": "NORMAL", "never": "OFF"}[fsync]
        self._writer = _connect(path, synchronous)
        with self._writing():
            self._check_version()
        self._reader = _connect(path, synchronous)
        self._reader_lock = threading.Lock()
        with self._writing() as cursor:
            self.epoch = int(self._meta(cursor, "epoch", 0)) + 1
            self._set_meta(cursor, "epoch", self.epoch)
            self.unsettled = self._settle_submitting(cursor)
            self._position = int(self._meta(cursor, "position", -1))

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
        with self._reading() as cursor:
            longest_ms = int(self._meta(cursor, "longest_ms", 0))
            rows = cursor.execute(
                "SELECT offer_id, subject, user, scenario, channel, category, partner, flags, at_ms, code, released "
                "FROM reservations WHERE position <= ? ORDER BY at_ms, position, offer_id",
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
        with self._writing() as cursor:
            if self._made:
                cursor.executemany(
                    "INSERT OR IGNORE INTO reservations VALUES (?,?,?,?,?,?,?,?,?,?,?,NULL)",
                    [_reservation(grant, position) for grant in self._made],
                )
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
                self._put_offers(cursor, offers, position)
            for change in consents:
                self._put_consent(cursor, change)
            for user in closed_users:
                cursor.execute("DELETE FROM consents WHERE user = ?", (user,))
            for scenario, paused in pauses:
                if paused:
                    cursor.execute("INSERT OR IGNORE INTO pauses VALUES (?,?)", (scenario, position))
                else:
                    cursor.execute("DELETE FROM pauses WHERE scenario = ?", (scenario,))
            for one in dispatches:
                self._put_dispatch(cursor, one)
            self._set_meta(cursor, "position", position)
            self._set_meta(cursor, "now_ms", now_ms)
            self._set_meta(cursor, "longest_ms", self.caps.longest_ms)
        self._position = position
        self._made.clear()
        self._released.clear()

    def position(self) -> int:
        """The last record whose effects are stored, -1 if none."""
        return self._position

    # --- hand-off ---------------------------------------------------------------------------------------------------

    def outbox(self, limit: int) -> list[Offer]:
        """List offers committed and not claimed, oldest trigger first."""
        with self._reading() as cursor:
            rows = cursor.execute(
                "SELECT body FROM outbox JOIN offers USING (offer_id) ORDER BY offer_id LIMIT ?", (limit,)
            ).fetchall()
        return [Offer(**orjson.loads(body)) for (body,) in rows]

    def claim(self, claims: Sequence[tuple[str, str]], now_ms: int, *, epoch: int | None = None) -> list[str]:
        """Claim pairs of offer id and dispatch id at wall time `now_ms`, in one transaction; one answer for each.

        Where the store cannot answer, all are `unavailable`, and nothing may be sent.
        """
        try:
            with self._writing() as cursor:
                stored_epoch = int(self._meta(cursor, "epoch", 0))
                is_current = (self.epoch if epoch is None else epoch) == stored_epoch
                paused = {scenario for (scenario,) in cursor.execute("SELECT scenario FROM pauses")}
                return [
                    self._claim(cursor, bytes.fromhex(offer_id), dispatch_id, now_ms, paused, is_current)
                    for offer_id, dispatch_id in claims
                ]
        except StoreUnavailable:
            return [Claim.UNAVAILABLE] * len(claims)

    def record_dispatch(self, records: Sequence[DispatchRow]) -> list[bool]:
        """Store what became of dispatches, in one transaction; says for each whether its state changed (G1)."""
        with self._writing() as cursor:
            return [self._put_dispatch(cursor, record) for record in records]

    def dispatches(self, offer_id: str) -> list[dict[str, Any]]:
        """List the states an offer's dispatches went through, in order."""
        with self._reading() as cursor:
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
        with self._reading() as cursor:
            rows = cursor.execute(
                "SELECT body FROM decisions WHERE decision_id >= ? AND decision_id < ? AND user = ? "
                "ORDER BY decision_id DESC LIMIT ?",
                (_id_from(from_ms), _id_from(until_ms), user, limit),
            ).fetchall()
        return [body for (body,) in rows]

    def paused(self) -> set[str]:
        """The scenarios that are paused; "*" stands for all."""
        with self._reading() as cursor:
            return {scenario for (scenario,) in cursor.execute("SELECT scenario FROM pauses")}

    def counts(self) -> dict[str, int]:
        """How many rows each table holds, for summaries and tests."""
        tables = ("reservations", "offers", "outbox", "dispatches", "decisions", "consents", "pauses")
        with self._reading() as cursor:
            return {name: cursor.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in tables}

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Move the write-ahead log into the file without holding up writers; for a housekeeping thread."""
        try:
            connection = sqlite3.connect(self.path, timeout=0.0, isolation_level=None)
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise _store_error(self.path, error) from error

    def expire(self, before_ms: int, reservations_before_ms: int) -> None:
        """Delete decisions, offers and dispatches with a trigger before `before_ms`, and old reservations.

        Offers must outlive the journal's retention, or a replay would queue them again. Reservations that a rule
        without a window looks at stay.
        """
        key = _id_from(before_ms)
        with self._writing() as cursor:
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
        with self._writing() as cursor:
            ids = [
                key
                for (key,) in cursor.execute("SELECT offer_id FROM offers WHERE user = ? OR subject = ?", (user, user))
            ]
            for table in ("outbox", "dispatches", "submitting"):
                cursor.executemany(f"DELETE FROM {table} WHERE offer_id = ?", [(key,) for key in ids])
            for table, column in schema.USER_COLUMNS:
                cursor.execute(f"DELETE FROM {table} WHERE {column} = ?", (user,))
        with self._lock, self._reader_lock:
            try:
                self._writer.execute("VACUUM")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:
                raise _store_error(self.path, error) from error

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
        with self._lock, self._reader_lock:
            self._reader.close()
            self._writer.close()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _claim(
        self, cursor: sqlite3.Cursor, key: bytes, dispatch_id: str, now_ms: int, paused: set[str], is_current: bool
    ) -> str:
        offer = cursor.execute(
            "SELECT user, subject, scenario, channel, service, deadline_ms FROM offers WHERE offer_id = ?", (key,)
        ).fetchone()
        if offer is None:
            return Claim.UNKNOWN_OFFER
        user, subject, scenario, channel, service, deadline_ms = offer
        last = self._last_dispatch(cursor, key)
        if last is not None and (last[0] == dispatch_id or last[1] not in NOT_SENT):
            return Claim.ALREADY
        if "*" in paused or scenario in paused:
            return Claim.PAUSED
        if not service and not self._has_consent(cursor, user, subject, f"marketing.{channel}"):
            return Claim.NO_CONSENT
        if now_ms >= deadline_ms:
            return Claim.EXPIRED
        if not is_current:
            return Claim.FENCED
        seq = 0 if last is None else last[2] + 1
        cursor.execute(
            "INSERT INTO dispatches VALUES (?,?,?,?,?,?,1,NULL,NULL)",
            (key, dispatch_id, seq, DispatchState.SUBMITTING.value, now_ms, self.epoch),
        )
        cursor.execute("INSERT OR REPLACE INTO submitting VALUES (?,?)", (key, dispatch_id))
        cursor.execute("DELETE FROM outbox WHERE offer_id = ?", (key,))
        return Claim.CLAIMED

    def _has_consent(self, cursor: sqlite3.Cursor, user: str, subject: str, purpose: str) -> bool:
        """Whoever withdrew it anywhere has withdrawn it: user and subject are both asked (A4)."""
        answers = [
            granted
            for (granted,) in cursor.execute(
                "SELECT granted FROM consents WHERE user IN (?,?) AND purpose = ?", (user, subject, purpose)
            )
        ]
        return all(answers) if answers else purpose in self.assumed_consent

    def _last_dispatch(self, cursor: sqlite3.Cursor, key: bytes) -> tuple[str, DispatchState, int] | None:
        """The newest dispatch of an offer: its id, its state, and the last sequence number."""
        rows = cursor.execute(
            "SELECT dispatch_id, state, seq, applied FROM dispatches WHERE offer_id = ? ORDER BY seq", (key,)
        ).fetchall()
        applied = [row for row in rows if row[3]]
        return (applied[-1][0], DispatchState(applied[-1][1]), rows[-1][2]) if applied else None

    def _put_dispatch(self, cursor: sqlite3.Cursor, record: DispatchRow) -> bool:
        key = bytes.fromhex(record.offer_id)
        last = self._last_dispatch(cursor, key)
        before = last[1] if last is not None and last[0] == record.dispatch_id else None
        seq = 0 if last is None else last[2] + 1
        state = DispatchState(record.state)
        if before is state:
            return False
        applied = may_follow(before, state)
        cursor.execute(
            "INSERT INTO dispatches VALUES (?,?,?,?,?,?,?,?,?)",
            (
                key,
                record.dispatch_id,
                seq,
                state.value,
                record.at_ms,
                self.epoch,
                applied,
                record.gateway_id,
                record.code,
            ),
        )
        if applied:
            cursor.execute("DELETE FROM submitting WHERE offer_id = ? AND dispatch_id = ?", (key, record.dispatch_id))
            cursor.execute("DELETE FROM outbox WHERE offer_id = ?", (key,))
        return applied

    def _put_offers(self, cursor: sqlite3.Cursor, offers: Sequence[Offer], position: int) -> None:
        subjects = {grant.offer_id: grant.subject for grant in self._made}
        for offer in offers:
            key = bytes.fromhex(offer.offer_id)
            row = (
                key,
                offer.user_id,
                subjects.get(key, offer.user_id),
                offer.scenario,
                offer.channel,
                offer.offer_class == "service",
                offer.deadline_ms,
                position,
                orjson.dumps(offer),
            )
            # Only an offer that is new here is queued: one that a replay brings again may have been claimed.
            cursor.execute("INSERT OR IGNORE INTO offers VALUES (?,?,?,?,?,?,?,?,?)", row)
            if cursor.rowcount:
                cursor.execute("INSERT OR IGNORE INTO outbox VALUES (?)", (key,))

    def _put_consent(self, cursor: sqlite3.Cursor, change: ConsentRow) -> None:
        if change.granted is None:
            cursor.execute("DELETE FROM consents WHERE user = ? AND purpose = ?", (change.user_id, change.purpose))
            return
        cursor.execute(
            "INSERT OR REPLACE INTO consents VALUES (?,?,?,?,?)",
            (change.user_id, change.purpose, change.granted, change.at_ms, change.source),
        )

    def _settle_submitting(self, cursor: sqlite3.Cursor) -> int:
        """Claims found SUBMITTING were cut off by a crash: UNKNOWN, and never submitted again (D7)."""
        rows = cursor.execute("SELECT offer_id, dispatch_id FROM submitting").fetchall()
        for key, dispatch_id in rows:
            last = self._last_dispatch(cursor, key)
            assert last is not None, "a claim is written with its dispatch"
            at_ms = cursor.execute("SELECT max(at_ms) FROM dispatches WHERE offer_id = ?", (key,)).fetchone()[0]
            cursor.execute(
                "INSERT INTO dispatches VALUES (?,?,?,?,?,?,1,NULL,'restart')",
                (key, dispatch_id, last[2] + 1, DispatchState.UNKNOWN.value, at_ms, self.epoch),
            )
        cursor.execute("DELETE FROM submitting")
        return len(rows)

    def _check_version(self) -> None:
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version not in (0, schema.VERSION):
            raise StoreCorrupt(f"{self.path} is of version {version}; this program knows {schema.VERSION}")
        for statement in schema.TABLES.split(";"):
            self._writer.execute(statement)
        self._writer.execute(f"PRAGMA user_version = {schema.VERSION}")

    @staticmethod
    def _meta(cursor: sqlite3.Cursor, key: str, default: Any) -> Any:
        row = cursor.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
        return default if row is None else row[0]

    @staticmethod
    def _set_meta(cursor: sqlite3.Cursor, key: str, value: Any) -> None:
        cursor.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (key, value))

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Cursor]:
        """One transaction; on any error nothing of it is stored."""
        with self._lock:
            try:
                cursor = self._writer.cursor()
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    yield cursor
                    cursor.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise _store_error(self.path, error) from error

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Cursor]:
        with self._reader_lock:
            try:
                yield self._reader.cursor()
            except sqlite3.Error as error:
                raise _store_error(self.path, error) from error


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    try:
        connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"PRAGMA synchronous = {synchronous}")
        connection.execute("PRAGMA temp_store = MEMORY")
        connection.execute("PRAGMA cache_size = -32768")
        return connection
    except sqlite3.Error as error:
        raise _store_error(path, error) from error


def _store_error(path: Path, error: sqlite3.Error) -> Exception:
    """Tell what may come back (disk full, locked, I/O) from what will not (not a database, malformed)."""
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError | sqlite3.InterfaceError):
        return error
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreCorrupt(f"{path}: {error}; restore it from a copy, or move it away and lose what it knows")
    return StoreUnavailable(f"{path}: {error}")


def _reservation(grant: Grant, position: int) -> tuple[Any, ...]:
    flags = grant.counts | grant.withheld << 1 | grant.kept << 3
    return (*grant[:7], flags, grant.at_ms, position, grant.code)


def _grants(rows: Any, through_position: int) -> Iterator[tuple[Grant, bool]]:
    for key, subject, user, scenario, channel, category, partner, flags, at_ms, code, released in rows:
        marks = (bool(flags & 1), bool(flags & 2), bool(flags & 8))
        grant = Grant(key, subject, user, scenario, channel, category, partner, *marks, at_ms, code)
        yield grant, released is not None and released <= through_position


def _id_from(trigger_ms: int) -> bytes:
    """The smallest id of a trigger instant (D4)."""
    return max(trigger_ms, 0).to_bytes(6, "big") + bytes(10)
