"""Our SGIP port: who may speak there, and what an operator tells of numbers (UserRpt)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from engine.deliver.gateways.operator import make_operator
from engine.deliver.gateways.sgip import SgipGateway
from engine.deliver.operators import sgip
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
        length = await reader.readexactly(4)
        return sgip.decode(length + await reader.readexactly(int.from_bytes(length, "big") - 4))
    except (asyncio.IncompleteReadError, ConnectionError):
        return None


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
