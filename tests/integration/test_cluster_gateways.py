"""`opportune dispatch` serves an operator's gateway: SGIP by SMSGate, receipts, opt-out, callbacks (G3, A3, F24)."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import orjson
import pytest

from engine.clock import wall_ms
from engine.ledger.redis.receipts import RedisReceipts
from engine.model import DispatchState
from tests.cluster import Cluster, browse, write_content
from tests.peers.programs import free_port
from tests.peers.receiver import signed
from tests.peers.smsgate import LOGIN, PASSWORD, SmsGate, classpath

pytestmark = pytest.mark.integration
USERS = 20


@pytest.fixture
def peer(tmp_path: Path) -> Iterator[SmsGate]:
    one = SmsGate(classpath(), "sgip", free_port(), tmp_path)
    yield one
    one.kill()
    one.handsets.check()


@pytest.fixture
def cluster(tmp_path: Path, kafka_address: str, redis_url: str, peer: SmsGate) -> Iterator[Cluster]:
    one = Cluster(tmp_path, kafka_address, redis_url)
    for name in [name for name in one.environment if name.startswith("OPPORTUNE_GATEWAYS__SMS__")]:
        one.environment["OPPORTUNE_GATEWAYS__APP__" + name.rpartition("__")[2]] = one.environment.pop(name)
    unicom = {
        "KIND": "sgip",
        "CHANNEL": "sms",
        "HOST": "127.0.0.1",
        "PORT": str(peer.port),
        "LOGIN": LOGIN,
        "PASSWORD": PASSWORD,
        "NODE": "3010012345",
        "CORPORATION": "12345",
        "SENDER": "10655000",
        "LISTEN_HOST": "127.0.0.1",
        "LISTEN_PORT": str(free_port()),
        "ANSWER_TIMEOUT_S": "3",
    }
    one.environment |= {f"OPPORTUNE_GATEWAYS__UNICOM__{name}": value for name, value in unicom.items()}
    one.give_addresses(USERS)
    one.run("content", "push", str(write_content(tmp_path / "content")))
    yield one
    one.close()


def dispatched(cluster: Cluster, redis_url: str) -> dict[str, str]:
    """The newest state of each user's dispatches, as the shards have it."""
    receipts = RedisReceipts(redis_url, cluster.partitions)
    offers = [orjson.loads(value) for value in cluster.values("offers")]
    found = receipts._find(one["offer_id"] for one in offers)
    receipts.close()
    return {key: one.dispatches[-1][1] for key, one in found.items() if one.dispatches}


def until(holds: Callable[[], bool], within_s: float = 30.0) -> None:
    end_s = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < end_s, "it did not happen in time"
        time.sleep(0.1)


def test_an_operators_gateway_gets_each_message_once_and_its_receipts_and_opt_outs_come_back(
    cluster: Cluster, peer: SmsGate, redis_url: str
) -> None:
    worker, dispatch = cluster.start("worker"), cluster.start("dispatch")
    worker.wait_ready()
    dispatch.wait_ready()
    peer.tell("report DELIVRD")
    peer.tell(f"back 127.0.0.1 {cluster.environment['OPPORTUNE_GATEWAYS__UNICOM__LISTEN_PORT']} {LOGIN} {PASSWORD}")
    until(lambda: not peer.message("8613800000003", "退订") and any(map(is_opt_out, cluster.values("events"))))
    time.sleep(1.0)  # as long as an opt-out may take (A3)
    cluster.produce([f"user-{user}" for user in range(USERS)], [browse(user, user, wall_ms()) for user in range(USERS)])
    until(lambda: Counter(dispatched(cluster, redis_url).values()) == {DispatchState.DELIVERED.value: USERS - 1})
    dispatch.stop()
    worker.stop()
    got = {str(key[0]).removeprefix("86") for key in peer.handsets.seen}  # type: ignore[index]
    assert got == {f"1380000{user:04d}" for user in range(USERS) if user != 3}
    events = [orjson.loads(value) for value in cluster.values("events") if b'"receipt"' in value]
    assert {one["state"] for one in events} == {"delivered"}
    assert {one["user"] for one in events} == {f"user-{user}" for user in range(USERS) if user != 3}


def is_opt_out(value: bytes) -> bool:
    return b"inbound-message" in value


def test_callbacks_of_a_cluster_are_taken_by_its_dispatcher_signed_only(cluster: Cluster) -> None:
    dispatch = cluster.start("dispatch")
    dispatch.wait_ready()
    told = {"type": "inbound-message", "data": {"from": "13800000005", "text": "查询"}}
    forged = signed(told, "m1")
    forged["headers"]["webhook-signature"] = "v1,AAAA"
    with httpx.Client(base_url=dispatch.url, trust_env=False) as client:
        assert client.post("/v1/callbacks/app", **forged).status_code == 401
        assert client.post("/v1/callbacks/nobody", **signed(told, "m2")).status_code == 401
        answer = client.post("/v1/callbacks/app", **signed(told, "m3"))
        assert (answer.status_code, answer.json()) == (200, {"accepted": 1})
    dispatch.stop()
    assert not any(b"inbound" in value for value in cluster.values("events")), "a number of sms is nobody's on app"
