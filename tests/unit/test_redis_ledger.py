"""The ledger in Redis against the embedded one, and against a Redis that fails (C2-C4, D7; FAULTS F6-F10)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from engine.errors import SettingsError, StoreCorrupt, StoreFenced, StoreUnavailable
from engine.ledger.embedded import EmbeddedLedger
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.log import MemoryLog
from engine.ledger.redis.shard import Authority
from engine.model import Offer, Option, ReserveRequest, Rule, Scope, StockLine, Take
from tests.servers import RedisServer
from tests.toxic import LostReplies

HOUR_MS = 3_600_000
T0 = 1_700_000_000_000


def offer_id(number: int, at_ms: int = T0) -> str:
    return f"{at_ms:012x}{number:020x}"


def ask(number: int, user: str = "u1", most: int = 1, now_ms: int = T0, **fields) -> ReserveRequest:
    rule = Rule(Scope.ALL, now_ms - 24 * HOUR_MS, most, "cap:all")
    option = Option(offer_id(number), "a/s", "sms", "video", "p", (rule,), **fields)
    return ReserveRequest(user, user, now_ms, (option,))


def offer(number: int, user: str = "u1") -> Offer:
    return Offer(offer_id(number), "a/s", user, "sms", "你好", "b", "marketing", T0 + HOUR_MS, T0)


@pytest.fixture
def own_redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()


def random_requests(rng: random.Random, count: int, scopes: list[Scope]) -> list[ReserveRequest]:
    requests = []
    now_ms = T0
    for _ in range(count):
        now_ms += rng.choice([0, 0, 1, 1000, 60_000, HOUR_MS])
        options = []
        who = rng.randrange(6)
        for _ in range(rng.randint(1, 3)):
            number = 10 * rng.randrange(1_000_000 if rng.random() < 0.9 else 5) + who  # an id holds the user (D4)
            rules = tuple(
                Rule(
                    rng.choice(scopes),
                    rng.choice([0, now_ms - HOUR_MS, now_ms - 24 * HOUR_MS, now_ms - 60_000]),
                    rng.randint(1, 4),
                    f"cap:{rng.randrange(9)}",
                    rng.random() < 0.2,
                )
                for _ in range(rng.randint(0, 4))
            )
            options.append(
                Option(
                    offer_id(number),
                    f"a/s{rng.randrange(3)}",
                    rng.choice(["sms", "push"]),
                    rng.choice(["video", "film"]),
                    rng.choice(["p", "q"]),
                    rules,
                    rng.random() < 0.9,
                    rng.random() < 0.1,
                    False,
                    rng.choice([None, None, f"C{number}"]),
                )
            )
        if rng.random() < 0.1:
            options = [
                Option(o.offer_id, o.scenario, o.channel, o.category, o.partner, o.rules, o.counts, o.withheld, True)
                for o in options
            ]
        user = f"u{who}"
        subject = user if who < 4 else "person"
        requests.append(ReserveRequest(subject, user, now_ms, tuple(options)))
    return requests


@pytest.mark.parametrize("seed", range(8))
def test_redis_answers_as_the_embedded_ledger_does_and_a_replay_as_the_first_time(redis_url, tmp_path, seed):
    """C1-C3, T3: every kind of cap, releases between, batches cut at random; then all of it again.

    A limit over the deployment looks at all shards, so a replay sees more of it: seeds with it are not replayed.
    """
    rng = random.Random(seed)
    has_deployment = seed % 2 == 0
    requests = random_requests(rng, 300, [scope for scope in Scope if has_deployment or scope != Scope.DEPLOYMENT])
    embedded, ledger = EmbeddedLedger(tmp_path / "ledger.db"), RedisLedger(redis_url)
    start = ledger.objects()
    acts: list[tuple[list[ReserveRequest], str | None]] = []
    answers = []
    at = 0
    while at < len(requests):
        size = rng.choice([1, 3, 17])
        batch, at = requests[at : at + size], at + size
        expected = embedded.reserve(batch)
        assert ledger.reserve(batch) == expected
        answers.append(expected)
        granted = [one.options[a.granted].offer_id for one, a in zip(batch, expected, strict=True) if a.granted >= 0]
        released = rng.choice(granted) if granted and rng.random() < 0.3 else None
        if released:
            embedded.release(released)
            ledger.release(released)
        acts.append((batch, released))
        position = len(acts)
        embedded.commit(position, batch[-1].now_ms)
        ledger.commit(position, batch[-1].now_ms)
    ledger.close()
    if has_deployment:
        embedded.close()
        return
    again = RedisLedger(redis_url)
    again.restore({}, start)
    for number, ((batch, released), expected) in enumerate(zip(acts, answers, strict=True)):
        assert again.reserve(batch) == expected, f"batch {number}"
        if released:
            again.release(released)
        again.commit(number + 1, batch[-1].now_ms)
    again.close()
    embedded.close()


def test_a_lost_reply_spends_nothing_twice_and_changes_no_answer(redis_url):
    """F7: one reply in five is swallowed; quota is spent exactly once per offer id."""
    with LostReplies(redis_url, every=5) as proxy:
        ledger = RedisLedger(proxy.url, timeout_s=0.2, patience_s=10)
        for number in range(60):
            request = ask(number, f"u{number % 10}", most=3)
            (answer,) = ledger.reserve([request])
            assert (answer.granted, answer.duplicate) == ((0, False) if number < 30 else (-1, False)), number
            offers = [offer(number, request.user_id)] if answer.granted == 0 else []
            ledger.commit(number, T0, offers=offers)
        ledger.assumed_consent = frozenset({"marketing.sms"})
        claims = [ledger.claim([(offer_id(number), f"d{number}")], T0)[0] for number in range(40)]
        assert claims == ["claimed"] * 30 + ["unknown_offer"] * 10
        assert ledger.counts()["reservations"] == 30
        assert proxy.lost >= 20
        ledger.close()


def test_without_redis_nothing_is_granted_or_claimed_and_it_goes_on_soon_after(own_redis):
    """F6, C4: fail closed; recovered within 5 s."""
    reservations = MemoryLog()
    ledger = RedisLedger(own_redis.url, patience_s=0.3, timeout_s=0.3, reservations=reservations)
    ledger.reserve([ask(1)])
    ledger.commit(1, T0)
    own_redis.kill()
    with pytest.raises(StoreUnavailable, match="does not answer"):
        ledger.reserve([ask(2)])
    assert ledger.claim([(offer_id(1), "d1")], T0) == ["unavailable"]
    own_redis.start()
    started = time.monotonic()
    assert ledger.reserve([ask(3)])[0].refusals == ("cap:all",)
    assert time.monotonic() - started < 5
    ledger.close()


@pytest.mark.parametrize("how", ["wiped", "restarted empty", "script cache lost"])
def test_a_redis_that_lost_everything_is_rebuilt_before_anything_is_granted(own_redis, how):
    """F10: caps from the log, consents and pauses from the engine's state; what was queued is never sent again."""
    reservations = MemoryLog()
    told = Authority([("u7", "marketing.sms", False)], ["a/paused"])
    ledger = RedisLedger(
        own_redis.url,
        reservations=reservations,
        authority=lambda: told,
        assumed_consent=frozenset({"marketing.sms"}),
        dispatcher=False,
    )
    hand = RedisLedger(own_redis.url, engine=False, assumed_consent=frozenset({"marketing.sms"}))
    for number in range(20):
        ledger.reserve([ask(number, f"u{number}")])
        ledger.commit(number, T0, offers=[offer(number, f"u{number}")])
    ledger.release(offer_id(3))
    ledger.commit(20, T0)
    assert hand.claim([(offer_id(0), "d0")], T0) == ["claimed"]
    client = redis.Redis.from_url(own_redis.url)
    if how == "wiped":
        client.flushall()
    elif how == "script cache lost":
        client.script_flush()
    else:
        own_redis.kill()
        own_redis.start()
    if how != "script cache lost":
        assert hand.claim([(offer_id(1), "d1")], T0) == ["unavailable"]
    answers = ledger.reserve([ask(100 + number, f"u{number}") for number in range(21)])
    assert [answer.granted for answer in answers] == [-1, -1, -1, 0] + [-1] * 16 + [0]
    if how != "script cache lost":
        assert ledger.rebuilds == 1
        assert ledger.paused() == {"a/paused"}
        hand.take_claims()
        ledger.commit(21, T0, offers=[offer(300, "u7"), offer(301, "u8")])
        claims = [(offer_id(0), "d9"), (offer_id(1), "d1"), (offer_id(300), "d300"), (offer_id(301), "d301")]
        assert hand.claim(claims, T0) == ["unknown_offer", "unknown_offer", "no_consent", "claimed"]
    client.close()
    hand.close()
    ledger.close()


def test_a_redis_that_fell_back_gets_what_it_lost_and_trusts_nothing_queued(own_redis, tmp_path):
    """F8: a failover to a replica that knew less; sends per user stay within the limit, no offer goes out twice."""
    reservations = MemoryLog()
    ledger = RedisLedger(own_redis.url, reservations=reservations, assumed_consent=frozenset({"marketing.sms"}))
    ledger.reserve([ask(1, "u1")])
    ledger.commit(1, T0, offers=[offer(1, "u1")])
    client = redis.Redis.from_url(own_redis.url)
    client.save()
    ledger.claim([(offer_id(1), "d1")], T0)
    ledger.reserve([ask(2, "u2")])
    ledger.commit(2, T0, offers=[offer(2, "u2")])
    own_redis.kill()
    own_redis.start()
    answers = ledger.reserve([ask(3, "u1"), ask(4, "u2"), ask(5, "u3")])
    assert [answer.granted for answer in answers] == [-1, -1, 0]
    assert ledger.position() == 2
    assert ledger.outbox(10) == []
    assert ledger.claim([(offer_id(1), "d2"), (offer_id(2), "d3")], T0) == ["already", "unknown_offer"]
    client.close()
    ledger.close()


def test_a_commit_cut_off_between_log_and_redis_is_decided_again_and_its_offers_go_out(redis_url):
    """F1: the log knows it, Redis does not; nothing was handed over."""
    reservations = MemoryLog()
    ledger = RedisLedger(redis_url, reservations=reservations)
    ledger.reserve([ask(1)])
    ledger.commit(1, T0)
    state = ledger.objects()
    (answer,) = ledger.reserve([ask(2, "u2")])
    reservations.append(0, reservations.entries[0][-1].replace(b'"number":1,', b'"number":2,', 1))
    ledger.close()
    again = RedisLedger(redis_url, reservations=reservations)
    again.restore({}, state)
    assert again.reserve([ask(2, "u2")]) == [answer]
    again.commit(2, T0, offers=[offer(2, "u2")])
    assert [one.offer_id for one in again.outbox(9)] == [offer_id(2)]
    assert again.rebuilds == 0
    again.close()


def test_without_a_log_a_wiped_redis_stops_the_shard(own_redis):
    ledger = RedisLedger(own_redis.url)
    ledger.commit(1, T0)
    client = redis.Redis.from_url(own_redis.url)
    client.flushall()
    client.close()
    with pytest.raises(StoreCorrupt, match="no reservations log"):
        ledger.reserve([ask(1)])
    ledger.close()


def test_a_redis_that_may_drop_keys_is_refused(tmp_path):
    """F9, C4."""
    server = RedisServer(tmp_path / "redis", "--maxmemory-policy", "allkeys-lru").start()
    with pytest.raises(SettingsError, match="maxmemory-policy allkeys-lru, which may drop caps: set it to noeviction"):
        RedisLedger(server.url)
    server.kill()


def test_a_full_redis_grants_nothing_until_there_is_room(own_redis):
    """F9: OOM is as if it were down."""
    ledger = RedisLedger(own_redis.url, patience_s=0.2)
    client = redis.Redis.from_url(own_redis.url)
    client.config_set("maxmemory", "1mb")
    with pytest.raises(StoreUnavailable):
        ledger.reserve([ask(1)])
    client.config_set("maxmemory", "0")
    assert ledger.reserve([ask(2, most=2)])[0].granted == 0
    client.close()
    ledger.close()


def test_whoever_had_the_shard_before_is_fenced(redis_url):
    """F4: a zombie worker's late acts change nothing."""
    old = RedisLedger(redis_url)
    old.reserve([ask(1)])
    new = RedisLedger(redis_url)
    for act in (lambda: old.reserve([ask(2, "u2")]), lambda: old.commit(1, T0)):
        with pytest.raises(StoreFenced):
            act()
    assert new.counts()["reservations"] == 0, "what the zombie had not committed was taken back"
    old.close()
    new.close()


def test_persons_are_capped_over_shards(redis_url):
    """A4, C1: two users of one person in two partitions."""
    one, two = RedisLedger(redis_url, 1), RedisLedger(redis_url, 2)
    rule = Rule(Scope.ALL, T0 - HOUR_MS, 1, "cap:all")

    def request(number: int, user: str) -> ReserveRequest:
        return ReserveRequest("person", user, T0, (Option(offer_id(number), "a/s", "sms", "c", "p", (rule,)),))

    assert one.reserve([request(1, "sim1")])[0].granted == 0
    assert two.reserve([request(2, "sim2")])[0].refusals == ("cap:all",)
    one.close()
    two.close()


def test_a_deployment_limit_holds_over_shards_under_concurrency(redis_url):
    """C3, C7: four shards at once, never one too many."""
    ledgers = [RedisLedger(redis_url, shard) for shard in range(4)]
    since_ms = T0 - T0 % HOUR_MS - 1
    granted: list[int] = []

    def work(shard: int) -> None:
        for number in range(50):
            rule = Rule(Scope.DEPLOYMENT, since_ms, 37, "paused")
            user = f"u{shard}-{number}"
            option = Option(offer_id(1000 * shard + number), "a/s", "sms", "c", "p", (rule,))
            granted.extend(a.granted for a in ledgers[shard].reserve([ReserveRequest(user, user, T0, (option,))]))

    threads = [threading.Thread(target=work, args=(shard,)) for shard in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert granted.count(0) == 37
    for ledger in ledgers:
        ledger.close()


def test_an_address_that_nobody_answers_at_is_named():
    with pytest.raises(StoreUnavailable, match=r"redis://127\.0\.0\.1:1 does not answer"):
        RedisLedger("redis://:secret@127.0.0.1:1/0", patience_s=0.1)


def test_what_would_take_of_stock_is_refused(redis_url):
    """O3: fail closed where stock is not kept."""
    ledger = RedisLedger(redis_url)
    request = ask(1)
    take = Take((StockLine("b"),), None, 0)
    taking = Option(offer_id(2), "a/s", "sms", "video", "p", (), take=take)
    both = ReserveRequest("u1", "u1", T0, (taking, request.options[0]))
    (answer,) = ledger.reserve([both])
    assert (answer.granted, answer.refusals) == (1, ("stock",))
    ledger.close()
