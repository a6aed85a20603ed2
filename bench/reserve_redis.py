"""Reservations through the ledger in Redis: one candidate with four caps a request, batches of 512 in one call.

The peer is what everybody writes first: one pipeline of four ZCOUNTs a request, then a pipeline of ZADDs, which is
not even atomic. Both on the same redis-server beside the client, on a free loopback port, without persistence.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import redis

from bench.reserve import requests as make_requests
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.log import MemoryLog


def rows(smoke: bool) -> list[dict[str, Any]]:
    if not os.environ.get("OPPORTUNE_REDIS") and shutil.which("redis-server") is None:
        return []
    users, batches = (2_000, 20) if smoke else (1_000_000, 3_000)
    with _server() as url:
        client = redis.Redis.from_url(url)
        version = client.info("server")["redis_version"]
        peer = _zsets(client, users, 5 if smoke else 60)
        client.flushdb()
        before = client.info("memory")["used_memory"]
        best, granted, spent_s = 0.0, 0, 0.0
        ledger = RedisLedger(url, reservations=MemoryLog())
        rounds: list[float] = []
        for position, requests in enumerate(make_requests(users, batches, 512)):
            started = time.perf_counter()
            answers = ledger.reserve(requests)
            ledger.commit(position, requests[-1].now_ms)
            spent = time.perf_counter() - started
            spent_s += spent
            rounds.append(len(requests) / spent)
            granted += sum(answer.granted == 0 for answer in answers)
        count = sum(1 for _ in range(batches)) * 512
        hundred = max(1, len(rounds) // 10)
        best = max(
            hundred / sum(1 / rate for rate in rounds[at : at + hundred])
            for at in range(0, len(rounds) - hundred + 1, hundred)
        )
        subjects = sum(1 for _ in client.scan_iter("{default}0:u:*", count=10_000))
        state_bytes = client.info("memory")["used_memory"] - before
        ledger.close()
        client.close()
    return [
        {
            "name": "reserve.redis.per_s",
            "value": count / spent_s,
            "unit": f"reservations/s, Redis {version}",
            "peer": "pipelines of ZCOUNT and ZADD",
            "ratio": count / spent_s / peer,
        },
        {"name": "reserve.redis.best_tenth_per_s", "value": best, "unit": "reservations/s"},
        {"name": "reserve.redis.bytes_per_user", "value": state_bytes / subjects, "unit": "bytes"},
        {"name": "reserve.redis.granted", "value": granted, "unit": f"of {count}"},
    ]


def _zsets(client: Any, users: int, batches: int) -> float:
    """Requests a second of the peer."""
    spent_s = 0.0
    for requests in make_requests(users, batches, 512):
        started = time.perf_counter()
        asking = client.pipeline(transaction=False)
        for request in requests:
            option = request.options[0]
            for rule in option.rules:
                asking.zcount(f"{request.subject}:{rule.scope.name}", rule.since_ms + 1, "+inf")
        counts = iter(asking.execute())
        writing = client.pipeline(transaction=False)
        for request in requests:
            option = request.options[0]
            found = [next(counts) for _ in option.rules]
            if all(count < rule.most for count, rule in zip(found, option.rules, strict=True)):
                for scope in {rule.scope.name for rule in option.rules}:
                    writing.zadd(f"{request.subject}:{scope}", {option.offer_id: request.now_ms})
        writing.execute()
        spent_s += time.perf_counter() - started
    return batches * 512 / spent_s


@contextmanager
def _server() -> Iterator[str]:
    """A Redis of our own, or the one that OPPORTUNE_REDIS names (its current database is emptied)."""
    given = os.environ.get("OPPORTUNE_REDIS")
    if given:
        redis.Redis.from_url(given).flushdb()
        yield given
        return
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--save", ""]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            client = redis.Redis(port=port)
            for _ in range(100):
                try:
                    client.ping()
                    break
                except redis.ConnectionError:
                    time.sleep(0.05)
            client.close()
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()
            process.wait()
