"""Our SGIP port: who may speak there, and what an operator tells of numbers (UserRpt)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from engine.deliver.gateways.operator import make_operator
from engine.deliver.gateways.sgip import SgipGateway
from engine.deliver.operators import sgip
from engine.deliver.operators.parts import cut
from engine.gateway_settings import SgipSettings
from tests.peers.programs import free_port
from tests.peers.rig import Rig
from tests.peers.smsgate import LOGIN, PASSWORD

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter, Rig], Awaitable[None]]


def listen(folder: Path, talk: Talk, **more: Any) -> Rig:
    """Start a gateway whose operator is away, and talk to its port."""
    fields: dict[str, Any] = {
        "host": "127.0.0.1", "port": free_port(), "login": LOGIN, "password": PASSWORD, "node": 3010012345,
        "corporation": "12345", "sender": "10655000", "listen_host": "127.0.0.1", "listen_port": 0,
    }  # fmt: skip
    gateway = make_operator("unicom", "sms", SgipSettings(kind="sgip", **(fields | more)))
    assert isinstance(gateway, SgipGateway)
    rigs = []

    async def main() -> None:
        async with asyncio.timeout(20):
            rig = Rig(folder, [gateway])
            rigs.append(rig)
            await rig.dispatcher.start()
            reader, writer = await asyncio.open_connection("127.0.0.1", gateway.listener.port)
            await talk(reader, writer, rig)
            writer.close()
            await rig.close(0.2)

    asyncio.run(main())
    return rigs[0]


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, message: sgip.Message) -> sgip.Message | None:
    """Send one message; return the answer, None where the connection is closed instead."""
    writer.write(message.encode())
    try:
        return await read(reader)
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


async def read(reader: asyncio.StreamReader) -> Any:
    length = await reader.readexactly(4)
    return sgip.decode(length + await reader.readexactly(int.from_bytes(length, "big") - 4))


BIND = sgip.Bind((1, 1, 1), sgip.SMG_TO_SP, LOGIN, PASSWORD)


def test_a_wrong_login_is_answered_with_its_code_and_closed(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        answer = await ask(reader, writer, sgip.Bind((1, 1, 1), sgip.SMG_TO_SP, LOGIN, "wr0ng"))
        assert answer == sgip.Answer((1, 1, 1), sgip.BIND | sgip.ANSWER, sgip.BAD_LOGIN)
        assert await reader.read() == b""

    listen(tmp_path, talk)


def test_nothing_is_taken_before_a_login(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        assert await ask(reader, writer, sgip.UserReport((1, 1, 2), "10655000", "8613800000007", 0)) is None
        assert rig.events == []

    listen(tmp_path, talk)


def test_a_connection_from_elsewhere_is_closed_before_a_word(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        assert await ask(reader, writer, BIND) is None

    listen(tmp_path, talk, allow_from=("10.0.0.0/8",))


def test_news_of_numbers_close_a_user_or_suppress_one_until_restored(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        await ask(reader, writer, BIND)
        for place, condition in enumerate((1, 2, 0)):
            report = sgip.UserReport((1, 1, 2 + place), "10655000", "8613800000007", condition)
            answer = await ask(reader, writer, report)
            assert answer == sgip.Answer((1, 1, 2 + place), sgip.USER_REPORT | sgip.ANSWER, sgip.OK)
        odd = await ask(reader, writer, sgip.UserReport((1, 1, 9), "10655000", "8613800000007", 77))
        assert isinstance(odd, sgip.Answer)
        assert odd.result == sgip.BAD_PARAMETER

    barred, restored, closed = listen(tmp_path, talk).events
    assert (barred["type"], barred["user"], barred["add_tags"]) == ("profile", "u7", ["suppressed.sms"])
    assert (restored["type"], restored["remove_tags"]) == ("profile", ["suppressed.sms"])
    assert (closed["type"], closed["user"]) == ("user-closed", "u7")


LONG = "您好，" + "我想问一下附近影院的优惠怎么领取，" * 8


def parts_of(text: str) -> list[sgip.Deliver]:
    return [
        sgip.Deliver((1, 1, 10 + one.number), "8613800000007", "10655000", one.content, one.coding, one.has_header)
        for one in cut(text, 9)
    ]


def test_a_long_message_is_acknowledged_with_its_last_part_once_the_whole_is_journaled(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        await ask(reader, writer, BIND)
        first, *others = parts_of(LONG)
        writer.write(first.encode())
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await reader.readexactly(1)
        assert rig.events == [], "nothing is known before the whole is there"
        # The link breaks; the operator sends the part again on another one, and then the others.
        writer.close()
        port = writer.get_extra_info("peername")[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        await ask(reader, writer, BIND)
        writer.write(b"".join(one.encode() for one in (first, *others)))
        answers = [await read(reader) for _ in range(1 + len(others))]
        assert {one.sequence for one in answers} == {one.sequence for one in (first, *others)}
        assert {one.result for one in answers} == {sgip.OK}
        again = await ask(reader, writer, first)
        assert again == sgip.Answer(first.sequence, sgip.DELIVER | sgip.ANSWER, sgip.OK), "it is stored already"
        writer.close()

    told = [one for one in listen(tmp_path, talk).events if one["type"] == "inbound-message"]
    assert [one["text"] for one in told] == [LONG]


def test_a_long_message_that_cannot_be_journaled_is_busy_in_every_part_and_taken_when_it_comes_again(
    tmp_path: Path,
) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        await ask(reader, writer, BIND)
        frames = b"".join(one.encode() for one in parts_of(LONG))
        emit, rig.dispatcher.returns._emit = rig.dispatcher.returns._emit, refuse
        writer.write(frames)
        assert {(await read(reader)).result for _ in parts_of(LONG)} == {sgip.BUSY}
        rig.dispatcher.returns._emit = emit
        writer.write(frames)
        assert {(await read(reader)).result for _ in parts_of(LONG)} == {sgip.OK}

    async def refuse(payloads: Any) -> None:
        raise OSError("disk full")

    told = [one for one in listen(tmp_path, talk).events if one["type"] == "inbound-message"]
    assert [one["text"] for one in told] == [LONG]


def test_parts_of_a_message_that_stays_incomplete_are_busy_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.deliver.operators.session.HOLD_PARTS_S", 0.2)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        await ask(reader, writer, BIND)
        first = parts_of(LONG)[0]
        assert await ask(reader, writer, first) == sgip.Answer(first.sequence, sgip.DELIVER | sgip.ANSWER, sgip.BUSY)

    assert listen(tmp_path, talk).events == []


def test_a_store_that_cannot_write_is_busy_to_the_operator_so_that_it_comes_again(tmp_path: Path) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        await ask(reader, writer, BIND)
        rig.dispatcher.returns._emit = refuse
        answer = await ask(
            reader, writer, sgip.Deliver((1, 1, 3), "8613800000007", "10655000", "R".encode("utf-16-be"), 8)
        )
        assert answer == sgip.Answer((1, 1, 3), sgip.DELIVER | sgip.ANSWER, sgip.BUSY)

    async def refuse(payloads: Any) -> None:
        raise OSError("disk full")

    listen(tmp_path, talk)


def test_strangers_who_never_log_in_cannot_keep_the_operator_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engine.deliver.gateways.sgip.MOST_CONNECTIONS", 3)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        port = writer.get_extra_info("peername")[1]
        strangers = [(reader, writer), *[await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]]
        known = []
        for _ in range(3):
            known.append(await asyncio.open_connection("127.0.0.1", port))
            answer = await ask(*known[-1], BIND)
            assert isinstance(answer, sgip.Answer)
            assert answer.result == sgip.OK
        for stranger, _ in strangers:
            assert await gone(stranger), "each made room"
        late, out = await asyncio.open_connection("127.0.0.1", port)
        assert await gone(late), "those who have logged in stay"
        for _, one in (*strangers, *known, (late, out)):
            one.close()

    async def gone(reader: asyncio.StreamReader) -> bool:
        try:
            return await reader.read() == b""
        except ConnectionError:
            return True

    listen(tmp_path, talk)


def test_f19_a_connection_from_the_operator_that_died_without_a_word_is_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SGIP has no test of a link: dead ones would fill the port until no report could come any more."""
    monkeypatch.setattr("engine.deliver.gateways.sgip.IDLE_S", 0.4)

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        await ask(reader, writer, BIND)
        for number in range(4):
            await asyncio.sleep(0.15)
            answer = await ask(reader, writer, sgip.Report((1, 1, 2 + number), (2, 2, number), "8613800000007", 0))
            assert isinstance(answer, sgip.Answer), "it is not silent"
        assert await reader.read() == b""

    listen(tmp_path, talk)


def test_receipts_of_nothing_known_are_acknowledged_and_change_nothing(tmp_path: Path) -> None:  # F20
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        await ask(reader, writer, BIND)
        for number in (1, 1, 2):
            report = sgip.Report((1, 1, 10 + number), (9, 9, number), "8613800000007", 2, 25)
            assert await ask(reader, writer, report) == sgip.Answer(report.sequence, sgip.REPORT | sgip.ANSWER, sgip.OK)

    assert listen(tmp_path, talk).events == []


@pytest.mark.parametrize("cut_at", [1, 3, 4, 19, 20, 63])
def test_a_frame_that_stays_half_holds_up_nobody_else(tmp_path: Path, cut_at: int) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, rig: Rig) -> None:
        await ask(reader, writer, BIND)
        half = sgip.Report((1, 1, 2), (9, 9, 9), "8613800000007", 0).encode()[:cut_at]
        writer.write(half)
        other, out = await asyncio.open_connection("127.0.0.1", writer.get_extra_info("peername")[1])
        await ask(other, out, BIND)
        answer = await ask(other, out, sgip.Report((1, 1, 3), (9, 9, 8), "8613800000007", 0))
        assert isinstance(answer, sgip.Answer)
        out.close()

    listen(tmp_path, talk)
