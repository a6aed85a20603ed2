"""From request bodies to the journal: bodies become payloads, concurrent requests share one write.

An event is acknowledged after it is journaled. Requests that arrive while a write is under way wait for the next one,
which takes them all, so that a slow fsync costs one wait and not one per request.
"""

from __future__ import annotations

import asyncio
import zlib
from dataclasses import dataclass
from typing import Any

import orjson

from engine import metrics
from engine.console.contract import Engine
from engine.decode.split import on_one_line
from engine.errors import StoreUnavailable

BODY_LIMIT = 8 << 20
"""Largest body, before and after decompression."""
RECORD_BYTES = 256 << 10
"""A large body of lines is cut into records of about this size, so that one request does not make one huge batch."""

_MOST_MEMBERS = 64  # of gzip, in one body


class Refused(Exception):
    """A request that is not taken: status, a word for machines, a sentence for people."""

    def __init__(self, status: int, code: str, detail: str, retry_after_s: int | None = None) -> None:
        self.status = status
        self.code = code
        self.detail = detail
        self.retry_after_s = retry_after_s
        super().__init__(detail)


@dataclass(frozen=True, slots=True)
class Accepted:
    events: int
    position: int  # of the last record


class Intake:
    """Journal payloads in groups, and refuse when too much waits (429)."""

    def __init__(self, engine: Engine, queue_bytes: int) -> None:
        self._engine = engine
        self._queue_bytes = queue_bytes
        self._waiting: list[tuple[list[bytes], asyncio.Future[int]]] = []
        self._waiting_bytes = 0
        self._writer: asyncio.Task[None] | None = None
        self._is_writing = False
        self._events_counters: dict[str, Any] = {}

    async def take(self, payloads: list[bytes], events: int, route: str) -> Accepted:
        """Return once `payloads` are journaled; raise Refused when the queue is full."""
        size = sum(map(len, payloads))
        if not self._engine.is_accepting:
            raise Refused(503, "shutting_down", "this service is being stopped; send the events again", 1)
        if not self._has_room(size):
            raise Refused(429, "overloaded", "more events wait than the queue may hold; send them again later", 1)
        if self._is_writing:
            future: asyncio.Future[int] = asyncio.get_running_loop().create_future()
            self._waiting.append((payloads, future))
            self._waiting_bytes += size
            position = await future
        else:
            # Nobody is writing: without a task of its own, which would cost more than the write.
            self._is_writing = True
            try:
                position = (await self._engine.append(payloads))[-1]
            finally:
                self._go_on()
        self._note(route, events, size)
        return Accepted(events, position)

    def take_at_once(self, payloads: list[bytes], events: int, route: str) -> Accepted | None:
        """Journal `payloads` now; None, and nothing done, where that would have to wait or is refused."""
        size = sum(map(len, payloads))
        if self._is_writing or not self._has_room(size) or not self._engine.is_accepting:
            return None
        try:
            positions = self._engine.append_at_once(payloads)
        except StoreUnavailable:
            return None  # asked again on the usual way, which says why
        if positions is None:
            return None
        self._note(route, events, size)
        return Accepted(events, positions[-1])

    def _has_room(self, size: int) -> bool:
        return self._waiting_bytes + self._engine.backlog_bytes + size <= self._queue_bytes

    def _note(self, route: str, events: int, size: int) -> None:
        counter = self._events_counters.get(route)
        if counter is None:
            counter = self._events_counters[route] = metrics.INTAKE_EVENTS.labels(route)
        counter.inc(events)
        metrics.INTAKE_BYTES.inc(size)

    def _go_on(self) -> None:
        """Write what came in meanwhile, in a task that no request's end can cancel."""
        if self._waiting:
            self._writer = asyncio.create_task(self._write())
        else:
            self._is_writing = False

    async def _write(self) -> None:
        try:
            while self._waiting:
                group, self._waiting = self._waiting, []
                self._waiting_bytes = 0
                payloads = [payload for one, _ in group for payload in one]
                try:
                    positions = await self._engine.append(payloads)
                except Exception as error:  # told to every request of the group
                    for _, future in group:
                        if not future.done():
                            future.set_exception(error)
                    continue
                last = -1
                for one, future in group:
                    last += len(one)
                    if not future.done():
                        future.set_result(positions[last])
        finally:
            self._is_writing = False


def decompress(body: bytes, limit: int = BODY_LIMIT) -> bytes:
    """Unpack gzip, never beyond `limit` bytes; a few members are allowed, as gzip allows any number of them.

    Every member costs a copy of what follows it: many empty ones would keep the event loop busy for minutes.
    """
    whole = bytearray()
    members = 0
    while body:
        members += 1
        if members > _MOST_MEMBERS:
            raise Refused(413, "too_large", f"the body has more than {_MOST_MEMBERS} gzip members")
        unpacker = zlib.decompressobj(wbits=31)
        try:
            whole += unpacker.decompress(body, limit + 1 - len(whole))
        except zlib.error:
            raise Refused(400, "bad_gzip", "the body says gzip and is not") from None
        if len(whole) > limit:
            raise Refused(413, "too_large", f"the body unpacks to more than {limit} bytes")
        if not unpacker.eof:
            raise Refused(400, "bad_gzip", "the gzip body ends too early")
        body = unpacker.unused_data
    return bytes(whole)


def payloads_of(body: bytes) -> tuple[list[bytes], int]:
    """Turn a body into (record payloads, number of events): lines, one object, or one array.

    A document spread over several lines is put on one: line breaks in JSON can only be space between tokens. What
    is no JSON goes on as lines; the decoder names its faults with position and item.
    """
    if not body.strip():
        raise Refused(400, "empty", "the body holds no event")
    text = body.removeprefix(b"\xef\xbb\xbf").strip()
    has_lines = b"\n" in text or b"\r" in text
    if text[:1] == b"[" or (has_lines and not _first_line_is_whole(text)):
        try:
            document = orjson.loads(text)
        except orjson.JSONDecodeError:
            document = None
        if document is not None:
            if document == []:
                raise Refused(400, "empty", "the array holds no event")
            return [on_one_line(text)], len(document) if isinstance(document, list) else 1
    if not has_lines:
        return [text], 1
    return _cut(text), sum(1 for line in text.split(b"\n") if line.strip())


def _first_line_is_whole(text: bytes) -> bool:
    """Whether the first line looks like a whole object, so that the body is lines and not one document."""
    return text.split(b"\n", 1)[0].rstrip().endswith(b"}")


def _cut(text: bytes) -> list[bytes]:
    if len(text) <= RECORD_BYTES:
        return [text]
    pieces, begin = [], 0
    while len(text) - begin > RECORD_BYTES:
        end = text.rfind(b"\n", begin, begin + RECORD_BYTES)
        if end <= begin:
            end = text.find(b"\n", begin + RECORD_BYTES)
            if end < 0:
                break
        pieces.append(text[begin:end])
        begin = end + 1
    pieces.append(text[begin:])
    return [piece for piece in pieces if piece.strip()]
