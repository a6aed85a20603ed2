"""A storm of receipts against the whole service as a process of its own (FAULTS F21): what it does to the way out.

An SGIP centre of ours takes `count` messages and answers each. Then, while a queue of further messages leaves at an
even pace, it reports all of the first within a second. Measured there: the longest time in which nothing left, and the
longest until a report was acknowledged, which is after it was matched and journaled.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import httpx
import orjson

from engine.deliver.addressbook import open_address_book
from engine.deliver.operators import sgip
from engine.deliver.operators.wire import Frames
from engine.settings import Settings
from tests.peers.programs import free_port
from tests.peers.service import ServiceProcess, scenario, usage

NODE = 3010012345
PACE = 1_000
"""Messages a second that the gateway is allowed."""
GATEWAY = {
    "KIND": "sgip",
    "CHANNEL": "sms",
    "HOST": "127.0.0.1",
    "LOGIN": "sp",
    "PASSWORD": "pw",
    "NODE": str(NODE),
    "CORPORATION": "12345",
    "SENDER": "10655000",
    "CONNECTIONS": "2",
    "MESSAGES_PER_S": str(PACE),
    "LISTEN_HOST": "127.0.0.1",
}


class Centre(asyncio.Protocol):
    """The operator's side of our connections: every submit is accepted at once; notes when each came."""

    submitted: list[tuple[float, sgip.Sequence]]

    def __init__(self, submitted: list[tuple[float, sgip.Sequence]]) -> None:
        self.submitted = submitted
        self._frames = Frames(sgip.HEADER)

    def connection_made(self, transport: Any) -> None:
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        answers = []
        now_s = time.perf_counter()
        for frame in self._frames.feed(data):
            command, sequence = int.from_bytes(frame[4:8], "big"), frame[8:20]
            if command == sgip.SUBMIT:
                place = tuple(int.from_bytes(sequence[at : at + 4], "big") for at in (0, 4, 8))
                self.submitted.append((now_s, (place[0], place[1], place[2])))
            answers.append(frame[4:8])
            answers[-1] = (29).to_bytes(4, "big") + (command | sgip.ANSWER).to_bytes(4, "big") + sequence + bytes(9)
        self._transport.write(b"".join(answers))


def storm(count: int) -> dict[str, Any]:
    """Return one row: the longest pause of the way out in ms during the storm, and what else was seen."""
    with tempfile.TemporaryDirectory() as folder:
        return asyncio.run(_storm(Path(folder), count))


async def _storm(folder: Path, count: int) -> dict[str, Any]:
    submitted: list[tuple[float, sgip.Sequence]] = []
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Centre(submitted), "127.0.0.1", 0)
    listen, more = free_port(), count // 2
    service = _service(folder, server.sockets[0].getsockname()[1], listen, count + more)
    await asyncio.to_thread(service.start)
    try:
        url = str(service.client.base_url)
        async with httpx.AsyncClient(base_url=url, trust_env=False, timeout=30) as client:
            await _events(client, range(count))
            await _until(lambda: len(submitted) == count, 60)
            await _events(client, range(count, count + more))
            await _until(lambda: len(submitted) >= count + more // 5, 60)
            begin_s = time.perf_counter()
            slowest_s, all_s = await _report(listen, [sequence for _, sequence in submitted[:count]])
            await _until(lambda: len(submitted) == count + more, 60)
    finally:
        service.terminate()
        await asyncio.to_thread(service.wait_ended, 40)
        server.close()
    sent_s = [at_s for at_s, _ in submitted[count:]]
    gaps_ms = [(later - earlier) * 1000 for earlier, later in itertools.pairwise(sent_s)]
    calm = [gap for gap, at_s in zip(gaps_ms, sent_s, strict=False) if at_s < begin_s - 0.1]
    wild = [gap for gap, at_s in zip(gaps_ms, sent_s, strict=False) if begin_s - 0.1 <= at_s]
    return {
        "name": "delivery.flood.pause_ms",
        "value": max(wild),
        "unit": "ms",
        "pause_before_ms": round(max(calm, default=0.0), 1),
        "p99_9_ms": round(statistics.quantiles(wild, n=1000)[-1], 1),
        "acknowledged_within_ms": round(slowest_s * 1000),
        "receipts_per_s": round(count / all_s),
    }


async def _report(port: int, sequences: list[sgip.Sequence]) -> tuple[float, float]:
    """Report all within a second; return the longest wait for an acknowledgement, and the time until the last."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(sgip.Bind((1, 1, 1), sgip.SMG_TO_SP, "sp", "pw").encode())
    await reader.readexactly(29)
    sent_s: list[float] = []
    begin_s = time.perf_counter()

    async def send() -> None:
        for number, sequence in enumerate(sequences):
            while number >= (time.perf_counter() - begin_s) * len(sequences):
                await asyncio.sleep(0.005)
            writer.write(sgip.Report((2, 2, number), sequence, "8613900000000", 0).encode())
            sent_s.append(time.perf_counter())

    sending = asyncio.create_task(send())
    frames, slowest_s, left = Frames(sgip.HEADER), 0.0, len(sequences)
    while left:
        answers = [sgip.decode(frame) for frame in frames.feed(await reader.read(1 << 16))]
        now_s = time.perf_counter()
        for answer in answers:
            assert isinstance(answer, sgip.Answer)
            assert answer.result == sgip.OK
            slowest_s = max(slowest_s, now_s - sent_s[answer.sequence[2]])
        left -= len(answers)
    await sending
    writer.close()
    return slowest_s, time.perf_counter() - begin_s


async def _events(client: httpx.AsyncClient, users: range) -> None:
    for first in range(users.start, users.stop, 500):
        group = [usage(user, "ecommerce", "open") for user in range(first, min(first + 500, users.stop))]
        answer = await client.post(
            "/v1/events", content=b"\n".join(map(orjson.dumps, group)), headers={"content-type": "application/x-ndjson"}
        )
        assert answer.status_code == 202, answer.text


async def _until(holds: Any, timeout_s: float) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.005)


def _service(folder: Path, port: int, listen: int, users: int) -> ServiceProcess:
    gateway = {**GATEWAY, "PORT": str(port), "LISTEN_PORT": str(listen)}
    settings = {f"OPPORTUNE_GATEWAYS__UNICOM__{field}": value for field, value in gateway.items()}
    shop = scenario("shop", "{usage: {category: ecommerce, action: open}}", "您好，购物满百减十")
    service = ServiceProcess(folder, [shop], settings)
    book = open_address_book(Settings(state=service.state))
    book.put((f"u{number}", "sms", f"139{number:08d}") for number in range(users))
    book.close()
    return service
