"""Callbacks prove themselves by signature, secret or where they come from; compared in constant time (A10)."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest

from engine.clock import wall_ms
from engine.deliver.contract import Callback, CallbackRefused, CallsBack
from engine.deliver.egress import is_from
from engine.deliver.gateways.kannel import KannelGateway
from engine.deliver.gateways.twilio import TwilioGateway
from engine.deliver.gateways.webhook import WebhookGateway
from engine.deliver.outbound import Outbound
from tests.peers.receiver import SECRET, signed

REPORT = {"dispatch": "0" * 32 + "/sms/1", "type": "1", "at": "1800000000"}


class Taken:
    """An inbox that keeps everything."""

    def __init__(self) -> None:
        self.got: list[Any] = []

    async def receipts(self, receipts: Sequence[Any]) -> None:
        self.got += receipts

    inbound = numbers = used = receipts


def kannel(allow_from: Sequence[str] = ()) -> KannelGateway:
    networks = [ipaddress.ip_network(one) for one in allow_from]
    out = Outbound("kannel")
    return KannelGateway(
        "kannel", "sms", out, "https://example.com", "l", "p", now_ms=wall_ms,
        callback_url="https://example.com", callback_secret="secret", allow_from=networks,
    )  # fmt: skip


def twilio() -> TwilioGateway:
    return TwilioGateway(
        "twilio", "sms", Outbound("twilio"), "AC1", "token", now_ms=wall_ms, sender="+1",
        callback_url="https://example.com",
    )  # fmt: skip


def webhook() -> WebhookGateway:
    return WebhookGateway("sms", "https://example.com", SECRET, now_ms=wall_ms)


def from_kannel(secret: str = "secret", peer: str = "10.0.0.7") -> Callback:
    return Callback("GET", urlencode({**REPORT, "secret": secret}), {}, b"", peer)


def from_twilio(token: str = "token") -> Callback:
    form = {"MessageSid": "SM1", "MessageStatus": "delivered"}
    text = "https://example.com/v1/callbacks/twilio" + "".join(f"{name}{form[name]}" for name in sorted(form))
    digest = base64.b64encode(hmac.new(token.encode(), text.encode(), hashlib.sha1).digest()).decode()
    return Callback("POST", "", {"x-twilio-signature": digest}, urlencode(form).encode())


def from_webhook(secret: str = SECRET) -> Callback:
    call = signed({"type": "receipt", "data": {"dispatch_id": REPORT["dispatch"], "state": "delivered"}}, "m1")
    if secret != SECRET:
        call["headers"]["webhook-signature"] = "v1," + base64.b64encode(b"x" * 32).decode()
    return Callback("POST", "", call["headers"], call["content"])


def told(gateway: CallsBack, callback: Callback) -> list[Any]:
    """What the inbox got of one callback."""
    inbox = Taken()

    async def main() -> None:
        await gateway.start(inbox)  # type: ignore[attr-defined]
        await gateway.on_callback(callback)

    asyncio.run(main())
    return inbox.got


KINDS: dict[str, tuple[Callable[[], CallsBack], Callable[..., Callback]]] = {
    "kannel": (kannel, from_kannel),
    "twilio": (twilio, from_twilio),
    "webhook": (webhook, from_webhook),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_secret_is_compared_in_constant_time(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The right one is taken, a wrong one refused, and both only by hmac.compare_digest."""
    compared: list[tuple[object, object]] = []
    compare = hmac.compare_digest

    def watch(one: Any, other: Any) -> bool:
        compared.append((one, other))
        return compare(one, other)

    monkeypatch.setattr(hmac, "compare_digest", watch)
    make, call = KINDS[kind]
    assert len(told(make(), call())) == 1
    with pytest.raises(CallbackRefused):
        told(make(), call("wrong"))
    assert len(compared) == 2


@pytest.mark.parametrize("peer", ["10.0.1.7", "::1", "", "nonsense", "::ffff:10.0.1.7"])
def test_a_caller_from_elsewhere_is_refused_although_it_knows_the_secret(peer: str) -> None:
    with pytest.raises(CallbackRefused):
        told(kannel(["10.0.0.0/24"]), from_kannel(peer=peer))


@pytest.mark.parametrize("peer", ["10.0.0.7", "::ffff:10.0.0.7"])
def test_a_caller_from_the_list_with_the_secret_is_taken(peer: str) -> None:
    assert len(told(kannel(["10.0.0.0/24"]), from_kannel(peer=peer))) == 1
    with pytest.raises(CallbackRefused):
        told(kannel(["10.0.0.0/24"]), from_kannel("guess", peer))


def test_addresses_of_the_other_family_lie_in_no_network() -> None:
    networks = [ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8")]
    assert [is_from(one, networks) for one in ("10.1.1.1", "fd00::1%eth0", "11.0.0.1", "fe80::1")] == [
        True,
        True,
        False,
        False,
    ]


def test_callbacks_before_the_start_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CallbackRefused):
        asyncio.run(webhook().on_callback(from_webhook()))


def test_i2_a_message_without_a_name_is_named_without_its_sender() -> None:
    """The name goes into the journal; a number must not."""
    asked = {"secret": "secret", "from": "8613800000007", "text": "hello", "at": "1800000000"}
    (message,) = told(kannel(), Callback("GET", urlencode(asked), {}, b"", "10.0.0.7"))
    (again,) = told(kannel(), Callback("GET", urlencode(asked), {}, b"", "10.0.0.7"))
    (other,) = told(kannel(), Callback("GET", urlencode({**asked, "text": "bye"}), {}, b"", "10.0.0.7"))
    assert "13800000007" not in message.message_id
    assert again.message_id == message.message_id != other.message_id
