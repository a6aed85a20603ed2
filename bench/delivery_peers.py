"""The other side of `delivery`: each gateway's real peer, started on loopback, with what it costs in processor time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from bench.http_sink import sink
from engine.deliver.contract import Addresses, Gateway
from engine.deliver.gateways.build import GatewayMaker
from engine.model import DispatchState
from engine.settings import Settings
from tests.peers.http_gateways import Kannel, push_server, twilio_mock
from tests.peers.programs import free_port
from tests.peers.receiver import SECRET
from tests.peers.rig import Book, Rig
from tests.peers.smsc import Smsc
from tests.peers.smsgate import LOGIN, PASSWORD, SmsGate, classpath

NODE = 3010012345
TICKS_A_S = os.sysconf("SC_CLK_TCK")
OPERATORS = {
    "sgip": {"node": NODE, "corporation": "12345", "sender": "10655000", "listen_host": "127.0.0.1", "listen_port": 0},
    "cmpp": {"sender": "10690000"},
    "smgp": {"sender": "10659000"},
    "smpp": {"sender": "10655"},
}


@dataclass(frozen=True)
class Peer:
    """A running peer: the gateway's settings towards it, its processes, and what addresses look like there."""

    settings: dict[str, Any]
    group: list[int]
    addresses: Addresses
    count: Callable[[], int] | None = None  # messages it has accepted


@contextlib.contextmanager
def smsgate(kind: str, folder: Path) -> Iterator[Peer]:
    """SMSGate as SGIP, CMPP 3.0 or SMGP server; without receipts."""
    gate = SmsGate(classpath(), {"cmpp": "cmpp30"}.get(kind, kind), free_port(), folder)
    try:
        gate.tell("quiet")
        login = {"port": gate.port, "login": LOGIN, "password": PASSWORD, "connections": 2, "window": 32}
        settings = {"kind": kind, "host": "127.0.0.1", **login, **OPERATORS[kind], "messages_per_s": 1e6}
        yield Peer(settings, [gate.process.pid], Book(), lambda: gate.count()[1])
    finally:
        gate.kill()


@contextlib.contextmanager
def smsc(folder: Path) -> Iterator[Peer]:
    """npm's `smpp` as SMPP centre; without receipts."""
    centre = Smsc().start()
    try:
        centre.tell(rules={"quiet": True, "receipts": False})
        login = {"port": centre.port, "login": "opportune", "password": Smsc.PASSWORD, "connections": 2, "window": 32}
        settings = {"kind": "smpp", "host": "127.0.0.1", **login, **OPERATORS["smpp"], "messages_per_s": 1e6}
        yield Peer(settings, [centre.pid], Book(), centre.count)
    finally:
        centre.stop()


@contextlib.contextmanager
def kannel(folder: Path) -> Iterator[Peer]:
    """Kannel's bearerbox and smsbox with its fakesmsc."""
    peer = Kannel(folder, "http://127.0.0.1:9/")
    peer.start()
    try:
        peer.attach()
        settings = {"kind": "kannel", "url": peer.url, "login": Kannel.LOGIN, "password": Kannel.PASSWORD}
        yield Peer({**settings, **_HTTP, "sender": "10655"}, peer.pids, Book())
    finally:
        peer.stop()


@contextlib.contextmanager
def twilio(folder: Path) -> Iterator[Peer]:
    """Prism over Twilio's own description."""
    description = Path(__file__).parents[2] / "shared" / "data" / "specs" / "twilio_api_v2010.json.gz"
    with twilio_mock(folder, description) as url:
        settings = {"kind": "twilio", "url": url, "account": "AC" + "0" * 32, "password": "token"}
        yield Peer({**settings, **_HTTP, "sender": "+15005550006"}, [], Book())


@contextlib.contextmanager
def webpush(folder: Path) -> Iterator[Peer]:
    """A push service that decrypts every message, as a browser would."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = folder / "vapid.pem"
    form = serialization.PrivateFormat.PKCS8
    pem.write_bytes(key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption()))
    with push_server(folder) as url:
        told = httpx.post(f"{url}/subscribe", json={"userVisibleOnly": "true"}, trust_env=False).json()["data"]
        settings = {"kind": "webpush", "key_file": pem, "subject": "mailto:ops@example.com"}
        yield Peer({**settings, **_HTTP}, [], _OneBrowser(json.dumps(told)))


@contextlib.contextmanager
def webhook(folder: Path) -> Iterator[Peer]:
    """A server that costs next to nothing: what is measured is our own side of a POST."""
    with sink() as (url, pid):
        yield Peer({"kind": "webhook", "url": url, "secret": SECRET, **_HTTP}, [pid], Book())


_HTTP = {"allow_http": True, "allow_networks": ["127.0.0.0/8"], "messages_per_s": 1e6}


class _OneBrowser(Book):
    """Every user has the same browser."""

    def __init__(self, subscription: str) -> None:
        self._subscription = subscription

    def lookup(self, user_id: str, channel: str) -> str | None:
        return self._subscription


PEERS: dict[str, Callable[[Path], AbstractContextManager[Peer]]] = {
    "sgip": lambda folder: smsgate("sgip", folder),
    "cmpp": lambda folder: smsgate("cmpp", folder),
    "smgp": lambda folder: smsgate("smgp", folder),
    "smpp": smsc,
    "kannel": kannel,
    "twilio": twilio,
    "webpush": webpush,
    "webhook": webhook,
}
SLOW = frozenset({"kannel", "twilio", "webpush", "webhook"})
"""HTTP: a tenth of the messages is enough to measure them."""


def measure(kind: str, count: int, rounds: int) -> dict[str, Any]:
    """Return the row of one gateway: the best of some rounds; raises pytest's skip where the peer is missing."""
    if kind in SLOW:
        count, rounds = max(50, count // 10), 1
    best = max((_round(kind, count) for _ in range(rounds)), key=lambda one: one["value"])
    return {"name": f"delivery.{kind}.per_s", "unit": "messages/s", **best}


def _round(kind: str, count: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder, PEERS[kind](Path(folder)) as peer:
        settings = Settings(gateways={kind: {"channel": "sms", **peer.settings}})
        (gateway,) = GatewayMaker(settings, now_ms=lambda: 0).declared()
        return asyncio.run(_submit_all(Path(folder), gateway, peer, count))


async def _submit_all(folder: Path, gateway: Gateway, peer: Peer, count: int) -> dict[str, Any]:
    """Claim, submit and record `count` offers that are committed already, after a tenth more to warm the peer up."""
    rig = Rig(folder, [gateway], book=peer.addresses)
    await rig.dispatcher.start()
    await rig.until(lambda: gateway.standing.ready, 30)
    warm = min(1000, count // 4)
    rig.offer(range(count, count + warm))
    await rig.dispatcher.idle()
    offers = rig.commit(range(count))
    begin_s, begin_cpu_s, peer_cpu_s = time.perf_counter(), time.process_time(), cpu_s(peer.group)
    rig.dispatcher.enqueue(offers)
    await rig.dispatcher.idle()
    passed_s, used_s = time.perf_counter() - begin_s, time.process_time() - begin_cpu_s
    peer_cpu_s = cpu_s(peer.group) - peer_cpu_s
    accepted = rig.states()[DispatchState.ACCEPTED]
    assert accepted == count + warm, f"{accepted} of {count + warm} were accepted: {rig.states()}"
    if peer.count is not None:
        assert peer.count() == count + warm, "what the peer has accepted is not what we were told"
    await rig.close()
    row = {
        "value": count / passed_s,
        "per_cpu_s": round(count / used_s),
        "cpu_ms": round(used_s / count * 1000, 3),
        "cpu_share": round(used_s / passed_s, 2),
    }
    return row | ({"peer_cpu_share": round(peer_cpu_s / passed_s, 2)} if peer.group else {})


def post_cost(count: int) -> dict[str, Any]:
    """Return the row of what one POST costs us, from claim to record; peer: the library's client posting as much."""
    rows = [_round("webhook", count) for _ in range(3)]
    with sink() as (url, _):
        library_ms = min(asyncio.run(_post_all(url, count)) for _ in range(2))
    value = min(row["cpu_ms"] for row in rows)
    return {"name": "delivery.post.cpu_ms", "value": value, "unit": "ms", "httpx_cpu_ms": round(library_ms, 3)}


async def _post_all(url: str, count: int) -> float:
    """Post with httpx, 32 at once; return its processor time a request in ms."""
    async with httpx.AsyncClient(trust_env=False, limits=httpx.Limits(max_connections=32)) as client:
        numbers = iter(range(count))

        async def post() -> None:
            for _ in numbers:
                (await client.post(url, content=b"x" * 300)).raise_for_status()

        begin_s = time.process_time()
        await asyncio.gather(*(post() for _ in range(32)))
        return (time.process_time() - begin_s) / count * 1000


def cpu_s(pids: Sequence[int]) -> float:
    """Processor time that these processes have used so far."""
    used = 0
    for pid in pids:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used += int(fields[11]) + int(fields[12])
    return used / TICKS_A_S
