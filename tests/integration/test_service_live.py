"""A running service: content changes, pause, opt-out and shutdown take hold in time (L10, D8, A3; FAULTS F24-F26)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.peers.service import ServiceProcess, scenario

SHOPPING = "{usage: {category: ecommerce, action: open}}"


class Live(ServiceProcess):
    """A service whose messages stay in the sandbox."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, [scenario("shop", SHOPPING, "您好，第一版")], {})
        self.give_addresses(2000, ["sms"])
        self.users = iter(range(2000))

    def write_scenario(self, text: str) -> None:
        (self.folder / "scenarios" / "shop.yaml").write_text(scenario("shop", SHOPPING, f"您好，{text}"))

    def open_shop(self, user: str | None = None) -> str:
        """Let a user open a shopping app; return who."""
        name = user or f"u{next(self.users)}"
        self.shop([int(name[1:])])
        return name

    def messages(self) -> list[dict[str, Any]]:
        return list(self.client.get("/v1/sandbox/messages", params={"limit": "1000"}).json()["messages"])


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Live]:
    service = Live(tmp_path_factory.mktemp("live"))
    service.start()
    yield service
    service.kill()


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
    said = {"type": "inbound-message", "user": user, "at": now_ms, "channel": "sms", "text": " td "}
    assert live.post([said]).status_code == 202
    time.sleep(1)
    before = len(live.messages())
    for _ in range(5):
        live.open_shop(user)
    other = live.open_shop()
    live.until(lambda: len(live.messages()) == before + 1, 5)
    told = live.client.get("/v1/explain", params={"user": user}).json()
    assert told["decisions"][0]["reason"] in ("opted_out", "no_consent")
    assert live.client.get("/v1/explain", params={"user": other}).json()["decisions"][0]["outcome"] == "offer"


def test_a_scenario_that_nobody_has_is_no_answer_about_a_user(live: Live) -> None:
    user = live.open_shop()
    answer = live.client.get("/v1/explain", params={"user": user, "scenario": "national/shoping"})
    assert (answer.status_code, answer.json()["error"]) == (404, "unknown_scenario")
    assert "no scenario has the id 'national/shoping'" in answer.json()["detail"]


def test_a12_no_phone_number_is_in_any_log_line_or_metric(live: Live) -> None:
    told = live.log_text() + live.client.get("/metrics").text
    assert "1390000" not in told
    assert "opportune_offers_total" in told


def test_f24_sigterm_drains_and_a_restart_forgets_nothing(live: Live) -> None:
    for _ in range(30):
        live.open_shop()
    started = time.monotonic()
    live.terminate()
    live.wait_ended(30)
    assert time.monotonic() - started < 25
    assert list((live.folder / "state" / "checkpoints").glob("*.checkpoint"))
