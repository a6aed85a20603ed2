"""FAULTS A10: forged, altered, late or replayed callbacks change nothing; genuine ones become events once."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import httpx
import orjson
import pytest
from standardwebhooks.webhooks import Webhook

from tests.unit.test_api_events import NOW_MS, SECRET, Caller

RECEIPT = {"type": "receipt", "data": {"dispatch_id": "0" * 31 + "1/sms/1", "state": "delivered", "code": "DELIVRD"}}


def call(
    caller: Caller,
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


def test_a_signed_receipt_becomes_a_receipt_event_of_the_offers_user_without_a_key() -> None:
    caller = Caller(api_key="k")
    answer = call(caller, RECEIPT)
    assert (answer.status_code, answer.json()) == (200, {"accepted": 1})
    assert orjson.loads(caller.engine.payloads[0]) == {
        "v": 1,
        "id": "callback/sms/msg_1",
        "at": NOW_MS,
        "type": "receipt",
        "offer_id": "0" * 31 + "1",
        "dispatch_id": "0" * 31 + "1/sms/1",
        "state": "delivered",
        "user": "u1",
        "code": "DELIVRD",
    }


def test_a_message_from_a_known_address_becomes_an_event_without_the_address() -> None:
    caller = Caller()
    call(caller, {"type": "inbound-message", "data": {"from": "12000000001", "text": " 退订 "}})
    event = orjson.loads(caller.engine.payloads[0])
    assert (event["user"], event["channel"], event["text"]) == ("u1", "sms", " 退订 ")
    assert b"12000000001" not in caller.engine.payloads[0]


def test_forged_altered_and_late_callbacks_are_401_and_change_nothing() -> None:
    caller = Caller()
    other = "whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"
    assert call(caller, RECEIPT, secret=other).status_code == 401
    assert call(caller, RECEIPT, channel="app").status_code == 401
    assert call(caller, RECEIPT, signature="").status_code == 401
    assert call(caller, RECEIPT, signature="v1,AAAA v1,BBBB").status_code == 401
    for off_s in (-600, 600, -301, 301):
        assert call(caller, RECEIPT, off_s=off_s).status_code == 401
    assert caller.ask("POST", "/v1/callbacks/sms", content=b"{}").status_code == 401
    assert caller.engine.payloads == []
    assert call(caller, RECEIPT, off_s=-299).status_code == 200


def test_the_same_id_twice_counts_once_and_with_other_content_is_refused() -> None:
    caller = Caller()
    assert call(caller, RECEIPT).json() == {"accepted": 1}
    assert call(caller, RECEIPT).json() == {"accepted": 0}
    altered = {"type": "receipt", "data": {**RECEIPT["data"], "state": "failed"}}  # type: ignore[dict-item]
    assert call(caller, altered).status_code == 401
    assert len(caller.engine.payloads) == 1


def test_a_key_being_rotated_may_send_both_signatures() -> None:
    caller = Caller()
    body = orjson.dumps(RECEIPT)
    signed = Webhook(SECRET).sign("msg_1", datetime.fromtimestamp(NOW_MS // 1000, UTC), body.decode())
    assert call(caller, RECEIPT, signature=f"v1,AAAA {signed}").status_code == 200


@pytest.mark.parametrize(
    "document",
    [
        [],
        {"type": "other", "data": {}},
        {"type": "receipt", "data": {"dispatch_id": 1, "state": "delivered"}},
        {"type": "receipt", "data": {"dispatch_id": "x/sms/1", "state": "lovely"}},
        {"type": "inbound-message", "data": {"from": 1, "text": "R"}},
    ],
)
def test_signed_nonsense_is_400(document: Any) -> None:
    assert call(Caller(), document).status_code == 400


def test_what_nobody_here_sent_is_answered_and_ignored() -> None:
    caller = Caller()
    unknown = {"type": "receipt", "data": {"dispatch_id": "f" * 32 + "/sms/1", "state": "delivered"}}
    assert call(caller, unknown).json() == {"accepted": 0}
    stranger = {"type": "inbound-message", "data": {"from": "12999999999", "text": "R"}}
    assert call(caller, stranger, identity="msg_2").json() == {"accepted": 0}
    assert caller.engine.payloads == []
