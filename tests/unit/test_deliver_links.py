"""Connections of operators' protocols under peers that misbehave: deaf, late, or saying things twice (F18, F26, G4)."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.clock import monotonic_s, wall_ms
from engine.deliver.contract import Capabilities, Dispatch
from engine.deliver.gateways.sgip_dialect import Account, Counter, SgipDialect, SgipInboundDialect
from engine.deliver.operators import sgip
from engine.deliver.operators.link import Back, Link, Timing
from engine.deliver.operators.session import WAITED_S, OperatorGateway, Peer
from engine.errors import GatewayPermanent

NODE = 3010012345


def ours() -> SgipDialect:
    return SgipDialect(Account("l", "p", NODE, "12345", "10655000"), Counter(NODE, wall_ms))


Work = Callable[[Link, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def talk(dialect: Any, work: Work, take: Any = None) -> None:
    async def keep(link: Link, back: list[Back]) -> None:
        return None

    async def main() -> None:
        async with asyncio.timeout(20):
            near, far = socket.socketpair()
            for one in (near, far):
                one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
            loop = asyncio.get_running_loop()
            _, link = await loop.create_connection(
                lambda: Link(
                    "x", dialect, Timing(5, 5, 1), take or keep, lambda: None, now_ms=wall_ms, monotonic_s=monotonic_s
                ),
                sock=near,
            )
            reader, writer = await asyncio.open_connection(sock=far)
            try:
                await work(link, reader, writer)
            finally:
                link.abort()
                await link.ended.wait()
                writer.close()
                await asyncio.sleep(0.01)

    asyncio.run(main())


def test_a_peer_that_never_reads_what_we_acknowledge_is_not_read_from_either() -> None:
    """Otherwise acknowledgements that nobody takes would fill the memory."""
    dialect = SgipInboundDialect("l", "p")
    dialect.is_bound = True
    reports = b"".join(sgip.Report((1, 1, at), (2, 2, at), "8613800000000", 0).encode() for at in range(1000))
    buffered = []

    async def take(link: Link, back: list[Back]) -> None:
        link.write(b"".join(one.done for one in back))

    async def flood(link: Link, writer: asyncio.StreamWriter) -> None:
        while True:
            writer.write(reports)
            await writer.drain()
            assert link._transport is not None
            buffered.append(link._transport.get_write_buffer_size())

    async def work(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        reader._transport.pause_reading()  # type: ignore[attr-defined]
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(flood(link, writer), 0.7)
        assert max(buffered) < 1 << 18
        reader._transport.resume_reading()  # type: ignore[attr-defined]
        for _ in range(5 * len(buffered) + 5):
            await reader.read(1 << 16)
            if not link._is_stuck:
                return
        raise AssertionError("it is not read again although the peer reads")

    talk(dialect, work, take)


def test_a_second_answer_to_the_login_changes_nothing() -> None:
    async def work(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for result in (sgip.OK, sgip.BAD_LOGIN):
            writer.write(sgip.Answer((NODE, 1, 1), sgip.BIND | sgip.ANSWER, result).encode())
        await link.logged_in
        await asyncio.sleep(0.05)
        assert link.is_ready

    talk(ours(), work)


def test_an_answer_that_nobody_waits_for_and_one_that_comes_twice_are_let_pass() -> None:
    async def work(link: Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(sgip.Answer((NODE, 1, 1), sgip.BIND | sgip.ANSWER, sgip.OK).encode())
        await link.logged_in
        from engine.deliver.operators.parts import cut

        future, _ = link.submit(cut("hello", 1)[0], "8613800000000", wall_ms() + 60_000)
        frame = await reader.readexactly(4)
        sent = sgip.decode(frame + await reader.readexactly(int.from_bytes(frame, "big") - 4))
        assert isinstance(sent, sgip.Submit)
        for sequence, result in (((9, 9, 9), sgip.OK), (sent.sequence, sgip.OK), (sent.sequence, sgip.BUSY)):
            writer.write(sgip.Answer(sequence, sgip.SUBMIT | sgip.ANSWER, result).encode())
        assert (await future).verdict.name == "OK"
        await asyncio.sleep(0.02)
        assert not link.pending
        assert link.is_ready

    talk(ours(), work)


class Crowded(OperatorGateway):
    """A gateway whose window has no room for a while."""

    def __init__(self, waits_s: float) -> None:
        peer = Peer("127.0.0.1", 1, 1, 4, Timing(5, 5, 1))
        super().__init__("x", "sms", peer, ours, Capabilities(), now_ms=wall_ms)
        self._waits_s = waits_s
        self.submitted = 0

    async def _link_with(self, room: int) -> Any:
        await asyncio.sleep(self._waits_s)
        return self

    def submit(self, *given: Any) -> Any:  # type: ignore[override]
        if isinstance(given[0], Dispatch):
            return super().submit(given[0])
        self.submitted += 1
        future = asyncio.get_running_loop().create_future()
        from engine.deliver.operators.dialect import Answered, Verdict

        future.set_result(Answered("k", Verdict.OK, "id"))
        return future, "id"


@pytest.mark.parametrize(
    ("waits_s", "why", "sent"), [(WAITED_S + 0.05, "no_consent", 0), (WAITED_S + 0.05, None, 1), (0, "no_consent", 1)]
)
def test_f26_a_submit_that_had_to_wait_for_room_asks_again_before_the_first_byte(
    waits_s: float, why: str | None, sent: int
) -> None:
    async def main() -> int:
        gateway = Crowded(waits_s)
        dispatch = Dispatch(
            "0" * 32 + "/sms/1", "0" * 32, "13800000000", "hi", "", wall_ms() + 60_000, why_not_now=lambda: why
        )
        if sent:
            await gateway.submit(dispatch)
        else:
            with pytest.raises(GatewayPermanent, match="no_consent"):
                await gateway.submit(dispatch)
        return gateway.submitted

    assert asyncio.run(main()) == sent
