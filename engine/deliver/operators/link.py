"""One TCP connection of an operator's protocol: frames in, answers matched, the link tested, what comes back passed on.

A connection never resends. What was sent and not answered when it ends, or when its time is up, is `LinkLost`: nobody
knows (G2). A link on which nothing is heard is found dead without the help of TCP (F19).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, cast

import structlog

from engine.deliver.operators.dialect import (
    Answered,
    Dialect,
    Heard,
    LoggedIn,
    Received,
    Reply,
    Reported,
    Tested,
)
from engine.deliver.operators.parts import Part
from engine.deliver.operators.wire import Frames, WireError

log = structlog.get_logger("opportune.deliver")

READ_BYTES = 16 << 10
"""Read and understood in one turn of the loop, some milliseconds of work: a flood must not hold up the others (F21)."""
MOST_TAKEN = 4_000
"""Receipts and messages taken and not yet acknowledged; beyond it the socket is not read until half of them are."""


class LinkLost(Exception):
    """The connection ended, or no answer came in time, after bytes had been sent."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When a link is tested and given up, in seconds."""

    answer_s: float  # until a submit or a test without an answer counts as unanswered
    test_after_s: float  # idle time until the link is tested
    tests: int  # unanswered tests until it is dead
    sleep_after_s: float | None = None  # idle time until we say goodbye ourselves


Back = Reported | Received | Heard


class Link(asyncio.BufferedProtocol):
    """One connection.

    take   takes what came back in one read; acknowledges by `write`. Its failure is its own.
    """

    def __init__(
        self,
        name: str,
        dialect: Dialect,
        timing: Timing,
        take: Callable[[Link, list[Back]], Coroutine[Any, Any, None]],
        on_room: Callable[[], None],
        *,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self.name = name
        self.dialect = dialect
        self.is_ready = False
        self.went_to_sleep = False
        self.ended: asyncio.Event = asyncio.Event()
        self.logged_in: asyncio.Future[LoggedIn] = asyncio.get_running_loop().create_future()
        self.pending: dict[Any, tuple[asyncio.Future[Answered], float]] = {}
        self._timing = timing
        self._take = take
        self._on_room = on_room
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._frames = Frames(dialect.header)
        self._buffer = bytearray(READ_BYTES)
        self._transport: asyncio.Transport | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._taken = 0
        self._is_full = False
        self._is_stuck = False
        self._heard_s = self._active_s = monotonic_s()
        self._tests = 0
        self._tested_s = 0.0
        self._is_closing = False
        self._out: list[bytes] = []

    # --- asyncio.BufferedProtocol -----------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        watch = asyncio.get_running_loop().create_task(self._watch())
        self._tasks.add(watch)
        watch.add_done_callback(self._tasks.discard)

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, nbytes: int) -> None:
        if nbytes == READ_BYTES and self._transport is not None:
            # There is more. Loops read a socket again and again as long as it fills the buffer.
            self._transport.pause_reading()
            asyncio.get_running_loop().call_soon(self._read_on)
        self._read(bytes(self._buffer[:nbytes]))

    def _read(self, data: bytes) -> None:
        now_s = self._monotonic_s()
        self._heard_s = now_s
        try:
            frames = self._frames.feed(data)
        except WireError as error:
            log.warning("a gateway sent what is no message; the connection is closed", link=self.name, error=str(error))
            self.abort()
            return
        back: list[Back] = []
        now_ms = self._now_ms()
        for frame in frames:
            try:
                meaning = self.dialect.read(frame, now_ms)
            except WireError as error:
                log.warning("a gateway's message is refused", link=self.name, error=str(error))
                self.abort()
                break
            match meaning:
                case Answered():
                    waiting = self.pending.pop(meaning.key, None)
                    if waiting is not None and not waiting[0].done():
                        waiting[0].set_result(meaning)
                    self._active_s = now_s
                case Reported() | Received() | Heard():
                    back.append(meaning)
                    self._active_s = now_s
                case Tested():
                    self._tests = 0
                case Reply():
                    self.write(meaning.frame)
                    if meaning.closes:
                        self.end()
                case LoggedIn():
                    if not self.logged_in.done():
                        self.is_ready = meaning.ok
                        self.logged_in.set_result(meaning)
                case None:
                    pass
        if back:
            self._pass_on(back)
        self._on_room()

    def pause_writing(self) -> None:
        """The peer does not read: it is not read from either, or answers to it would fill the memory."""
        self._is_stuck = True
        if self._transport is not None and not self._is_closing:
            self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._is_stuck = False
        self._read_on()

    def connection_lost(self, error: Exception | None) -> None:
        self.is_ready = False
        self._is_closing = True
        if not self.logged_in.done():
            self.logged_in.set_result(LoggedIn(False, "the connection was closed before the login was answered"))
        lost, self.pending = self.pending, {}
        for future, _ in lost.values():
            if not future.done():
                future.set_exception(LinkLost("the connection was lost"))
        for task in self._tasks:
            task.cancel()
        self.ended.set()
        self._on_room()

    # --- what the gateway does --------------------------------------------------------------------------------------

    @property
    def idle_s(self) -> float:
        """Seconds since anything was heard."""
        return self._monotonic_s() - self._heard_s

    def submit(self, part: Part, number: str, expires_ms: int) -> tuple[asyncio.Future[Answered], str]:
        """Send one part; return the future of its answer and its name where it is known. Raises WireError before."""
        key, frame, gateway_id = self.dialect.submit(part, number, expires_ms, self._now_ms())
        future: asyncio.Future[Answered] = asyncio.get_running_loop().create_future()
        self._active_s = self._monotonic_s()
        self.pending[key] = (future, self._active_s)
        self.write(frame)
        return future, gateway_id

    def write(self, frame: bytes) -> None:
        """Send; frames of one turn of the loop leave together."""
        if self._transport is None or self._is_closing:
            return
        if not self._out:
            asyncio.get_running_loop().call_soon(self._flush)
        self._out.append(frame)

    def end(self) -> None:
        """Close once what was written has left."""
        self._flush()
        self._is_closing = True
        self.is_ready = False
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close at once."""
        self._is_closing = True
        self.is_ready = False
        if self._transport is not None:
            self._transport.abort()

    async def say_goodbye(self, timeout_s: float) -> None:
        """Wait for answers, log out, close; at most `timeout_s`."""
        self.is_ready = False
        until_s = self._monotonic_s() + timeout_s
        while (self.pending or self._taken) and self._monotonic_s() < until_s and not self.ended.is_set():
            await asyncio.sleep(0.01)
        if not self.ended.is_set():
            self.write(self.dialect.goodbye())
            self._flush()
            try:
                async with asyncio.timeout(min(1.0, timeout_s)):
                    await self.ended.wait()
            except TimeoutError:
                self.end()

    # --- inside -----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        out, self._out = self._out, []
        if out and self._transport is not None and not self._is_closing:
            self._transport.write(b"".join(out))

    def _pass_on(self, back: list[Back]) -> None:
        self._taken += len(back)
        if self._taken > MOST_TAKEN and self._transport is not None:
            self._is_full = True
            self._transport.pause_reading()
        task = asyncio.get_running_loop().create_task(self._take_all(back))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _take_all(self, back: list[Back]) -> None:
        try:
            await self._take(self, back)
        finally:
            self._taken -= len(back)
            if self._is_full and self._taken <= MOST_TAKEN // 2:
                self._is_full = False
                self._read_on()

    def _read_on(self) -> None:
        if not (self._is_full or self._is_stuck or self._is_closing) and self._transport is not None:
            self._transport.resume_reading()

    async def _watch(self) -> None:
        """Give up what has waited too long, test an idle link, leave one that is dead or not needed."""
        timing = self._timing
        every_s = max(0.02, min(1.0, timing.answer_s / 4, timing.test_after_s / 4))
        while True:
            await asyncio.sleep(every_s)
            now_s = self._monotonic_s()
            if self._give_up_old(now_s):
                log.warning("a gateway answers nothing any more; the connection is closed", link=self.name)
                self.abort()
                return
            if not self.is_ready:
                continue
            if timing.sleep_after_s is not None and not self.pending and now_s - self._active_s > timing.sleep_after_s:
                self.went_to_sleep = True
                await self.say_goodbye(1.0)
                return
            if self._is_dead(now_s):
                log.warning("a gateway's link is dead; the connection is closed", link=self.name, tests=self._tests)
                self.abort()
                return

    def _give_up_old(self, now_s: float) -> bool:
        """End submits without an answer; say whether the link is silent since one of them was sent."""
        is_silent = False
        while self.pending:
            key, (future, sent_s) = next(iter(self.pending.items()))
            if not future.done() and now_s - sent_s < self._timing.answer_s:
                break
            del self.pending[key]
            if not future.done():
                future.set_exception(LinkLost("no answer in time"))
                is_silent = is_silent or self._heard_s < sent_s
        return is_silent

    def _is_dead(self, now_s: float) -> bool:
        if now_s - self._heard_s < self._timing.test_after_s:
            self._tests = 0
            return False
        if self._tests and now_s - self._tested_s < self._timing.answer_s:
            return False
        if self._tests >= self._timing.tests:
            return True
        frame = self.dialect.test()
        if frame is not None:
            self._tests += 1
            self._tested_s = now_s
            self.write(frame)
        return False
