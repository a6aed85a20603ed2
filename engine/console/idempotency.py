"""Requests that carry an Idempotency-Key are done once: the same again gets the stored answer (FAULTS A16).

Kept in a file of their own for 24 hours, at most MOST_ANSWERS of them, the oldest going first. Only what was taken is
kept; a refused request changed nothing and may be mended and sent again. A crash between the act and its answer
leaves no answer: the repetition is an ordinary request then, which ids of events (T7) and of offers make harmless.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from engine.console.intake import Refused
from engine.errors import StoreCorrupt, StoreUnavailable

KEPT_MS = 24 * 3_600_000
MOST_ANSWERS = 100_000
LONGEST_KEY = 255
LARGEST_ANSWER = 64 << 10
_TIDY_EVERY = 1000


class Answer(NamedTuple):
    """What was answered: the status and a JSON body."""

    status: int
    body: bytes


class Answers:
    """Stored answers by route and key. `path` None keeps them in memory only."""

    def __init__(self, path: Path | None, now_ms: Callable[[], int]) -> None:
        self._now_ms = now_ms
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        # autocommit; the loop's thread and the one that closes it
        try:
            self._store = sqlite3.connect(
                path or ":memory:", isolation_level=None, check_same_thread=False, timeout=2.0
            )
            self._store.execute("PRAGMA journal_mode = WAL")
            self._store.execute("PRAGMA synchronous = NORMAL")
            self._store.execute(
                "CREATE TABLE IF NOT EXISTS answers (key BLOB PRIMARY KEY, request BLOB NOT NULL, "
                "status INTEGER NOT NULL, body BLOB NOT NULL, at_ms INTEGER NOT NULL) WITHOUT ROWID"
            )
            self._store.execute("CREATE INDEX IF NOT EXISTS answers_by_age ON answers (at_ms)")
        except sqlite3.OperationalError as error:
            raise StoreUnavailable(f"{path}: {error}") from None
        except sqlite3.DatabaseError as error:
            raise StoreCorrupt(
                f"{path}: {error}; remove it: repetitions of requests of the last 24 hours are then done again"
            ) from None
        self._under_way: set[bytes] = set()
        self._until_tidy = 0

    async def once(self, route: str, key: str, request: bytes, act: Callable[[], Awaitable[Answer]]) -> Answer:
        """Return the stored answer of this key, or act and store; raise Refused otherwise: see docs/api.md."""
        if not 1 <= len(key) <= LONGEST_KEY or not key.isascii() or not key.isprintable():
            raise Refused(400, "bad_idempotency_key", f"Idempotency-Key is 1 to {LONGEST_KEY} printable characters")
        name = hashlib.sha256(f"{route}\0{key}".encode()).digest()
        digest = hashlib.sha256(request).digest()
        try:
            found = self._store.execute(
                "SELECT request, status, body FROM answers WHERE key = ? AND at_ms > ?",
                (name, self._now_ms() - KEPT_MS),
            ).fetchone()
            if found is not None:
                if found[0] != digest:
                    raise Refused(
                        422, "idempotency_key_reused", "this Idempotency-Key came with another request before"
                    )
                return Answer(found[1], found[2])
            if name in self._under_way:
                raise Refused(409, "in_progress", "a request with this Idempotency-Key is under way", 1)
            self._under_way.add(name)
            try:
                answer = await act()
                if 200 <= answer.status < 300 and len(answer.body) <= LARGEST_ANSWER:
                    self._store.execute(
                        "INSERT OR REPLACE INTO answers VALUES (?,?,?,?,?)",
                        (name, digest, answer.status, answer.body, self._now_ms()),
                    )
                    self._tidy()
                return answer
            finally:
                self._under_way.discard(name)
        except sqlite3.Error:
            raise Refused(
                503, "unavailable", "answers cannot be stored now; send it again with the same key", 1
            ) from None

    def close(self) -> None:
        self._store.close()

    def _tidy(self) -> None:
        self._until_tidy -= 1
        if self._until_tidy > 0:
            return
        self._until_tidy = _TIDY_EVERY
        self._store.execute("DELETE FROM answers WHERE at_ms <= ?", (self._now_ms() - KEPT_MS,))
        (count,) = self._store.execute("SELECT count(*) FROM answers").fetchone()
        if count > MOST_ANSWERS - _TIDY_EVERY:
            self._store.execute(
                "DELETE FROM answers WHERE key IN (SELECT key FROM answers ORDER BY at_ms LIMIT ?)",
                (count - MOST_ANSWERS + _TIDY_EVERY,),
            )
