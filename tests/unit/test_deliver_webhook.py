"""The webhook gateway: signed, repeated only where nothing was accepted (G2), never led astray (FAULTS A1)."""

from __future__ import annotations

import asyncio
import ipaddress
import json
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpcore
import pytest
from standardwebhooks.webhooks import Webhook

from engine.deliver.contract import Dispatch, Submitted
from engine.deliver.egress import ForbiddenAddress, GuardedBackend, is_allowed
from engine.deliver.gateways.build import build_gateways
from engine.deliver.gateways.sandbox import SandboxGateway
from engine.deliver.gateways.webhook import WebhookGateway
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayUnknown, SettingsError
from engine.gateway_settings import WebhookSettings
from engine.settings import Settings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
LOOPBACK = [ipaddress.ip_network("127.0.0.0/8")]
DISPATCH = Dispatch(
    dispatch_id="0" * 32 + "/sms/1",
    offer_id="0" * 32,
    address="12000000001",
    text="【中国联通】您好",
    title="",
    deadline_ms=1_800_000_600_000,
    data={"scenario": "national/cinema", "benefit": "movie", "code": None},
)


class Receiver:
    """A tiny HTTP server that answers what it is told to, and remembers."""

    def __init__(self, answer: bytes | None, *, wait_s: float = 0.0) -> None:
        self.answer = answer
        self.wait_s = wait_s
        self.requests: list[tuple[dict[str, str], bytes]] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)
            }
            body = await reader.readexactly(int(headers["content-length"]))
            self.requests.append((headers, body))
            await asyncio.sleep(self.wait_s)
            if self.answer is not None:
                writer.write(self.answer)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def http(status: str, body: bytes = b"", headers: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body)}\r\nconnection: close\r\n{headers}\r\n".encode() + body


def submit(receiver: Receiver, timeout_s: float = 2.0) -> Submitted:
    async def main() -> Submitted:
        server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        gateway = local_gateway(port, timeout_s)
        try:
            return await gateway.submit(DISPATCH)
        finally:
            await gateway.close()
            server.close()

    return asyncio.run(main())


def local_gateway(port: int, timeout_s: float = 2.0) -> WebhookGateway:
    return WebhookGateway(
        "sms",
        f"http://127.0.0.1:{port}/hook",
        SECRET,
        now_ms=lambda: time.time_ns() // 1_000_000,
        timeout_s=timeout_s,
        allow_http=True,
        exceptions=LOOPBACK,
    )


def test_the_receiver_can_verify_what_it_gets() -> None:
    receiver = Receiver(http("202 Accepted", b'{"id":"m-77"}'))
    assert submit(receiver).gateway_id == "m-77"
    ((headers, body),) = receiver.requests
    document = Webhook(SECRET).verify(body, headers)
    assert headers["webhook-id"] == DISPATCH.dispatch_id
    assert document["data"]["to"] == "12000000001"
    assert document["data"]["valid_until"] == "2027-01-15T08:10:00+00:00"
    with pytest.raises(Exception, match="signature"):
        Webhook(SECRET).verify(body + b" ", headers)


def test_the_signature_is_that_of_the_published_vector(shared_data: Path) -> None:
    vector = json.loads((shared_data / "vectors" / "standard_webhooks.json").read_text())
    instant = datetime.fromtimestamp(vector["timestamp"], UTC)
    assert Webhook(vector["secret"]).sign(vector["id"], instant, vector["payload"]) == vector["signature"]


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (http("429 Too Many Requests", headers="retry-after: 7\r\n"), GatewayRetryable),
        (http("503 Service Unavailable"), GatewayRetryable),
        (http("302 Found", headers="location: http://127.0.0.1:1/\r\n"), GatewayPermanent),
        (http("307 Temporary Redirect", headers="location: http://169.254.169.254/\r\n"), GatewayPermanent),
        (http("400 Bad Request"), GatewayPermanent),
        (http("410 Gone"), GatewayPermanent),
        (http("500 Internal Server Error"), GatewayUnknown),
        (http("502 Bad Gateway"), GatewayUnknown),
        (http("504 Gateway Timeout"), GatewayUnknown),
        (None, GatewayUnknown),
        (b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", GatewayUnknown),
        (b"not http at all\r\n\r\n", GatewayUnknown),
    ],
)
def test_only_a_provable_refusal_may_be_repeated(answer: bytes | None, error: type[Exception]) -> None:
    receiver = Receiver(answer)
    with pytest.raises(error):
        submit(receiver)
    assert len(receiver.requests) == 1, "the gateway itself never repeats"


def test_retry_after_is_passed_on() -> None:
    with pytest.raises(GatewayRetryable) as caught:
        submit(Receiver(http("429 Too Many Requests", headers="retry-after: 7\r\n")))
    assert caught.value.retry_after_s == 7
    later = "retry-after: Wed, 21 Oct 2065 07:28:00 GMT\r\n"
    with pytest.raises(GatewayRetryable) as caught:
        submit(Receiver(http("503 Service Unavailable", headers=later)))
    assert caught.value.retry_after_s == 3600, "at most an hour"
    with pytest.raises(GatewayRetryable) as caught:
        submit(Receiver(http("503 Service Unavailable", headers="retry-after: soon\r\n")))
    assert caught.value.retry_after_s is None


def test_no_answer_in_time_is_unknown() -> None:
    with pytest.raises(GatewayUnknown):
        submit(Receiver(http("200 OK"), wait_s=1.0), timeout_s=0.5)


def test_a_refused_connection_may_be_repeated() -> None:
    async def main() -> None:
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        await local_gateway(port).submit(DISPATCH)

    with pytest.raises(GatewayRetryable):
        asyncio.run(main())


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "0.0.0.0", "100.64.0.1", "224.0.0.1",
        "255.255.255.255", "::1", "::", "fe80::1", "fd00::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::a00:1",
        "2002:a00:1::1", "::7f00:1", "ff02::1", "192.0.2.1", "198.18.0.1", "240.0.0.1",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public_are_not_connected_to(address: str) -> None:
    assert not is_allowed(address)


def test_public_addresses_and_allowed_networks_are() -> None:
    assert is_allowed("8.8.8.8")
    assert is_allowed("2606:4700:4700::1111")
    assert is_allowed("10.1.2.3", [ipaddress.ip_network("10.1.0.0/16")])
    assert not is_allowed("10.2.2.3", [ipaddress.ip_network("10.1.0.0/16")])


class NoNetwork(httpcore.AsyncNetworkBackend):
    """Counts connections and makes none."""

    def __init__(self) -> None:
        self.connected: list[str] = []

    async def connect_tcp(self, host: str, port: int, *_: Any, **__: Any) -> httpcore.AsyncNetworkStream:
        self.connected.append(host)
        raise httpcore.ConnectError("no network here")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "169.254.169.254",
        "2852039166",
        "0xA9FEA9FE",
        "[::ffff:127.0.0.1]",
        "localhost",
    ],
)
def test_no_spelling_of_a_private_address_is_connected_to(host: str) -> None:
    network = NoNetwork()
    gateway = WebhookGateway(
        "sms", f"https://{host}/latest/meta-data", SECRET, now_ms=lambda: 0, backend=GuardedBackend((), network)
    )
    with pytest.raises(GatewayRetryable, match="its address is not public, and allow_networks does not name"):
        asyncio.run(once(gateway.submit))
    assert network.connected == []


def test_an_octal_spelling_is_refused_by_the_url_and_by_the_connection() -> None:
    with pytest.raises(SettingsError, match="cannot be read"):
        WebhookGateway("sms", "https://0251.0376.0251.0376/", SECRET, now_ms=lambda: 0)
    network = NoNetwork()
    with pytest.raises(ForbiddenAddress):
        asyncio.run(GuardedBackend((), network).connect_tcp("0251.0376.0251.0376", 443))
    assert network.connected == []


async def once(call: Callable[[Dispatch], Awaitable[Submitted]]) -> Submitted:
    return await call(DISPATCH)


def test_the_address_checked_is_the_address_connected_to(monkeypatch: pytest.MonkeyPatch) -> None:
    network = NoNetwork()
    backend = GuardedBackend((), network)
    answers = [["93.184.216.34"], ["127.0.0.1"]]

    async def resolve(host: str, port: int) -> list[str]:
        return answers.pop(0)

    monkeypatch.setattr(backend, "resolve", resolve)

    async def main() -> None:
        with pytest.raises(httpcore.ConnectError):
            await backend.connect_tcp("rebinding.example", 443)
        with pytest.raises(ForbiddenAddress):
            await backend.connect_tcp("rebinding.example", 443)

    asyncio.run(main())
    assert network.connected == ["93.184.216.34"], "the address, never the name"


def test_one_private_address_among_public_ones_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    backend = GuardedBackend((), NoNetwork())

    async def resolve(host: str, port: int) -> list[str]:
        return ["93.184.216.34", "10.0.0.1"]

    monkeypatch.setattr(backend, "resolve", resolve)
    with pytest.raises(ForbiddenAddress):
        asyncio.run(backend.connect_tcp("mixed.example", 443))


def test_settings_that_cannot_work_are_refused_at_start() -> None:
    def build(**given: Any) -> list[Any]:
        settings = Settings(gateways={"sms": WebhookSettings(kind="webhook", **given)})
        return build_gateways(settings, ["app"], now_ms=lambda: 0)

    for given, match in (
        ({}, "url and secret"),
        ({"url": "http://x.example/", "secret": SECRET}, "https"),
        ({"url": "https://u:p@x.example/", "secret": SECRET}, "user and password"),
        ({"url": "https://x.example/", "secret": "whsec_"}, "whsec"),
        ({"url": "https://x.example/", "secret": SECRET, "allow_networks": ["10.0.0.1/8"]}, "allow_networks"),
        ({"url": "https://x.example/", "secret_file": Path("/nowhere/secret")}, "cannot be read"),
    ):
        with pytest.raises(SettingsError, match=match):
            build(**given)
    webhook, sandbox = build(url="https://x.example/", secret=SECRET)
    assert isinstance(sandbox, SandboxGateway)
    assert isinstance(webhook, WebhookGateway)
    assert SECRET not in repr(WebhookSettings(kind="webhook", secret=SECRET))
