"""The embedded ledger: caps in memory, everything else in one SQLite file (docs/contracts.md, Ledger, Claim).

One transaction per micro-batch carries the journal position together with all its effects. What memory decides is a
function of the log, so after a crash replay decides the same again, and writing it again changes nothing.

Two threads use it: the engine reserves and commits, the dispatcher handoff.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import orjson

from engine.changes import Change
from engine.errors import StoreUnavailable
from engine.ledger import audit, claiming, fallbacks, handoff, history, outcomes
from engine.ledger import receipts as receipts_of
from engine.ledger import redemptions as used
from engine.ledger.caps import Caps, GrantRow
from engine.ledger.database import Database
from engine.ledger.dispatch import NOT_SENT, Claim
from engine.ledger.handoff import ConsentRow
from engine.ledger.history import DecisionRow
from engine.ledger.outcomes import DispatchRow
from engine.ledger.pool import Lease
from engine.ledger.redemptions import RedemptionRow
from engine.ledger.stock import Stock
from engine.ledger.stored import Stored
from engine.model import DispatchState, GatewayReceipt, Match, Offer, ReserveAnswer, ReserveRequest

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class EmbeddedLedger(Stored):
    """Reserve, commit, claim. Raises StoreUnavailable where SQLite cannot write, StoreCorrupt where it cannot read.

    assumed_consent  purposes that apply without a record (Policy.assumed_consent); may be set at any time
    fsync            `always`: every commit and claim is on the disk before it is answered; else see docs/storage.md
    boot_id          names this run of the machine; None: as Linux says
    endless_codes    codes never run out, for recordings (`Stock`)

    `lost_power` says that the machine went down under the last owner, and claims that were answered may be lost. What
    was queued then is UNKNOWN and never sent; so is, after `distrust_through`, what replay queues again.
    """

    history_end: int | None = None
    """Only a shard that was made of others has one (engine.ledger.redis)."""

    def __init__(
        self,
        path: Path,
        *,
        assumed_consent: frozenset[str] = frozenset(),
        fsync: Literal["always", "interval", "never"] = "interval",
        boot_id: str | None = None,
        endless_codes: bool = False,
    ) -> None:
        self.path = path
        self.assumed_consent = assumed_consent
        self.caps = Caps()
        self.stock = Stock(endless_codes=endless_codes)
        self._endless_codes = endless_codes
        self._made: list[GrantRow] = []
        self._leased: list[Lease] = []
        self._released: list[str] = []
        self._database = Database(path, fsync)
        with self._database.writing() as cursor:
            self.epoch = int(_meta(cursor, "epoch", 0)) + 1
            _set_meta(cursor, "epoch", self.epoch)
            self.unsettled = handoff.settle_submitting(cursor, self.epoch)
            here = _BOOT_ID.read_text().strip() if boot_id is None and _BOOT_ID.exists() else boot_id or ""
            was_closed, last = _meta(cursor, "closed", 1), _meta(cursor, "boot_id", here)
            # Until `distrust_through` has come: a start that fails before must not be taken for the one that healed it.
            self.lost_power = bool(_meta(cursor, "lost_power", 0)) or (
                fsync != "always" and not was_closed and last != here
            )
            if self.lost_power:
                handoff.distrust_outbox(cursor, self.epoch)
                _set_meta(cursor, "lost_power", 1)
            _set_meta(cursor, "closed", 0)
            _set_meta(cursor, "boot_id", here)
            self._distrusted = int(_meta(cursor, "distrusted", -1))
            self._position = int(cursor.execute("SELECT position FROM progress").fetchone()[0])
            self._early = receipts_of.early_names(cursor)
            self._listed: list[receipts_of.Name] = []

    # --- caps -------------------------------------------------------------------------------------------------------

    def reserve(self, requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
        """Answer requests in order; what is granted becomes durable with the next `commit`."""
        return self.stock.reserve(requests, self.caps, self._made)

    def release(self, offer_id: str) -> None:
        """Give back what an offer took (a definite failure, C2). Harmless where there is nothing to give back."""
        if self.caps.release(offer_id):
            self.stock.release(offer_id)
            self._released.append(offer_id)

    def lease_codes(self, pool: str, first: int, count: int, epoch: int) -> None:
        """Take codes that a record of the log gave to this worker (O3)."""
        self.stock.lease(pool, first, count, epoch)
        self._leased.append(Lease(pool, first, count, epoch))

    def recall_codes(self, pool: str, epoch: int) -> None:
        """Let leases up to this epoch expire: nothing of them is given any more, and claims refuse what was."""
        self.stock.recall(pool, epoch)
        self._leased.append(Lease(pool, 0, 0, epoch, expired=True))

    def spend_codes(self, pool: str, spans: Sequence[Sequence[int]]) -> None:
        """Never give these codes again (see `codes_after`)."""
        self.stock.spend(pool, spans)

    def accept_return(self, pool: str, spans: Sequence[Sequence[int]]) -> None:
        """Drop codes that codes.db has taken back."""
        self.stock.accept_return(pool, spans)

    def settle(self, offer_id: str, state: DispatchState) -> None:
        """Take an outcome into account: a definite failure gives back, anything else keeps what was taken (C2)."""
        if state in NOT_SENT:
            self.release(offer_id)
        elif state == DispatchState.DELIVERED:
            self.delivered(offer_id)

    def delivered(self, offer_id: str) -> None:
        """Remember that a message arrived: a failure reported afterwards gives nothing back (G1)."""
        self.caps.delivered(offer_id)

    def rebuild(self, through_position: int) -> None:
        """Rebuild caps as they were after the record at this position, from what is stored (F10)."""
        self._clear()
        with self._database.reading() as cursor:
            (longest_ms,) = cursor.execute("SELECT longest_ms FROM progress").fetchone()
            self.caps.restore_grants(history.read_reservations(cursor, through_position), longest_ms)
            leases = history.read_leases(cursor, through_position)
            self.stock.restore_grants(history.read_reservations(cursor, through_position), leases)
            for offer_id in history.read_arrived(cursor):
                self.caps.delivered(offer_id)

    def _clear(self) -> None:
        self.caps, self.stock = Caps(), Stock(endless_codes=self._endless_codes)
        self._forget_uncommitted()

    def _forget_uncommitted(self) -> None:
        self._made.clear()
        self._released.clear()
        self._leased.clear()

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
        closed_at: Sequence[tuple[int, int]] = (),
        pauses: Sequence[tuple[str, bool]] = (),
        dispatches: Sequence[DispatchRow] = (),
        redemptions: Sequence[RedemptionRow] = (),
        changes: Sequence[Change] = (),
    ) -> None:
        """Store everything up to and with the record at `position`, in one transaction.

        Only what receipts say of dispatches goes before, in transactions of its own: a flood of them would hold up
        claims, and repeated it changes nothing.

        What was reserved and released since the last commit goes with it. What a replay brings again changes nothing,
        even where its batches are cut differently; above all a consent withdrawn later stays withdrawn meanwhile.
        After StoreUnavailable call it again with the same arguments; nothing else was stored.

        closed_at  for each closed user how many of `consents` and of `offers` came before: what the new user of the
                   number said and was granted in the same batch stays (T4). Not given: all of them.
        """
        if position <= self._position:
            self._forget_uncommitted()
            return
        for first in range(0, len(dispatches), outcomes.AT_ONCE):
            with self._database.writing() as cursor:
                outcomes.put_reports(cursor, dispatches[first : first + outcomes.AT_ONCE], self.epoch)
        with self._database.writing() as cursor:
            if self._made:
                history.put_reservations(cursor, self._made, position, now_ms)
            if self._released:
                history.put_releases(cursor, self._released, position)
            if self._leased:
                history.put_leases(cursor, self._leased, position)
            if decisions:
                history.put_decisions(cursor, decisions, position, now_ms)
            if offers:
                handoff.put_offers(cursor, offers, {row[0]: row[1] for row in self._made}, position)
                if position <= self._distrusted:
                    handoff.distrust_outbox(cursor, self.epoch)
            said = 0
            for row, user in enumerate(closed_users):
                consents_before, offers_before = closed_at[row] if closed_at else (len(consents), len(offers))
                handoff.put_consents(cursor, consents[said:consents_before])
                said = consents_before
                later = frozenset(offer.offer_id for offer in offers[offers_before:])
                handoff.close_user(cursor, user, now_ms, self.epoch, later)
            handoff.put_consents(cursor, consents[said:])
            handoff.put_pauses(cursor, pauses, position)
            if redemptions:
                used.put_redemptions(cursor, redemptions, position)
            if changes:
                audit.put_changes(cursor, changes, self._position)
            cursor.execute(
                "UPDATE progress SET position = ?, now_ms = ?, longest_ms = ?", (position, now_ms, self.caps.longest_ms)
            )
        self._position = position
        self._forget_uncommitted()

    def distrust_through(self, position: int) -> None:
        """After a power loss: offers of records up to here may have gone out already, so they never do again.

        Remembered, so that a crash before their replay has ended changes nothing.
        """
        with self._database.writing() as cursor:
            _set_meta(cursor, "distrusted", position)
            _set_meta(cursor, "lost_power", 0)
        self._distrusted = position

    def position(self) -> int:
        """The last record whose effects are stored, -1 if none."""
        return self._position

    # --- hand-off ---------------------------------------------------------------------------------------------------

    @property
    def would_wait(self) -> bool:
        """Whether a claim made now may wait for the disk or for a transaction under way."""
        return self._database.would_wait

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
                pairs = [(bytes.fromhex(offer_id), dispatch_id) for offer_id, dispatch_id in claims]
                return list(claiming.claim(cursor, self._asking(cursor, now_ms, epoch), pairs))
        except StoreUnavailable:
            return [Claim.UNAVAILABLE] * len(claims)

    def why_not_again(self, offer_id: str, channel: str) -> str | None:
        """Say why a dispatch that was provably not accepted must not be submitted once more; None: it may (D7)."""
        try:
            with self._database.reading() as cursor:
                return claiming.why_not_again(cursor, bytes.fromhex(offer_id), self._asking(cursor, 0, None), channel)
        except StoreUnavailable:
            return Claim.UNAVAILABLE.value

    def _asking(self, cursor: sqlite3.Cursor, now_ms: int, epoch: int | None) -> claiming.Asking:
        return claiming.Asking(
            now_ms=now_ms,
            is_current=(self.epoch if epoch is None else epoch) == int(_meta(cursor, "epoch", 0)),
            epoch=self.epoch,
            paused=frozenset(scenario for (scenario,) in cursor.execute("SELECT scenario FROM pauses")),
            assumed_consent=self.assumed_consent,
            expired_codes=tuple(history.expired_leases(cursor)),
        )

    def record_dispatch(self, records: Sequence[DispatchRow]) -> list[bool]:
        """Store what became of dispatches, in one transaction; says for each whether its state changed (G1)."""
        with self._database.writing() as cursor:
            early = receipts_of.put_parts(cursor, records)
            changed = outcomes.put_outcomes(cursor, records, self.epoch)
        self._early += early
        return changed

    def due_fallbacks(self, now_ms: int, limit: int = 500) -> list[Offer]:
        """List offers whose second channel is due (G5), as second attempts to claim."""
        with self._database.reading() as cursor:
            return fallbacks.due(cursor, now_ms, limit)

    # --- receipts ---------------------------------------------------------------------------------------------------

    def match_receipts(self, receipts: Sequence[GatewayReceipt], now_ms: int) -> list[Match | None]:
        """Find whose receipts these are (G3); what is nobody's yet is kept for 72 h. One answer for each."""
        with self._database.writing() as cursor:
            return receipts_of.match(cursor, receipts, now_ms)

    def matched_late(self) -> list[Match]:
        """List what receipts that had come before the answer to their submit say, until `told_late`."""
        self._listed = list(self._early)
        if not self._listed:
            return []
        with self._database.writing() as cursor:
            return [one for gateway, name in self._listed for one in receipts_of.match_early(cursor, gateway, [name])]

    def told_late(self) -> None:
        """Note that what `matched_late` listed is in the log."""
        with self._database.writing() as cursor:
            receipts_of.drop_early(cursor, self._listed)
        # Others may have come meanwhile; they are told the next time.
        del self._early[: len(self._listed)]
        self._listed = []

    def silent(self, now_ms: int, limit: int = 500) -> list[tuple[int, str, Match | None]]:
        """List dispatches waited for 48 h: (due, dispatch id, EXPIRED, or None where it ended by itself)."""
        with self._database.reading() as cursor:
            return receipts_of.silent(cursor, now_ms, limit)

    def told_silent(self, rows: Sequence[tuple[int, str]]) -> None:
        """Note that what `silent` listed is in the log."""
        with self._database.writing() as cursor:
            receipts_of.drop_awaited(cursor, rows)

    # --- upkeep -----------------------------------------------------------------------------------------------------

    def tidy(self) -> None:
        """Move the write-ahead log into the file without holding up writers; for a housekeeping thread."""
        self._database.tidy()

    def expire(self, before_ms: int, reservations_before_ms: int) -> None:
        """Delete decisions, offers, dispatches and redemptions from before `before_ms`, and old reservations.

        Offers must outlive the journal's retention, or a replay would queue them again. Reservations that a rule
        without a window looks at stay.
        """
        key = max(before_ms, 0).to_bytes(6, "big")
        with self._database.writing() as cursor:
            history.expire(cursor, before_ms, reservations_before_ms)
            cursor.execute(
                "DELETE FROM releases WHERE offer_id < ?", (max(reservations_before_ms, 0).to_bytes(6, "big"),)
            )
            for table in ("offers", "outbox", "dispatches", "links"):
                cursor.execute(f"DELETE FROM {table} WHERE offer_id < ?", (key,))
            used.expire(cursor, before_ms)

    def expire_receipts(self, now_ms: int) -> None:
        """Delete early receipts after 72 h, and names of parts of which none can come any more."""
        with self._database.writing() as cursor:
            receipts_of.expire(cursor, now_ms)

    def forget(self, user: str, told: Change | None = None) -> None:
        """Leave no trace of a user or subject (I2): rows, caps, free pages and the write-ahead log.

        told  what the audit log says of it, in the same transaction
        """
        self.caps.forget(user)
        self.stock.forget(user)
        with self._database.writing() as cursor:
            offer_ids = [bytes.fromhex(one) for one in history.forget(cursor, user)]
            offer_ids += handoff.offers_of(cursor, user)
            for table in ("outbox", "dispatches", "submitting", "releases", "links", "offers"):
                cursor.executemany(f"DELETE FROM {table} WHERE offer_id = ?", [(key,) for key in offer_ids])
            receipts_of.forget(cursor, offer_ids)
            cursor.execute("DELETE FROM consents WHERE user = ?", (user,))
            cursor.execute("DELETE FROM evidence WHERE user = ?", (user,))
            used.forget(cursor, user)
            audit.forget(cursor, user)
            if told is not None:
                audit.put_changes(cursor, [told], self._position)
        self._database.compact()

    def arrays(self) -> dict[str, np.ndarray]:
        """What caps are decided from, for a checkpoint; right after a commit."""
        return self.caps.arrays() | self.stock.arrays()

    def objects(self) -> dict[str, Any]:
        return {"caps": self.caps.objects(), "stock": self.stock.objects()}

    def restore(self, arrays: dict[str, np.ndarray], objects: dict[str, Any]) -> None:
        """Take over a checkpoint's `arrays` and `objects`."""
        self._clear()
        self.caps.restore(arrays, objects["caps"])
        self.stock.restore(arrays, objects["stock"])

    def close(self) -> None:
        """Close the file; what was not committed is decided again by replay."""
        if self._database.is_closed:
            return
        with contextlib.suppress(StoreUnavailable), self._database.writing() as cursor:
            _set_meta(cursor, "closed", 1)
        self._database.close()


def _meta(cursor: sqlite3.Cursor, key: str, default: Any) -> Any:
    row = cursor.execute("SELECT value FROM meta WHERE key = ?", (key,)).fetchone()
    return default if row is None else row[0]


def _set_meta(cursor: sqlite3.Cursor, key: str, value: Any) -> None:
    cursor.execute("INSERT OR REPLACE INTO meta VALUES (?,?)", (key, value))
