"""Ordinary posts of events are answered without a task: the same answers, and nothing else is taken that way."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import re

import orjson
import pytest

from engine.console.server import SWIFT_BYTES, HttpServer
from tests.unit.test_api_events import Caller

PING = b'{"type":"ping","user":"u"}'
LARGE = b"\n".join([PING] * (SWIFT_BYTES // len(PING) + 10))


def request(body: bytes, *more: bytes, path: bytes = b"/v1/events", method: bytes = b"POST") -> bytes:
    head = [method + b" " + path + b" HTTP/1.1", b"host: engine", b"content-length: %d" % len(body), *more]
    return b"\r\n".join(head) + b"\r\n\r\n" + body


CHUNKED = (
    b'POST /v1/events HTTP/1.1\r\nHost: engine\r\nTransfer-Encoding: chunked\r\n\r\n6\r\n{"a":1\r\n1\r\n}\r\n0\r\n\r\n'
)
REQUESTS = {
    "one event": [request(PING)],
    "lines": [request(PING + b"\n" + PING + b"\n")],
    "an array": [request(b"[" + PING + b",\n" + PING + b"]")],
    "an empty array": [request(b"[]")],
    "nothing": [request(b"")],
    "space": [request(b" \n ")],
    "no content length": [b"POST /v1/events HTTP/1.1\r\nhost: engine\r\n\r\n"],
    "chunked": [CHUNKED],
    "a large body": [request(LARGE)],
    "gzip": [request(gzip.compress(PING), b"content-encoding: gzip")],
    "an encoding nobody knows": [request(PING, b"Content-Encoding: br")],
    "a key": [request(PING, b"Authorization: Bearer secret")],
    "a wrong key": [request(PING, b"authorization: Bearer other")],
    "an idempotency key twice": [request(PING, b"Idempotency-Key: k")] * 2,
    "another method": [request(b"", method=b"GET")],
    "waiting": [request(PING, path=b"/v1/events?wait=processed")],
    "a path that only looks like it": [request(PING, path=b"/v1/events/")],
    "an escaped path": [request(PING, path=b"/v1/%65vents")],
    "several on one connection": [request(PING), request(b""), CHUNKED, request(PING), request(b"", method=b"GET")] * 3,
    "the last one": [request(PING), request(PING, b"connection: close")],
    "an upgrade": [request(PING, b"connection: upgrade", b"upgrade: websocket")],
    "expecting to go on": [request(PING, b"expect: 100-continue")],
}


@pytest.mark.parametrize("key", [None, "secret"])
@pytest.mark.parametrize("cut", [0, 1, 40])
def test_the_quick_way_gives_the_answers_of_the_usual_way_however_bytes_arrive(key: str | None, cut: int) -> None:
    usual, usual_taken = answers_of(REQUESTS, key=key, cut=cut, at_once=False)
    quick, quick_taken = answers_of(REQUESTS, key=key, cut=cut, at_once=True)
    assert quick == usual
    assert quick_taken == usual_taken
    assert quick["several on one connection"].count(b"HTTP/1.1 ") == 15


@pytest.mark.parametrize(("fails", "queue_bytes", "status"), [(True, 1 << 20, b"503"), (False, 10, b"429")])
def test_what_cannot_be_journaled_now_is_answered_as_on_the_usual_way(
    fails: bool, queue_bytes: int, status: bytes
) -> None:
    usual, _ = answers_of({"one": [request(PING)]}, fails=fails, queue_bytes=queue_bytes, at_once=False)
    quick, taken = answers_of({"one": [request(PING)]}, fails=fails, queue_bytes=queue_bytes, at_once=True)
    assert quick == usual
    assert re.match(rb"HTTP/1.1 %b " % status, quick["one"])
    assert not taken


def test_an_event_waits_for_the_write_under_way_and_keeps_its_place() -> None:
    async def talk() -> list[bytes]:
        caller = Caller()
        caller.engine.gate = asyncio.Event()
        server = HttpServer(caller.api, "127.0.0.1", 0, at_once=caller.api.at_once.answer)
        await server.start()
        try:
            ends = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
            for number, (_, writer) in enumerate(ends):
                writer.write(request(b'{"number":%d}' % number))
                await asyncio.sleep(0.02)
            caller.engine.gate.set()
            for reader, writer in ends:
                assert (await asyncio.wait_for(reader.readuntil(b"}"), 5)).startswith(b"HTTP/1.1 202")
                writer.close()
        finally:
            await server.stop()
        return caller.engine.payloads

    assert asyncio.run(talk()) == [b'{"number":%d}' % number for number in range(3)]


def test_connections_that_bring_no_request_are_closed_and_further_ones_refused() -> None:
    """Else whoever opens sockets and says nothing takes the files that journal and ledger want to open."""

    async def talk() -> tuple[list[bytes], bytes, bytes]:
        caller = Caller()
        server = HttpServer(
            caller.api, "127.0.0.1", 0, at_once=caller.api.at_once.answer, most_connections=3, request_s=0.2
        )
        await server.start()
        try:
            ends = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
            for (_, writer), begun in zip(ends, (b"", b"POST /v1/ev", request(PING)[:-1]), strict=True):
                writer.write(begun)
            reader, further = await asyncio.open_connection("127.0.0.1", server.port)
            refused = await asyncio.wait_for(reader.read(), 5)
            told = [await asyncio.wait_for(reader.read(), 5) for reader, _ in ends]
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(request(PING))
            answered = await asyncio.wait_for(reader.readuntil(b"}"), 5)
            for one in (writer, further, *(begun for _, begun in ends)):
                one.close()
        finally:
            await server.stop()
        return told, refused, answered

    told, refused, answered = asyncio.run(talk())
    assert not any(one.startswith(b"HTTP/1.1 2") for one in told)
    assert refused.startswith(b"HTTP/1.1 503 ")
    head, _, body = refused.partition(b"\r\n\r\n")
    assert b"content-length: %d" % len(body) in head
    assert answered.startswith(b"HTTP/1.1 202 ")


GIGABYTE = b"content-length: 1000000000\r\n"


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"POST /v1/events HTTP/1.1\r\nhost: e\r\n" + GIGABYTE, b"413"),
        (b"POST /v1/events?wait=processed HTTP/1.1\r\nhost: e\r\n" + GIGABYTE, b"413"),
        (b"POST /v1/owntracks HTTP/1.1\r\nhost: e\r\n" + GIGABYTE, b"413"),
        (b"POST /v1/batch HTTP/1.1\r\nhost: e\r\nidempotency-key: k\r\n" + GIGABYTE, b"413"),
        (b"POST /v1/callbacks/sms HTTP/1.1\r\nhost: e\r\n" + GIGABYTE, b"413"),
        (b"POST /v1/pause HTTP/1.1\r\nhost: e\r\n" + GIGABYTE, b"413"),
        (b"POST /v1/events HTTP/1.1\r\nhost: e\r\ncontent-length: " + b"9" * 60 + b"\r\n", b"400"),
        (b"POST /v1/events HTTP/1.1\r\nhost: e\r\ncontent-length: -5\r\n", b"400"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 a TLS greeting\r\n", b"400"),
    ],
)
def test_a_body_that_is_too_large_is_refused_when_it_is_announced_and_what_is_no_request_is_not_logged(
    head: bytes, status: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """Nothing of the body is waited for; and strangers fill no log."""

    async def talk() -> bytes:
        caller = Caller()
        server = HttpServer(caller.api, "127.0.0.1", 0, at_once=caller.api.at_once.answer)
        await server.start()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(head + b"\r\n")
            answer = await asyncio.wait_for(reader.readuntil(b"}"), 5)
            writer.close()
        finally:
            await server.stop()
        return answer

    answer = asyncio.run(talk())
    assert answer.startswith(b"HTTP/1.1 %b " % status)
    assert set(orjson.loads(answer.partition(b"\r\n\r\n")[2])) == {"error", "detail"}
    assert not [one for one in caplog.records if one.name.startswith("uvicorn")]


@pytest.mark.parametrize("path", [b"/v1/events", b"/v1/events?wait=processed"])
def test_a_connection_in_use_and_an_answer_that_takes_long_are_not_cut_off(path: bytes) -> None:
    async def talk() -> list[bytes]:
        caller = Caller()
        server = HttpServer(caller.api, "127.0.0.1", 0, at_once=caller.api.at_once.answer, request_s=0.05)
        await server.start()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            answers = []
            for _ in range(2):
                caller.engine.gate = asyncio.Event()
                asyncio.get_running_loop().call_later(0.25, caller.engine.gate.set)
                writer.write(request(PING, path=path))
                answers.append(await asyncio.wait_for(reader.readuntil(b"}"), 5))
            writer.close()
        finally:
            await server.stop()
        return answers

    assert all(answer.startswith(b"HTTP/1.1 202 ") for answer in asyncio.run(talk()))


def answers_of(
    cases: dict[str, list[bytes]],
    *,
    at_once: bool,
    key: str | None = None,
    cut: int = 0,
    fails: bool = False,
    queue_bytes: int = 1 << 20,
) -> tuple[dict[str, bytes], list[bytes]]:
    """Send each case's requests on a connection of its own, cut into pieces; return the answers and what was taken."""

    async def all_of_them() -> tuple[dict[str, bytes], list[bytes]]:
        caller = Caller(key, queue_bytes)
        caller.engine.fails = fails
        answer = caller.api.at_once.answer if at_once else None
        server = HttpServer(caller.api, "127.0.0.1", 0, at_once=answer)
        await server.start()
        try:
            return {name: await talk(server.port, case, cut) for name, case in cases.items()}, caller.engine.payloads
        finally:
            await server.stop()

    return asyncio.run(all_of_them())


async def talk(port: int, requests: list[bytes], cut: int) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    whole = b"".join(requests)
    size = max(cut, len(whole) // 500) if cut else len(whole)
    got = b""
    with contextlib.suppress(ConnectionError):  # who says that this is the last one is closed on
        for begin in range(0, len(whole), size):
            writer.write(whole[begin : begin + size])
            await writer.drain()
            await asyncio.sleep(0)
    with contextlib.suppress(ConnectionError):
        while got.count(b"HTTP/1.1 ") - got.count(b"HTTP/1.1 100") < len(requests) or not got.endswith(b"}"):
            piece = await asyncio.wait_for(reader.read(65_536), 5)
            got += piece
            if not piece:
                break
    writer.close()
    return got
