"""One channel over two operators at once, routed as opportune.toml says: SMSGate by SGIP and npm's `smpp` (G4, O2)."""

from __future__ import annotations

import asyncio
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from engine.clock import wall_ms
from engine.deliver.gateways.build import GatewayMaker, routes
from engine.model import DispatchState as S
from engine.settings import Settings
from tests.peers.programs import free_port
from tests.peers.rig import Rig
from tests.peers.smsc import Smsc
from tests.peers.smsgate import LOGIN, PASSWORD, SmsGate, Submitted, classpath

pytestmark = pytest.mark.integration

TOML = """
[gateways.unicom]
kind = "sgip"
channel = "sms"
host = "127.0.0.1"
port = {sgip}
login = "{login}"
password = "{password}"
node = 3010012345
corporation = "12345"
sender = "10655000"
listen_host = "127.0.0.1"
listen_port = 0
messages_per_s = 2000
provinces = ["guangdong", "beijing"]
signature = "联通权益中心"
signature_at_end = true

[gateways.aggregator]
kind = "smpp"
channel = "sms"
host = "127.0.0.1"
port = {smpp}
login = "opportune"
password = "{smsc}"
sender = "10655"
messages_per_s = 2000
signature = "权益"
opt_out_text = "回T退订"
"""
TEXT = "惠" * 57


@pytest.fixture
def peers(tmp_path: Path) -> Iterator[tuple[SmsGate, Smsc]]:
    found = classpath()
    smsc = Smsc().start()
    gate = SmsGate(found, "sgip", free_port(), tmp_path)
    yield gate, smsc
    gate.kill()
    smsc.stop()


def test_province_weight_and_texts_hold_over_two_real_gateways_and_one_stands_in_for_the_other(
    peers: tuple[SmsGate, Smsc], tmp_path: Path
) -> None:
    gate, smsc = peers
    written = TOML.format(sgip=gate.port, smpp=smsc.port, login=LOGIN, password=PASSWORD, smsc=Smsc.PASSWORD)
    settings = Settings(**tomllib.loads(written))

    async def main() -> None:
        rig = Rig(tmp_path, GatewayMaker(settings, now_ms=wall_ms).declared(), routes=routes(settings))
        async with asyncio.timeout(60):
            await rig.dispatcher.start()
            await rig.until(lambda: not any(rig.dispatcher.held_back().values()))
            rig.offer(range(30), province="guangdong", text=TEXT)
            rig.offer(range(30, 50), province="sichuan", text=TEXT)
            rig.offer(range(50, 60), text=TEXT)
            await rig.dispatcher.idle()
            told: list[Submitted] = []  # the peers tell what they got a little after they have answered
            await rig.until(lambda: told.extend(gate.submits()) or len(told) >= 30)
            await rig.until(lambda: len(smsc.submits()) >= 30)
            by_sgip = {int(one.number[-8:]): one for one in told}
            assert set(by_sgip) == set(range(30))
            assert {one.text for one in by_sgip.values()} == {f"{TEXT}拒收请回复R【联通权益中心】"}
            assert {len(one.results) for one in by_sgip.values()} == {2}, "71 units are two segments (O2)"
            by_smpp = smsc.submits()
            assert {int(one["to"][-8:]) for one in by_smpp} == set(range(30, 60))
            assert {one["text"] for one in by_smpp} == {f"【权益】{TEXT}回T退订"}
            assert len(by_smpp) == 30, "65 units are one segment"
            gate.kill()
            await rig.until(lambda: bool(rig.dispatcher.held_back()["unicom"]))
            made = rig.offer(range(60, 90), province="beijing", text=TEXT)
            await rig.dispatcher.idle()
            await rig.until(lambda: len(smsc.submits()) >= 60)
            assert {int(one["to"][-8:]) for one in smsc.submits()[30:]} == set(range(60, 90))
            # Receipts may have come by now.
            assert {rig.state_of(one) for one in made} <= {S.ACCEPTED, S.DELIVERED}
            await rig.close()

    asyncio.run(main())
    assert len(smsc.submits()) == 60, "none was sent twice or by both"
