"""SMPP 3.4 against npm's `smpp` as the centre: another implementation than the one under test (F16-F20, G2, G3)."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from engine.deliver.contract import Gateway
from engine.deliver.gateways.operator import make_operator
from engine.deliver.operators.parts import cut
from engine.gateway_settings import SmppSettings
from engine.model import DispatchState as S
from tests.peers.rig import TEXT, Rig
from tests.peers.smsc import Smsc

pytestmark = pytest.mark.integration
LONG = "您好，" + "附近的影院今晚有您的专属观影优惠，" * 12 + "😀请凭此短信到前台领取。"


@pytest.fixture
def smsc() -> Iterator[Smsc]:
    peer = Smsc().start()
    yield peer
    peer.stop()
    peer.handsets.check()


def run(smsc: Smsc, folder: Path, work: Callable[[Rig, Gateway], Awaitable[None]], **settings: Any) -> Rig:
    common: dict[str, Any] = {
        "host": "127.0.0.1",
        "port": smsc.port,
        "login": "opportune",
        "password": Smsc.PASSWORD,
        "sender": "10655",
        "answer_timeout_s": 3,
        "keep_alive_s": 1,
        "keep_alive_tries": 2,
        "messages_per_s": 2000,
    }
    gateway = make_operator("smpp", "sms", SmppSettings(kind="smpp", channel="sms", **(common | settings)))
    rigs: list[Rig] = []

    async def main() -> None:
        async with asyncio.timeout(90):
            rigs.append(Rig(folder, [gateway]))
            await rigs[0].dispatcher.start()
            try:
                await work(rigs[0], gateway)
            finally:
                await rigs[0].close()

    asyncio.run(main())
    return rigs[0]


@pytest.mark.parametrize("receipt_first", [False, True])
def test_messages_arrive_whole_and_receipts_count_whether_before_or_after_the_answer(
    smsc: Smsc, tmp_path: Path, receipt_first: bool
) -> None:
    smsc.tell(rules={"receipt_first": receipt_first})

    async def work(rig: Rig, gateway: Gateway) -> None:
        await rig.until(lambda: gateway.standing.ready)
        rig.offer(range(30))
        rig.offer(range(30, 35), text=LONG)
        rig.offer(range(35, 40), text="Plain [ASCII] text, 50% off")
        await rig.all_in(S.DELIVERED)

    rig = run(smsc, tmp_path, work)
    submits = smsc.submits()
    by_number: dict[str, str] = {}
    for one in submits:  # in order, so that parts of a long message join
        by_number[one["to"]] = by_number.get(one["to"], "") + one["text"]
    assert Counter(by_number.values()) == {
        f"【联通权益】{TEXT}拒收请回复R": 30,
        f"【联通权益】{LONG}拒收请回复R": 5,
        "【联通权益】Plain [ASCII] text, 50% off拒收请回复R": 5,
    }
    assert {one["to"] for one in submits} == {f"86138{number:08d}" for number in range(40)}
    assert all(one["has_header"] for one in submits if one["to"].endswith(("30", "31", "32", "33", "34")))
    receipts = [one for one in rig.events if one["type"] == "receipt"]
    assert len({one["dispatch_id"] for one in receipts}) == len(receipts) == 40
    told = [one["receipt_answer"] for one in smsc.told if "receipt_answer" in one]
    assert set(told) == {0}


def test_f20_names_in_hexadecimal_here_and_decimal_there_are_one_name(smsc: Smsc, tmp_path: Path) -> None:
    smsc.tell(rules={"hex_answer": True, "stat": "UNDELIV"})

    async def work(rig: Rig, gateway: Gateway) -> None:
        await rig.until(lambda: gateway.standing.ready)
        rig.offer(range(5))
        await rig.all_in(S.FAILED)

    run(smsc, tmp_path, work, ids="hex_answer")


def test_f17_what_was_throttled_is_sent_again_and_none_is_lost_or_doubled(smsc: Smsc, tmp_path: Path) -> None:
    smsc.tell(rules={"throttle_every": 10})

    async def work(rig: Rig, gateway: Gateway) -> None:
        await rig.until(lambda: gateway.standing.ready)
        rig.offer(range(200))
        await rig.all_in(S.DELIVERED, timeout_s=60)

    run(smsc, tmp_path, work)
    assert Counter(Counter(one["to"] for one in smsc.submits()).values()) == {1: 200}


def test_f18_a_centre_that_answers_after_five_seconds_never_has_more_unanswered_than_the_window(
    smsc: Smsc, tmp_path: Path
) -> None:
    smsc.tell(rules={"delay_ms": 5_000})

    async def work(rig: Rig, gateway: Gateway) -> None:
        await rig.until(lambda: gateway.standing.ready)
        rig.offer(range(15))
        await rig.all_in(S.DELIVERED)
        smsc.tell(most=True)
        await rig.until(lambda: any("most" in one for one in smsc.told))

    run(smsc, tmp_path, work, window=10, answer_timeout_s=10)
    assert [one["most"] for one in smsc.told if "most" in one] == [10]


def test_f19_a_link_dead_without_fin_is_found_and_opened_anew(smsc: Smsc, tmp_path: Path) -> None:
    async def work(rig: Rig, gateway: Gateway) -> None:
        await rig.until(lambda: gateway.standing.ready)
        smsc.freeze()
        rig.offer(range(3))
        await rig.until(lambda: not gateway.standing.ready, 15)
        await rig.until(lambda: rig.states() == {S.UNKNOWN: 3}, 5)
        smsc.thaw()
        await rig.until(lambda: gateway.standing.ready, 20)
        rig.dispatcher.reset_breakers()
        rig.offer(range(3, 6))
        await rig.until(lambda: rig.states()[S.DELIVERED] >= 3)

    run(smsc, tmp_path, work)


def test_f19_a_gateway_that_drops_every_login_sees_at_most_one_a_second(tmp_path: Path) -> None:
    """Four connections that are wanted at once, and a peer that hangs up on each: no storm."""
    came: list[float] = []

    async def hang_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(time.monotonic())
        await reader.read(4)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(hang_up, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        fields = {"host": "127.0.0.1", "port": port, "login": "opportune", "password": "x", "sender": "10655"}
        settings = SmppSettings(kind="smpp", channel="sms", connections=4, **fields)
        rig = Rig(tmp_path, [make_operator("smpp", "sms", settings)])
        await rig.dispatcher.start()
        await rig.until(lambda: len(came) >= 4, 15)
        await rig.close(0.1)
        server.close()

    asyncio.run(main())
    assert min(later - sooner for sooner, later in itertools.pairwise(came)) > 0.9


def test_a3_a_users_long_message_comes_in_whole_and_every_part_is_acknowledged(smsc: Smsc, tmp_path: Path) -> None:
    async def work(rig: Rig, gateway: Gateway) -> None:
        await rig.until(lambda: gateway.standing.ready)
        smsc.tell(inbound={"source_addr": "8613800000007", "destination_addr": "10655", "short_message": "TD"})
        smsc.tell(inbound={"source_addr": "8613800000008", "destination_addr": "10655", "short_message": "退订"})
        for part in cut(LONG, 5):
            content = {"type": "Buffer", "data": list(part.content)}
            numbers = {"source_addr": "8613800000009", "destination_addr": "10655"}
            smsc.tell(inbound={**numbers, "esm_class": 0x40, "data_coding": 8, "short_message": content})
        await rig.until(lambda: len(rig.events) == 4)
        await rig.until(lambda: len([one for one in smsc.told if "inbound_answer" in one]) == 2 + len(cut(LONG, 5)))

    rig = run(smsc, tmp_path, work)
    assert {(one["user"], one["text"]) for one in rig.events if one["type"] == "inbound-message"} == {
        ("u7", "TD"),
        ("u8", "退订"),
        ("u9", LONG),
    }
    assert {one["inbound_answer"] for one in smsc.told if "inbound_answer" in one} == {0}


def test_a_wrong_password_is_said_as_such_and_nothing_is_claimed(smsc: Smsc, tmp_path: Path) -> None:
    async def work(rig: Rig, gateway: Gateway) -> None:
        rig.offer(range(3))
        await rig.until(lambda: gateway.standing.permanent)
        assert gateway.standing.detail == "login refused: wrong password"
        assert rig.states() == {None: 3}

    run(smsc, tmp_path, work, password="wrong")


def test_f16_f19_a_silent_centre_is_noticed_and_what_it_did_not_answer_is_never_resent(
    smsc: Smsc, tmp_path: Path
) -> None:
    async def work(rig: Rig, gateway: Gateway) -> None:
        await rig.until(lambda: gateway.standing.ready)
        smsc.tell(rules={"silent": True})
        rig.offer(range(4))
        await rig.all_in(S.UNKNOWN)
        smsc.tell(rules={"silent": False})
        await rig.until(lambda: sum("bind" in one for one in smsc.told) >= 2)

    run(smsc, tmp_path, work)
    assert smsc.submits() == []


def test_a_centre_that_restarts_under_load_gets_each_message_at_most_once(smsc: Smsc, tmp_path: Path) -> None:
    before: list[dict[str, Any]] = []

    async def work(rig: Rig, gateway: Gateway) -> None:
        await rig.until(lambda: gateway.standing.ready)
        rig.offer(range(300))
        await rig.until(lambda: len(smsc.submits()) >= 60)
        smsc.stop()
        before.extend(smsc.submits())
        smsc.start()
        await rig.all_in(S.DELIVERED, S.ACCEPTED, S.UNKNOWN, timeout_s=60)

    run(smsc, tmp_path, work, messages_per_s=150)
    sent = Counter(one["to"] for one in [*before, *smsc.submits()])
    assert set(sent.values()) == {1}
    assert len(sent) >= 280
