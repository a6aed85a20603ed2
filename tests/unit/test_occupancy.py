"""Occupancy as a stream, crowd alarms, and what the server does with paths and heads that nobody asked for (P9)."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import httpx
import numpy as np
import orjson

from engine import metrics
from engine.console.contract import FenceOccupancy
from engine.console.occupancy import MOST_STREAMS, OccupancyStream
from engine.console.server import MOST_HEAD_BYTES, HttpServer
from engine.definitions import Fence, Shape
from engine.runtime.crowds import CrowdWatch


def told(lines: list[bytes]) -> list[list[tuple[str, Any, bool]]]:
    """What each server-sent event says, comments left out."""
    return [
        [
            (row["fence"], row["users"], row["crowded"])
            for row in orjson.loads(line.partition(b"data: ")[2])["occupancy"]
        ]
        for line in lines
        if line.startswith(b"event: occupancy\n")
    ]


def test_p9_the_stream_tells_everything_once_and_then_what_changed_with_small_counts_hidden() -> None:
    seconds = [
        [("a", 0, False), ("b", 3, False), ("c", 120, False)],
        [("a", 0, False), ("b", 4, False), ("c", 120, False)],  # 3 and 4 look alike
        [("a", 12, False), ("b", 0, False), ("c", 120, True)],
    ]
    asked = iter(seconds)
    left = [len(seconds)]

    def read() -> list[FenceOccupancy]:
        left[0] -= 1
        return [FenceOccupancy(fence, fence, "mall", users, crowded) for fence, users, crowded in next(asked)]

    async def lines() -> list[bytes]:
        stream = OccupancyStream(read, lambda: left[0] > 0, every_s=0.0)
        return [line async for line in stream.events()]

    got = asyncio.run(lines())
    assert told(got) == [
        [("b", "<10", False), ("c", 120, False)],
        [("a", 12, False), ("b", 0, False), ("c", 120, True)],
    ]
    assert len(got) == 3  # the second without change is a comment
    assert got[1].startswith(b":")


def test_streams_are_bounded_and_a_closed_one_makes_room() -> None:
    async def count() -> tuple[bool, bool]:
        stream = OccupancyStream(list, lambda: True, every_s=60.0)
        running = [stream.events() for _ in range(MOST_STREAMS)]
        for one in running:
            await anext(one)
        was_full = stream.is_full
        await running[0].aclose()
        return was_full, stream.is_full

    assert asyncio.run(count()) == (True, False)


def test_p9_a_crowd_rings_once_and_ends_below_nine_tenths() -> None:
    fences = [
        Fence("x/mall", "m", "mall", Shape.CIRCLE, crowd_at=100),
        Fence("x/quiet", "q", "mall", Shape.CIRCLE),
    ]
    watch = CrowdWatch()
    before = metrics.CROWD_ALARMS._value.get()
    crowded = []
    for users in (99, 100, 95, 90, 89, 99, 100):
        watch.look(fences, np.array([users, 5000]))
        crowded.append("x/mall" in watch.crowded)
    assert crowded == [False, True, True, True, False, False, True]
    assert watch.crowded == {"x/mall"}
    assert metrics.CROWD_ALARMS._value.get() - before == 2
    assert metrics.CROWDED_FENCES._value.get() == 1


async def _ok(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"ok"})


def test_an_endless_request_head_is_refused_before_it_fills_the_memory() -> None:
    async def send_head() -> tuple[int, bytes, int]:
        server = HttpServer(_ok, "127.0.0.1", 0)
        await server.start()
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"GET / HTTP/1.1\r\nhost: a\r\nx: ")
            sent = 0
            with contextlib.suppress(ConnectionError):
                while sent < 20 * MOST_HEAD_BYTES and not reader.at_eof():
                    writer.write(b"y" * 65_536)
                    sent += 65_536
                    await asyncio.wait_for(writer.drain(), 5)
            answer = b""
            with contextlib.suppress(ConnectionError):
                answer = await asyncio.wait_for(reader.read(4096), 5)
            writer.close()
            async with httpx.AsyncClient(trust_env=False) as client:
                after = await client.post(f"http://127.0.0.1:{server.port}/", content=b"z" * (2 * MOST_HEAD_BYTES))
            return sent, answer, after.status_code
        finally:
            await server.stop()

    sent, answer, after = asyncio.run(send_head())
    assert sent < 20 * MOST_HEAD_BYTES
    assert answer[:12] in (b"HTTP/1.1 400", b"")  # a reset may overtake the answer
    assert after == 200  # bodies are limited elsewhere, and the server lives
