"""SGIP 1.2 as either side's login speaks it: what frames mean, which frames we send. No I/O."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import structlog

from engine.deliver.contract import NumberNews
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
from engine.deliver.operators.parts import Part
from engine.deliver.operators.wire import WireError, month_stamp, validity
from engine.model import DispatchState

log = structlog.get_logger("opportune.deliver")

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
