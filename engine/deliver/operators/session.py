"""A gateway over an operator's protocol: connections, windows, long messages, what comes back (G2-G4, F17-F19).

The protocol itself is a dialect; what is here is the same for SGIP, CMPP and SMGP.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial

import structlog

from engine import metrics
from engine.clock import monotonic_s as wall_monotonic_s
from engine.deliver.contract import (
    Capabilities,
    Dispatch,
    InboundText,
    Inbox,
    NumberReport,
    Standing,
    Submitted,
)
from engine.deliver.operators.dialect import Dialect, Heard, Received, Reported, with_country, without_country
from engine.deliver.operators.link import Back, Link, Timing
from engine.deliver.operators.parts import Joiner, Part, Piece, Waits, Whole, cut
from engine.deliver.operators.sending import MOST_RESENDS, RESEND_S, Sending, Sent
from engine.errors import GatewayPermanent, GatewayRetryable, OpportuneError
from engine.model import GatewayReceipt

log = structlog.get_logger("opportune.deliver")

CONNECT_S = 10.0
LOGIN_EVERY_S = 1.0
REFUSED_PAUSE_S = 300.0
LONGEST_PAUSE_S = 60.0
HOLD_PARTS_S = 20.0
"""How long a part of a user's message may wait for the others before it is answered "busy", to come again."""
ROOM_S = 5.0
WAITED_S = 0.3
"""After so long without a byte sent, what the claim found may not hold any more (F26: a second in all)."""
LONGEST_SUBMIT_S = ROOM_S + RESEND_S * 4 * MOST_RESENDS
"""Beside the waits for answers: for room, and for parts that are sent again."""


@dataclass(frozen=True, slots=True)
class Peer:
    """Where and how a gateway connects."""

    host: str
    port: int
    connections: int
    window: int  # unanswered submits of one connection
    timing: Timing


class OperatorGateway:
    """One login at one operator (contract.Gateway).

    dialect   makes the protocol's side of a new connection
    dice      spreads reconnections, [0, 1)
    """

    def __init__(
        self,
        name: str,
        channel: str,
        peer: Peer,
        dialect: Callable[[], Dialect],
        capabilities: Capabilities,
        *,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float] = wall_monotonic_s,
        dice: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self.channel = channel
        self.capabilities = capabilities
        self._peer = peer
        self._dialect = dialect
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._dice = dice
        self._inbox: Inbox | None = None
        self._links: list[Link] = []
        self._sleeping = 0
        self._trouble = Standing(False, "no connection yet")
        self._is_closing = False
        self._room = asyncio.Event()
        self._turn = asyncio.Lock()
        self._wanted = asyncio.Event()
        self._login_lock = asyncio.Lock()
        self._login_s = -LOGIN_EVERY_S
        self._tasks: list[asyncio.Task[None]] = []
        self._joiner: Joiner[tuple[Link, Received]] = Joiner()

    # --- contract ---------------------------------------------------------------------------------------------------

    @property
    def standing(self) -> Standing:
        if self._is_closing:
            return Standing(False, "closing")
        if self._sleeping or any(link.is_ready for link in self._links):
            return Standing()
        return self._trouble

    async def start(self, inbox: Inbox) -> None:
        self._inbox = inbox
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._keep(number)) for number in range(self._peer.connections)]

    async def submit(self, dispatch: Dispatch) -> Submitted:
        number = with_country(dispatch.address)
        if not (number.isascii() and number.isdigit() and len(number) <= 20):
            raise GatewayPermanent("bad_number")
        try:
            parts = cut(dispatch.text, int(dispatch.offer_id[-2:], 16))
        except ValueError:
            raise GatewayPermanent("too_long") from None
        sending = Sending(self.name, self.send, parts, number, dispatch.deadline_ms, dispatch.why_not_now)
        return await sending.run()

    async def close(self, timeout_s: float = 5.0) -> None:
        self._is_closing = True
        self._wanted.set()
        await asyncio.gather(*(link.say_goodbye(timeout_s) for link in self._links), return_exceptions=True)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # --- links ------------------------------------------------------------------------------------------------------

    async def send(
        self, parts: Sequence[Part], number: str, expires_ms: int, why_not_now: Callable[[], str | None]
    ) -> list[Sent]:
        """Send parts of one message on one connection, in turn with other messages; return their futures and names.

        They leave together: a peer that answers a long message only when it is whole would otherwise be left with
        halves of many, which fill the window. Raises GatewayError or WireError only where nothing was sent.
        """
        begin_s = self._monotonic_s()
        async with self._turn:
            link = await self._link_with(min(len(parts), self._peer.window))
            if self._monotonic_s() - begin_s > WAITED_S and (why := why_not_now()) is not None:
                raise GatewayPermanent(why)
            sent = [link.submit(part, number, expires_ms) for part in parts[: self._peer.window]]
            for part in parts[self._peer.window :]:
                while link.is_ready and len(link.pending) >= self._peer.window:
                    self._room.clear()
                    await self._room.wait()
                sent.append(link.submit(part, number, expires_ms))
        return sent

    async def _link_with(self, room: int) -> Link:
        """Return a connection with so much room in its window; raise GatewayRetryable where none comes up."""
        until_s = self._monotonic_s() + ROOM_S
        while True:
            best: Link | None = None
            for link in self._links:
                used = len(link.pending)
                if link.is_ready and used + room <= self._peer.window and (best is None or used < len(best.pending)):
                    best = link
            if best is not None:
                return best
            left_s = until_s - self._monotonic_s()
            if left_s <= 0 or not (self._sleeping or any(link.is_ready for link in self._links)):
                raise GatewayRetryable(f"{self.name}: no connection")
            if self._sleeping:
                self._wanted.set()
            self._room.clear()
            try:
                async with asyncio.timeout(min(left_s, 1.0)):
                    await self._room.wait()
            except TimeoutError:
                continue

    async def _keep(self, number: int) -> None:
        """Keep one connection up until closed: with growing, spread pauses, at most one login a second (F19)."""
        pause_s = 1.0
        is_asleep = False
        while not self._is_closing:
            await self._pace()
            begin_s = self._monotonic_s()
            link = await self._connect(number)
            if is_asleep:
                self._sleeping -= 1
                is_asleep = False
            if link is not None:
                self._links.append(link)
                self._room.set()
                await link.ended.wait()
                self._links.remove(link)
                if link.went_to_sleep:
                    # Counted until the next login is answered, so that submits wait for it.
                    self._sleeping += 1
                    is_asleep = True
                    self._wanted.clear()
                    await self._wanted.wait()
                    continue
                if self._monotonic_s() - begin_s > 10.0:
                    pause_s = 1.0
                self._note_trouble(Standing(False, "the connection was lost"))
            elif self._trouble.permanent:
                await asyncio.sleep(REFUSED_PAUSE_S)
                continue
            await asyncio.sleep(pause_s * (0.5 + self._dice()))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    async def _pace(self) -> None:
        async with self._login_lock:
            await asyncio.sleep(max(0.0, self._login_s + LOGIN_EVERY_S - self._monotonic_s()))
            self._login_s = self._monotonic_s()

    async def _connect(self, number: int) -> Link | None:
        """Connect and log in; None where that failed, `_trouble` says why."""
        dialect = self._dialect()
        make = partial(
            Link,
            f"{self.name}-{number}",
            dialect,
            self._peer.timing,
            self.take,
            self._room.set,
            now_ms=self._now_ms,
            monotonic_s=self._monotonic_s,
        )
        logins = metrics.GATEWAY_LOGINS
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(CONNECT_S):
                _, link = await loop.create_connection(make, self._peer.host, self._peer.port)
        except (OSError, TimeoutError) as error:
            self._note_trouble(Standing(False, f"no connection ({type(error).__name__})"))
            logins.labels(self.name, "no_connection").inc()
            return None
        link.write(dialect.login(self._now_ms()))
        try:
            async with asyncio.timeout(self._peer.timing.answer_s):
                answer = await asyncio.shield(link.logged_in)
        except TimeoutError:
            link.abort()
            self._note_trouble(Standing(False, "the login was not answered"))
            logins.labels(self.name, "no_answer").inc()
            return None
        if not answer.ok:
            link.abort()
            detail = f"login refused: {answer.detail}" if answer.detail else "login refused"
            self._note_trouble(Standing(False, detail, answer.is_permanent))
            logins.labels(self.name, "refused").inc()
            return None
        logins.labels(self.name, "ok").inc()
        log.info("gateway is connected", gateway=self.name, connection=number)
        return link

    def _note_trouble(self, trouble: Standing) -> None:
        if trouble != self._trouble:
            level = log.error if trouble.permanent else log.warning
            level("gateway cannot be reached", gateway=self.name, detail=trouble.detail)
        self._trouble = trouble

    # --- what comes back --------------------------------------------------------------------------------------------

    async def take(self, link: Link, back: list[Back]) -> None:
        """Pass on what one read brought, and acknowledge what is durable; the rest is asked for again."""
        assert self._inbox is not None, "a gateway is started before anything can come back"
        now_ms = self._now_ms()
        reported = [one for one in back if isinstance(one, Reported)]
        if reported:
            receipts = [
                GatewayReceipt(self.name, one.state, one.at_ms, gateway_id=one.gateway_id, code=one.code[:64])
                for one in reported
            ]
            await _store(self._inbox.receipts(receipts), link, reported)
        wholes = []
        for one in back:
            if isinstance(one, Received):
                piece = Piece(one.number, one.to, one.content, one.coding, one.has_header, one.message_id)
                joined = self._joiner.add(piece, (link, one), now_ms)
                if isinstance(joined, Whole):
                    wholes.append((one, joined))
                elif joined is Waits.NOT:
                    link.write(one.done)
                else:
                    asyncio.get_running_loop().call_later(HOLD_PARTS_S, self._answer_overdue)
        if wholes:
            await self._take_messages(wholes, now_ms)
        heard = [one for one in back if isinstance(one, Heard)]
        if heard:
            reports = [
                NumberReport(self.channel, without_country(one.number), one.news, now_ms, one.message_id, self.name)
                for one in heard
            ]
            await _store(self._inbox.numbers(reports), link, heard)

    async def _take_messages(
        self, wholes: Sequence[tuple[Received, Whole[tuple[Link, Received]]]], now_ms: int
    ) -> None:
        """Pass on users' messages, then acknowledge all their parts, on whatever connection each came."""
        assert self._inbox is not None
        texts = [
            InboundText(
                self.channel, without_country(one.number), whole.text, now_ms, whole.message_id, self.name, one.to
            )
            for one, whole in wholes
        ]
        try:
            await self._inbox.inbound(texts)
            is_stored = True
        except (OpportuneError, OSError):
            is_stored = False
        for _, whole in wholes:
            self._joiner.settle(whole, is_stored, now_ms)
            for link, part in whole.tokens:
                link.write(part.done if is_stored else part.busy)

    def _answer_overdue(self) -> None:
        for link, part in self._joiner.overdue(self._now_ms() - int(HOLD_PARTS_S * 1000) + 1):
            link.write(part.busy)


async def _store(storing: Awaitable[None], link: Link, origins: Sequence[Back]) -> None:
    try:
        await storing
    except (OpportuneError, OSError):
        link.write(b"".join(one.busy for one in origins))
    else:
        link.write(b"".join(one.done for one in origins))
