"""Statements over a whole group of rows at once.

Every step of a statement gives the interpreter away, and while another thread computes it may take 5 ms to come back.
A transaction that steps once a row therefore holds the ledger for as long as others please. So a group is read by one
statement and written by a few, whatever its size: keys go in as one blob of 16 bytes each, all else as JSON.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any

import orjson

KEY_BYTES = 16
KEY = "substr(?1, 1 + 16 * asked.key, 16)"
"""The key of the row at hand, in statements over `json_each(?2) AS asked` whose first parameter are packed keys."""


def field(place: int, row: str = "value") -> str:
    """Name one field of a row that is a JSON array; `->>` says the same, but only from SQLite 3.38 on."""
    return f"json_extract({row}, '$[{place}]')"


def fields(count: int, row: str = "value") -> str:
    return ", ".join(field(place, row) for place in range(count))


def pack(keys: Iterable[bytes]) -> bytes:
    return b"".join(keys)


def key_of(offer_id: str) -> bytes | None:
    """Return the key of an offer id, None for what is none."""
    try:
        key = bytes.fromhex(offer_id)
    except ValueError:
        return None
    return key if len(key) == KEY_BYTES else None


def read(cursor: sqlite3.Cursor, sql: str, *given: Any) -> Any:
    """Run a SELECT that answers one JSON text, and return what it holds."""
    (text,) = cursor.execute(sql, given).fetchone()
    return orjson.loads(text)


def write(cursor: sqlite3.Cursor, sql: str, keys: Iterable[bytes], rows: Iterable[Any], *more: Any) -> None:
    """Run a statement over `json_each(?2) AS asked`, whose keys are packed in ?1; `more` are ?3 and so on."""
    cursor.execute(sql, (pack(keys), orjson.dumps(list(rows)).decode(), *more))


def leave_outbox(cursor: sqlite3.Cursor, keys: Sequence[bytes]) -> None:
    """Take offers out of the outbox: claimed, or ended before anybody claimed them."""
    if keys:
        write(
            cursor,
            f"DELETE FROM outbox WHERE offer_id IN (SELECT {KEY} FROM json_each(?2) AS asked)",
            keys,
            [0] * len(keys),
        )
