"""FAULTS A10: forged, altered, late or replayed callbacks change nothing; genuine ones become events once."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from standardwebhooks.webhooks import Webhook

from engine.deliver.gateways.webhook import WebhookGateway
from engine.deliver.returns import Returns
from engine.ledger.embedded import EmbeddedLedger
from engine.model import Offer
from tests.unit.test_api_events import NOW_MS, Caller

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OFFER = "0" * 31 + "1"
RECEIPT = {"type": "receipt", "data": {"dispatch_id": f"{OFFER}/sms/1", "state": "delivered", "code": "DELIVRD"}}


class Book:
    """One number."""

    def user_of(self, channel: str, address: str) -> str | None:
        return {("sms", "12000000001"): "u1"}.get((channel, address))


class Served(Caller):
    """The API over a webhook gateway, whose inbox is the real one over a real ledger with one claimed offer."""

    def __init__(self, folder: Path, api_key: str | None = None) -> None:
        super().__init__(api_key)
        self.ledger = EmbeddedLedger(folder / "ledger.db", assumed_consent=frozenset({"marketing.sms"}))
        offer = Offer(
            offer_id=OFFER, scenario="national/s", user_id="u1", channel="sms", text="x", benefit="movie",
            offer_class="marketing", deadline_ms=NOW_MS + 60_000, created_ms=NOW_MS,
        )  # fmt: skip
        self.ledger.commit(1, NOW_MS, offers=[offer])
        self.ledger.claim([(OFFER, f"{OFFER}/sms/1")], NOW_MS)

    def ask(self, method: str, path: str, **arguments: Any) -> httpx.Response:
        async def emit(payloads: Sequence[bytes]) -> None:
            await self.engine.append([line for payload in payloads for line in payload.split(b"\n")])

        async def call(function: Any, *given: Any) -> Any:
            return function(*given)

        async def once() -> httpx.Response:
            inbox = Returns(self.ledger, Book(), emit, call, now_ms=lambda: self.now_ms)  # type: ignore[arg-type]
            task = asyncio.create_task(inbox.run())
            if "sms" not in self.engine.gateways:
                self.engine.gateways["sms"] = WebhookGateway(
                    "sms", "https://example.com", SECRET, now_ms=lambda: self.now_ms
                )
            await self.engine.gateways["sms"].start(inbox)  # type: ignore[attr-defined]
            async with self.client() as client:
                answer = await client.request(method, path, **arguments)
            task.cancel()
            return answer

        return asyncio.run(once())

    @property
    def events(self) -> list[dict[str, Any]]:
        return [orjson.loads(payload) for payload in self.engine.payloads]


@pytest.fixture
def caller(tmp_path: Path) -> Served:
    return Served(tmp_path, api_key="k")


def call(
    caller: Served,
    document: Any,
    *,
    identity: str = "msg_1",
    off_s: int = 0,
    secret: str = SECRET,
    channel: str = "sms",
    signature: str | None = None,
) -> httpx.Response:
    body = orjson.dumps(document)
    stamp = NOW_MS // 1000 + off_s
    signed = Webhook(secret).sign(identity, datetime.fromtimestamp(stamp, UTC), body.decode())
    headers = {
        "webhook-id": identity,
        "webhook-timestamp": str(stamp),
        "webhook-signature": signed if signature is None else signature,
    }
    return caller.ask("POST", f"/v1/callbacks/{channel}", content=body, headers=headers)


def test_a_signed_receipt_becomes_a_receipt_event_of_the_offers_user_without_a_key(caller: Served) -> None:
    answer = call(caller, RECEIPT)
    assert (answer.status_code, answer.json()) == (200, {"accepted": 1})
    assert caller.events == [
        {
            "v": 1,
            "tenant": "default",
            "id": f"{OFFER}/sms/1:delivered",
            "at": NOW_MS,
            "type": "receipt",
            "offer_id": OFFER,
            "dispatch_id": f"{OFFER}/sms/1",
            "state": "delivered",
            "user": "u1",
            "code": "DELIVRD",
        }
    ]


def test_a3_a_message_from_a_known_address_becomes_an_event_without_the_address(caller: Served) -> None:
    call(caller, {"type": "inbound-message", "data": {"from": "12000000001", "text": " 退订 "}})
    (event,) = caller.events
    assert (event["type"], event["user"], event["channel"]) == ("inbound-message", "u1", "sms")
    assert event["text"] == " 退订 ", "an opt-out is told as it was written, and starts nothing"
    assert b"12000000001" not in caller.engine.payloads[0]


def test_what_is_no_opt_out_clicks_and_redemptions_are_told_as_usage_events_too(caller: Served) -> None:
    call(caller, {"type": "inbound-message", "data": {"from": "+8612000000001", "text": " ｃｘ "}}, identity="m1")
    call(caller, {"type": "click", "data": {"dispatch_id": f"{OFFER}/sms/1"}}, identity="m2")
    used = {"offer_id": OFFER, "amount_fen": 990}
    call(caller, {"type": "redemption", "data": used}, identity="m3")
    call(caller, {"type": "redemption", "data": {**used, "refund": True}}, identity="m4")
    told = [(one["type"], one.get("category"), one.get("action")) for one in caller.events]
    assert told == [
        ("inbound-message", None, None),
        ("usage", "inbound", "message"),
        ("usage", "offer", "click"),
        ("redemption", None, None),
        ("usage", "offer", "redeem"),
        ("redemption", None, None),
    ]
    said, click, redeemed = caller.events[1], caller.events[2], caller.events[3]
    assert said["props"] == {"channel": "sms", "to": "", "text": "CX"}
    assert click["props"] == {"benefit": "movie", "scenario": "national/s"}
    assert (redeemed["user"], redeemed["benefit"], redeemed["amount_fen"]) == ("u1", "movie", 990)
    assert caller.events[5]["refund"] is True
    assert len({one["id"] for one in caller.events}) == 6


def test_forged_altered_and_late_callbacks_are_401_and_change_nothing(caller: Served) -> None:
    other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    assert call(caller, RECEIPT, secret=other).status_code == 401
    assert call(caller, RECEIPT, channel="app").status_code == 401
    assert call(caller, RECEIPT, signature="").status_code == 401
    assert call(caller, RECEIPT, signature="v1,AAAA v1,BBBB").status_code == 401
    for off_s in (-600, 600, -301, 301):
        assert call(caller, RECEIPT, off_s=off_s).status_code == 401
    assert caller.ask("POST", "/v1/callbacks/sms", content=b"{}").status_code == 401
    assert caller.ask("GET", "/v1/callbacks/sms").status_code == 405
    assert caller.events == []
    assert call(caller, RECEIPT, off_s=-299).status_code == 200


def test_the_same_id_twice_counts_once_and_with_other_content_is_refused(caller: Served) -> None:
    assert call(caller, RECEIPT).json() == {"accepted": 1}
    assert call(caller, RECEIPT).json() == {"accepted": 0}
    altered = {"type": "receipt", "data": {**RECEIPT["data"], "state": "failed"}}  # type: ignore[dict-item]
    assert call(caller, altered).status_code == 401
    assert len(caller.events) == 1


def test_what_could_not_be_journaled_is_taken_when_it_comes_again(caller: Served) -> None:
    caller.engine.fails = True
    assert call(caller, RECEIPT).status_code == 503
    caller.engine.fails = False
    assert call(caller, RECEIPT).json() == {"accepted": 1}
    assert len(caller.events) == 1


def test_a_key_being_rotated_may_send_both_signatures(caller: Served) -> None:
    body = orjson.dumps(RECEIPT)
    signed = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(NOW_MS // 1000, UTC), body.decode())
    assert call(caller, RECEIPT, signature=f"v1,AAAA {signed}").status_code == 200


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"type": "other", "data": {}},
        {"type": "receipt", "data": []},
        {"type": "receipt", "data": {"dispatch_id": 1, "state": "delivered"}},
        {"type": "receipt", "data": {"dispatch_id": "x/sms/1", "state": "lovely"}},
        {"type": "receipt", "data": {"dispatch_id": "x/sms/1", "state": "submitting"}},
        {"type": "inbound-message", "data": {"from": 1, "text": "R"}},
        {"type": "click", "data": {}},
        {"type": "redemption", "data": {"offer_id": OFFER, "amount_fen": -1}},
        {"type": "redemption", "data": {"offer_id": OFFER, "refund": "yes"}},
    ],
)
def test_signed_nonsense_is_400(caller: Served, document: Any) -> None:
    assert call(caller, document).status_code == 400
    assert caller.events == []


def test_what_nobody_here_sent_is_answered_and_ignored(caller: Served) -> None:
    unknown = {"dispatch_id": "f" * 32 + "/sms/1"}
    for number, document in enumerate(
        (
            {"type": "receipt", "data": {**unknown, "state": "delivered"}},
            {"type": "receipt", "data": {"dispatch_id": "no number", "state": "delivered"}},
            {"type": "inbound-message", "data": {"from": "12999999999", "text": "R"}},
            {"type": "click", "data": unknown},
            {"type": "redemption", "data": {"offer_id": "no number"}},
        )
    ):
        assert call(caller, document, identity=f"msg_{number}").status_code == 200
    assert caller.events == []
