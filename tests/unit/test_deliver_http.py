"""Our side of HTTP: connections kept and left, answers of any shape, what proves that nothing was sent (G2, A1)."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from engine.clock import monotonic_s
from engine.deliver.http_exchange import MOST_ANSWER_BYTES, Answer
from engine.deliver.outbound import WAITED_S, Outbound
from engine.errors import GatewayPermanent, GatewayRetryable, GatewayUnknown

Talk = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
FINE = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}"


class Server:
    """Answers every request of a connection with `answers` in turn, then the last again; counts both."""

    def __init__(self, *answers: bytes, closes_after: int | None = None) -> None:
        self.answers = answers
        self.closes_after = closes_after
        self.connections = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            served = 0
            while served != self.closes_after:
                head = await reader.readuntil(b"\r\n\r\n")
                length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
                self.requests.append(head + await reader.readexactly(length))
                writer.write(self.answers[min(served, len(self.answers) - 1)])
                await writer.drain()
                served += 1
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()


def talk(server: Server, work: Callable[[Outbound, str], Awaitable[None]], *, timeout_s: float = 2.0) -> None:
    async def main() -> None:
        async with asyncio.timeout(20):
            listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
            out = Outbound(
                "x", timeout_s=timeout_s, allow_http=True, exceptions=[ipaddress.ip_network("127.0.0.0/8")], window=2
            )
            try:
                await work(out, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/a?b=c")
            finally:
                await out.close()
                listening.close()
                await asyncio.sleep(0.01)

    asyncio.run(main())


async def post(out: Outbound, url: str, body: bytes = b"hello", **headers: str) -> Answer:
    return await out.post(out.target(url), content=body, headers=headers)


def test_one_request_after_the_other_takes_one_connection_and_each_is_whole() -> None:
    server = Server(FINE)

    async def work(out: Outbound, url: str) -> None:
        for number in range(5):
            answer = await post(out, url, b"%d" % number, x="y")
            assert (answer.status_code, answer.content, answer.is_success) == (200, b"{}", True)

    talk(server, work)
    assert (server.connections, len(server.requests)) == (1, 5)
    assert server.requests[3].startswith(b"POST /a?b=c HTTP/1.1\r\n")
    assert server.requests[3].endswith(b"\r\n\r\n3")
    assert b"\r\nx: y\r\n" in server.requests[3]


def test_no_more_connections_are_kept_than_are_used_at_once_and_none_for_long() -> None:
    server = Server(FINE)

    async def work(out: Outbound, url: str) -> None:
        await asyncio.gather(*(post(out, url) for _ in range(6)))
        assert len(out._connections._idle) == 2
        used = server.connections
        out._connections._monotonic_s = lambda: monotonic_s() + 10
        await post(out, url)
        assert (server.connections, len(out._connections._idle)) == (used + 1, 1)

    talk(server, work)


def test_old_connections_are_left_by_many_at_once_and_every_request_finds_one() -> None:
    """G2: a fault here would leave messages unknown that never left."""
    server = Server(FINE)

    async def work(out: Outbound, url: str) -> None:
        await asyncio.gather(*(post(out, url) for _ in range(6)))
        assert len(out._connections._idle) == 2
        out._connections._monotonic_s = lambda: monotonic_s() + 10
        answers = await asyncio.gather(*(post(out, url) for _ in range(6)))
        assert all(answer.is_success for answer in answers)

    talk(server, work)
    assert len(server.requests) == 12


def test_a_connection_that_the_peer_has_closed_meanwhile_is_not_used_again() -> None:
    server = Server(FINE, closes_after=1)

    async def work(out: Outbound, url: str) -> None:
        for _ in range(3):
            assert (await post(out, url)).is_success
            await asyncio.sleep(0.02)

    talk(server, work)
    assert server.connections == 3


def test_words_that_nobody_asked_for_are_not_taken_for_the_next_answer() -> None:
    server = Server(FINE + b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nforged", FINE)

    async def work(out: Outbound, url: str) -> None:
        await post(out, url)
        await asyncio.sleep(0.02)
        assert (await post(out, url)).content == b"{}"

    talk(server, work)
    assert server.connections == 2


@pytest.mark.parametrize(
    ("answer", "status", "content"),
    [
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" + FINE, 200, b"{}"),
        (b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n", 200, b"abc"),
        (b"HTTP/1.1 204 No Content\r\n\r\n", 204, b""),
        (b"HTTP/1.1 301 Moved\r\nlocation: http://169.254.169.254/\r\ncontent-length: 0\r\n\r\n", 301, b""),
        (
            b"HTTP/1.1 202 OK\r\ncontent-length: 999999999999\r\n\r\n" + b"x" * 200_000,
            202,
            b"x" * MOST_ANSWER_BYTES,
        ),
    ],
    ids=["informational", "chunked", "no body", "redirect", "endless"],
)
def test_answers_of_any_shape_are_read_and_long_ones_cut_off(answer: bytes, status: int, content: bytes) -> None:
    server = Server(answer)

    async def work(out: Outbound, url: str) -> None:
        got = await post(out, url)
        assert (got.status_code, got.content) == (status, content)

    talk(server, work)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer",
    [
        b"",
        b"HTTP/1.1 200 OK\r\ncontent-le",
        b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{",
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * 200_000,
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    ],
    ids=["nothing", "cut head", "cut body", "another protocol", "endless head", "upgrade"],
)
def test_an_answer_that_is_none_leaves_open_what_happened(answer: bytes) -> None:
    server = Server(answer, closes_after=1)

    async def work(out: Outbound, url: str) -> None:
        with pytest.raises(GatewayUnknown):
            await post(out, url)
        assert not out._connections._idle

    talk(server, work)
    assert len(server.requests) == 1


def test_an_answer_that_drips_for_ever_is_given_up_in_time() -> None:
    class Drip(Server):
        async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                while True:
                    writer.write(b"H" if not self.requests else b"x")
                    self.requests.append(b"")
                    await writer.drain()
                    await asyncio.sleep(0.001)
            except ConnectionError:
                pass
            finally:
                writer.close()

    async def work(out: Outbound, url: str) -> None:
        begin_s = asyncio.get_running_loop().time()
        with pytest.raises(GatewayUnknown):
            await post(out, url)
        assert asyncio.get_running_loop().time() - begin_s < 1.5

    talk(Drip(), work, timeout_s=0.3)


@pytest.mark.parametrize("value", ["a\r\nx-forged: 1", "a\nb", "电影", "a\0b"])
def test_a_header_that_http_cannot_carry_is_refused_before_a_byte_leaves(value: str) -> None:
    server = Server(FINE)

    async def work(out: Outbound, url: str) -> None:
        with pytest.raises(GatewayPermanent, match="bad_request"):
            await post(out, url, x=value)
        assert (await post(out, url)).is_success

    talk(server, work)
    assert len(server.requests) == 1


def test_nobody_there_and_no_tls_there_prove_that_nothing_was_sent() -> None:
    server = Server(FINE)

    async def work(out: Outbound, url: str) -> None:
        with pytest.raises(GatewayRetryable):
            await post(out, url.replace("http:", "https:"))
        with pytest.raises(GatewayRetryable):
            await post(out, "http://127.0.0.1:1/")

    talk(server, work, timeout_s=0.5)
    assert server.requests == []


def test_a_cancelled_request_takes_its_connection_with_it() -> None:
    server = Server(b"")

    async def work(out: Outbound, url: str) -> None:
        task = asyncio.create_task(post(out, url))
        while not server.requests:
            await asyncio.sleep(0.001)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not out._connections._idle

    talk(server, work)


@pytest.mark.parametrize("why", ["no_consent", None])
def test_f26_a_request_that_had_to_wait_for_its_connection_asks_again_before_the_first_byte(why: str | None) -> None:
    """A2, D6: the user may have opted out, or the deadline passed, since the claim."""
    server = Server(FINE)

    async def work(out: Outbound, url: str) -> None:
        connect, asked = out._connections._backend.connect_tcp, []

        async def slow(*given: Any, **more: Any) -> Any:
            await asyncio.sleep(WAITED_S + 0.05)
            return await connect(*given, **more)

        def why_not_now() -> str | None:
            asked.append(why)
            return why

        out._connections._backend.connect_tcp = slow  # type: ignore[method-assign]
        target = out.target(url)
        if why is None:
            assert (await out.post(target, content=b"x", why_not_now=why_not_now)).is_success
        else:
            with pytest.raises(GatewayPermanent, match=why):
                await out.post(target, content=b"x", why_not_now=why_not_now)
        await out.post(target, content=b"x", why_not_now=why_not_now)
        assert asked == [why], "not where nothing had to be waited for"

    talk(server, work)
    assert len(server.requests) == (2 if why is None else 1)
