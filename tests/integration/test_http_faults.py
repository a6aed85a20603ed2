"""Gateways behind HTTP under faults: too fast, wrong password, no answer, restart under load (F15-F17, G2, G4).

One scripted server stands in for Kannel, Twilio, a push service and a webhook: what real peers of these answer when all
is well is tested in test_gateways_http.py; here every kind meets the same faults behind a real dispatcher and ledger.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import orjson
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from engine.console.server import HttpServer
from engine.deliver.contract import Gateway
from engine.deliver.gateways.build import GatewayMaker
from engine.model import DispatchState as S
from engine.settings import Settings
from tests.peers.http_gateways import body_of
from tests.peers.invariants import Handsets
from tests.peers.programs import free_port
from tests.peers.receiver import SECRET
from tests.peers.rig import Book, Rig

pytestmark = pytest.mark.integration
KINDS = ("kannel", "twilio", "webpush", "webhook")


class StandIn:
    """Answers as the kind's service does. `rule(number of the request)`: a status instead, or 0 for no answer."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.port = free_port()
        self.handsets = Handsets()
        self.asked: list[str] = []
        self.rule: Callable[[int], int | None] = lambda number: None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await body_of(receive)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        whom = self._whom(scope["path"], headers, body)
        self.asked.append(whom)
        status = self.rule(len(self.asked))
        if status is None or status == 0:
            self.handsets.got(whom)
        if status == 0:
            await asyncio.sleep(30)
        fine = {"kannel": 202, "twilio": 201, "webpush": 201, "webhook": 200}[self.kind]
        answer = {"kannel": b"0: Accepted for delivery", "twilio": b'{"sid":"SM%d"}' % len(self.asked)}
        await send({"type": "http.response.start", "status": status or fine, "headers": [(b"retry-after", b"0")]})
        await send({"type": "http.response.body", "body": answer.get(self.kind, b"{}") if status is None else b"{}"})

    def _whom(self, path: str, headers: dict[str, str], body: bytes) -> str:
        match self.kind:
            case "kannel":
                return headers["x-kannel-to"]
            case "twilio":
                return parse_qs(body.decode())["To"][0]
            case "webpush":
                return path.rpartition("/")[2]
        return str(orjson.loads(body)["data"]["to"])

    async def start(self) -> None:
        self._server = HttpServer(self, "127.0.0.1", self.port)
        await self._server.start()

    async def stop(self) -> None:
        self._server._server.force_exit = True  # what is under way is cut
        await self._server.stop()


class Browsers(Book):
    """Subscriptions of browsers at the stand-in."""

    def __init__(self, port: int) -> None:
        point = ec.generate_private_key(ec.SECP256R1()).public_key().public_bytes(
            serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
        )  # fmt: skip
        keys = {"p256dh": point, "auth": os.urandom(16)}
        self._keys = {name: base64.urlsafe_b64encode(key).decode().rstrip("=") for name, key in keys.items()}
        self._port = port

    def lookup(self, user_id: str, channel: str) -> str | None:
        return json.dumps({"endpoint": f"http://127.0.0.1:{self._port}/push/{user_id}", "keys": self._keys})


def gateway_to(peer: StandIn, folder: Path, **more: Any) -> Gateway:
    """Made from settings, as the service makes it."""
    url = f"http://127.0.0.1:{peer.port}"
    common = {"kind": peer.kind, "channel": "sms", "allow_http": True, "allow_networks": ["127.0.0.0/8"]}
    key = folder / "vapid.pem"
    key.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    own: dict[str, dict[str, Any]] = {
        "kannel": {"url": f"{url}/cgi-bin/sendsms", "login": "opportune", "password": "p"},
        "twilio": {"url": url, "account": "AC1", "password": "t", "sender": "+15005550006"},
        "webpush": {"key_file": key, "subject": "mailto:ops@example.com"},
        "webhook": {"url": f"{url}/offers", "secret": SECRET},
    }
    fields = {**common, "messages_per_s": 500, "timeout_s": 5, **own[peer.kind], **more}
    settings = Settings(state=folder / "state", gateways={"out": fields})  # type: ignore[dict-item]
    (made,) = GatewayMaker(settings, now_ms=lambda: 0).declared()
    return made


def run(kind: str, folder: Path, work: Callable[[Rig, StandIn], Awaitable[None]], **more: Any) -> StandIn:
    peer = StandIn(kind)

    async def main() -> None:
        async with asyncio.timeout(60):
            await peer.start()
            book = Browsers(peer.port) if kind == "webpush" else None
            rig = Rig(folder, [gateway_to(peer, folder, **more)], book=book)
            await rig.dispatcher.start()
            try:
                await work(rig, peer)
            finally:
                await rig.close(1.0)
                await peer.stop()

    asyncio.run(main())
    peer.handsets.check()
    return peer


every_kind = pytest.mark.parametrize("kind", KINDS)


@every_kind
def test_f17_what_came_too_fast_is_sent_again_and_none_is_lost_or_doubled(kind: str, tmp_path: Path) -> None:
    async def work(rig: Rig, peer: StandIn) -> None:
        peer.rule = lambda number: 429 if number % 4 == 0 else None
        rig.offer(range(40))
        await rig.all_in(S.ACCEPTED)

    peer = run(kind, tmp_path, work)
    assert len(peer.handsets.seen) == 40
    assert len(peer.asked) > 50


@every_kind
def test_a_wrong_password_is_a_definite_failure_and_nothing_is_repeated(kind: str, tmp_path: Path) -> None:
    async def work(rig: Rig, peer: StandIn) -> None:
        peer.rule = lambda number: 403
        rig.offer(range(3))
        await rig.all_in(S.REJECTED)
        codes = {rig.ledger.dispatches(one)[-1]["code"] for one in rig.offers}
        assert all(code.startswith("http_403") for code in codes), codes

    peer = run(kind, tmp_path, work)
    assert len(peer.asked) == 3


@every_kind
def test_f16_a_dead_link_leaves_unknown_what_was_sent_and_it_is_never_sent_again(kind: str, tmp_path: Path) -> None:
    async def work(rig: Rig, peer: StandIn) -> None:
        peer.rule = lambda number: 0
        rig.offer(range(4))
        await rig.all_in(S.UNKNOWN)
        peer.rule = lambda number: None
        rig.dispatcher.reset_breakers()
        rig.offer(range(4, 8))
        await rig.until(lambda: rig.states() == {S.UNKNOWN: 4, S.ACCEPTED: 4})

    peer = run(kind, tmp_path, work, timeout_s=0.5)
    assert len(peer.asked) == 8


@every_kind
def test_a_restart_under_load_loses_and_doubles_nothing(kind: str, tmp_path: Path) -> None:
    async def work(rig: Rig, peer: StandIn) -> None:
        rig.offer(range(150))
        await rig.until(lambda: rig.states()[S.ACCEPTED] >= 30)
        await peer.stop()
        await asyncio.sleep(0.3)
        await peer.start()
        rig.dispatcher.reset_breakers()
        await rig.until(lambda: rig.states()[S.ACCEPTED] + rig.states()[S.UNKNOWN] == 150, 30)
        assert rig.states()[S.UNKNOWN] <= 32, "no more than were under way"

    peer = run(kind, tmp_path, work, messages_per_s=150)
    assert len(peer.handsets.seen) >= 118


@every_kind
def test_f15_a_gateway_that_fails_one_in_three_is_left_alone_and_the_rest_waits_unclaimed(
    kind: str, tmp_path: Path
) -> None:
    async def work(rig: Rig, peer: StandIn) -> None:
        peer.rule = lambda number: 500 if number % 3 == 0 else None  # nobody knows whether it was taken
        rig.offer(range(60))
        await rig.until(lambda: "circuit breaker open" in rig.dispatcher.held_back().values())
        await rig.until(lambda: rig.states()[S.UNKNOWN] >= 5)
        assert rig.states()[None] > 0

    run(kind, tmp_path, work)
