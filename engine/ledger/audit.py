"""The audit log: every change that `engine.changes` names, each row hashed over the one before (FAULTS A14).

A row that is edited, taken out or put in breaks the chain there, and `first_break` names it. Consents stand under an
alias per user, random and kept in a table of its own: forgetting a user takes the alias's meaning away and leaves the
chain whole (I2). That somebody was forgotten is a row under a hash keyed with the deployment's key: who asks about a
user whose id they know finds it, while there is that key. Functions over a cursor inside a transaction; the caller
owns it.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import orjson

from engine.changes import Change

_NOBODY = b"\0" * 32


class Row(NamedTuple):
    """One stored row; `body` is JSON: `subject`, `old`, `new`, or for consents `changes`."""

    seq: int
    at_ms: int
    position: int
    who: str
    what: str
    body: bytes
    hash: bytes


def put_changes(cursor: sqlite3.Cursor, changes: Sequence[Change], after: int) -> None:
    """Append changes of records behind `after`; what a replay brings again is there already.

    Consents of one commit share a row: there may be millions of them in an import.
    """
    fresh = [one for one in changes if one.position > after or (one.position < 0 and not _is_there(cursor, one))]
    if not fresh:
        return
    found = cursor.execute("SELECT seq, hash FROM audit ORDER BY seq DESC LIMIT 1").fetchone()
    seq, last = found if found is not None else (0, _NOBODY)
    for is_consent, group in groupby(fresh, key=lambda one: one.what == "consent"):
        for part in [list(group)] if is_consent else [[one] for one in group]:
            first = part[0]
            who = "users" if is_consent else first.who
            body = _consents(cursor, part) if is_consent else _fields(first)
            seq += 1
            last = _hash(last, seq, first.at_ms, first.position, who, first.what, body)
            cursor.execute(
                "INSERT INTO audit VALUES (?,?,?,?,?,?,?)",
                (seq, first.at_ms, first.position, who, first.what, body, last),
            )
    cursor.execute("INSERT OR REPLACE INTO meta VALUES ('audit_head', ?)", (f"{seq}:{last.hex()}",))


def read_rows(rows: Iterable[tuple[Any, ...]]) -> Iterator[Row]:
    """Turn rows of SELECT_ROWS into Row."""
    return (Row(*row) for row in rows)


SELECT_ROWS = "SELECT seq, at_ms, position, who, what, body, hash FROM audit ORDER BY seq"
SELECT_HEAD = "SELECT value FROM meta WHERE key = 'audit_head'"


def first_break(rows: Iterable[Row], head: str | None) -> str | None:
    """Name the first row at which the chain is broken; None where it is whole up to `head` (`seq:hash`)."""
    last, expected = _NOBODY, 1
    for row in rows:
        if row.seq != expected:
            return f"row {expected} is missing"
        if not isinstance(row.body, bytes) or row.hash != _hash(
            last, row.seq, row.at_ms, row.position, row.who, row.what, row.body
        ):
            return f"row {row.seq} is not as it was written, or a row before it was exchanged"
        last, expected = row.hash, expected + 1
    if head is not None and head != f"{expected - 1}:{last.hex()}":
        return (
            f"row {expected} is missing at the end"
            if int(head.partition(":")[0]) >= expected
            else "the head is another"
        )
    return None


def forgotten_name(id_key: bytes, user: str) -> str:
    """Return what a forgotten user is called in the log: 24 hexadecimal digits of a keyed hash of the id."""
    return hashlib.blake2b(user.encode(), digest_size=12, key=id_key[:64], person=b"opportune forget").hexdigest()


def alias_of(cursor: sqlite3.Cursor, user: str) -> str | None:
    """Return the alias a user's consents stand under; None where there are none, or no more."""
    row = cursor.execute("SELECT alias FROM audit_aliases WHERE user = ?", (user,)).fetchone()
    return None if row is None else row[0].hex()


def forget(cursor: sqlite3.Cursor, user: str) -> None:
    """Leave the rows, and nothing that says whose they are."""
    cursor.execute("DELETE FROM audit_aliases WHERE user = ?", (user,))


def _is_there(cursor: sqlite3.Cursor, change: Change) -> bool:
    """Whether a change without a record of its own was appended by an earlier run, among the newest rows."""
    query = (
        "SELECT 1 FROM audit WHERE seq > (SELECT max(seq) FROM audit) - 10000 AND at_ms = ? AND who = ? AND body = ?"
    )
    return cursor.execute(query, (change.at_ms, change.who, _fields(change))).fetchone() is not None


def _fields(change: Change) -> bytes:
    return orjson.dumps({"subject": change.subject, "old": change.old, "new": change.new})


def _consents(cursor: sqlite3.Cursor, changes: Sequence[Change]) -> bytes:
    aliases: dict[str, str] = {}
    for user in {one.subject for one in changes}:
        known = alias_of(cursor, user)
        if known is None:
            fresh = os.urandom(8)
            cursor.execute("INSERT INTO audit_aliases VALUES (?,?)", (user, fresh))
            known = fresh.hex()
        aliases[user] = known
    return orjson.dumps(
        {
            "changes": [
                {
                    "user": aliases[one.subject],
                    "purpose": one.purpose,
                    "old": one.old,
                    "new": one.new,
                    "at": one.said_ms,
                    "source": one.who,
                }
                for one in changes
            ]
        }
    )


def _hash(last: bytes, seq: int, at_ms: int, position: int, who: str, what: str, body: bytes) -> bytes:
    return hashlib.sha256(last + orjson.dumps([seq, at_ms, position, who, what]) + body).digest()
