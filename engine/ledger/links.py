"""Claim links: each redeemed once (scan to claim). Functions over a cursor inside a transaction; the caller owns it.

The row here decides who was first. The redemption itself is an event in the journal, written after it; one that a
crash kept from being written is found by `untold` and told at the next start.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from enum import StrEnum

import orjson

from engine.ledger.dispatch import NOT_SENT
from engine.model import DispatchState


class LinkState(StrEnum):
    """How a link stands."""

    OPEN = "open"
    REDEEMED = "redeemed"
    NOT_SENT = "not_sent"  # the message never went out: what the offer held has gone back
    UNKNOWN = "unknown_offer"


@dataclass(frozen=True, slots=True)
class Link:
    """An offer as its link sees it; `caller` and `body` are hashes of who redeemed it and with what request."""

    offer_id: str
    state: LinkState
    user: str = ""
    scenario: str = ""
    benefit: str = ""
    code: str | None = None  # pool#number
    at_ms: int = -1
    caller: str = ""
    body: str = ""
    amount_fen: int | None = None


def find(cursor: sqlite3.Cursor, offer_id: str) -> Link:
    """Look a link up by its offer id."""
    key = bytes.fromhex(offer_id)
    row = cursor.execute("SELECT user, scenario, body FROM offers WHERE offer_id = ?", (key,)).fetchone()
    if row is None:
        return Link(offer_id, LinkState.UNKNOWN)
    user, scenario, body = row
    offer = orjson.loads(body)
    used = cursor.execute("SELECT at_ms, caller, body, amount_fen FROM links WHERE offer_id = ?", (key,)).fetchone()
    if used is not None:
        return Link(offer_id, LinkState.REDEEMED, user, scenario, offer["benefit"], offer["code"], *used)
    states: dict[str, DispatchState] = {}
    for dispatch_id, state in cursor.execute(
        "SELECT dispatch_id, state FROM dispatches WHERE offer_id = ? AND applied ORDER BY seq", (key,)
    ):
        states[dispatch_id] = DispatchState(state)
    went_out = any(state not in NOT_SENT for state in states.values())
    is_open = LinkState.OPEN if went_out else LinkState.NOT_SENT
    return Link(offer_id, is_open, user, scenario, offer["benefit"], offer["code"])


def redeem(
    cursor: sqlite3.Cursor, offer_id: str, at_ms: int, caller: str, body: str, amount_fen: int | None = None
) -> tuple[Link, bool]:
    """Redeem a link that is open; return it as it stands now, and whether this call did it."""
    link = find(cursor, offer_id)
    if link.state is not LinkState.OPEN:
        return link, False
    key = bytes.fromhex(offer_id)
    cursor.execute("INSERT INTO links VALUES (?,?,?,?,0,?)", (key, at_ms, caller, body, amount_fen))
    return find(cursor, offer_id), True


def told(cursor: sqlite3.Cursor, offer_id: str) -> None:
    """Note that the redemption is in the journal."""
    cursor.execute("UPDATE links SET told = 1 WHERE offer_id = ?", (bytes.fromhex(offer_id),))


def untold(cursor: sqlite3.Cursor) -> list[Link]:
    """List redeemed links whose event may be missing from the journal."""
    keys = cursor.execute("SELECT offer_id FROM links WHERE told = 0").fetchall()
    return [link for (key,) in keys if (link := find(cursor, key.hex())).state is LinkState.REDEEMED]
