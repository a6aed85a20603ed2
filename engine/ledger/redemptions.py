"""Benefits that users used, and what was refunded: one row each, stored once however often it is told (T7).

Functions over a cursor inside a transaction; the caller owns it. A row names the offer where the event did; one that
names only the benefit is credited when somebody reads (`engine.report`), because a row is found by its key alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from typing import NamedTuple, Protocol


class RedemptionRow(Protocol):
    """One use of a benefit; `key` is 16 bytes of the event's feed and id, or of its content where it has no id."""

    @property
    def key(self) -> bytes: ...
    @property
    def user_id(self) -> str: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def offer_id(self) -> str | None: ...
    @property
    def benefit(self) -> str | None: ...
    @property
    def amount_fen(self) -> int | None: ...
    @property
    def is_refund(self) -> bool: ...


class Redemption(NamedTuple):
    """A stored redemption; `offer_id` as the event said it, which may name no offer of ours."""

    key: bytes
    user: str
    at_ms: int
    offer_id: str | None
    benefit: str | None
    amount_fen: int | None
    position: int


def put_redemptions(cursor: sqlite3.Cursor, rows: Sequence[RedemptionRow], position: int) -> None:
    """Store what is new; what is told again, by a feed or by a replay, changes nothing."""
    for table in ("redemptions", "refunds"):
        cursor.executemany(
            f"INSERT OR IGNORE INTO {table} VALUES (?,?,?,?,?,?,?)",
            [
                (one.key, one.user_id, one.at_ms, one.offer_id, one.benefit, one.amount_fen, position)
                for one in rows
                if one.is_refund == (table == "refunds")
            ],
        )


def read_redemptions(
    cursor: sqlite3.Cursor, from_ms: int, until_ms: int, table: str = "redemptions"
) -> Iterator[Redemption]:
    """Give redemptions, or refunds, with an instant in [from_ms, until_ms), by instant and key; reads it all."""
    rows = cursor.execute(
        f"SELECT key, user, at_ms, offer_id, benefit, amount_fen, position FROM {table} "
        "WHERE at_ms >= ? AND at_ms < ? ORDER BY at_ms, key",
        (from_ms, until_ms),
    )
    return (Redemption(*row) for row in rows)


def forget(cursor: sqlite3.Cursor, user: str) -> None:
    for table in ("redemptions", "refunds"):
        cursor.execute(f"DELETE FROM {table} WHERE user = ?", (user,))


def expire(cursor: sqlite3.Cursor, before_ms: int) -> None:
    for table in ("redemptions", "refunds"):
        cursor.execute(f"DELETE FROM {table} WHERE at_ms < ?", (before_ms,))
