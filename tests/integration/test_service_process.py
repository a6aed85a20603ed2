"""The service as a process: events in by HTTP, offers out, pause, stop, and no address anywhere (D8, F24, I2, A12)."""

from __future__ import annotations

import base64
import gzip
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from engine.deliver.addressbook import AddressBook

pytestmark = pytest.mark.integration
ROOT = Path(__file__).resolve().parents[2]
KEY = bytes(range(32))
NOON_MS = 1_795_147_200_000  # 2026-11-20 12:00 in Beijing
STARTS_WITHIN_S = 600


class Served:
    """`opportune serve --clock events` on a free port."""

    def __init__(self, state: Path) -> None:
        self.state = state
        environment = {**os.environ, "OPPORTUNE_ADDRESS_KEY": base64.b64encode(KEY).decode()}
        environment.pop("OPPORTUNE_API_KEY", None)
        code = "from engine.cli import main; main()"
        self.log = state.parent / "serve.log"
        self._before = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-c", code, "serve", "--clock", "events", "--state", str(state), "--port", "0"],
                cwd=ROOT,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.client = httpx.Client(base_url=self._url(), trust_env=False, timeout=30)

    def _url(self) -> str:
        for _ in range(STARTS_WITHIN_S * 10):
            lines = self.log.read_bytes()[self._before :].decode().splitlines()
            for line in reversed(lines):
                if line.startswith("opportune listens on "):
                    return line.removeprefix("opportune listens on ").split(",")[0]
            assert self.process.poll() is None, "\n".join(lines[-20:])
            time.sleep(0.1)
        raise AssertionError("the service did not start")

    def send(self, *events: dict[str, Any], **headers: str) -> int:
        body = b"\n".join(orjson.dumps({"v": 1, **event}) for event in events)
        if headers.get("encoding") == "gzip":
            answer = self.client.post("/v1/events", content=gzip.compress(body), headers={"content-encoding": "gzip"})
        else:
            answer = self.client.post("/v1/events", content=body)
        assert answer.status_code == 202, answer.text
        assert answer.json()["accepted"] == len(events)
        return int(answer.json()["position"])

    def messages(self) -> list[dict[str, Any]]:
        return list(self.client.get("/v1/sandbox/messages").json()["messages"])

    def stop(self) -> int:
        self.client.close()
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(40)


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    book = AddressBook(tmp_path / "state" / "addresses.db", KEY)
    book.put((f"viewer-{n}", channel, f"1205555{n:04d}") for n in range(100) for channel in ("sms", "app"))
    book.close()
    served = Served(tmp_path / "state")
    yield served
    served.client.close()
    if served.process.poll() is None:
        served.process.kill()
        served.process.wait()


def known(user: str) -> list[dict[str, Any]]:
    who = {"user": user, "at": NOON_MS - 60_000}
    purposes = ("location", "usage", "marketing.sms", "marketing.app")
    consents = [{**who, "type": "consent", "purpose": one, "granted": True} for one in purposes]
    return [{**who, "type": "profile", "tags": []}, *consents]


def watching(user: str, at_ms: int, number: int = 0) -> dict[str, Any]:
    """What the shipped scenario national/video-membership waits for."""
    usage = {"type": "usage", "feed": "dpi", "app": "com.qiyi.video", "category": "video", "action": "play"}
    return {**usage, "id": f"{user}-{number}", "user": user, "at": at_ms}


def until(condition: Callable[[], bool], within_s: float = 20.0) -> None:
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        time.sleep(0.02)


def test_events_become_offers_survive_a_restart_and_leak_no_address(served: Served) -> None:
    users = [f"viewer-{n}" for n in range(60)]
    served.send(*(event for user in users for event in known(user)), encoding="gzip")
    served.send(*(watching(user, NOON_MS) for user in users))
    until(lambda: len(served.messages()) >= 40)
    first = served.messages()
    assert all(
        one["text"].startswith("【") and one["text"].endswith("拒收请回复R") for one in first if one["channel"] == "sms"
    )
    assert len({one["offer_id"] for one in first}) == len(first), "each offer once"
    assert served.client.get("/healthz").status_code == 200
    assert served.client.get("/readyz").json()["ok"] is True
    assert "opportune_offers_total" in served.client.get("/metrics").text
    assert served.stop() == 0
    again = Served(served.state)
    again.send(*(watching(user, NOON_MS + 1_000, 1) for user in users))
    again.send(watching("viewer-99", NOON_MS + 2_000), *known("viewer-99"))
    time.sleep(0.5)
    assert again.messages() == [], "caps and re-entry are remembered, nothing is sent again"
    metrics = again.client.get("/metrics").text
    assert again.stop() == 0
    said = again.log.read_bytes() + metrics.encode() + orjson.dumps(first)
    stored = b"".join(path.read_bytes() for path in served.state.rglob("*") if path.is_file())
    assert b"1205555" not in said + stored


def test_d8_pausing_a_scenario_that_does_not_exist_is_refused_with_the_nearest_name(served: Served) -> None:
    answer = served.client.post("/v1/pause", json={"scenario": "national/cinema-arival", "paused": True})
    assert answer.status_code == 404
    assert "did you mean 'national/cinema-arrival'?" in answer.json()["detail"]


def test_after_pause_is_acknowledged_nothing_new_is_sent_until_it_is_resumed(served: Served) -> None:
    users = [f"viewer-{n}" for n in range(30)]
    served.send(*(event for user in users for event in known(user)))
    assert served.client.post("/v1/pause", json={"scenario": "*", "paused": True}).status_code == 200
    served.send(*(watching(user, NOON_MS) for user in users))
    time.sleep(1.0)
    assert served.messages() == []
    assert served.client.post("/v1/pause", json={"scenario": "*", "paused": False}).status_code == 200
    served.send(*(watching(user, NOON_MS + 60_000, 1) for user in users))
    until(lambda: len(served.messages()) >= 15)
    assert served.stop() == 0


def test_the_demo_runs_ends_by_itself_and_sums_up(tmp_path: Path) -> None:
    code = "from engine.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, "run", "--seconds", "12", "--people", "80", "--port", "0"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=STARTS_WITHIN_S,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "80 people (seed 1)" in done.stdout
    assert "0 dead letters" in done.stdout
    assert "accepted" in done.stdout
    assert list(tmp_path.iterdir()) == [], "nothing of the demo stays behind"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_demo_that_is_stopped_takes_its_service_along(tmp_path: Path, number: signal.Signals) -> None:
    code = "from engine.cli import main; main()"
    command = [sys.executable, "-c", code, "run", "--seconds", "60", "--people", "80", "--port", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, env=environment) as demo:
        children = Path(f"/proc/{demo.pid}/task/{demo.pid}/children")
        until(lambda: children.read_text().strip() != "")
        (service,) = map(int, children.read_text().split())
        until(lambda: b"serve" in Path(f"/proc/{service}/cmdline").read_bytes())
        time.sleep(0.3)  # the demo itself is still about to learn that its child has begun
        demo.send_signal(number)
        assert demo.wait(30) == 128 + number
    assert not Path(f"/proc/{service}").exists()
    assert list(tmp_path.iterdir()) == []
