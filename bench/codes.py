"""Codes: CSV to codes.db, and a code drawn, committed to memory and looked up.

The file is imported into an empty pool through the same function as `opportune codes import`; the peer inserts the same
codes into one SQLite table with a primary key, in transactions of as many rows. A draw is a reservation that takes a
code of the full pool; a look-up reads the code of a number at random, as the hand-off does.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from engine.ledger.caps import Caps
from engine.ledger.codes import CodeStore
from engine.ledger.codes_import import import_codes
from engine.ledger.stock import Stock
from engine.model import Option, ReserveRequest, StockLine, Take

NOW_MS = 1_767_326_400_000
_PIECE = 500_000


def run(smoke: bool) -> list[dict[str, Any]]:
    codes, peer_codes, draws = (60_000, 20_000, 2_000) if smoke else (20_000_000, 1_000_000, 100_000)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root / "warm.csv", 1000, 7)
        _write(root / "codes.csv", codes, 1)
        store = CodeStore(root / "codes.db")
        import_codes(store, "warm", root / "warm.csv")
        started = time.perf_counter()
        done = import_codes(store, "film", root / "codes.csv")
        import_s = time.perf_counter() - started
        assert (done.imported, done.refused, done.duplicates) == (codes, 0, 0)
        peer = _one_table(root / "peer.db", root / "codes.csv", peer_codes)
        small, large = _draws_per_s(1_000, draws), _draws_per_s(codes, draws)
        look_up = _look_ups_per_s(store, codes, draws)
        store.close()
    rate = codes / import_s
    return [
        {
            "name": "codes.import.per_s",
            "value": rate,
            "unit": "codes/s",
            "codes": codes,
            "peer": f"one table with a primary key, {peer_codes:,} codes",
            "ratio": rate / peer,
        },
        {
            "name": "codes.draw.per_s",
            "value": large,
            "unit": "draws/s",
            "of_a_pool_of_1000": small,
            "growth": small / large,
        },
        {"name": "codes.look_up.per_s", "value": look_up, "unit": "codes/s"},
    ]


def _write(path: Path, count: int, seed: int) -> None:
    """Write codes of 14 characters in no order, all different."""
    order = np.random.default_rng(seed).permutation(count).astype(np.uint64)
    mixed = order * np.uint64(0x9E3779B97F4A7C15) % np.uint64(1 << 48)
    with path.open("w") as handle:
        handle.write("code\n")
        for piece in np.array_split(mixed, max(1, count // _PIECE)):
            handle.write("".join([f"QN{one:012X}\n" for one in piece.tolist()]))


def _one_table(path: Path, file: Path, count: int) -> float:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("CREATE TABLE codes (code TEXT PRIMARY KEY) WITHOUT ROWID")
    with file.open() as handle:
        rows = [(line.strip(),) for _, line in zip(range(count + 1), handle, strict=False)][1:]
    started = time.perf_counter()
    for begin in range(0, len(rows), _PIECE):
        connection.execute("BEGIN")
        connection.executemany("INSERT OR IGNORE INTO codes VALUES (?)", rows[begin : begin + _PIECE])
        connection.execute("COMMIT")
    spent_s = time.perf_counter() - started
    connection.close()
    return len(rows) / spent_s


def _draws_per_s(pool: int, draws: int) -> float:
    """Reserve one code a request, 128 requests a call, from a pool that holds `pool` codes at the least."""
    caps, stock = Caps(), Stock()
    stock.lease("film", 0, max(pool, draws + 128), 1)
    line = StockLine("film", 1200)
    take = Take((line,), "film", NOW_MS - NOW_MS % 86_400_000)
    calls = []
    for first in range(0, draws, 128):
        options = [Option(f"{NOW_MS:012x}{first + k:020x}", "a/s", "sms", "c", "p", (), take=take) for k in range(128)]
        calls.append(
            [ReserveRequest(f"u{first + k}", f"u{first + k}", NOW_MS, (one,)) for k, one in enumerate(options)]
        )
    stock.reserve(calls[0], caps, [])
    drawn, started = 0, time.perf_counter()
    for requests in calls[1:]:
        drawn += sum(answer.code is not None for answer in stock.reserve(requests, caps, []))
    spent_s = time.perf_counter() - started
    assert drawn == 128 * (len(calls) - 1)
    return drawn / spent_s


def _look_ups_per_s(store: CodeStore, codes: int, look_ups: int) -> float:
    numbers = np.random.default_rng(2).integers(0, codes, look_ups // 10).tolist()
    started = time.perf_counter()
    found = sum(store.code("film", number) is not None for number in numbers)
    spent_s = time.perf_counter() - started
    assert found == len(numbers)
    return found / spent_s
