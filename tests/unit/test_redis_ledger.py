"""The ledger in Redis against the embedded one, and against a Redis that fails (C2-C4, D7; FAULTS F6-F10)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import redis

from engine.errors import SettingsError, StoreCorrupt, StoreFenced, StoreUnavailable
from engine.ledger.embedded import EmbeddedLedger
from engine.ledger.redis.deployment import Deployment
from engine.ledger.redis.ledger import RedisLedger
from engine.ledger.redis.log import MemoryLog, read_commits
from engine.ledger.redis.packing import decode
from engine.ledger.redis.rekey import LedgerMove
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


def test_what_was_put_back_and_never_committed_goes_back_when_its_owner_crashes(redis_url):
    """F8 and F1 together: wiped, healed and then cut off; no grant, code or count of the lost batch stays."""
    reservations = MemoryLog()
    ledger = RedisLedger(redis_url, reservations=reservations)
    ledger.lease_codes("p", 0, 3, 1)
    ledger.reserve([ask(1)])
    ledger.commit(1, T0)
    film = Take((StockLine("film", 1200, total=1, per_user=1),), "p", 0)
    everywhere = (Rule(Scope.DEPLOYMENT, T0 - HOUR_MS, 2, "cap:deployment"),)
    lost = ReserveRequest("u2", "u2", T0, (Option(offer_id(2), "a/s", "sms", "video", "p", everywhere, take=film),))
    assert ledger.reserve([lost])[0].code == "p#0"
    client = redis.Redis.from_url(redis_url)
    client.flushdb()
    client.close()
    assert ledger.reserve([ask(3, "u3", take=film)])[0].refusals == ("stock",), "alive, it still counts"
    assert ledger.rebuilds == 1
    ledger.close()
    again = RedisLedger(redis_url, reservations=reservations)
    again.rebuild(1)
    assert again.counts()["reservations"] == 1
    assert again.stock.available("p") == 3
    assert [(one.count, one.fen) for one in again.stock.given().values()] in ([], [(0, 0)])
    assert [(one.granted, one.duplicate, one.code) for one in again.reserve([lost])] == [(0, False, "p#0")]
    again.close()


class Cut(Exception):
    """The process dies here."""


def die_after(ledger: RedisLedger, calls: int) -> None:
    """Let a process die after so many more calls to Redis."""
    left = [calls]

    def dying(call):
        def made(*arguments):
            if left[0] == 0:
                raise Cut
            left[0] -= 1
            return call(*arguments)

        return made

    for name in ("script", "command"):
        setattr(ledger._link, name, dying(getattr(ledger._link, name)))


def stored(client: redis.Redis) -> dict[bytes, object]:
    """All that counts: grants, codes, stock, what users took, what was sent; not who has the shard.

    Which code it was may differ: of what was never committed nobody was told.
    """
    found: dict[bytes, object] = {}
    for key in client.scan_iter():
        name = key.partition(b"}")[2]
        if name in (b"r", b"0:meta", b"0:positions", b"0:outbox") or name.startswith((b"0:f:", b"0:x:")):
            continue
        kind = client.type(key)
        if name.startswith(b"0:v:"):
            found[key] = "a code"
        elif name.startswith(b"0:t:"):
            subject, pool, _, *rest = decode(client.get(key))
            found[key] = subject, pool, rest
        elif kind == b"hash":
            found[key] = {field: value for field, value in client.hgetall(key).items() if value != b"0"}
        else:
            found[key] = client.lrange(key, 0, -1) if kind == b"list" else client.get(key)
    of_shard = found.get(b"{default}0:stock")
    if isinstance(of_shard, dict) and b"k:p" in of_shard:
        leases, expired, free, returned, act = decode(of_shard[b"k:p"])
        of_shard[b"k:p"] = leases, expired, sum(end - first for first, end in free), returned, act
    return {key: value for key, value in found.items() if value}


def put_copy(client: redis.Redis, copy: dict[bytes, bytes]) -> None:
    """Put an older state back, as a failover to a replica does, or a restart from disk: another server."""
    client.flushdb()
    for key, value in copy.items():
        client.restore(key, 0, value)
    if copy:
        client.hset("{default}0:meta", "run", "another")
        client.hset("{default}r", "run", "another")


@pytest.mark.parametrize("loss", ["wiped", "fell back", "fell back into a batch", "restarted with all it had"])
def test_whoever_dies_while_healing_leaves_a_shard_that_the_next_owner_makes_whole(redis_url, loss):
    """F1 inside F8 and F10: cut off after each single call of the healing; then all counts are as without a fault."""
    film = Take((StockLine("film", 1200, total=9, per_user=2),), "p", 0)
    everywhere = (Rule(Scope.DEPLOYMENT, T0 - HOUR_MS, 9, "cap:deployment"),)

    def taking_code(number: int, user: str) -> ReserveRequest:
        return ReserveRequest(
            user, user, T0, (Option(offer_id(number), "a/s", "sms", "video", "p", everywhere, take=film),)
        )

    client = redis.Redis.from_url(redis_url)

    def copy() -> dict[bytes, bytes]:
        return {key: client.dump(key) for key in client.scan_iter()}

    def last_batch(ledger: RedisLedger) -> list[str | None]:
        codes = [one.code for one in ledger.reserve([taking_code(3, "u3"), ask(4, "u4")])]
        ledger.release(offer_id(2))
        return [*codes, *(one.code for one in ledger.reserve([taking_code(5, "u3")]))]

    def run(die_at: int | None) -> tuple[list[str | None], dict[bytes, object], bool]:
        """Return the codes of the last batch, what is stored after it, and whether the owner died."""
        client.flushdb()
        reservations = MemoryLog()
        ledger = RedisLedger(redis_url, reservations=reservations)
        ledger.lease_codes("p", 0, 4, 1)
        ledger.reserve([ask(1)])
        ledger.commit(1, T0)
        copies = {"wiped": {}, "fell back": copy()}
        ledger.reserve([taking_code(2, "u2")])
        copies["fell back into a batch"] = copy()
        ledger.commit(2, T0, offers=[offer(2, "u2")])
        state = ledger.objects()
        codes = last_batch(ledger)
        copies["restarted with all it had"] = copy()
        died = False
        if die_at is not None:
            put_copy(client, copies[loss])
            die_after(ledger, die_at)
            try:
                ledger.recover()
                ledger.reserve([ask(6, "u6")])
            except Cut:
                died = True
            ledger.close()
            ledger = RedisLedger(redis_url, reservations=reservations)
            ledger.restore({}, state)
            ledger.rebuild(2)
            codes = last_batch(ledger)
        ledger.commit(3, T0)
        found = stored(client)
        ledger.close()
        last = read_commits(reservations.read(0, 0), 0)[-1]
        if loss == "restarted with all it had":  # else offers are gone, and with them whose they were
            assert [one.offer_id for one in last.releases] == [offer_id(2)], "the log knows what was given back"
        return codes, found, died

    codes, expected, _ = run(None)
    assert codes == ["p#1", None, "p#0"]
    calls = 0
    while True:
        again, found, died = run(calls)
        given = [one for one in again if one is not None]
        assert [one is None for one in again] == [False, True, False], f"cut off after {calls} calls"
        assert len(set(given)) == 2, f"cut off after {calls} calls: one code twice"
        other = {key: (found.get(key), expected.get(key)) for key in found.keys() | expected.keys()}
        other = {key: pair for key, pair in other.items() if pair[0] != pair[1]}
        assert not other, f"cut off after {calls} calls"
        if not died:
            break
        calls += 1
    assert calls > 4
    client.close()


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


def test_a_deployment_whose_redis_is_not_there_says_what_to_do():
    with pytest.raises(StoreUnavailable) as caught:
        Deployment("redis://:secret@127.0.0.1:1/0", "default", patience_s=0.1)
    assert "start it, or name another with OPPORTUNE_CLUSTER__REDIS=" in str(caught.value)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("entry", range(3))
def test_a_redis_cluster_is_entered_at_any_node_and_followed_when_slots_move(redis_cluster, entry):
    """Three nodes; all keys of a tenant have one slot, so that every act is one act there too."""
    redis_cluster.flush()
    ledger = RedisLedger(
        redis_cluster.nodes[entry].url, shards=2, reservations=MemoryLog(), assumed_consent=frozenset({"marketing.sms"})
    )
    other = RedisLedger(redis_cluster.url, 1, shards=2)
    sims = [ReserveRequest("person", f"sim{number}", T0, ask(10 + number).options) for number in range(2)]
    assert [ledger.reserve(sims[:1])[0].granted, other.reserve(sims[1:])[0].granted] == [0, -1]
    assert [answer.granted for answer in ledger.reserve([taking(2, "u2", total=1), taking(3, "u3", total=1)])] == [
        0,
        -1,
    ]
    ledger.commit(1, T0, offers=[offer(2, "u2")])
    _move_slot(redis_cluster)
    assert ledger.reserve([taking(4, "u4", total=1)])[0].refusals == ("stock",)
    # Another server answers now, which may know less: what was queued is never sent (F8).
    assert ledger.rebuilds == 1
    assert ledger.claim([(offer_id(2), f"{offer_id(2)}/sms/1")], T0) == ["already"]
    ledger.close()
    other.close()


def _move_slot(cluster):
    """The slot of the ledger's keys goes to another node, with what it holds."""
    clients = [node.client() for node in cluster.nodes]
    slot = clients[0].execute_command("CLUSTER", "KEYSLOT", "{default}")
    names = [client.execute_command("CLUSTER", "MYID").decode() for client in clients]
    here = next(row for row, client in enumerate(clients) if client.execute_command("CLUSTER", "COUNTKEYSINSLOT", slot))
    there = (here + 1) % 3
    clients[there].execute_command("CLUSTER", "SETSLOT", slot, "IMPORTING", names[here])
    clients[here].execute_command("CLUSTER", "SETSLOT", slot, "MIGRATING", names[there])
    for key in clients[here].execute_command("CLUSTER", "GETKEYSINSLOT", slot, 10_000):
        clients[here].execute_command("MIGRATE", "127.0.0.1", cluster.nodes[there].port, key, 0, 5000)
    for row in (there, here, 3 - here - there):
        clients[row].execute_command("CLUSTER", "SETSLOT", slot, "NODE", names[there])
    for client in clients:
        client.close()


def taking(number: int, user: str, **limits: int) -> ReserveRequest:
    take = Take((StockLine("film", 1200, **limits),), None, T0 - T0 % (24 * HOUR_MS))
    return ReserveRequest(user, user, T0, (Option(offer_id(number), "a/s", "sms", "video", "p", (), take=take),))


def test_shards_share_stock_and_never_oversell_it(redis_url):
    """O3: four shards at once, one count."""
    ledgers = [RedisLedger(redis_url, shard, shards=4) for shard in range(4)]
    granted: list[int] = []

    def work(shard: int) -> None:
        for number in range(30):
            request = taking(1000 * shard + number, f"u{shard}-{number}", total=37)
            granted.extend(answer.granted for answer in ledgers[shard].reserve([request]))

    threads = [threading.Thread(target=work, args=(shard,)) for shard in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert granted.count(0) == 37
    for ledger in ledgers:
        ledger.close()


def test_after_a_loss_nothing_shared_is_granted_before_every_shard_is_whole(own_redis):
    """F8, F10, O3: what another shard gave counts, whether its owner is there or not."""
    reservations = MemoryLog()
    here, there = (RedisLedger(own_redis.url, shard, shards=2, reservations=reservations) for shard in range(2))
    here.reserve([taking(1, "u1", total=3)])
    here.commit(1, T0)
    there.reserve([taking(2, "u2", total=3), taking(3, "u3", total=3)])
    there.commit(1, T0)
    client = redis.Redis.from_url(own_redis.url)
    client.flushall()
    here.peers = lambda: (here, there)
    assert here.reserve([taking(4, "u4", total=3)])[0].refusals == ("stock",)
    assert (here.rebuilds, there.rebuilds) == (1, 1)
    client.flushall()
    here.peers = tuple  # as in another process, which is gone
    there.close()
    assert here.reserve([taking(5, "u5", total=3)])[0].refusals == ("stock",)
    again = RedisLedger(own_redis.url, 1, shards=2, reservations=reservations)
    again.recover()
    answers = again.reserve([taking(6, "u6", total=3), taking(7, "u7", total=4)])
    assert [answer.granted for answer in answers] == [-1, 0]
    client.close()
    again.close()
    here.close()


def test_shards_of_one_process_make_each_other_whole_at_the_same_time(own_redis):
    """F8, F10, O3: each finds the loss in a thread of its own and asks the others; none waits for ever."""
    reservations = MemoryLog()
    shards = [RedisLedger(own_redis.url, shard, shards=4, reservations=reservations) for shard in range(4)]
    for shard in shards:
        shard.peers = lambda: list(shards)
        shard.reserve([taking(shard.shard, f"u{shard.shard}", total=10)])
        shard.commit(1, T0)
    client = redis.Redis.from_url(own_redis.url)
    for turn in range(1, 6):
        client.flushall()
        begun = threading.Barrier(4)

        def work(shard: RedisLedger, turn: int = turn, begun: threading.Barrier = begun) -> list[int]:
            begun.wait(10)
            request = taking(100 * turn + shard.shard, f"u{turn}-{shard.shard}", total=10)
            granted = [answer.granted for answer in shard.reserve([request])]
            shard.commit(turn + 1, T0)
            return granted

        with ThreadPoolExecutor(4) as threads:
            granted = [one for told in threads.map(work, shards, timeout=30) for one in told]
        assert granted.count(0) == max(0, min(4, 10 - 4 * turn))
    client.close()
    for shard in shards:
        shard.close()


@pytest.mark.parametrize("told_in", ["the commit of its grant", "a later commit", "the batch under way"])
def test_what_arrived_is_kept_though_redis_forgets_it(own_redis, told_in):
    """G1, O3, F8: the reservations log knows it, so a failure that is reported after a loss gives no code away."""
    ledger = RedisLedger(own_redis.url, reservations=MemoryLog())
    ledger.lease_codes("p", 0, 1, 1)
    take = Take((), "p", T0 - T0 % (24 * HOUR_MS))
    first, second = (
        ReserveRequest(user, user, T0, (Option(offer_id(number), "a/s", "sms", "video", "p", (), take=take),))
        for number, user in enumerate(("u1", "u2"), 1)
    )
    assert ledger.reserve([first])[0].code == "p#0"
    if told_in != "the commit of its grant":
        ledger.commit(1, T0)
    ledger.delivered(offer_id(1))
    assert ledger.reserve([second])[0].refusals == ("stock",)
    if told_in != "the batch under way":
        ledger.commit(2, T0)
    client = redis.Redis.from_url(own_redis.url)
    client.flushall()
    client.close()
    ledger.release(offer_id(1))
    assert ledger.reserve([second])[0].refusals == ("stock",)
    assert ledger.rebuilds == 1
    ledger.close()


def test_a_replay_gets_the_code_that_the_first_run_drew_and_what_was_refused_stays_so(redis_url):
    """T3, O3: codes come back in between, answers stay."""
    ledger = RedisLedger(redis_url)
    start = ledger.objects()

    def code(number: int, user: str) -> ReserveRequest:
        option = Option(offer_id(number), "a/s", "sms", "video", "p", (), take=Take((), "pool", 0))
        return ReserveRequest(user, user, T0, (option,))

    requests = [code(number, f"u{number}") for number in range(3)]
    ledger.lease_codes("pool", 5, 2, 1)
    first = ledger.reserve(requests)
    assert [(one.granted, one.code) for one in first] == [(0, "pool#5"), (0, "pool#6"), (-1, None)]
    ledger.commit(1, T0)
    ledger.release(offer_id(0))
    ledger.commit(2, T0)
    assert ledger.stock.available("pool") == 1
    ledger.close()
    again = RedisLedger(redis_url)
    again.restore({}, start)
    again.lease_codes("pool", 5, 2, 1)
    assert again.reserve(requests) == first
    again.commit(1, T0)
    again.release(offer_id(0))
    again.commit(2, T0)
    assert again.stock.available("pool") == 1
    assert again.reserve([code(9, "u9")])[0].code == "pool#5"
    again.close()


def test_a_moved_ledger_counts_as_before_decides_no_history_again_and_can_be_rebuilt(own_redis):
    """`opportune rekey`: two shards become three, u1 becomes x1; caps, stock, codes and what is queued go along."""
    target = own_redis.url.replace("/0", "/1")
    one, two = (RedisLedger(own_redis.url, shard, shards=2) for shard in range(2))
    code = Take((StockLine("film", 1200, total=2, per_user=1),), "p", 0)
    one.lease_codes("p", 0, 3, 1)
    assert one.reserve([ask(1, take=code)])[0].code == "p#0"
    assert two.reserve([ask(2, "u2")])[0].granted == 0
    one.commit(5, T0, offers=[offer(1)])
    two.commit(6, T0, offers=[offer(2, "u2")])
    one.close()
    two.close()
    log = MemoryLog()
    move = LedgerMove(own_redis.url, target, "default", 3, lambda user: {"x1": 2, "u2": 1}.get(user, 0), {"u1": "x1"})
    assert move.run({1: 10, 2: 20}, log, lambda done, of: None) == 2
    move.close()
    assumed = frozenset({"marketing.sms"})
    moved = [RedisLedger(target, shard, shards=3, reservations=log, assumed_consent=assumed) for shard in range(3)]
    assert [ledger.history_end for ledger in moved] == [-1, 10, 20]
    assert [[offer.user_id for offer in ledger.outbox(9)] for ledger in moved] == [[], ["u2"], ["x1"]]
    for ledger in moved:
        ledger.rebuild(-1)
    again, never = moved[2].reserve([ask(1, "x1"), ask(7, "x1", 9)])
    assert (again.duplicate, again.code) == (True, "p#0")
    assert never.refusals == ("duplicate",), "what was decided before is not decided again"
    for ledger in moved:
        ledger.end_history()

    def now(number: int) -> list[int]:
        film = Take((StockLine("film", 1200, total=2),), None, 0)
        asked = [(2, ask(number, "x1")), (1, ask(number + 1, "u2")), (1, ask(number + 2, f"new{number}", take=film))]
        return [moved[shard].reserve([request])[0].granted for shard, request in asked]

    assert now(20) == [-1, -1, 0]
    assert now(30) == [-1, -1, -1], "two films there were"
    moved[1].commit(30, T0)
    moved[2].commit(31, T0)
    assert moved[2].claim([(offer_id(1), f"{offer_id(1)}/sms/1")], T0) == ["claimed"]
    client = redis.Redis.from_url(target)
    client.flushdb()
    client.close()
    moved[1].peers = lambda: moved
    assert now(40) == [-1, -1, -1]
    assert moved[0].stock.available("p") == 2
    for ledger in moved:
        ledger.close()
