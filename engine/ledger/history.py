"""What was reserved and what was decided: one row a commit, JSON inside (readable by SQL through the `_read` views).

A row of SQLite costs two to four microseconds whatever it holds, a row of JSON a tenth of that; and nobody looks one
up by its id: reservations are read in order to rebuild caps, decisions by user, which a column of hashes answers.
Functions over a cursor inside a transaction; the caller owns it.
"""

from __future__ import annotations

import sqlite3
import zlib
from array import array
from collections.abc import Iterator, Sequence

import orjson

from engine.ledger.caps import GrantRow
from engine.ledger.kernel import KEEP
from engine.ledger.pool import Lease

DecisionRow = tuple[str, str, bytes]
"""decision id (32 hexadecimal digits), user, body (the JSON of docs/contracts.md)."""

_FUTURE_MS = 300_000
"""A trigger lies at most this far ahead of the log's now (T6)."""


def put_reservations(cursor: sqlite3.Cursor, made: Sequence[GrantRow], position: int, now_ms: int) -> None:
    cursor.execute("INSERT INTO reservations VALUES (?,?,?)", (position, now_ms, orjson.dumps(made)))


def put_releases(cursor: sqlite3.Cursor, offer_ids: Sequence[str], position: int) -> None:
    """The first release counts; a replay that brings it again changes nothing."""
    cursor.executemany(
        "INSERT OR IGNORE INTO releases VALUES (?,?)", [(bytes.fromhex(one), position) for one in offer_ids]
    )


def put_decisions(cursor: sqlite3.Cursor, decisions: Sequence[DecisionRow], position: int, now_ms: int) -> None:
    users = array("I", [zlib.crc32(user.encode()) for _, user, _ in decisions])
    body = b"[" + b",".join([body for _, _, body in decisions]) + b"]"
    cursor.execute("INSERT INTO decisions VALUES (?,?,?)", (position, now_ms, body))
    cursor.execute("INSERT INTO decision_users VALUES (?,?,?)", (position, now_ms, users.tobytes()))


def read_reservations(cursor: sqlite3.Cursor, through_position: int) -> Iterator[tuple[GrantRow, bool]]:
    """Give every reservation once, in the order they were made, with whether it was released by that position."""
    released = {
        key.hex() for (key,) in cursor.execute("SELECT offer_id FROM releases WHERE position <= ?", (through_position,))
    }
    seen: set[str] = set()
    rows = cursor.execute("SELECT body FROM reservations WHERE position <= ? ORDER BY position", (through_position,))
    for (body,) in rows:
        for offer_id, subject, user, mark, flags, at_ms, code, taken in orjson.loads(body):
            # A batch cut differently in a replay may bring again what an earlier one brought.
            if offer_id not in seen:
                seen.add(offer_id)
                yield (offer_id, subject, user, tuple(mark), flags, at_ms, code, taken), offer_id in released


def read_arrived(cursor: sqlite3.Cursor) -> list[str]:
    """List the offers that were delivered or redeemed and not released before: no failure gives them back (G1, O3)."""
    arrived = {
        key.hex() for (key,) in cursor.execute("SELECT offer_id FROM dispatches WHERE state = 'delivered' AND applied")
    }
    arrived |= {name for (name,) in cursor.execute("SELECT offer_id FROM redemptions WHERE offer_id IS NOT NULL")}
    return sorted(arrived - {key.hex() for (key,) in cursor.execute("SELECT offer_id FROM releases")})


def find_decisions(cursor: sqlite3.Cursor, user: str, from_ms: int, until_ms: int, limit: int) -> list[bytes]:
    """Bodies of a user's decisions with a trigger in [from_ms, until_ms), newest first, each in its last version."""
    wanted = zlib.crc32(user.encode())
    rows = cursor.execute("SELECT position, users FROM decision_users WHERE now_ms > ?", (from_ms - _FUTURE_MS,))
    positions = [position for position, users in rows.fetchall() if wanted in array("I", users)]
    found: dict[str, bytes] = {}
    for position in positions:
        (body,) = cursor.execute("SELECT body FROM decisions WHERE position = ?", (position,)).fetchone()
        for one in orjson.loads(body):
            if one["user"] == user and from_ms <= int(one["decision_id"][:12], 16) < until_ms:
                found[one["decision_id"]] = orjson.dumps(one)
    return [found[key] for key in sorted(found, reverse=True)[:limit]]


def find_decision(cursor: sqlite3.Cursor, decision_id: str) -> list[bytes]:
    """Every version of one decision, oldest first: a held one has a second, and a run that was closed."""
    trigger_ms = int(decision_id[:12], 16)
    rows = cursor.execute(
        "SELECT body FROM decisions WHERE now_ms > ? AND instr(body, ?) ORDER BY position",
        (trigger_ms - _FUTURE_MS, decision_id.encode()),
    )
    return [orjson.dumps(one) for (body,) in rows for one in orjson.loads(body) if one["decision_id"] == decision_id]


def forget(cursor: sqlite3.Cursor, user: str) -> list[str]:
    """Leave no trace of a user or subject; return the ids of the offers that were reserved."""
    offer_ids: list[str] = []
    for position, body in cursor.execute("SELECT position, body FROM reservations").fetchall():
        rows = orjson.loads(body)
        kept = [row for row in rows if user not in (row[1], row[2])]
        if len(kept) < len(rows):
            offer_ids += [row[0] for row in rows if user in (row[1], row[2])]
            _replace(cursor, "reservations", position, kept)
    wanted = zlib.crc32(user.encode())
    for position, users in cursor.execute("SELECT position, users FROM decision_users").fetchall():
        if wanted not in array("I", users):
            continue
        (body,) = cursor.execute("SELECT body FROM decisions WHERE position = ?", (position,)).fetchone()
        decisions = [one for one in orjson.loads(body) if one["user"] != user]
        _replace(cursor, "decisions", position, decisions)
        hashes = array("I", [zlib.crc32(one["user"].encode()) for one in decisions]).tobytes()
        cursor.execute("UPDATE decision_users SET users = ? WHERE position = ?", (hashes, position))
    return offer_ids


def expire(cursor: sqlite3.Cursor, decisions_before_ms: int, reservations_before_ms: int) -> None:
    """Delete what is older; reservations that a rule without a window looks at stay, and those that took stock."""
    for table in ("decisions", "decision_users"):
        cursor.execute(f"DELETE FROM {table} WHERE now_ms < ?", (decisions_before_ms,))
    old = cursor.execute(
        "SELECT position, body FROM reservations WHERE now_ms < ?", (reservations_before_ms,)
    ).fetchall()
    released = {key.hex() for (key,) in cursor.execute("SELECT offer_id FROM releases")} if old else set()
    for position, body in old:
        rows = orjson.loads(body)
        kept = [row for row in rows if (row[4] & KEEP or row[7]) and row[0] not in released]
        if len(kept) < len(rows):
            _replace(cursor, "reservations", position, kept)


def put_leases(cursor: sqlite3.Cursor, changes: Sequence[Lease], position: int) -> None:
    """Write down leases of codes, and which of them expired; twice is once."""
    for one in changes:
        if one.expired:
            cursor.execute(
                "UPDATE code_leases SET expired = ? WHERE pool = ? AND epoch <= ? AND expired IS NULL",
                (position, one.pool, one.epoch),
            )
        else:
            row = (one.pool, one.first, one.count, one.epoch, position)
            cursor.execute("INSERT OR IGNORE INTO code_leases VALUES (?,?,?,?,?,NULL)", row)


def read_leases(cursor: sqlite3.Cursor, through_position: int) -> list[Lease]:
    """List leases as they stood after the record at this position."""
    rows = cursor.execute(
        "SELECT pool, first, count, epoch, coalesce(expired <= ?, 0) FROM code_leases WHERE position <= ? "
        "ORDER BY pool, first",
        (through_position, through_position),
    )
    return [Lease(pool, first, count, epoch, bool(expired)) for pool, first, count, epoch, expired in rows]


def read_codes(cursor: sqlite3.Cursor, after_position: int) -> list[str]:
    rows = cursor.execute("SELECT body FROM reservations WHERE position > ?", (after_position,))
    return [code for (body,) in rows for *_, code, _taken in orjson.loads(body) if code is not None]


def expired_leases(cursor: sqlite3.Cursor) -> list[tuple[str, int, int, int]]:
    """List pool, first, end, and the position of the record that let the lease expire."""
    rows = cursor.execute("SELECT pool, first, first + count, expired FROM code_leases WHERE expired IS NOT NULL")
    return rows.fetchall()


def _replace(cursor: sqlite3.Cursor, table: str, position: int, rows: Sequence[object]) -> None:
    if rows:
        cursor.execute(f"UPDATE {table} SET body = ? WHERE position = ?", (orjson.dumps(rows), position))
    else:
        cursor.execute(f"DELETE FROM {table} WHERE position = ?", (position,))
