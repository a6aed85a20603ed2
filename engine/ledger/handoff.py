"""Offers on their way out: the outbox, consent and pauses as claims ask them, claims that a crash cut off (A2, A4, D8).

Functions over a cursor inside a transaction; the caller owns it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from typing import Protocol

import orjson

from engine.ledger import fallbacks, receipts
from engine.model import DispatchState, Offer


class ConsentRow(Protocol):
    """One change of consent; `granted` None voids it, as if it had never been given."""

    user_id: str
    purpose: str
    granted: bool | None
    at_ms: int
    source: str
    text: str | None


def settle_submitting(cursor: sqlite3.Cursor, epoch: int) -> int:
    """Claims found SUBMITTING at a start were cut off by a crash: UNKNOWN, and never submitted again (D7)."""
    rows = cursor.execute("SELECT offer_id, dispatch_id FROM submitting").fetchall()
    for key, dispatch_id in rows:
        seq, at_ms = cursor.execute("SELECT max(seq), max(at_ms) FROM dispatches WHERE offer_id = ?", (key,)).fetchone()
        cursor.execute(
            "INSERT INTO dispatches VALUES (?,?,?,?,?,?,1,NULL,'restart')",
            (key, dispatch_id, seq + 1, DispatchState.UNKNOWN.value, at_ms, epoch),
        )
        receipts.await_receipts(cursor, [(at_ms, dispatch_id)])
    cursor.execute("DELETE FROM submitting")
    return len(rows)


def distrust_outbox(cursor: sqlite3.Cursor, epoch: int) -> None:
    """What is queued may have been claimed and sent before a power loss took the claim: UNKNOWN, never submitted."""
    queued = cursor.execute("SELECT offer_id, channel, body FROM outbox JOIN offers USING (offer_id)").fetchall()
    for key, channel, body in queued:
        at_ms = orjson.loads(body)["created_ms"]
        _end_unclaimed(cursor, key, channel, DispatchState.UNKNOWN, at_ms, epoch, "power_loss")


def put_offers(cursor: sqlite3.Cursor, offers: Sequence[Offer], subjects: Mapping[str, str], position: int) -> None:
    """Store offers and queue those that are new here: one that a replay brings again may have been claimed."""
    for offer in offers:
        key = bytes.fromhex(offer.offer_id)
        row = (
            key,
            offer.user_id,
            subjects.get(offer.offer_id, offer.user_id),
            offer.scenario,
            offer.channel,
            offer.offer_class == "service",
            offer.deadline_ms,
            position,
            orjson.dumps(offer),
        )
        cursor.execute("INSERT OR IGNORE INTO offers VALUES (?,?,?,?,?,?,?,?,?)", row)
        if cursor.rowcount:
            cursor.execute("INSERT OR IGNORE INTO outbox VALUES (?)", (key,))
            fallbacks.put(cursor, key, offer)


def offers_of(cursor: sqlite3.Cursor, user: str) -> list[bytes]:
    """The ids of a user's or subject's offers; reads the whole table."""
    return [key for (key,) in cursor.execute("SELECT offer_id FROM offers WHERE user = ? OR subject = ?", (user, user))]


def put_consents(cursor: sqlite3.Cursor, changes: Sequence[ConsentRow]) -> None:
    for change in changes:
        if change.granted is None:
            cursor.execute("DELETE FROM consents WHERE user = ? AND purpose = ?", (change.user_id, change.purpose))
        else:
            cursor.execute(
                "INSERT OR REPLACE INTO consents VALUES (?,?,?,?,?)",
                (change.user_id, change.purpose, change.granted, change.at_ms, change.source),
            )
        if change.text is not None:
            cursor.execute(
                "INSERT INTO evidence VALUES (NULL,?,?,?,?,?,?)",
                (change.user_id, change.purpose, change.granted, change.at_ms, change.source, change.text),
            )


def close_user(cursor: sqlite3.Cursor, user: str, now_ms: int, epoch: int, later: frozenset[str] = frozenset()) -> None:
    """Void consent and cancel what is queued but `later` offers: the number may be somebody else's tomorrow (A4)."""
    cursor.execute("DELETE FROM consents WHERE user = ?", (user,))
    fallbacks.drop_of_user(cursor, user)
    queued = cursor.execute("SELECT offer_id, channel FROM outbox JOIN offers USING (offer_id) WHERE user = ?", (user,))
    for key, channel in queued.fetchall():
        if key.hex() not in later:
            _end_unclaimed(cursor, key, channel, DispatchState.FAILED, now_ms, epoch, "user_closed")


def put_pauses(cursor: sqlite3.Cursor, pauses: Sequence[tuple[str, bool]], position: int) -> None:
    for scenario, paused in pauses:
        if paused:
            cursor.execute("INSERT OR IGNORE INTO pauses VALUES (?,?)", (scenario, position))
        else:
            cursor.execute("DELETE FROM pauses WHERE scenario = ?", (scenario,))


def _end_unclaimed(
    cursor: sqlite3.Cursor, key: bytes, channel: str, state: DispatchState, at_ms: int, epoch: int, code: str
) -> None:
    """End the next dispatch of a queued offer before anybody claims it; under its id, so that a claim is too late."""
    (seq,) = cursor.execute("SELECT count(*) FROM dispatches WHERE offer_id = ?", (key,)).fetchone()
    cursor.execute(
        "INSERT INTO dispatches VALUES (?,?,?,?,?,?,1,NULL,?)",
        (key, f"{key.hex()}/{channel}/1", seq, state.value, at_ms, epoch, code),
    )
    cursor.execute("DELETE FROM outbox WHERE offer_id = ?", (key,))
