"""Events topic, worker, Redis, offers topic, dispatcher, webhook, as real processes (F1, F2, F10, F24, F25)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import orjson
import pytest
import redis

from engine.clock import wall_ms
from tests.cluster import Cluster, browse, write_content

pytestmark = pytest.mark.integration
USERS = 40


@pytest.fixture
def cluster(tmp_path: Path, kafka_address: str, redis_url: str) -> Iterator[Cluster]:
    one = Cluster(tmp_path, kafka_address, redis_url)
    one.give_addresses(USERS)
    one.run("content", "push", str(write_content(tmp_path / "content")))
    yield one
    one.close()


def send(cluster: Cluster, first: int, count: int) -> None:
    """Events in turn of the users; each user's third and later ones are over the cap of two."""
    now_ms = wall_ms()
    numbers = range(first, first + count)
    cluster.produce(
        [f"user-{number % USERS}" for number in numbers],
        [browse(number % USERS, number, now_ms - count + number - first) for number in numbers],
    )


def wait_for(cluster: Cluster, messages: int, timeout_s: float = 60.0) -> None:
    end_s = time.monotonic() + timeout_s
    while len(cluster.receiver.got) < messages:
        assert time.monotonic() < end_s, f"{len(cluster.receiver.got)} of {messages} messages"
        time.sleep(0.05)


def audit(cluster: Cluster) -> None:
    """Each offer at most once, no cap exceeded, every event decided once, whatever was repeated."""
    got = cluster.receiver.got
    assert max(got.values()) == 1, "an offer was handed over twice"
    decisions = {}
    for value in cluster.values("decisions"):
        one = orjson.loads(value)
        decisions.setdefault(one["decision_id"], []).append(one)
    for told in decisions.values():
        assert len({(one["outcome"], one["reason"]) for one in told}) == 1, "a repeated decision was another"
    granted = {key: told[0] for key, told in decisions.items() if told[0]["outcome"] == "offer"}
    per_user = Counter(one["user"] for one in granted.values())
    assert set(per_user) == {f"user-{user}" for user in range(USERS)}
    assert set(per_user.values()) == {2}, "the cap of two is met exactly"
    assert {webhook_id.split("/")[0] for webhook_id in got} <= set(granted)


def test_offers_reach_the_gateway_once_and_a_restart_goes_on(cluster: Cluster) -> None:
    worker, dispatch = cluster.start("worker"), cluster.start("dispatch")
    worker.wait_ready()
    dispatch.wait_ready()
    send(cluster, 0, 3 * USERS)
    cluster.produce(["user-0", "user-1"], [b"not json", b'{"type":"usage","user":"user-1"}'])
    wait_for(cluster, 2 * USERS)
    worker.stop()
    dispatch.stop()
    worker = cluster.start("worker")
    worker.wait_ready()
    dispatch = cluster.start("dispatch")
    send(cluster, 3 * USERS, USERS)
    time.sleep(3)
    worker.stop()
    dispatch.stop()
    assert len(cluster.receiver.got) == 2 * USERS
    audit(cluster)
    letters = [orjson.loads(value) for value in cluster.values("dead-letters")]
    assert len(letters) == 2
    assert all(letter["topic"] == f"{cluster.prefix}events" and letter["offset"] >= 0 for letter in letters)
    assert "not json" not in str(letters)


def test_a_killed_worker_loses_and_doubles_nothing(cluster: Cluster) -> None:
    """F1: killed in the middle, three times; replay grants the same, the claim lets each out once."""
    dispatch = cluster.start("dispatch")
    for round_ in range(3):
        worker = cluster.start("worker")
        worker.wait_ready()
        send(cluster, round_ * USERS, USERS)
        time.sleep(0.1 + 0.4 * round_)
        worker.kill()
    worker = cluster.start("worker")
    worker.wait_ready()
    wait_for(cluster, 2 * USERS)
    time.sleep(1)
    worker.stop()
    dispatch.stop()
    audit(cluster)


def test_a_pool_of_codes_gives_each_user_one_of_his_own_across_a_killed_worker(
    tmp_path: Path, kafka_address: str, redis_url: str
) -> None:
    """O3, F1: leased by the worker through the log, drawn in Redis, revealed by the dispatcher alone."""
    one = Cluster(tmp_path, kafka_address, redis_url)
    try:
        one.give_addresses(USERS)
        content = write_content(tmp_path / "content")
        benefits, scenario = content / "scenarios/benefits/national.yaml", content / "scenarios/national/shopping.yaml"
        entry = "- id: shopping-plan-voucher\n"
        assert entry in benefits.read_text()
        benefits.write_text(
            benefits.read_text().replace(entry, f"{entry}    stock: {{per_user: 1, codes: shop-2030}}\n")
        )
        scenario.write_text(scenario.read_text().replace("送给您。", "送给您，券码{code}。"))
        codes = [f"SHOP{number:04d}X" for number in range(400)]
        (tmp_path / "codes.csv").write_text("".join(f"{code}\n" for code in codes))
        one.run("codes", "import", "shop-2030", str(tmp_path / "codes.csv"))
        one.run("content", "push", str(content))
        worker, dispatch = one.start("worker"), one.start("dispatch")
        worker.wait_ready()
        # Nothing is given before both partitions have their lease.
        _until(lambda: _leased(one) >= 2)
        send(one, 0, USERS // 2)
        time.sleep(0.3)
        worker.kill()
        worker = one.start("worker")
        send(one, USERS, USERS // 2)  # the same users for the second time
        send(one, USERS // 2, USERS // 2)
        wait_for(one, USERS)
        worker.stop()
        dispatch.stop()
        assert max(one.receiver.got.values()) == 1
        given = [next(code for code in codes if code in str(body)) for body in one.receiver.bodies]
        assert len(set(given)) == USERS, "a code went to two users"
        told = b"".join(
            value for role in ("offers", "decisions", "reservations", "events") for value in one.values(role)
        )
        assert b"shop-2030#" in told
        assert b"SHOP0" not in told, "a code left codes.db for a topic"
        decisions = {told["decision_id"]: told for told in map(orjson.loads, one.values("decisions"))}
        assert Counter(told["reason"] for told in decisions.values())["stock"] == USERS // 2, "one a user"
    finally:
        one.close()


def _leased(cluster: Cluster) -> int:
    return sum(b'"lease"' in value for value in cluster.values("events"))


def _until(is_so: Callable[[], bool], timeout_s: float = 30.0) -> None:
    end_s = time.monotonic() + timeout_s
    while not is_so():
        assert time.monotonic() < end_s, "it did not come"
        time.sleep(0.1)


def test_redis_wiped_under_load_is_rebuilt_and_no_cap_is_exceeded(cluster: Cluster, redis_url: str) -> None:
    """F10: counters come back from the reservations topic before anything more is granted."""
    worker, dispatch = cluster.start("worker"), cluster.start("dispatch")
    worker.wait_ready()
    send(cluster, 0, 2 * USERS)
    wait_for(cluster, 2 * USERS)
    client = redis.Redis.from_url(redis_url)
    client.flushall()
    send(cluster, 2 * USERS, 2 * USERS)
    time.sleep(4)
    worker.stop()
    dispatch.stop()
    assert len(cluster.receiver.got) == 2 * USERS
    audit(cluster)
    client.close()


def test_a_pause_stops_new_messages_within_a_second(cluster: Cluster) -> None:
    """F25, D8."""
    worker, dispatch = cluster.start("worker"), cluster.start("dispatch")
    worker.wait_ready()
    dispatch.wait_ready()
    send(cluster, 0, USERS)
    wait_for(cluster, USERS)
    assert "paused: national/shopping" in cluster.run("content", "pause", "national/shopping")
    send(cluster, USERS, USERS)
    time.sleep(3)
    assert len(cluster.receiver.got) == USERS
    cluster.run("content", "pause", "national/shopping", "--resume")
    send(cluster, 2 * USERS, USERS)
    wait_for(cluster, 2 * USERS)
    worker.stop()
    dispatch.stop()


@pytest.mark.parametrize("command", ["worker", "dispatch"])
def test_what_cannot_be_reached_is_named_with_what_to_do(tmp_path: Path, command: str) -> None:
    one = Cluster(tmp_path, "127.0.0.1:1", "redis://127.0.0.1:1/0")
    told = one.run(command, status=2)
    assert "kafka at 127.0.0.1:1 cannot be reached" in told
    assert "OPPORTUNE_CLUSTER__KAFKA=host:port" in told
    assert "Traceback" not in told
    one.close()
