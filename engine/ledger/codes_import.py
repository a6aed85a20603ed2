"""Fill a pool of codes.db from a CSV file: chunk by chunk, restartable, nothing twice."""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from engine.errors import OpportuneError
from engine.ledger import codes_kernel
from engine.ledger.codes import BLOCK, CodeStore

CHUNK_BYTES = 4 << 20
"""Read and committed at once: some 300,000 codes, a tenth of a second that other writers of codes.db may wait."""

_SHOWN_LINES = 20
_MOST_LINE_BYTES = 4096


@dataclass(slots=True)
class Imported:
    """What became of a file's lines. `refused_lines` are the numbers of the first lines that held no code."""

    lines: int = 0
    imported: int = 0
    duplicates: int = 0
    refused: int = 0
    done_bytes: int = 0
    total_bytes: int = 0
    was_begun: bool = False
    refused_lines: tuple[int, ...] = ()


def import_codes(
    store: CodeStore, pool: str, file: Path, tell: Callable[[Imported], None] = lambda done: None
) -> Imported:
    """Add the codes of a file to a pool, which is made where it is missing.

    The file has a code a line, or columns one of which is called `code`. A file that was begun goes on where it
    stopped; one that was finished changes nothing. `tell` is called after every chunk. Chunks are committed whole.
    """
    try:
        with file.open("rb") as handle:
            run = _Run(store, pool, file, handle)
            tell(run.done)
            while run.next_chunk():
                tell(run.done)
            return run.done
    except OSError as error:
        raise OpportuneError(f"{file} cannot be read: {error.strerror or type(error).__name__}") from None


class _Run:
    """One import on its way. Memory: 8 to 12 bytes a code of the pool for its hash, 5 to 11 for the table."""

    def __init__(self, store: CodeStore, pool: str, file: Path, handle: IO[bytes]) -> None:
        self._store = store
        self._handle = handle
        self._rest = b""
        self._twins: set[bytes] = set()  # codes that share the hash of another one
        head = handle.read(1 << 16)
        size = file.stat().st_size
        self._print = hashlib.blake2b(head + size.to_bytes(8, "little"), digest_size=16).hexdigest()
        self.done = Imported(total_bytes=size)
        with store.writing() as cursor:
            cursor.execute("INSERT OR IGNORE INTO pools (name) VALUES (?)", (pool,))
            self._pool, self._count = cursor.execute("SELECT id, count FROM pools WHERE name = ?", (pool,)).fetchone()
            begun = cursor.execute(
                "SELECT done_bytes, imported, duplicates, refused, lines FROM imports WHERE pool = ? AND print = ?",
                (self._pool, self._print),
            ).fetchone()
            if begun is None:
                row = (self._pool, file.name, self._print)
                cursor.execute("INSERT INTO imports VALUES (?,?,?,0,0,0,0,0,0)", row)
        self._column, header_bytes = _column(head, file)
        self._header_lines = int(header_bytes > 3)  # a byte order mark is no line
        if begun is not None:
            done = self.done
            done.done_bytes, done.imported, done.duplicates, done.refused, done.lines = begun
            done.was_begun = done.done_bytes > 0
        self.done.done_bytes = max(self.done.done_bytes, header_bytes)
        handle.seek(self.done.done_bytes)
        self._load_known()

    def next_chunk(self) -> bool:
        """Take another piece of the file; False once there is none."""
        data = self._rest + self._handle.read(CHUNK_BYTES)
        if not data:
            self._finish()
            return False
        is_last = len(data) < len(self._rest) + CHUNK_BYTES
        cut = len(data) if is_last else data.rfind(b"\n") + 1
        if cut == 0:
            raise OpportuneError(f"a line longer than {CHUNK_BYTES:,} bytes is no line of codes")
        self._rest = data[cut:]
        chunk = data[:cut]
        self._take(chunk if chunk.endswith(b"\n") else chunk + b"\n", len(chunk))
        return True

    def _take(self, chunk: bytes, size: int) -> None:
        data = np.frombuffer(chunk, np.uint8)
        most = chunk.count(b"\n")
        start, end = np.empty(most, np.int64), np.empty(most, np.int64)
        bad, seen = np.empty(most, np.bool_), np.empty(most, np.int64)
        lines = codes_kernel.find_codes(data, self._column, start, end, bad)
        start, end, bad, seen = start[:lines], end[:lines], bad[:lines], seen[:lines]
        done = self.done
        with self._store.writing() as cursor:
            # Another import of the same pool may have gone on meanwhile; its codes are known before ours are judged.
            (count,) = cursor.execute("SELECT count FROM pools WHERE id = ?", (self._pool,)).fetchone()
            if count != self._count:
                self._count = count
                self._load_known()
            first = self._count
            self._make_room(first + lines)
            after = codes_kernel.admit(data, start, end, bad, self._hashes, self._table, first, seen)
            fresh = np.flatnonzero(seen == -1)
            others = self._unequal(cursor, chunk, start, end, seen, fresh, first)
            if others:
                # Another code with the same hash: it is new all the same.
                key = [self._hashes[seen[line]] for line in others]
                self._hashes[after : after + len(others)] = key
                codes_kernel.enter(self._hashes, after, after + len(others), self._table)
                fresh = np.concatenate([fresh, np.array(others, np.int64)])
            self._write_blocks(cursor, data, start, end, fresh, first)
            self._count = first + len(fresh)
            cursor.execute("UPDATE pools SET count = ? WHERE id = ?", (self._count, self._pool))
            refused = np.flatnonzero(bad)
            shown = done.refused_lines + tuple((done.lines + refused[:_SHOWN_LINES] + 1 + self._header_lines).tolist())
            done.refused_lines = shown[:_SHOWN_LINES]
            done.lines += lines
            done.imported += len(fresh)
            done.refused += len(refused)
            done.duplicates = done.lines - done.imported - done.refused
            done.done_bytes += size
            cursor.execute(
                "UPDATE imports SET done_bytes = ?, imported = ?, duplicates = ?, refused = ?, lines = ? "
                "WHERE pool = ? AND print = ?",
                (done.done_bytes, done.imported, done.duplicates, done.refused, done.lines, self._pool, self._print),
            )

    def _unequal(
        self,
        cursor: sqlite3.Cursor,
        chunk: bytes,
        start: np.ndarray,
        end: np.ndarray,
        seen: np.ndarray,
        fresh: np.ndarray,
        first: int,
    ) -> list[int]:
        """Compare every line that shares a hash with the code it shares it with; list those that are another code."""
        unequal: list[int] = []
        block_first, block = -1, [b""]
        for line in np.flatnonzero(seen >= 0).tolist():
            code, number = chunk[start[line] : end[line]], int(seen[line])
            if number >= first:
                at = fresh[number - first]
                known = chunk[start[at] : end[at]]
            else:
                if not block_first <= number < block_first + len(block):
                    block_first, body = cursor.execute(
                        "SELECT first, body FROM blocks WHERE pool = ? AND first <= ? ORDER BY first DESC LIMIT 1",
                        (self._pool, number),
                    ).fetchone()
                    block = body.split(b"\n")[:-1]
                known = block[number - block_first]
            if known != code and code not in self._twins:
                self._twins.add(code)
                unequal.append(line)
        return unequal

    def _write_blocks(
        self,
        cursor: sqlite3.Cursor,
        data: np.ndarray,
        start: np.ndarray,
        end: np.ndarray,
        fresh: np.ndarray,
        first: int,
    ) -> None:
        out = np.empty(int((end[fresh] - start[fresh]).sum()) + len(fresh), np.uint8)
        ends = np.empty(len(fresh), np.int64)
        codes_kernel.pack(data, start, end, fresh, out, ends)
        body = out.tobytes()
        rows = []
        at, begin = 0, 0
        while at < len(fresh):
            # Blocks end at multiples of BLOCK, so that a number lies in the block its quotient names.
            stop = min(len(fresh), at + BLOCK - (first + at) % BLOCK)
            rows.append((self._pool, first + at, body[begin : int(ends[stop - 1])]))
            at, begin = stop, int(ends[stop - 1])
        cursor.executemany("INSERT INTO blocks VALUES (?,?,?)", rows)

    def _load_known(self) -> None:
        """Hash what the pool holds already."""
        self._hashes = np.empty(max(1024, int(self._count * 1.25)), np.uint64)
        number = 0
        with self._store.reading() as cursor:
            for (body,) in cursor.execute("SELECT body FROM blocks WHERE pool = ? ORDER BY first", (self._pool,)):
                if number + BLOCK > len(self._hashes):
                    self._hashes = np.concatenate([self._hashes, np.empty(len(self._hashes) // 2 + BLOCK, np.uint64)])
                number = codes_kernel.hash_lines(np.frombuffer(body, np.uint8), self._hashes, number)
        self._table = np.zeros(2048, np.int32)
        self._entered = 0
        self._make_room(number)

    def _make_room(self, codes: int) -> None:
        if codes > len(self._hashes):
            grown = np.empty(int(codes * 1.5) + 1024, np.uint64)
            grown[: self._count] = self._hashes[: self._count]
            self._hashes = grown
        if codes * 4 > len(self._table) * 3:
            self._table = np.zeros(1 << (codes * 4 // 3).bit_length(), np.int32)
            self._entered = 0
        if self._entered == 0 and self._count:
            codes_kernel.enter(self._hashes, 0, self._count, self._table)
        self._entered = 1

    def _finish(self) -> None:
        with self._store.writing() as cursor:
            cursor.execute("UPDATE imports SET finished = 1 WHERE pool = ? AND print = ?", (self._pool, self._print))


def _column(head: bytes, file: Path) -> tuple[int, int]:
    """Return which column holds codes, and how many bytes the header takes, 0 where there is none."""
    line, _, _ = head.partition(b"\n")
    if len(line) > _MOST_LINE_BYTES:
        raise OpportuneError(f"{file}: the first line is too long; a file of codes has one a line, or a column `code`")
    bom = len(b"\xef\xbb\xbf") if line.startswith(b"\xef\xbb\xbf") else 0
    names = [name.strip().strip(b'"').strip().lower() for name in line[bom:].rstrip(b"\r").split(b",")]
    if b"code" in names:
        return names.index(b"code"), len(line) + 1
    if len(names) > 1:
        raise OpportuneError(f"{file}: with several columns the first line must name one of them `code`")
    return 0, bom
