"""Gateways behind HTTP against real peers: Kannel, Prism with Twilio's description, a push service, Apprise itself."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import os
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlencode

import httpx
import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from engine.console.server import HttpServer
from engine.deliver.contract import (
    Callback,
    CallbackRefused,
    CallsBack,
    Capabilities,
    Dispatch,
    InboundText,
    NumberReport,
    OfferUse,
)
from engine.deliver.gateways.apprise import AppriseGateway
from engine.deliver.gateways.fcm import FcmGateway
from engine.deliver.gateways.kannel import KannelGateway
from engine.deliver.gateways.twilio import TwilioGateway
from engine.deliver.gateways.webpush import WebPushGateway
from engine.deliver.outbound import Outbound
from engine.deliver.sms import count_segments
from engine.errors import GatewayGone, GatewayPermanent, GatewayRetryable, GatewayThrottled, GatewayUnknown
from engine.model import DispatchState, GatewayReceipt
from tests.peers.http_gateways import Kannel, body_of, push_server, twilio_mock
from tests.peers.programs import free_port
from tests.peers.rig import Book, Rig

pytestmark = pytest.mark.integration
LOOPBACK = [ipaddress.ip_network("127.0.0.0/8"), ipaddress.ip_network("::1/128")]
SECRET = "callback secret & more"
LONG_CHINESE = (
    "【中国联通】" + "欢迎来到万达影城！现在预存话费50元，立享20元观影券一张，购票即可抵扣。" * 3 + "拒收请回复R"
)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def outbound() -> Outbound:
    return Outbound("test", allow_http=True, exceptions=LOOPBACK)


def dispatch(text: str = "Hello", address: str = "12000000001", *, number: int = 1, minutes: float = 10) -> Dispatch:
    offer_id = f"{number:032x}"
    data = {"scenario": "national/cinema", "benefit": "movie", "code": None}
    return Dispatch(f"{offer_id}/sms/1", offer_id, address, text, "标题", now_ms() + int(minutes * 60_000), data)


class ListInbox:
    """What gateways brought back."""

    def __init__(self) -> None:
        self.got: list[GatewayReceipt | InboundText | NumberReport] = []

    async def receipts(self, receipts: Sequence[GatewayReceipt]) -> None:
        self.got.extend(receipts)

    async def inbound(self, messages: Sequence[InboundText]) -> None:
        self.got.extend(messages)

    async def numbers(self, reports: Sequence[NumberReport]) -> None:
        self.got.extend(reports)

    async def used(self, uses: Sequence[OfferUse]) -> None:
        raise AssertionError("no gateway here tells of uses")

    async def until(self, holds: Callable[[list[Any]], bool], within_s: float = 10.0) -> list[Any]:
        end_s = time.monotonic() + within_s
        while not holds(self.got):
            assert time.monotonic() < end_s, self.got
            await asyncio.sleep(0.05)
        return self.got


@asynccontextmanager
async def called_back(gateway: CallsBack, port: int) -> AsyncIterator[list[int]]:
    """An HTTP server that hands callbacks to a gateway, as the API does; yields the statuses it answered."""
    statuses: list[int] = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        body = await body_of(receive)
        headers = {name.decode(): value.decode() for name, value in scope["headers"]}
        callback = Callback(scope["method"], scope["query_string"].decode(), headers, body, scope["client"][0])
        try:
            reply = await gateway.on_callback(callback)
            status, answer = reply.status, reply.body
        except CallbackRefused:
            status, answer = 401, b""
        statuses.append(status)
        await send({"type": "http.response.start", "status": status, "headers": []})
        await send({"type": "http.response.body", "body": answer})

    server = HttpServer(application, "127.0.0.1", port)
    await server.start()
    try:
        yield statuses
    finally:
        await server.stop()


# --- Kannel ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def callback_port() -> int:
    return free_port()


@pytest.fixture(scope="module")
def kannel(tmp_path_factory: pytest.TempPathFactory, callback_port: int) -> Iterator[Kannel]:
    query = urlencode({"secret": SECRET})
    peer = Kannel(tmp_path_factory.mktemp("kannel"), f"http://127.0.0.1:{callback_port}/v1/callbacks/kannel?{query}")
    peer.start()
    peer.attach()
    yield peer
    peer.stop()


def kannel_gateway(kannel: Kannel, callback_port: int, password: str = Kannel.PASSWORD, **more: Any) -> KannelGateway:
    return KannelGateway(
        "kannel",
        "sms",
        outbound(),
        kannel.url,
        Kannel.LOGIN,
        password,
        now_ms=now_ms,
        sender="10655",
        callback_url=f"http://127.0.0.1:{callback_port}",
        callback_secret=SECRET,
        **more,
    )


def test_kannel_sends_text_and_long_chinese_and_reports_what_the_centre_took(
    kannel: Kannel, callback_port: int
) -> None:
    async def main() -> list[Any]:
        gateway, inbox = kannel_gateway(kannel, callback_port), ListInbox()
        await gateway.start(inbox)
        async with called_back(gateway, callback_port) as statuses:
            await gateway.submit(dispatch("Hello {you} [70% off]", number=1))
            await gateway.submit(dispatch(LONG_CHINESE, number=2))
            kannel.wait_sent(3)
            done = DispatchState.DELIVERED
            got = await inbox.until(lambda got: len({one.dispatch_id for one in got if one.state is done}) == 2)
            assert set(statuses) == {200}
        await gateway.close()
        return got

    got = asyncio.run(main())
    assert {one.state for one in got} <= {DispatchState.ACCEPTED, DispatchState.DELIVERED}
    lines = kannel.wait_sent(3)
    assert any("Hello" in line and "12000000001" in line for line in lines)
    parts = [line for line in lines if "udh" in line]
    assert len(parts) == count_segments(LONG_CHINESE).segments == 2
    assert all("%05%00%03" in part.lower() for part in parts)


def test_kannel_refuses_a_wrong_password_for_good(kannel: Kannel, callback_port: int) -> None:
    async def main() -> None:
        gateway = kannel_gateway(kannel, callback_port, password="wrong")
        with pytest.raises(GatewayPermanent, match="http_403"):
            await gateway.submit(dispatch())
        await gateway.close()

    asyncio.run(main())


def test_a3_a_users_message_comes_in_through_kannel(kannel: Kannel, callback_port: int) -> None:
    async def main() -> InboundText:
        gateway, inbox = kannel_gateway(kannel, callback_port), ListInbox()
        await gateway.start(inbox)
        async with called_back(gateway, callback_port):
            kannel.attach("12000000009 10655 text TD")
            got = await inbox.until(lambda got: any(isinstance(one, InboundText) for one in got))
        await gateway.close()
        return next(one for one in got if isinstance(one, InboundText))

    message = asyncio.run(main())
    assert (message.sender, message.to, message.text, message.channel) == ("12000000009", "10655", "TD", "sms")
    assert abs(message.at_ms - now_ms()) < 120_000
    assert message.message_id


def test_a10_a_callback_without_the_secret_changes_nothing(kannel: Kannel, callback_port: int) -> None:
    async def main() -> list[int]:
        gateway, inbox = kannel_gateway(kannel, callback_port), ListInbox()
        await gateway.start(inbox)
        report = {"dispatch": dispatch().dispatch_id, "type": "1", "at": str(now_ms() // 1000)}
        async with called_back(gateway, callback_port) as statuses, httpx.AsyncClient(trust_env=False) as client:
            for secret in ({}, {"secret": "guess"}, {"secret": SECRET}):
                await client.get(f"http://127.0.0.1:{callback_port}/", params=report | secret)
        await gateway.close()
        assert [one.state for one in inbox.got] == [DispatchState.DELIVERED]
        return statuses

    assert asyncio.run(main()) == [401, 401, 200]


def test_kannel_that_is_down_has_taken_nothing_and_takes_again_after_its_restart(
    kannel: Kannel, callback_port: int
) -> None:
    async def main() -> None:
        gateway = kannel_gateway(kannel, callback_port)
        kannel.stop()
        with pytest.raises(GatewayRetryable):
            await gateway.submit(dispatch())
        kannel.start()
        kannel.attach()
        assert (await gateway.submit(dispatch("again", number=7))).gateway_id.endswith("/sms/1")
        await gateway.close()

    asyncio.run(main())
    assert any("again" in line for line in kannel.wait_sent(1))


def test_kannel_restarted_under_load_gets_each_message_at_most_once(
    kannel: Kannel, callback_port: int, tmp_path: Path
) -> None:
    before = len(kannel.wait_sent(0))
    count = 80

    class Numbers(Book):
        def lookup(self, user_id: str, channel: str) -> str | None:
            return f"121{int(user_id[1:]):08d}"

    async def main() -> None:
        limits = Capabilities(sms=True, receipts=True, messages_per_s=60, window=8)
        gateway = kannel_gateway(kannel, callback_port, capabilities=limits)
        rig = Rig(tmp_path, [gateway], book=Numbers())
        await rig.dispatcher.start()
        async with called_back(gateway, callback_port):
            rig.offer(range(count), text="short")
            await rig.until(lambda: len(kannel.wait_sent(0)) >= before + 10)
            await asyncio.to_thread(kannel.stop)
            await asyncio.to_thread(kannel.start)
            await asyncio.to_thread(kannel.attach)
            rig.dispatcher.reset_breakers()
            ended = (DispatchState.ACCEPTED, DispatchState.DELIVERED, DispatchState.UNKNOWN)
            await rig.until(lambda: sum(rig.states()[one] for one in ended) == count, 40)
            await rig.close(1.0)

    asyncio.run(main())
    numbers = Counter(number for line in kannel.wait_sent(before + 20) for number in re.findall(r"121\d{8}", line))
    assert len(numbers) >= 20
    assert max(numbers.values()) == 1, "no message twice"


# --- Twilio ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def twilio_url(tmp_path_factory: pytest.TempPathFactory, shared_data: Path) -> Iterator[str]:
    with twilio_mock(tmp_path_factory.mktemp("prism"), shared_data / "specs" / "twilio_api_v2010.json.gz") as url:
        yield url


ACCOUNT, TOKEN = "AC" + "0" * 32, "auth-token"


def twilio_gateway(url: str, token: str = TOKEN) -> TwilioGateway:
    return TwilioGateway(
        "twilio",
        "sms",
        outbound(),
        ACCOUNT,
        token,
        now_ms=now_ms,
        url=url,
        sender="+15005550006",
        callback_url="https://offers.example.com",
    )


def test_twilios_own_description_accepts_what_is_posted(twilio_url: str) -> None:
    async def main() -> str:
        gateway = twilio_gateway(twilio_url)
        submitted = await gateway.submit(dispatch(LONG_CHINESE, "+8612000000001"))
        await gateway.close()
        return submitted.gateway_id

    # Prism makes the answer from the description: the pattern of a message SID.
    assert asyncio.run(main()).startswith(("SM", "MM"))


def test_a10_twilio_callbacks_count_only_with_the_signature_of_the_token() -> None:
    form = {"MessageSid": "SM1", "MessageStatus": "undelivered", "ErrorCode": "30003", "To": "+8612000000001"}
    inbound = {"MessageSid": "SM2", "SmsStatus": "received", "From": "+8612000000002", "To": "10655", "Body": "退订"}

    def signed(fields: dict[str, str], token: str) -> Callback:
        text = "https://offers.example.com/v1/callbacks/twilio" + "".join(f"{k}{fields[k]}" for k in sorted(fields))
        digest = hmac.new(token.encode(), text.encode(), hashlib.sha1).digest()
        headers = {"x-twilio-signature": base64.b64encode(digest).decode()}
        return Callback("POST", "", headers, urlencode(fields).encode())

    async def main() -> list[Any]:
        gateway, inbox = twilio_gateway("https://api.twilio.com"), ListInbox()
        await gateway.start(inbox)
        for refused in (signed(form, "other"), Callback("POST", "", {}, urlencode(form).encode())):
            with pytest.raises(CallbackRefused):
                await gateway.on_callback(refused)
        reply = await gateway.on_callback(signed(form, TOKEN))
        await gateway.on_callback(signed(inbound, TOKEN))
        assert (reply.status, reply.media_type) == (200, "text/xml")
        await gateway.close()
        return inbox.got

    receipt, message = asyncio.run(main())
    assert (receipt.gateway_id, receipt.state, receipt.code) == ("SM1", DispatchState.FAILED, "30003")
    assert (message.sender, message.text) == ("+8612000000002", "退订")


# --- Web Push -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def push_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with push_server(tmp_path_factory.mktemp("push")) as url:
        yield url


def test_web_push_reaches_the_browser_decrypted_and_a_gone_subscription_is_told(push_url: str, tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "vapid.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    public = base64.urlsafe_b64encode(point).decode().rstrip("=")

    async def main() -> list[str]:
        gateway = WebPushGateway(
            "webpush",
            "app",
            outbound(),
            pem,
            "mailto:ops@example.com",
            now_ms=now_ms,
        )
        async with httpx.AsyncClient(base_url=push_url, trust_env=False) as client:
            options = {"userVisibleOnly": "true", "applicationServerKey": public}
            subscribed = (await client.post("/subscribe", json=options)).json()["data"]
            await gateway.submit(dispatch("您有一张观影券", json.dumps(subscribed)))
            asked = {"clientHash": subscribed["clientHash"]}
            got = (await client.post("/get-notifications", json=asked)).json()["data"]["messages"]
            await client.post(f"/expire-subscription/{subscribed['clientHash']}")
            with pytest.raises(GatewayGone):
                await gateway.submit(dispatch("zu spät", json.dumps(subscribed)))
        with pytest.raises(GatewayPermanent, match="bad_subscription"):
            await gateway.submit(dispatch("x", "no subscription"))
        with pytest.raises(GatewayPermanent, match="too_long"):
            await gateway.submit(dispatch("长" * 2000, json.dumps(subscribed)))
        await gateway.close()
        return list(got)

    (message,) = asyncio.run(main())
    read = json.loads(message)
    assert (read["body"], read["title"], read["scenario"]) == ("您有一张观影券", "标题", "national/cinema")


def test_a1_a_subscription_that_points_into_our_own_network_is_never_called(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    pem = tmp_path / "vapid.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    point = key.public_key().public_bytes(serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint)
    keys = {
        "p256dh": base64.urlsafe_b64encode(point).decode().rstrip("="),
        "auth": base64.urlsafe_b64encode(os.urandom(16)).decode().rstrip("="),
    }
    connections = 0

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        gateway = WebPushGateway(
            "webpush", "app", Outbound("webpush", allow_http=True), pem, "mailto:ops@example.com", now_ms=now_ms
        )
        for host in ("127.0.0.1", "2130706433", "localhost", "[::ffff:127.0.0.1]"):
            subscription = {"endpoint": f"http://{host}:{port}/push", "keys": keys}
            with pytest.raises((GatewayRetryable, GatewayPermanent)):
                await gateway.submit(dispatch("x", json.dumps(subscription)))
        await gateway.close()
        server.close()

    asyncio.run(main())
    assert connections == 0


# --- FCM ------------------------------------------------------------------------------------------------------------


class Firebase:
    """What Google's two servers check: the assertion's signature and claims, the token, the shape of the message."""

    def __init__(self, public_key: Any) -> None:
        self.public_key = public_key
        self.messages: list[dict[str, Any]] = []
        self.tokens = 0
        self.answers: list[tuple[int, dict[str, Any], list[tuple[bytes, bytes]]]] = []
        self.address = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        body = await body_of(receive)
        headers = dict(scope["headers"])
        extra: list[tuple[bytes, bytes]] = []
        if scope["path"] == "/token":
            form = {name: values[0] for name, values in parse_qs(body.decode()).items()}
            claims = jwt.decode(form["assertion"], self.public_key, ["RS256"], audience=f"{self.address}/token")
            assert claims["iss"] == "sender@project.iam.gserviceaccount.com"
            assert claims["scope"] == "https://www.googleapis.com/auth/firebase.messaging"
            self.tokens += 1
            status, document = 200, {"access_token": f"token-{self.tokens}", "expires_in": 3600}
        else:
            assert scope["path"] == "/v1/projects/project/messages:send"
            assert headers[b"authorization"] == f"Bearer token-{self.tokens}".encode()
            self.messages.append(json.loads(body)["message"])
            status, document = 200, {"name": f"projects/project/messages/{len(self.messages)}"}
            if self.answers:
                status, document, extra = self.answers.pop(0)
        await send({"type": "http.response.start", "status": status, "headers": extra})
        await send({"type": "http.response.body", "body": json.dumps(document).encode()})


def test_fcm_is_authorised_once_an_hour_and_its_answers_mean_what_google_says(tmp_path: Path) -> None:
    key = rsa.generate_private_key(65537, 2048)
    server: list[Firebase] = []
    clock = [now_ms()]

    def error(code: str) -> dict[str, Any]:
        return {"error": {"status": "X", "details": [{"@type": "type.googleapis.com/x", "errorCode": code}]}}

    async def main() -> None:
        firebase = Firebase(key.public_key())
        server.append(firebase)
        http = HttpServer(firebase, "127.0.0.1", 0)
        await http.start()
        firebase.address = f"http://127.0.0.1:{http.port}"
        account = tmp_path / "account.json"
        private = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        account.write_text(
            json.dumps(
                {
                    "project_id": "project",
                    "client_email": "sender@project.iam.gserviceaccount.com",
                    "private_key": private.decode(),
                    "token_uri": f"{firebase.address}/token",
                }
            )
        )
        gateway = FcmGateway(
            "fcm",
            "app",
            outbound(),
            account,
            now_ms=lambda: clock[0],
            url=firebase.address,
        )
        await asyncio.gather(*(gateway.submit(dispatch("您好", f"t{n}", number=n)) for n in range(5)))
        assert firebase.tokens == 1
        for status, document, headers, raised in (
            (404, error("UNREGISTERED"), [], GatewayGone),
            (400, error("INVALID_ARGUMENT"), [], GatewayPermanent),
            (429, error("QUOTA_EXCEEDED"), [(b"retry-after", b"7")], GatewayThrottled),
            (503, error("UNAVAILABLE"), [], GatewayRetryable),
            (500, error("INTERNAL"), [], GatewayUnknown),
            (401, error("UNAUTHENTICATED"), [], GatewayRetryable),
        ):
            firebase.answers.append((status, document, headers))
            with pytest.raises(raised) as caught:
                await gateway.submit(dispatch("您好", "t"))
            if status == 429:
                assert caught.value.retry_after_s == 7.0
        await gateway.submit(dispatch("您好", "t"))  # after 401 with a new token
        assert firebase.tokens == 2
        with pytest.raises(GatewayPermanent, match="too_long"):
            await gateway.submit(dispatch("长" * 2000, "t"))
        await gateway.close()
        await http.stop()

    asyncio.run(main())
    first = server[0].messages[0]
    assert first["notification"] == {"title": "标题", "body": "您好"}
    assert first["data"]["dispatch_id"].endswith("/sms/1")
    assert "code" not in first["data"]
    assert 500 < int(first["android"]["ttl"].removesuffix("s")) <= 600


# --- Apprise --------------------------------------------------------------------------------------------------------


def test_apprise_posts_for_us_and_an_address_cannot_choose_the_way() -> None:
    posted: list[tuple[str, dict[str, Any]]] = []
    answers = [200, 500]

    async def service(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        posted.append((scope["raw_path"].decode(), json.loads(message["body"])))
        await send({"type": "http.response.start", "status": answers.pop(0), "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        http = HttpServer(service, "127.0.0.1", 0)
        await http.start()
        gateway = AppriseGateway("long-tail", "app", f"json://127.0.0.1:{http.port}/notify/{{to}}")
        submitted = await gateway.submit(dispatch("您好", "a/../b?method=put"))
        assert submitted.gateway_id.endswith("/sms/1")
        with pytest.raises(GatewayUnknown):  # Apprise says no: that proves nothing
            await gateway.submit(dispatch("您好", "c"))
        await gateway.close()
        await http.stop()

    asyncio.run(main())
    path, body = posted[0]
    assert (body["title"], body["message"]) == ("标题", "您好")
    assert path.startswith("/notify/a")
    assert "method=put" not in path.partition("?")[2]
