"""What the embedded ledger has stored, for whoever asks: rows of the file, nothing of what the engine has in memory."""

from __future__ import annotations

from typing import Any

import orjson

from engine.ledger import history, links
from engine.ledger import redemptions as used
from engine.ledger.caps import is_offer_id
from engine.ledger.database import Database
from engine.ledger.links import Link
from engine.ledger.pool import Lease
from engine.ledger.redemptions import Redemption
from engine.model import Offer


class Stored:
    """What needs nothing but the file, claim links included. Errors are those of `EmbeddedLedger`."""

    _database: Database

    def decisions(self, *, user: str, from_ms: int, until_ms: int, limit: int = 100) -> list[bytes]:
        """List bodies of a user's decisions whose trigger lies in [from_ms, until_ms), newest first."""
        with self._database.reading() as cursor:
            return history.find_decisions(cursor, user, from_ms, until_ms, limit)

    def decision(self, decision_id: str) -> list[bytes]:
        """List the versions of one decision, oldest first; empty where there is none. Reads from its trigger on."""
        if is_offer_id(decision_id) is None:
            return []
        with self._database.reading() as cursor:
            return history.find_decision(cursor, decision_id)

    def find_offer(self, offer_id: str) -> Offer | None:
        """Return an offer that is still known, for what comes back of it."""
        try:
            key = bytes.fromhex(offer_id)
        except ValueError:
            return None
        with self._database.reading() as cursor:
            row = cursor.execute("SELECT body FROM offers WHERE offer_id = ?", (key,)).fetchone()
        return None if row is None else Offer(**orjson.loads(row[0]))

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

    def parts_since(self, gateway: str, since_ms: int) -> int:
        """Count parts that a gateway that reports has taken since an instant, for its daily quota; reads a table."""
        with self._database.reading() as cursor:
            row = cursor.execute("SELECT count(*) FROM parts WHERE gateway = ? AND at_ms >= ?", (gateway, since_ms))
            return int(row.fetchone()[0])

    def evidence(self, user: str) -> list[dict[str, Any]]:
        """List what a user said of consent in messages, oldest first (A3): purpose, granted, at_ms, source, text."""
        with self._database.reading() as cursor:
            rows = cursor.execute(
                "SELECT purpose, granted, at_ms, source, text FROM evidence WHERE user = ? ORDER BY number", (user,)
            ).fetchall()
        names = ("purpose", "granted", "at_ms", "source", "text")
        return [{**dict(zip(names, row, strict=True)), "granted": bool(row[1])} for row in rows]

    def redemptions(self, *, from_ms: int, until_ms: int) -> list[Redemption]:
        """List redemptions with an instant in [from_ms, until_ms), in order of time; reads the whole table."""
        with self._database.reading() as cursor:
            return list(used.read_redemptions(cursor, from_ms, until_ms))

    def refunds(self, *, from_ms: int, until_ms: int) -> list[Redemption]:
        """List refunds with an instant in [from_ms, until_ms), in order of time; reads the whole table."""
        with self._database.reading() as cursor:
            return list(used.read_redemptions(cursor, from_ms, until_ms, "refunds"))

    def link(self, offer_id: str) -> Link:
        """Say how a claim link stands."""
        with self._database.reading() as cursor:
            return links.find(cursor, offer_id)

    def redeem_link(
        self, offer_id: str, at_ms: int, caller: str, body: str, amount_fen: int | None = None
    ) -> tuple[Link, bool]:
        """Redeem a claim link once; say how it stands and whether this call redeemed it."""
        with self._database.writing() as cursor:
            return links.redeem(cursor, offer_id, at_ms, caller, body, amount_fen)

    def link_told(self, offer_id: str) -> None:
        """Note that the redemption by a link is in the journal."""
        with self._database.writing() as cursor:
            links.told(cursor, offer_id)

    def untold_links(self) -> list[Link]:
        """List redeemed links whose event may be missing from the journal (a crash)."""
        with self._database.reading() as cursor:
            return links.untold(cursor)

    def paused(self) -> set[str]:
        """The scenarios that are paused; "*" stands for all."""
        with self._database.reading() as cursor:
            return {scenario for (scenario,) in cursor.execute("SELECT scenario FROM pauses")}

    def leases(self) -> list[Lease]:
        """List every lease that is stored, the expired ones included."""
        with self._database.reading() as cursor:
            return history.read_leases(cursor, 1 << 62)

    def codes_after(self, position: int) -> list[str]:
        """List the codes, as pool#number, of reservations behind this position: the log has lost their records."""
        with self._database.reading() as cursor:
            return history.read_codes(cursor, position)

    def counts(self) -> dict[str, int]:
        """How many of each are stored, for summaries and tests; reads everything."""
        with self._database.reading() as cursor:
            counted = {
                name: cursor.execute(f"SELECT count(*) FROM {name}").fetchone()[0]
                for name in ("offers", "outbox", "dispatches", "fallbacks", "consents", "pauses", "redemptions")
            }
            # A batch cut differently in a replay may hold again what an earlier one held.
            for name, key in (("reservations", "offer_id"), ("decisions", "decision_id")):
                (counted[name],) = cursor.execute(f"SELECT count(DISTINCT {key}) FROM {name}_read").fetchone()
        return counted
