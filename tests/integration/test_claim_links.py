"""A running service gives codes and redeems claim links: each once, under concurrency and across a kill (O3)."""

from __future__ import annotations

import re
import signal
import sqlite3
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from typer.testing import CliRunner

from engine.cli.codes import codes_app
from tests.integration.test_service_live import Live

pytestmark = pytest.mark.integration
BENEFITS = """
benefits:
  - id: voucher
    name: 代金券
    class: living
    sub_class: ecommerce
    partner: shop
    face_value_fen: 2000
    cost_fen: 1000
    validity: {for: 2 days}
    stock: {codes: shop, total: 40}
"""
LINK = re.compile(r"https://quan\.example\.cn/([A-Za-z0-9_-]{36})")
CODE = re.compile(r"SHOP\d{4}")


class Shop(Live):
    """The live service with a benefit that has codes and a claim link in its text."""

    def __init__(self, folder: Path) -> None:
        state = folder / "state"
        (folder / "scenarios" / "benefits").mkdir(parents=True)
        (folder / "scenarios" / "benefits" / "shop.yaml").write_text(BENEFITS)
        (folder / "codes.csv").write_text("".join(f"SHOP{number:04d}\n" for number in range(30)))
        done = CliRunner().invoke(codes_app, ["import", "shop", str(folder / "codes.csv"), "--state", str(state)])
        assert done.exit_code == 0, done.output
        super().__init__(folder)
        policy = folder / "scenarios" / "policy.yaml"
        policy.write_text(f"{policy.read_text()}claim_domains: [quan.example.cn]\n")
        self.write_scenario("第一版")

    def write_scenario(self, text: str) -> None:
        super().write_scenario(f"{text}券码{{code}}，{{claim_url}}")
        path = self.folder / "scenarios" / "shop.yaml"
        text = re.sub(r"  benefit: \{.*\}", "  benefit: voucher", path.read_text())
        path.write_text(text)

    def ask(self, count: int) -> list[str]:
        """Let users ask until so many more messages went out; return all texts, newest first."""
        wanted = len(self.messages()) + count
        for _ in range(count):
            self.open_shop()
        self.until(lambda: len(self.messages()) >= wanted, 20)
        return [message["text"] for message in self.messages()]


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory):
    service = Shop(tmp_path_factory.mktemp("shop"))
    service.start()
    yield service
    service.kill()


def test_codes_go_out_once_and_links_are_redeemed_once(shop: Shop) -> None:
    texts = shop.ask(12)
    codes = Counter(code for text in texts for code in CODE.findall(text))
    assert len(codes) == len(texts)
    assert max(codes.values()) == 1
    tokens = [found[1] for text in texts if (found := LINK.search(text))]
    assert len(set(tokens)) == len(texts)
    token = tokens[0]
    shown = shop.client.get(f"/v1/claims/{token}")
    assert shown.status_code == 200
    assert (shown.json()["state"], shown.json()["name"], shown.json()["partner"]) == ("open", "代金券", "shop")
    assert shown.headers["cache-control"] == "no-store"
    assert shop.client.get(f"/v1/claims/{token}/qr.svg").text.startswith("<?xml")
    assert shop.client.get(f"/v1/claims/{token}/qr.gif").status_code == 404

    def redeem(number: int) -> httpx.Response:
        return httpx.post(
            f"{shop.client.base_url}/v1/claims/{token}", headers={"idempotency-key": f"till-{number}"}, trust_env=False
        )

    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(redeem, range(24)))
    assert Counter(answer.status_code for answer in answers) == {200: 1, 409: 23}
    (won,) = [number for number, answer in enumerate(answers) if answer.status_code == 200]
    assert answers[won].json()["code"] in texts[0]
    again = redeem(won)
    assert (again.status_code, again.json()) == (200, answers[won].json())
    forged = token[:-1] + ("A" if token[-1] != "A" else "B")
    assert shop.client.post(f"/v1/claims/{forged}").status_code == 401
    assert shop.client.get("/metrics").text.count(token) == 0

    def counted() -> int:
        with sqlite3.connect(shop.folder / "state" / "ledger.db") as ledger:
            (count,) = ledger.execute("SELECT count(*) FROM redemptions").fetchone()
        ledger.close()
        return count

    shop.until(lambda: counted() == 1, 10)


def test_recalled_codes_come_back_under_a_new_epoch_and_none_is_given_twice(shop: Shop) -> None:
    before = {code for text in shop.ask(3) for code in CODE.findall(text)}
    state = str(shop.folder / "state")
    assert CliRunner().invoke(codes_app, ["recall", "shop", "--state", state]).exit_code == 0

    def is_renewed() -> bool:
        """The engine has codes of the new lease: its record is processed, and the old one's is behind it."""
        with sqlite3.connect(shop.folder / "state" / "ledger.db") as ledger:
            rows = ledger.execute("SELECT count(*) FROM code_leases WHERE epoch = 2 AND expired IS NULL").fetchone()
        ledger.close()
        return bool(rows[0])

    shop.until(is_renewed, 15)
    texts = shop.ask(5)
    codes = Counter(code for text in texts for code in CODE.findall(text))
    assert max(codes.values()) == 1
    assert before < set(codes)


def test_when_codes_run_out_offers_stop_with_the_reason_stock(shop: Shop) -> None:
    for _ in range(45):
        shop.open_shop()
    shop.until(lambda: len(shop.messages()) >= 30, 20)
    time.sleep(1)
    codes = Counter(code for message in shop.messages() for code in CODE.findall(message["text"]))
    assert len(codes) == 30
    assert max(codes.values()) == 1
    last = shop.open_shop()
    time.sleep(1)
    decision = shop.client.get("/v1/explain", params={"user": last}).json()["now"][0]
    assert decision["reason"] == "stock"
    (values,) = [step["values"] for step in decision["steps"] if step["gate"] == "reservation"]
    failed = values["failed"]
    assert (failed["pool"], failed["limit"], failed["asked"]) == ("shop", "codes", 1)
    assert failed["used"] == failed["most"] > 0
    assert "SHOP" not in shop.log_text()
    shop.process.send_signal(signal.SIGKILL)
    shop.process.wait()
    for path in (shop.folder / "state" / "journal").glob("*.log"):
        assert b"SHOP0" not in path.read_bytes(), "a code in the journal"
