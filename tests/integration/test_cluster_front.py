"""The HTTP front of a cluster, control within its bars, a deployment that is re-keyed; real processes (L10, D8, A2)."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import redis

from engine.clock import wall_ms
from engine.deliver.addressbook import open_address_book
from engine.runtime.cluster.routing import partition_of
from engine.settings import Settings
from tests.cluster import ROOT, SCENARIO, Cluster, browse, write_content

pytestmark = pytest.mark.integration


class Front:
    """`opportune serve --cluster` as a process."""

    def __init__(self, cluster: Cluster) -> None:
        self._log = (cluster.folder / "serve.log").open("ab")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.cli", "serve", "--cluster", "--port", "0"],
            cwd=ROOT,
            env=cluster.environment,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert "events go to kafka" in line, (cluster.folder / "serve.log").read_text()[-2000:]
        self.url = line.split()[3].rstrip(",")

    def post(self, path: str, body: Any) -> httpx.Response:
        content = body if isinstance(body, bytes) else orjson.dumps(body)
        return httpx.post(f"{self.url}{path}", content=content, trust_env=False, timeout=20.0)

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", trust_env=False, timeout=20.0)

    def stop(self) -> None:
        self.process.terminate()
        assert self.process.wait(timeout=20) == 0
        assert self.process.stdout is not None
        self.process.stdout.close()
        self._log.close()


def wait_until(done: Callable[[], bool], what: str, timeout_s: float = 60.0) -> float:
    started_s = time.monotonic()
    while not done():
        assert time.monotonic() - started_s < timeout_s, what
        time.sleep(0.02)
    return time.monotonic() - started_s


def test_events_by_http_reach_the_gateway_and_control_is_quick(
    tmp_path: Path, kafka_address: str, redis_url: str
) -> None:
    """A2, L10 within 10 s, D8 within one: through `opportune serve --cluster`, worker and dispatcher."""
    old = Cluster(tmp_path, kafka_address, redis_url)
    _day_before(old, is_short=False)
    old.close()


@pytest.mark.long
def test_a_rekeyed_deployment_goes_on_where_the_old_one_ended(
    tmp_path: Path, kafka_address: str, redis_url: str
) -> None:
    """Caps, consents and what was sent go along; nothing is decided or handed over again."""
    old = Cluster(tmp_path, kafka_address, redis_url)
    _day_before(old, is_short=True)
    before = dict(old.receiver.got)
    new = _rekeyed(old, tmp_path, redis_url)
    worker, dispatch = new.start("worker"), new.start("dispatch")
    worker.wait_ready()
    dispatch.wait_ready()
    # user-0 is `alpha` now and had its two; user-5 said no; user-6 had none of its two yet but does not want any.
    users = ["alpha", "user-5", "user-6", "user-1", "user-20"]
    for round_ in range(3):
        new.produce(users, [_browse(user, 9000 + 10 * round_ + n) for n, user in enumerate(users)])
        time.sleep(0.3)
    wait_until(lambda: sum(new.receiver.got.values()) >= 2, "the new user's two messages")
    time.sleep(2)
    worker.stop()
    dispatch.stop()
    told = [orjson.loads(value) for value in new.values("decisions")]
    granted = [one for one in told if one["outcome"] == "offer"]
    assert {one["user"] for one in granted} == {"user-20"}
    assert len(new.receiver.got) == 2
    assert not set(new.receiver.got) & set(before), "nothing is handed over again"
    reasons = {(one["user"], one["reason"]) for one in told if one["outcome"] == "refused"}
    assert {("user-5", "opted_out"), ("user-6", "dnd")} <= reasons, reasons
    assert any(user == "alpha" and reason.startswith("cap:") for user, reason in reasons), reasons
    assert dict(old.receiver.got) == before
    old.close()
    new.close()


def _day_before(old: Cluster, *, is_short: bool) -> None:
    """Start everything, let nine users have their say, and stop it again."""
    old.give_addresses(30)
    content = write_content(old.folder / "content")
    old.run("content", "push", str(content))
    worker, dispatch = old.start("worker"), old.start("dispatch")
    front = Front(old)
    try:
        worker.wait_ready()
        dispatch.wait_ready()
        _events_reach_the_gateway(front, old)
        if not is_short:
            _what_only_workers_know_is_refused(front)
            _pause_holds_within_a_second(front, old)
            _content_is_live_within_ten_seconds(front, old, content)
    finally:
        front.stop()
    worker.stop()
    dispatch.stop()


def _browse(user: str, number: int) -> bytes:
    return browse(0, number, wall_ms()).replace(b'"user-0"', f'"{user}"'.encode())


def _events_reach_the_gateway(front: Front, cluster: Cluster) -> None:
    """One body of many users goes to the partitions of each; what a consent or a profile said before counts."""
    said = [
        {"type": "consent", "user": "user-5", "at": wall_ms(), "purpose": "marketing.sms", "granted": False},
        {"type": "profile", "user": "user-6", "at": wall_ms(), "dnd": True},
    ]
    assert front.post("/v1/events", said).status_code == 202
    lines = b"\n".join(_browse(f"user-{user}", user) for user in range(8))
    answer = front.post("/v1/events", lines)
    assert (answer.status_code, answer.json()["accepted"]) == (202, 8)
    data = orjson.loads(_browse("user-8", 8))
    front.post("/v1/events", {"specversion": "1.0", "id": "c1", "source": "/s", "type": "x.usage", "data": data})
    wait_until(lambda: len(cluster.receiver.got) >= 7, "seven of nine users want messages")
    front.post("/v1/events", b"\n".join(_browse(f"user-{user}", 100 + user) for user in range(8)))
    wait_until(lambda: len(cluster.receiver.got) >= 13, "a second message for six")
    for partition, records in cluster.records("events").items():
        for record in records:
            assert record.key is None or partition_of(record.key.decode(), cluster.partitions) == partition


def _what_only_workers_know_is_refused(front: Front) -> None:
    for path in ("/v1/occupancy", "/v1/explain?user=user-1"):
        answer = front.get(path)
        assert (answer.status_code, answer.json()["error"]) == (501, "not_in_a_cluster"), answer.text
    assert front.get("/readyz").status_code == 200
    assert "opportune_intake_events" in front.get("/metrics").text


def _pause_holds_within_a_second(front: Front, cluster: Cluster) -> None:
    """D8, F25: once the call is answered no claim passes; the call itself takes less than the second there is."""
    started_s = time.monotonic()
    assert front.post("/v1/pause", {"scenario": "national/shopping", "paused": True}).status_code == 200
    paused_s = time.monotonic() - started_s
    count = len(cluster.receiver.got)
    front.post("/v1/events", b"\n".join(_browse(f"user-{user}", 200 + user) for user in range(10, 14)))
    time.sleep(1.5)
    assert len(cluster.receiver.got) == count
    assert paused_s <= 1.0, f"the pause took {paused_s:.2f} s"
    front.post("/v1/pause", {"scenario": "national/shopping", "paused": False})


def _content_is_live_within_ten_seconds(front: Front, cluster: Cluster, content: Path) -> None:
    """L10: from the end of the push until a message has the new text."""
    path = content / "scenarios" / "national" / "shopping.yaml"
    path.write_text(SCENARIO.replace("您正在网购", "新文案来了"))
    cluster.run("content", "push", str(content))
    numbers = iter(range(300, 1000))

    def is_new() -> bool:
        number = next(numbers)
        front.post("/v1/events", _browse(f"user-{14 + number % 6}", number))
        return any("新文案来了" in str(body) for body in cluster.receiver.bodies)

    took_s = wait_until(is_new, "the new text", 10.0)
    assert took_s <= 10.0


def _rekeyed(old: Cluster, folder: Path, redis_url: str) -> Cluster:
    """Two partitions become three, and user-0 becomes alpha."""
    users = folder / "users.csv"
    users.write_text("user-0,alpha\n")
    target = redis_url.rsplit("/", 1)[0] + "/1"
    client = redis.Redis.from_url(target)
    client.flushdb()
    client.close()
    checkpoints = folder / "rekeyed"
    prefix = f"{old.prefix}rekeyed."
    arguments = ["rekey", "--partitions", "3", "--prefix", prefix, "--redis", target, "--checkpoints", str(checkpoints)]
    told = old.run(*arguments, "--users", str(users))
    assert "start the new deployment with" in told
    assert "holds keys of this tenant already" in old.run(*arguments, status=2), "a target must be empty"
    new = Cluster(folder, old.kafka, target, partitions=3)
    new.prefix = prefix
    new.environment |= {"OPPORTUNE_CLUSTER__PREFIX": prefix, "OPPORTUNE_CLUSTER__CHECKPOINTS": str(checkpoints)}
    book = open_address_book(Settings(state=folder / "state"))
    book.put([("alpha", "sms", "13800009999")])
    book.close()
    assert len(new.values("events")) > 20
    return new


def test_a_front_that_reaches_nothing_says_what_to_do(tmp_path: Path) -> None:
    one = Cluster(tmp_path, "127.0.0.1:1", "redis://127.0.0.1:1/0")
    told = one.run("serve", "--cluster", status=2)
    assert "kafka at 127.0.0.1:1 cannot be reached" in told
    assert "OPPORTUNE_CLUSTER__KAFKA=host:port" in told
    assert "Traceback" not in told
    one.close()
