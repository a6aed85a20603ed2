"""China Telecom's gateway: SMGP 3.0.3 on long connections, which carry both directions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.deliver.operators import smgp
from engine.deliver.operators.dialect import (
    Answered,
    LoggedIn,
    Meaning,
    Received,
    Reply,
    Reported,
    Tested,
    Verdict,
    state_of,
)
from engine.deliver.operators.parts import Part
from engine.deliver.operators.wire import WireError, instant_ms, month_stamp, validity

VERDICTS = {
    smgp.OK: Verdict.OK,
    smgp.BUSY: Verdict.THROTTLED,
    smgp.TOO_MANY: Verdict.BUSY,
    smgp.DUPLICATE: Verdict.BUSY,
    74: Verdict.BUSY,  # an hour in which nothing may be sent
    smgp.DAILY_FLOW: Verdict.BUSY,
}
"""Statuses of a submit; every other one refuses the message."""

_LOGIN_FAULTS = {
    1: "busy",
    2: "too many connections",
    3: "wrong name or password",  # reserved by the specification, used by gateways
    20: "address not allowed",
    21: "wrong name or password",
    22: "version too high",
    76: "account ended",
}
_PERMANENT = frozenset({3, 20, 21, 22, 76})


@dataclass(frozen=True, slots=True)
class Account:
    """What the operator gave us."""

    login: str
    password: str
    sender: str
    service: str = ""


class SmgpDialect:
    """Our side of one connection."""

    header = smgp.HEADER

    def __init__(self, account: Account, first_sequence: Callable[[], int]) -> None:
        self._account = account
        self._sequence = first_sequence() & 0x7FFFFFFF

    def login(self, now_ms: int) -> bytes:
        account, stamp = self._account, month_stamp(now_ms)
        proof = smgp.authenticator(account.login, account.password, stamp)
        return smgp.Login(self._next(), account.login, proof, stamp).encode()

    def goodbye(self) -> bytes:
        return smgp.Bare(self._next(), smgp.EXIT).encode()

    def test(self) -> bytes | None:
        return smgp.Bare(self._next(), smgp.ACTIVE_TEST).encode()

    def submit(self, part: Part, number: str, expires_ms: int, now_ms: int) -> tuple[Any, bytes, str]:
        account, sequence = self._account, self._next()
        tags: smgp.Tags = ()
        if part.has_header:
            tags = (
                (smgp.TAG_HEADER, b"\1"),
                (smgp.TAG_TOTAL, bytes((part.total,))),
                (smgp.TAG_NUMBER, bytes((part.number,))),
            )
        frame = smgp.Submit(
            sequence=sequence,
            sender=account.sender,
            numbers=(number,),
            content=part.content,
            coding=part.coding,
            service=account.service,
            valid=validity(expires_ms),
            tags=tags,
        ).encode()
        return sequence, frame, ""

    def read(self, frame: bytes, now_ms: int) -> Meaning:
        message = smgp.decode(frame)
        match message:
            case smgp.Result(sequence, command, message_id, status) if command == smgp.SUBMIT | smgp.ANSWER:
                verdict = VERDICTS.get(status, Verdict.REFUSED)
                return Answered(sequence, verdict, message_id.hex(), f"smgp_{status}")
            case smgp.Deliver():
                return _receipt(message, now_ms) if message.is_receipt else _received(message)
            case smgp.LoginAnswer(_, status):
                if status == smgp.OK:
                    return LoggedIn(True)
                return LoggedIn(False, _LOGIN_FAULTS.get(status, f"status {status}"), status in _PERMANENT)
            case smgp.Bare(_, command) if command == smgp.ACTIVE_TEST | smgp.ANSWER:
                return Tested()
            case smgp.Bare(sequence, smgp.ACTIVE_TEST):
                return Reply(smgp.Bare(sequence, smgp.ACTIVE_TEST | smgp.ANSWER).encode())
            case smgp.Bare(sequence, smgp.EXIT):
                return Reply(smgp.Bare(sequence, smgp.EXIT | smgp.ANSWER).encode(), closes=True)
            case smgp.Bare():
                return Reply(b"", closes=True)
        return None

    def _next(self) -> int:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        return self._sequence


def _receipt(message: smgp.Deliver, now_ms: int) -> Meaning:
    done, busy = _pair(message)
    try:
        receipt = smgp.decode_receipt(message.content)
    except WireError:
        # A receipt that cannot be read would come again for ever.
        return Reply(done)
    at_ms = instant_ms(receipt.done, "%y%m%d%H%M", now_ms)
    code = f"{receipt.stat} {receipt.error}".strip()
    return Reported(receipt.message_id.hex(), state_of(receipt.stat), code, at_ms, done, busy)


def _received(message: smgp.Deliver) -> Received:
    done, busy = _pair(message)
    name = message.message_id.hex()
    return Received(name, message.number, message.to, message.content, message.coding, message.has_header, done, busy)


def _pair(message: smgp.Deliver) -> tuple[bytes, bytes]:
    command = smgp.DELIVER | smgp.ANSWER
    done = smgp.Result(message.sequence, command, message.message_id)
    busy = smgp.Result(message.sequence, command, message.message_id, smgp.BUSY)
    return done.encode(), busy.encode()
