"""A running service: content changes, pause, opt-out and shutdown take hold in time (L10, D8, A3; FAULTS F24-F26)."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from engine.deliver.addressbook import open_address_book
from engine.settings import Settings

ROOT = Path(__file__).resolve().parents[2]
POLICY = """
time_zone: Asia/Shanghai
caps: [{at_most: 50, rolling: 24 h}]
quiet_hours: {from: "03:00", to: "03:00"}
assumed_consent: [location, usage, marketing.sms]
signature: 测试
opt_out_text: 拒收请回复R
"""
SCENARIO = """
id: national/shop
name: 购物
mode: live
goal: touchpoints
trigger:
  usage: {category: ecommerce, action: open}
offer:
  benefit: {id: voucher, name: 代金券, class: living, partner: shop}
  channels: [sms]
  text: 您好，TEXT
reentry: every
"""
FENCES = """{"type":"FeatureCollection","features":[{"type":"Feature",
"geometry":{"type":"Point","coordinates":[116.4,39.9]},"properties":{"id":"national/mall","name":"商场","kind":"mall","radius_m":100,"time_zone":"Asia/Shanghai"}}]}"""


class Live:
    """`opportune serve` over content of its own in a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for name in ("geofences", "scenarios"):
            (folder / name).mkdir(exist_ok=True)
        (folder / "geofences" / "places.geojson").write_text(FENCES)
        (folder / "scenarios" / "policy.yaml").write_text(self.policy())
        self.write_scenario("第一版")
        state = folder / "state"
        state.mkdir(exist_ok=True)
        book = open_address_book(Settings(state=state))
        book.put((f"u{number}", "sms", f"1390000{number:04d}") for number in range(2000))
        book.close()
        self.log = (folder / "log").open("wb")
        self.process = subprocess.Popen(
            [sys.executable, "-m", "engine.cli", "serve", "--port", "0", "--state", str(state)]
            + ["--geofences", str(folder / "geofences"), "--scenarios", str(folder / "scenarios")],
            cwd=ROOT,
            env=dict(os.environ),
            stdout=subprocess.PIPE,
            stderr=self.log,
            text=True,
        )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://\S+?:\d+", line)
        assert found, f"{line!r}\n{(folder / 'log').read_text()[-2000:]}"
        self.client = httpx.Client(base_url=found[0], trust_env=False, timeout=10)
        self.users = iter(range(2000))

    @staticmethod
    def policy() -> str:
        # A window of no length is refused by the checker; one minute of the night is as good as none.
        return POLICY.replace('{from: "03:00", to: "03:00"}', '{from: "03:00", to: "03:01"}')

    def write_scenario(self, text: str) -> None:
        (self.folder / "scenarios" / "shop.yaml").write_text(SCENARIO.replace("TEXT", text))

    def open_shop(self, user: str | None = None) -> str:
        """Let a user open a shopping app; return who."""
        name = user or f"u{next(self.users)}"
        event = {"type": "usage", "feed": "dpi", "user": name, "app": "shop", "category": "ecommerce", "action": "open"}
        self.post({**event, "id": f"{name}-{time.time_ns()}", "at": time.time_ns() // 1_000_000})
        return name

    def post(self, event: dict[str, Any]) -> None:
        answer = self.client.post("/v1/events", json=event)
        assert answer.status_code == 202, answer.text

    def messages(self) -> list[dict[str, Any]]:
        return list(self.client.get("/v1/sandbox/messages", params={"limit": "1000"}).json()["messages"])

    def until(self, holds: Callable[[], bool], within_s: float) -> float:
        """Wait until it holds, at most so long; return how long it took."""
        started = time.monotonic()
        while not holds():
            assert time.monotonic() - started < within_s, "did not happen in time"
            time.sleep(0.02)
        return time.monotonic() - started

    def close(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=40)
        self.client.close()
        assert self.process.stdout is not None
        self.process.stdout.close()
        self.log.close()


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    service = Live(tmp_path_factory.mktemp("live"))
    yield service
    service.close()


def test_an_event_becomes_a_message_with_signature_and_opt_out(live: Live) -> None:
    before = len(live.messages())
    live.open_shop()
    live.until(lambda: len(live.messages()) > before, 5)
    assert live.messages()[0]["text"] == "【测试】您好，第一版拒收请回复R"
    assert "0000" not in live.messages()[0]["to"]


def test_l10_edited_content_is_live_within_ten_seconds_and_broken_content_never(live: Live) -> None:
    version = live.client.get("/readyz").json()["components"]["content"]["detail"]
    live.write_scenario("第二版")

    def shows_second() -> bool:
        live.open_shop()
        return any("第二版" in message["text"] for message in live.messages())

    live.until(shows_second, 10)
    second = live.client.get("/readyz").json()["components"]["content"]["detail"]
    assert second != version
    (live.folder / "scenarios" / "shop.yaml").write_text("id: [broken")
    time.sleep(4)
    assert live.client.get("/readyz").json()["components"]["content"]["detail"] == second
    before = len(live.messages())
    live.open_shop()
    live.until(lambda: len(live.messages()) > before, 5)
    live.write_scenario("第二版")


def test_d8_after_a_pause_is_acknowledged_nothing_is_submitted(live: Live) -> None:
    assert live.client.post("/v1/pause", json={"scenario": "national/shop", "paused": True}).status_code == 200
    before = len(live.messages())
    for _ in range(20):
        live.open_shop()
    time.sleep(1.5)
    assert len(live.messages()) == before
    assert live.client.post("/v1/pause", json={"scenario": "national/shop", "paused": False}).status_code == 200
    live.open_shop()
    live.until(lambda: len(live.messages()) > before, 5)


def test_a3_an_opt_out_stops_everything_within_a_second(live: Live) -> None:
    before = len(live.messages())
    user = live.open_shop()
    live.until(lambda: len(live.messages()) > before, 5)
    now_ms = time.time_ns() // 1_000_000
    live.post({"type": "inbound-message", "user": user, "at": now_ms, "channel": "sms", "text": " td "})
    time.sleep(1)
    before = len(live.messages())
    for _ in range(5):
        live.open_shop(user)
    other = live.open_shop()
    live.until(lambda: len(live.messages()) == before + 1, 5)
    told = live.client.get("/v1/explain", params={"user": user}).json()
    assert told["decisions"][0]["reason"] in ("opted_out", "no_consent")
    assert live.client.get("/v1/explain", params={"user": other}).json()["decisions"][0]["outcome"] == "offer"


def test_a12_no_phone_number_is_in_any_log_line_or_metric(live: Live) -> None:
    live.log.flush()
    told = (live.folder / "log").read_text() + live.client.get("/metrics").text
    assert "1390000" not in told
    assert "opportune_offers_total" in told


def test_f24_sigterm_drains_and_a_restart_forgets_nothing(live: Live) -> None:
    for _ in range(30):
        live.open_shop()
    started = time.monotonic()
    live.process.send_signal(signal.SIGTERM)
    assert live.process.wait(timeout=30) == 0
    assert time.monotonic() - started < 25
    assert list((live.folder / "state" / "checkpoints").glob("*.checkpoint"))
