"""One SQLite file for two threads: writes under one lock, reads beside them, errors in our terms (F22)."""

from __future__ import annotations

import sqlite3
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from engine.errors import SettingsError, StoreCorrupt, StoreUnavailable
from engine.ledger import schema

SYNCHRONOUS = {"always": "FULL", "interval": "NORMAL", "never": "OFF"}
LEAST_SQLITE = (3, 31)


class Turns:
    """A lock that goes to whoever has waited longest.

    `threading.Lock` lets a thread that has just let go take it again at once, so that one which writes much in small
    transactions would keep all others out.
    """

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._held = False
        self._waiting: deque[threading.Lock] = deque()

    def locked(self) -> bool:
        return self._held

    def __enter__(self) -> None:
        with self._guard:
            if not self._held:
                self._held = True
                return
            turn = threading.Lock()
            turn.acquire()
            self._waiting.append(turn)
        try:
            turn.acquire()
        except BaseException:
            with self._guard:
                if turn in self._waiting:
                    self._waiting.remove(turn)
                    raise
            self.__exit__()
            raise

    def __exit__(self, *error: object) -> None:
        with self._guard:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._held = False


class Database:
    """Writes go through one connection under one lock, held for a transaction (some milliseconds at most), in turn;
    reads have a connection of their own and wait for no writer.

    Raises StoreUnavailable where SQLite cannot write, StoreCorrupt where it cannot read, SettingsError where it is too
    old.
    """

    def __init__(self, path: Path, fsync: Literal["always", "interval", "never"]) -> None:
        self.path = path
        self.is_closed = False
        self._is_synced = fsync == "always"
        self._lock = Turns()
        self._reader_lock = threading.Lock()
        if sqlite3.sqlite_version_info < LEAST_SQLITE:
            least = ".".join(map(str, LEAST_SQLITE))
            raise SettingsError(f"{path}: needs SQLite {least} or newer, this Python has {sqlite3.sqlite_version}")
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._writer = _connect(path, SYNCHRONOUS[fsync])
            self._prepare()
            self._reader = _connect(path, SYNCHRONOUS[fsync])
        except sqlite3.Error as error:
            raise store_error(path, error) from error

    @property
    def would_wait(self) -> bool:
        """Whether a transaction begun now may wait: each commit for the disk, or one for another thread's."""
        return self._is_synced or self._lock.locked()

    @contextmanager
    def writing(self) -> Iterator[sqlite3.Cursor]:
        """One transaction; on any error nothing of it is stored."""
        with self._lock:
            try:
                cursor = self._writer.cursor()
                cursor.execute("BEGIN IMMEDIATE")
                try:
                    yield cursor
                    cursor.execute("COMMIT")
                except BaseException:
                    if self._writer.in_transaction:
                        self._writer.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise store_error(self.path, error) from error

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Cursor]:
        with self._reader_lock:
            try:
                yield self._reader.cursor()
            except sqlite3.Error as error:
                raise store_error(self.path, error) from error

    def tidy(self) -> None:
        """Move the write-ahead log into the file without holding up writers."""
        try:
            connection = sqlite3.connect(self.path, timeout=0.0, isolation_level=None)
            try:
                connection.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise store_error(self.path, error) from error

    def compact(self) -> None:
        """Rewrite the file, so that nothing deleted is left in free pages or in the write-ahead log."""
        with self._lock, self._reader_lock:
            try:
                self._writer.execute("VACUUM")
                self._writer.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.Error as error:
                raise store_error(self.path, error) from error

    def close(self) -> None:
        with self._lock, self._reader_lock:
            self._reader.close()
            self._writer.close()
            self.is_closed = True

    def _prepare(self) -> None:
        (version,) = self._writer.execute("PRAGMA user_version").fetchone()
        if version not in (0, schema.VERSION):
            raise StoreCorrupt(f"{self.path} is of version {version}; this program knows {schema.VERSION}")
        self._writer.executescript(schema.TABLES)
        for table, column, kind in schema.LATER_COLUMNS:
            if column not in {row[1] for row in self._writer.execute(f"PRAGMA table_info({table})")}:
                self._writer.execute(f"ALTER TABLE {table} ADD COLUMN {column} {kind}")
        self._writer.execute(f"PRAGMA user_version = {schema.VERSION}")


def _connect(path: Path, synchronous: str) -> sqlite3.Connection:
    connection = sqlite3.connect(path, timeout=5.0, isolation_level=None, check_same_thread=False)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(f"PRAGMA synchronous = {synchronous}")
    connection.execute("PRAGMA temp_store = MEMORY")
    # Kibibytes a connection. What is written lies at the end of its table, so more would seldom be asked again.
    connection.execute("PRAGMA cache_size = -4096")
    # Only where nobody calls `tidy`: a checkpoint inside a commit waits for the disk.
    connection.execute("PRAGMA wal_autocheckpoint = 16384")
    return connection


def store_error(path: Path, error: sqlite3.Error) -> Exception:
    """Tell what may come back (disk full, locked, I/O) from what will not (not a database, malformed)."""
    if isinstance(error, sqlite3.ProgrammingError | sqlite3.IntegrityError | sqlite3.InterfaceError):
        return error
    name = getattr(error, "sqlite_errorname", "") or ""
    if name.startswith(("SQLITE_CORRUPT", "SQLITE_NOTADB")):
        return StoreCorrupt(f"{path}: {error}; restore it from a copy, or move it away and lose what it knows")
    return StoreUnavailable(f"{path}: {error}")
