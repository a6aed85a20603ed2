"""Reservations through the embedded ledger, and (reserve_redis.py) through Redis: caps decided, committed, in batches.

One candidate with four caps a request, a million users, 128 requests a commit; only `reserve` and `commit` are timed.
The peer is the plainest thing that could work: SQLite rows counted by an index, in the same transactions.
"""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from engine.ledger.embedded import EmbeddedLedger
from engine.model import Offer, Option, ReserveRequest, Rule, Scope

HOUR_MS = 3_600_000
START_MS = 1_767_326_400_000
BATCH = 128


def run(smoke: bool) -> list[dict[str, Any]]:
    users, batches = (2_000, 40) if smoke else (1_000_000, 8_000)
    with tempfile.TemporaryDirectory() as folder:
        _embedded(Path(folder) / "warm.db", users=100, batches=2)
        rows = _embedded(Path(folder) / "ledger.db", users, batches)
        peer = _counted_in_sqlite(Path(folder) / "peer.db", users, 20 if smoke else 200)
        rows[0] |= {"peer": "one SELECT count(*) a cap in SQLite", "ratio": rows[0]["value"] / peer}
        rows += _claims_beside_commits(Path(folder) / "claims.db", 0.2 if smoke else 5.0)
    from bench import reserve_redis

    return rows + reserve_redis.rows(smoke)


def requests(users: int, batches: int, size: int = BATCH) -> Iterator[list[ReserveRequest]]:
    """Requests in log order: users at random, time passing so that a cap is met now and then."""
    rng = np.random.default_rng(1)
    for batch in range(batches):
        now_ms = START_MS + batch * 20
        chosen = rng.integers(0, users, size).tolist()
        noise = rng.integers(0, 1 << 62, size).tolist()
        yield [
            ReserveRequest(
                f"user-{user:07d}",
                f"user-{user:07d}",
                now_ms,
                (
                    Option(
                        f"{now_ms:012x}{noise[k]:020x}",
                        "national/film-voucher",
                        "sms",
                        "entertainment",
                        "wanda",
                        (
                            Rule(Scope.ALL, now_ms - 24 * HOUR_MS, 3, "cap:all"),
                            Rule(Scope.SCENARIO, now_ms - 168 * HOUR_MS, 2, "cap:scenario"),
                            Rule(Scope.CHANNEL, now_ms - 24 * HOUR_MS, 2, "cap:channel"),
                            Rule(Scope.ALL, now_ms - HOUR_MS, 1, "min_gap"),
                        ),
                    ),
                ),
            )
            for k, user in enumerate(chosen)
        ]


def _embedded(path: Path, users: int, batches: int) -> list[dict[str, Any]]:
    ledger = EmbeddedLedger(path)
    spent_s = reserve_s = 0.0
    granted = 0
    for position, batch in enumerate(requests(users, batches)):
        started = time.perf_counter()
        answers = ledger.reserve(batch)
        reserved = time.perf_counter()
        ledger.commit(position, batch[-1].now_ms)
        spent_s += time.perf_counter() - started
        reserve_s += reserved - started
        granted += sum(answer.granted == 0 for answer in answers)
    subjects = len({row for (row,) in _read(path, "SELECT subject FROM reservations_read")})
    assert granted == ledger.caps.count, "every grant is counted once"
    count = batches * BATCH
    state_bytes = ledger.caps.nbytes
    ledger.close()
    return [
        {"name": "reserve.embedded.per_s", "value": count / spent_s, "unit": "reservations/s"},
        {"name": "reserve.embedded.decided_us", "value": 1e6 * reserve_s / count, "unit": "us a reservation"},
        {"name": "reserve.embedded.committed_us", "value": 1e6 * (spent_s - reserve_s) / count, "unit": "us"},
        {"name": "reserve.embedded.bytes_per_subject", "value": state_bytes / subjects, "unit": "bytes"},
        {"name": "reserve.embedded.granted", "value": granted, "unit": f"of {count}"},
    ]


def _read(path: Path, query: str) -> list[tuple[Any, ...]]:
    connection = sqlite3.connect(path)
    try:
        return connection.execute(query).fetchall()
    finally:
        connection.close()


def _counted_in_sqlite(path: Path, users: int, batches: int) -> float:
    """What check-by-query costs: the same questions to a table with an index by subject and time."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = NORMAL")
    connection.execute("CREATE TABLE grants (subject TEXT, at_ms INTEGER, scenario TEXT, channel TEXT)")
    connection.execute("CREATE INDEX by_subject ON grants (subject, at_ms)")
    clause = {Scope.ALL: "", Scope.SCENARIO: " AND scenario = ?", Scope.CHANNEL: " AND channel = ?"}
    spent_s = 0.0
    for batch in requests(users, batches):
        started = time.perf_counter()
        connection.execute("BEGIN IMMEDIATE")
        for request in batch:
            option = request.options[0]
            named = {Scope.ALL: (), Scope.SCENARIO: (option.scenario,), Scope.CHANNEL: (option.channel,)}
            for rule in option.rules:
                query = f"SELECT count(*) FROM grants WHERE subject = ? AND at_ms > ?{clause[rule.scope]}"
                values = (request.subject, rule.since_ms, *named[rule.scope])
                if connection.execute(query, values).fetchone()[0] >= rule.most:
                    break
            else:
                row = (request.subject, request.now_ms, option.scenario, option.channel)
                connection.execute("INSERT INTO grants VALUES (?,?,?,?)", row)
        connection.execute("COMMIT")
        spent_s += time.perf_counter() - started
    connection.close()
    return batches * BATCH / spent_s


def _claims_beside_commits(path: Path, for_s: float) -> list[dict[str, Any]]:
    """How long a claim takes while the engine commits 2,000 times a second, one offer in each twentieth commit."""
    ledger = EmbeddedLedger(path, assumed_consent=frozenset({"marketing.sms"}))
    stop = threading.Event()
    commit_us: list[float] = []

    def commit() -> None:
        begin, number = time.perf_counter(), 0
        while not stop.is_set():
            due = begin + number / 2000
            pause_s = due - time.perf_counter()
            if pause_s > 0:
                time.sleep(pause_s)
            offers = []
            if number % 20 == 0:
                key = f"{START_MS + number:012x}{number:020x}"
                offers = [Offer(key, "a/s", f"u{number}", "sms", "text", "b", "marketing", 1 << 50, START_MS)]
            started = time.perf_counter()
            ledger.commit(number, START_MS + number, offers=offers)
            commit_us.append(1e6 * (time.perf_counter() - started))
            if number % 2000 == 1999:
                ledger.tidy()
            number += 1

    thread = threading.Thread(target=commit)
    thread.start()
    claim_us = []
    end = time.perf_counter() + for_s
    while time.perf_counter() < end:
        for offer in ledger.outbox(100):
            started = time.perf_counter()
            ledger.claim([(offer.offer_id, offer.offer_id + "/sms/1")], START_MS)
            claim_us.append(1e6 * (time.perf_counter() - started))
        time.sleep(0.002)
    stop.set()
    thread.join()
    ledger.close()
    return [
        {"name": "reserve.claim_beside_commits.p50_us", "value": float(np.percentile(claim_us, 50)), "unit": "us"},
        {"name": "reserve.claim_beside_commits.p99_us", "value": float(np.percentile(claim_us, 99)), "unit": "us"},
        {"name": "reserve.commit_2000_per_s.p99_us", "value": float(np.percentile(commit_us, 99)), "unit": "us"},
    ]
