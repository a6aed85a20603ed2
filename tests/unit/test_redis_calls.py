"""One `reserve` in several calls: the same answers however they are cut, refused or cut off (C2-C3, T3, F7, F8)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis

from engine.ledger.embedded import EmbeddedLedger
from engine.ledger.redis import ledger as redis_ledger
from engine.ledger.redis.ledger import BATCH, RedisLedger
from engine.ledger.redis.link import _script
from engine.ledger.redis.log import MemoryLog
from engine.model import ReserveRequest, Scope
from tests.toxic import LostReplies
from tests.unit.test_redis_ledger import T0, ask, random_requests


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_url) as client:
        yield client
        client.config_set("min-replicas-to-write", 0)


def before_the_second_call(ledger: RedisLedger, act: Callable[[], object]) -> None:
    """Do this once, after Redis has had the first call and before the second is sent."""
    packed, calls = ledger._packed, []

    def slow(batch):
        calls.append(batch)
        if len(calls) == 2:
            time.sleep(0.05)
            act()
        return packed(batch)

    ledger._packed = slow


def ask_twice(subject: str = "u1") -> list[ReserveRequest]:
    """Requests of several calls; the first and the last are u1's, who may have one."""
    first, last = (ReserveRequest(subject, "u1", T0, ask(number).options) for number in (1, 2))
    return [first, *(ask(10 + number, f"v{number}") for number in range(BATCH)), last]


def granted(ledger: RedisLedger, requests: list[ReserveRequest]) -> tuple[int, int]:
    answers = ledger.reserve(requests)
    return answers[0].granted, answers[-1].granted


def test_a_script_that_another_worker_loads_between_two_calls_grants_no_more_than_caps_allow(redis_url, client):
    """C2: the first call finds no script, the second does, and nobody's grants before it."""
    ledger = RedisLedger(redis_url)
    client.script_flush()
    before_the_second_call(ledger, lambda: client.script_load(_script("reserve")[0]))
    assert granted(ledger, ask_twice()) == (0, -1)
    ledger.close()


def test_a_replica_that_comes_back_between_two_calls_grants_no_more_than_caps_allow(redis_url, client):
    """C2, F8: with min-replicas-to-write, as we advise."""
    ledger = RedisLedger(redis_url)
    ledger.reserve([ask(5, "u5")])
    client.config_set("min-replicas-to-write", 1)
    before_the_second_call(ledger, lambda: client.config_set("min-replicas-to-write", 0))
    assert granted(ledger, ask_twice()) == (0, -1)
    ledger.close()


@pytest.mark.parametrize("is_shared", [False, True], ids=["one call waits for others", "each call does"])
def test_a_shard_made_whole_between_two_calls_of_another_grants_no_more_than_caps_allow(redis_url, client, is_shared):
    """C2, F8: a call that has to wait for other shards is decided before those behind it."""
    log = MemoryLog()
    one, two = (RedisLedger(redis_url, shard, shards=2, reservations=log) for shard in range(2))
    for ledger in (one, two):
        ledger.reserve([ask(700 + ledger.shard, "w")])
        ledger.commit(1, T0)
    client.flushdb()
    one.reserve([ask(800, "w")])
    one.peers = lambda: [two]
    requests = ask_twice("person" if is_shared else "u1")
    requests.insert(1, ReserveRequest("anybody", "u7", T0, ask(3).options))
    before_the_second_call(one, (lambda: two.reserve([ask(801, "x")])) if is_shared else (lambda: None))
    assert granted(one, requests) == (0, -1)
    one.close()
    two.close()


@pytest.mark.parametrize("sizes", [(1, 2), (3, 7), (32, 128)], ids=str)
@pytest.mark.parametrize("loses", [False, True], ids=["every reply comes", "replies are lost"])
def test_answers_and_the_log_are_the_same_however_requests_are_cut_into_calls(
    redis_url, tmp_path: Path, monkeypatch, sizes, loses
):
    """C1-C3, T3, F7: with repeated offers, persons, shadow, and grants given back.

    A limit over the deployment may answer otherwise when it is asked again (docs/decisions/0008).
    """
    monkeypatch.setattr(redis_ledger, "FIRST", sizes[0])
    monkeypatch.setattr(redis_ledger, "BATCH", sizes[1])
    rng = random.Random(sum(sizes))
    requests = random_requests(rng, 300, [scope for scope in Scope if not (loses and scope == Scope.DEPLOYMENT)])
    for row in range(20, 300, 40):
        requests[row] = requests[row - 1]  # the same once more
    log, position = MemoryLog(), 0
    embedded = EmbeddedLedger(tmp_path / "ledger.db")
    with LostReplies(redis_url, every=10 if loses else 1_000_000) as proxy:
        ledger = RedisLedger(proxy.url, reservations=log, timeout_s=0.3, patience_s=20)
        while requests:
            size = rng.choice([1, 60, 140])
            some, requests = requests[:size], requests[size:]
            expected = embedded.reserve(some)
            assert ledger.reserve(some) == expected
            new = [
                request.options[one.granted].offer_id
                for request, one in zip(some, expected, strict=True)
                if one.granted >= 0 and not one.duplicate and not request.options[one.granted].shadow
            ]
            assert [row.offer_id for row in ledger._made] == list(dict.fromkeys(new))
            for offer_id in new[::5]:
                embedded.release(offer_id)
                ledger.release(offer_id)
            position += 1
            embedded.commit(position, some[-1].now_ms)
            ledger.commit(position, some[-1].now_ms)
        assert proxy.lost >= 1 or not loses
        ledger.close()
    embedded.close()
