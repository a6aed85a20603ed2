"""China Unicom's gateway: SGIP 1.2. We connect to submit, the operator connects to us to report."""

from __future__ import annotations

import asyncio
import hmac
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import structlog

from engine.clock import monotonic_s as wall_monotonic_s
from engine.deliver.contract import Capabilities, Inbox, NumberNews
from engine.deliver.egress import Network, is_from
from engine.deliver.operators import sgip
from engine.deliver.operators.dialect import (
    Answered,
    Heard,
    LoggedIn,
    Meaning,
    Received,
    Reply,
    Reported,
    Verdict,
)
from engine.deliver.operators.link import Back, Link, Timing
from engine.deliver.operators.parts import Part
from engine.deliver.operators.session import OperatorGateway, Peer
from engine.deliver.operators.wire import WireError, month_stamp, validity
from engine.errors import SettingsError
from engine.model import DispatchState

log = structlog.get_logger("opportune.deliver")

LOGIN_WITHIN_S = 10.0
MOST_CONNECTIONS = 32

VERDICTS = {sgip.OK: Verdict.OK, sgip.BUSY: Verdict.THROTTLED, 3: Verdict.BUSY, sgip.BAD_SEQUENCE: Verdict.BUSY}
"""Answers to a submit; every other code refuses the message (5 parameter, 6 number, 8 length, ...)."""

NOT_KNOWN_ERRORS = frozenset({21, 32})
"""Errors of a report that leave open whether the message arrived: the next node or the system failed."""

_NEWS = {0: NumberNews.CLOSED, 1: NumberNews.BARRED, 2: NumberNews.RESTORED}


@dataclass(frozen=True, slots=True)
class Account:
    """What the operator gave us."""

    login: str
    password: str
    node: int
    corporation: str
    sender: str
    service: str = ""
    charged: str = "0" * 21


class Counter:
    """Sequences of one node: two commands never share one, also over restarts within a second."""

    def __init__(self, node: int, now_ms: Callable[[], int]) -> None:
        self._node = node
        self._count = now_ms() & 0xFFFFFFFF
        self._stamp = (-1, 0)  # second, MMDDHHMMSS

    def next(self, now_ms: int) -> sgip.Sequence:
        self._count = (self._count + 1) & 0xFFFFFFFF
        second = now_ms // 1000
        if self._stamp[0] != second:
            self._stamp = (second, month_stamp(now_ms))
        return self._node, self._stamp[1], self._count


class SgipDialect:
    """Our side of a connection that we opened (login type 1)."""

    header = sgip.HEADER

    def __init__(self, account: Account, counter: Counter) -> None:
        self._account = account
        self._counter = counter
        self._now_ms = 0
        self._expiry: tuple[int, bytes] = (-1, b"")
        self._form = sgip.SubmitForm(
            sgip.Submit(
                sequence=(0, 0, 0),
                sender=account.sender,
                numbers=("",),
                corporation=account.corporation,
                service=account.service,
                content=b"",
                coding=0,
                charged=account.charged,
            )
        )

    def login(self, now_ms: int) -> bytes:
        self._now_ms = now_ms
        account = self._account
        return sgip.Bind(self._counter.next(now_ms), sgip.SP_TO_SMG, account.login, account.password).encode()

    def goodbye(self) -> bytes:
        return sgip.Bare(self._counter.next(self._now_ms), sgip.UNBIND).encode()

    def test(self) -> bytes | None:
        return None

    def submit(self, part: Part, number: str, expires_ms: int, now_ms: int) -> tuple[Any, bytes, str]:
        sequence = self._counter.next(now_ms)
        second = expires_ms // 1000
        if self._expiry[0] != second:
            self._expiry = (second, validity(expires_ms).encode("ascii"))
        frame = self._form.encode(sequence, number, part.content, part.coding, part.has_header, self._expiry[1])
        return sequence, frame, sgip.name_of(sequence)

    def read(self, frame: bytes, now_ms: int) -> Meaning:
        self._now_ms = now_ms
        message = sgip.decode(frame)
        match message:
            case sgip.Answer(sequence, command, result) if command == sgip.SUBMIT | sgip.ANSWER:
                verdict = VERDICTS.get(result, Verdict.REFUSED)
                return Answered(sequence, verdict, sgip.name_of(sequence), f"sgip_{result}")
            case sgip.Answer(_, command, result) if command == sgip.BIND | sgip.ANSWER:
                is_wrong = result in (sgip.BAD_LOGIN, 4)
                detail = "wrong name or password" if result == sgip.BAD_LOGIN else f"code {result}"
                return LoggedIn(result == sgip.OK, "" if result == sgip.OK else detail, is_wrong)
            case sgip.Bare(sequence, sgip.UNBIND):
                return Reply(sgip.Bare(sequence, sgip.UNBIND | sgip.ANSWER).encode(), closes=True)
            case sgip.Bare():
                return Reply(b"", closes=True)
            case _:
                return coming_back(message, now_ms)


class SgipInboundDialect:
    """Our side of a connection that the operator opened (login type 2): nothing is read before a right login."""

    header = sgip.HEADER

    def __init__(self, login: str, password: str) -> None:
        self._login = login.encode()
        self._password = password.encode()
        self.is_bound = False

    def login(self, now_ms: int) -> bytes:
        return b""

    def goodbye(self) -> bytes:
        return b""

    def test(self) -> bytes | None:
        return None

    def submit(self, part: Part, number: str, expires_ms: int, now_ms: int) -> tuple[Any, bytes, str]:
        raise WireError("nothing is submitted on a connection that the operator opened")

    def read(self, frame: bytes, now_ms: int) -> Meaning:
        message = sgip.decode(frame)
        match message:
            case sgip.Bind() if self.is_bound:
                return Reply(_answer(message.sequence, sgip.BIND, sgip.TWICE))
            case sgip.Bind():
                return self._bind(message)
            case sgip.Bare(sequence, sgip.UNBIND):
                return Reply(sgip.Bare(sequence, sgip.UNBIND | sgip.ANSWER).encode(), closes=True)
            case _ if not self.is_bound:
                raise WireError("a command before the login")
            case sgip.Submit():
                return Reply(_answer(message.sequence, sgip.SUBMIT, sgip.BAD_COMMAND))
            case _:
                return coming_back(message, now_ms)

    def _bind(self, bind: sgip.Bind) -> Meaning:
        is_right = hmac.compare_digest(bind.name.encode("latin-1"), self._login) & hmac.compare_digest(
            bind.password.encode("latin-1"), self._password
        )
        if bind.login_type != sgip.SMG_TO_SP:
            return Reply(_answer(bind.sequence, sgip.BIND, 4), closes=True)
        if not is_right:
            log.warning("a login at our SGIP port was refused")
            return Reply(_answer(bind.sequence, sgip.BIND, sgip.BAD_LOGIN), closes=True)
        self.is_bound = True
        return Reply(_answer(bind.sequence, sgip.BIND, sgip.OK))


def coming_back(message: sgip.Message, now_ms: int) -> Meaning:
    """Read a receipt, a user's message or news of a number; some gateways send them on our own connection."""
    match message:
        case sgip.Report(sequence, submitted, _, state, error):
            done, busy = _pair(sequence, sgip.REPORT)
            code = f"sgip_{error}" if state == 2 else ""
            return Reported(sgip.name_of(submitted), _reported_state(state, error), code, now_ms, done, busy)
        case sgip.Deliver(sequence, number, to, content, coding, has_header):
            done, busy = _pair(sequence, sgip.DELIVER)
            return Received(sgip.name_of(sequence), number, to, content, coding, has_header, done, busy)
        case sgip.UserReport(sequence, _, number, condition) if condition in _NEWS:
            done, busy = _pair(sequence, sgip.USER_REPORT)
            return Heard(sgip.name_of(sequence), number, _NEWS[condition], done, busy)
        case sgip.UserReport(sequence):
            return Reply(_answer(sequence, sgip.USER_REPORT, sgip.BAD_PARAMETER))
    return None


def _reported_state(state: int, error: int) -> DispatchState:
    if state == 0:
        return DispatchState.DELIVERED
    if state == 1:
        return DispatchState.ACCEPTED
    return DispatchState.UNKNOWN if error in NOT_KNOWN_ERRORS else DispatchState.FAILED


def _answer(sequence: sgip.Sequence, command: int, result: int) -> bytes:
    return sgip.Answer(sequence, command | sgip.ANSWER, result).encode()


def _pair(sequence: sgip.Sequence, command: int) -> tuple[bytes, bytes]:
    return _answer(sequence, command, sgip.OK), _answer(sequence, command, sgip.BUSY)


# --- the gateway ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Listening:
    """Where the operator connects to us; port 0: any free one. `allowed`: from where, empty: from anywhere."""

    host: str
    port: int
    login: str
    password: str
    allowed: Sequence[Network] = ()


class SgipGateway(OperatorGateway):
    """Both directions of one account."""

    def __init__(
        self,
        name: str,
        channel: str,
        peer: Peer,
        account: Account,
        listening: Listening,
        capabilities: Capabilities,
        *,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float] = wall_monotonic_s,
        **more: Any,
    ) -> None:
        counter = Counter(account.node, now_ms)
        super().__init__(
            name,
            channel,
            peer,
            partial(SgipDialect, account, counter),
            capabilities,
            now_ms=now_ms,
            monotonic_s=monotonic_s,
            **more,
        )
        self.listener = SgipListener(name, listening, self.take, now_ms=now_ms, monotonic_s=monotonic_s)

    async def start(self, inbox: Inbox) -> None:
        await self.listener.start()
        await super().start(inbox)

    async def close(self, timeout_s: float = 5.0) -> None:
        await super().close(timeout_s)
        await self.listener.close()


class SgipListener:
    """Takes the operator's connections: at most 32, from allowed networks, each with a right login within 10 s."""

    def __init__(
        self,
        name: str,
        listening: Listening,
        take: Callable[[Link, list[Back]], Coroutine[Any, Any, None]],
        *,
        now_ms: Callable[[], int],
        monotonic_s: Callable[[], float],
    ) -> None:
        self.port = listening.port
        self.links: set[Link] = set()
        self._name = name
        self._listening = listening
        self._take = take
        self._now_ms = now_ms
        self._monotonic_s = monotonic_s
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen; raises SettingsError where that cannot be."""
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(self._accept, self._listening.host, self._listening.port)
        except OSError as error:
            where = f"{self._listening.host}:{self._listening.port}"
            raise SettingsError(
                f"gateways.{self._name}: cannot listen on {where}: {error.strerror}; choose another listen_port"
            ) from None
        self.port = self._server.sockets[0].getsockname()[1]

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()
        for link in list(self.links):
            link.end()

    def _accept(self) -> Link:
        dialect = SgipInboundDialect(self._listening.login, self._listening.password)
        return _Accepted(self, dialect)

    def make(self) -> dict[str, Any]:
        return {
            "name": f"{self._name}-inbound",
            "timing": Timing(answer_s=30.0, test_after_s=30.0, tests=1),
            "take": self._take,
            "on_room": lambda: None,
            "now_ms": self._now_ms,
            "monotonic_s": self._monotonic_s,
        }

    def may_come(self, address: str) -> bool:
        if len(self.links) >= MOST_CONNECTIONS:
            return False
        if not self._listening.allowed:
            return True
        return is_from(address, self._listening.allowed)


class _Accepted(Link):
    """A connection that the operator opened."""

    def __init__(self, listener: SgipListener, dialect: SgipInboundDialect) -> None:
        super().__init__(dialect=dialect, **listener.make())
        self._listener = listener
        self._inbound = dialect

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        if not self._listener.may_come(str(peer[0]) if peer else "0.0.0.0"):
            log.warning("a connection to our SGIP port was refused", gateway=self.name)
            self.abort()
            return
        self._listener.links.add(self)
        asyncio.get_running_loop().call_later(LOGIN_WITHIN_S, self._end_unless_bound)

    def connection_lost(self, error: Exception | None) -> None:
        self._listener.links.discard(self)
        super().connection_lost(error)

    def _end_unless_bound(self) -> None:
        if not self._inbound.is_bound:
            self.abort()
