"""The second channel of an offer: when it is due, and that it never doubles a grant (rule G5).

Functions over a cursor inside a transaction; the caller owns it. A row says that the second channel may still be tried;
it goes with the claim of the second attempt, with a delivery, and with anything that leaves open what arrived.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import replace

import orjson

from engine.model import DispatchState as S
from engine.model import Offer

ENDED = frozenset({"deadline", "no_consent", "user_closed", "power_loss"})
"""Codes of a failure after which no channel may speak; above all not where the first was refused (A3)."""


def put(cursor: sqlite3.Cursor, key: bytes, offer: Offer) -> None:
    """Remember the second channel of an offer that has one."""
    if offer.fallback_channel is not None:
        cursor.execute(
            "INSERT OR IGNORE INTO fallbacks VALUES (?,?,?,NULL)",
            (key, offer.fallback_channel, offer.fallback_after_ms),
        )


def is_second(dispatch_id: str) -> bool:
    return dispatch_id.endswith("/2")


class Notes:
    """What outcomes of first channels mean for the second ones, gathered and then written at once."""

    def __init__(self) -> None:
        self._due: dict[bytes, tuple[int, bool] | None] = {}  # instant, whether the span comes on top; None: dropped

    def note(self, key: bytes, dispatch_id: str, state: S, at_ms: int, code: str, reports: bool) -> None:
        """Take an outcome into account. `reports`: receipts of it can be missed."""
        if key in self._due and self._due[key] is None:
            return
        if is_second(dispatch_id) or state is S.DELIVERED or code in ENDED or (state is S.ACCEPTED and not reports):
            self._due[key] = None
        elif state in (S.ACCEPTED, S.UNKNOWN):
            self._due[key] = (at_ms, True)
        elif state in (S.REJECTED, S.FAILED, S.EXPIRED):
            self._due[key] = (at_ms, False)

    def write(self, cursor: sqlite3.Cursor) -> None:
        if not self._due or not any_pending(cursor):
            return
        for key, due in self._due.items():
            if due is None:
                drop(cursor, key)
            else:
                cursor.execute("UPDATE fallbacks SET due_ms = ? + ? * after_ms WHERE offer_id = ?", (*due, key))


def any_pending(cursor: sqlite3.Cursor) -> bool:
    """Say whether any offer may still go to a second channel; most deployments have none."""
    return cursor.execute("SELECT 1 FROM fallbacks LIMIT 1").fetchone() is not None


def is_pending(cursor: sqlite3.Cursor, key: bytes) -> bool:
    return cursor.execute("SELECT 1 FROM fallbacks WHERE offer_id = ?", (key,)).fetchone() is not None


def drop(cursor: sqlite3.Cursor, key: bytes) -> None:
    cursor.execute("DELETE FROM fallbacks WHERE offer_id = ?", (key,))


def drop_of_user(cursor: sqlite3.Cursor, user: str) -> None:
    """Whose number may be somebody else's by now hears on no channel (A4)."""
    cursor.execute(
        "DELETE FROM fallbacks WHERE (SELECT user FROM offers WHERE offers.offer_id = fallbacks.offer_id) = ?", (user,)
    )


def may_claim(cursor: sqlite3.Cursor, key: bytes, channel: str, states: Sequence[S]) -> bool:
    """Say whether a second attempt may be claimed: nothing arrived or is under way, and nothing was given back."""
    row = cursor.execute("SELECT channel FROM fallbacks WHERE offer_id = ? AND due_ms IS NOT NULL", (key,)).fetchone()
    is_open = row is not None and row[0] == channel and not {S.DELIVERED, S.SUBMITTING}.intersection(states)
    is_released = cursor.execute("SELECT 1 FROM releases WHERE offer_id = ?", (key,)).fetchone() is not None
    if not is_open or is_released:
        drop(cursor, key)
        return False
    return True


def due(cursor: sqlite3.Cursor, now_ms: int, limit: int) -> list[Offer]:
    """List offers whose second channel is due, as second attempts."""
    rows = cursor.execute(
        "SELECT body, fallbacks.channel FROM fallbacks JOIN offers USING (offer_id) WHERE due_ms <= ? LIMIT ?",
        (now_ms, limit),
    ).fetchall()
    return [replace(Offer(**orjson.loads(body)), channel=channel, attempt=2) for body, channel in rows]
