"""codes.db: the texts behind code numbers, and which numbers are leased to whom (rule O3).

A store apart from ledger.db, so that an import of millions stalls no hand-off. A pool's codes are numbered from 0 in
the order of their import and stored in blocks of a thousand; a lease is a span of numbers. Codes are as good as money:
no message, log line or error of this module holds one.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from engine.errors import OpportuneError, StoreCorrupt, StoreUnavailable
from engine.ledger.pool import Lease, joined, without

BLOCK = 1024
"""Codes in a block, at most."""

_BLOCKS_REMEMBERED = 64
_TABLES = """
CREATE TABLE IF NOT EXISTS pools (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, count INTEGER NOT NULL DEFAULT 0,
    next INTEGER NOT NULL DEFAULT 0,     -- numbers from here on were never leased
    epoch INTEGER NOT NULL DEFAULT 1,    -- of the leases given now
    recalled INTEGER NOT NULL DEFAULT 0  -- leases up to this epoch are to expire
);
CREATE TABLE IF NOT EXISTS blocks (
    pool INTEGER NOT NULL, first INTEGER NOT NULL, body BLOB NOT NULL, PRIMARY KEY (pool, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS free (      -- leased once and given back
    pool INTEGER NOT NULL, first INTEGER NOT NULL, end INTEGER NOT NULL, PRIMARY KEY (pool, first)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS imports (
    pool INTEGER NOT NULL, file TEXT NOT NULL, print TEXT NOT NULL, done_bytes INTEGER NOT NULL,
    imported INTEGER NOT NULL, duplicates INTEGER NOT NULL, refused INTEGER NOT NULL, lines INTEGER NOT NULL,
    finished INTEGER NOT NULL, PRIMARY KEY (pool, print)
) WITHOUT ROWID;
"""


@dataclass(frozen=True, slots=True)
class PoolState:
    """How a pool stands: `leased` numbers were given to workers, `free` ones can still be."""

    name: str
    count: int
    leased: int
    free: int
    epoch: int
    recalled: int


class CodeStore:
    """Codes by pool and number. Raises StoreUnavailable where SQLite cannot answer, StoreCorrupt where it cannot read.

    Any number of processes may read, lease and import at once; each act is one transaction.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.RLock()
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            path.touch(mode=0o600)
            self._connection = sqlite3.connect(path, isolation_level=None, check_same_thread=False, timeout=10.0)
            for pragma in ("journal_mode = WAL", "synchronous = NORMAL", "cache_size = -16384"):
                self._connection.execute(f"PRAGMA {pragma}")
            self._connection.executescript(_TABLES)
        except (OSError, sqlite3.Error) as error:
            raise _store_error(error) from None
        self._block = lru_cache(_BLOCKS_REMEMBERED)(self._read_block)

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Cursor]:
        """One transaction; on any error nothing of it is stored."""
        with self._lock:
            try:
                cursor = self._connection.cursor()
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    yield cursor
                    cursor.execute("COMMIT")
                except BaseException:
                    if self._connection.in_transaction:
                        self._connection.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise _store_error(error) from None

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Cursor]:
        with self._lock:
            try:
                yield self._connection.cursor()
            except sqlite3.Error as error:
                raise _store_error(error) from None

    # --- codes ------------------------------------------------------------------------------------------------------

    def reveal(self, ref: str) -> str | None:
        """Return the code that `pool#number` stands for; None where there is none."""
        name, _, number = ref.partition("#")
        if not number.isdigit():
            return None
        return self.code(name, int(number))

    def code(self, name: str, number: int) -> str | None:
        """Read one code: one block, wherever it lies."""
        found = self._block(name, number // BLOCK)
        if found is None or not 0 <= number - found[0] < len(found[1]):
            self._block.cache_clear()  # the pool may have grown
            found = self._block(name, number // BLOCK)
        if found is None or not 0 <= number - found[0] < len(found[1]):
            return None
        return found[1][number - found[0]]

    def _read_block(self, name: str, block: int) -> tuple[int, list[str]] | None:
        """Read the codes numbered block * BLOCK and on, as many as there are, up to BLOCK of them."""
        low, high = block * BLOCK, (block + 1) * BLOCK
        with self.reading() as cursor:
            rows = cursor.execute(
                "SELECT body FROM blocks JOIN pools ON pools.id = blocks.pool "
                "WHERE name = ? AND first >= ? AND first < ? ORDER BY first",
                (name, low, high),
            ).fetchall()
        codes = [code for (body,) in rows for code in body.decode("ascii").split("\n")[:-1]]
        return (low, codes) if codes else None

    # --- leases -----------------------------------------------------------------------------------------------------

    def lease(self, name: str, most: int) -> list[Lease]:
        """Give up to `most` numbers away: what was given back first, then what nobody had yet."""
        leases: list[Lease] = []
        with self.writing() as cursor:
            row = cursor.execute("SELECT id, count, next, epoch FROM pools WHERE name = ?", (name,)).fetchone()
            if row is None:
                return []
            pool, count, fresh, epoch = row
            for first, end in cursor.execute(
                "SELECT first, end FROM free WHERE pool = ? ORDER BY first", (pool,)
            ).fetchall():
                if most <= 0:
                    break
                cursor.execute("DELETE FROM free WHERE pool = ? AND first = ?", (pool, first))
                taken = min(most, end - first)
                if first + taken < end:
                    cursor.execute("INSERT INTO free VALUES (?,?,?)", (pool, first + taken, end))
                leases.append(Lease(name, first, taken, epoch))
                most -= taken
            taken = min(most, count - fresh)
            if taken > 0:
                cursor.execute("UPDATE pools SET next = next + ? WHERE id = ?", (taken, pool))
                leases.append(Lease(name, fresh, taken, epoch))
        return leases

    def take_back(self, name: str, spans: Iterable[Sequence[int]]) -> None:
        """Make numbers free again; twice is once."""
        with self.writing() as cursor:
            row = cursor.execute("SELECT id, next FROM pools WHERE name = ?", (name,)).fetchone()
            if row is None:
                return
            pool, fresh = row
            held = cursor.execute("SELECT first, end FROM free WHERE pool = ?", (pool,)).fetchall()
            free = joined([*held, *((span[0], min(span[1], fresh)) for span in spans if span[0] < fresh)])
            cursor.execute("DELETE FROM free WHERE pool = ?", (pool,))
            cursor.executemany("INSERT INTO free VALUES (?,?,?)", [(pool, first, end) for first, end in free])

    def keep_leased(self, name: str, leased: Iterable[tuple[int, int]]) -> None:
        """Make free whatever was leased here and is not in `leased`: a lease that never reached the log (a crash)."""
        with self.reading() as cursor:
            row = cursor.execute("SELECT id, next FROM pools WHERE name = ?", (name,)).fetchone()
        if row is not None:
            lost = without([(0, row[1])] if row[1] else [], list(leased))
            if lost:
                self.take_back(name, lost)

    def recall(self, name: str) -> int:
        """Ask for all leases of a pool back, and give new ones under a new epoch; return the epoch that ends."""
        with self.writing() as cursor:
            row = cursor.execute("SELECT epoch FROM pools WHERE name = ?", (name,)).fetchone()
            if row is None:
                raise OpportuneError(f"there is no pool {name!r}; `opportune codes list` shows them")
            cursor.execute("UPDATE pools SET recalled = epoch, epoch = epoch + 1 WHERE name = ?", (name,))
        return int(row[0])

    def pools(self) -> list[PoolState]:
        """List the pools by name."""
        with self.reading() as cursor:
            rows = cursor.execute(
                "SELECT name, count, next, epoch, recalled, "
                "coalesce((SELECT sum(end - first) FROM free WHERE pool = id), 0) FROM pools ORDER BY name"
            ).fetchall()
        return [
            PoolState(name, count, fresh - back, count - fresh + back, epoch, recalled)
            for name, count, fresh, epoch, recalled, back in rows
        ]

    def tidy(self) -> None:
        """Move the write-ahead log into the file."""
        with self._lock:
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def close(self) -> None:
        with self._lock:
            self._connection.close()


def _store_error(error: Exception) -> Exception:
    """Tell what may come back from what will not, without naming what was asked for."""
    name = getattr(error, "sqlite_errorname", "") or type(error).__name__
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreCorrupt("codes.db cannot be read; restore it from a copy")
    return StoreUnavailable(f"codes.db: {name}")
