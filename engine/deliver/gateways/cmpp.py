"""China Mobile's gateway: CMPP 2.0 and 3.0 on long connections, which carry both directions."""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from engine.deliver.operators import cmpp
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

VERDICTS = {cmpp.OK: Verdict.OK, cmpp.FLOW: Verdict.THROTTLED, cmpp.DUPLICATE: Verdict.BUSY}
"""Results of a submit; a sequence counted twice was not taken and goes again under a new one; the rest is refused."""

_LOGIN_FAULTS = {1: "bad message", 2: "source address not allowed", 3: "wrong name or password", 4: "version too high"}
_PERMANENT = frozenset({2, 3, 4})


@dataclass(frozen=True, slots=True)
class Account:
    """What the operator gave us. `version`: cmpp.V2 or cmpp.V3."""

    login: str
    password: str
    sender: str
    service: str = ""
    version: int = cmpp.V3


class CmppDialect:
    """Our side of one connection."""

    header = cmpp.HEADER

    def __init__(self, account: Account, first_sequence: Callable[[], int]) -> None:
        self._account = account
        self._sequence = first_sequence() & 0x7FFFFFFF
        self._proof = b""

    def login(self, now_ms: int) -> bytes:
        account, stamp = self._account, month_stamp(now_ms)
        self._proof = cmpp.authenticator(account.login, account.password, stamp)
        return cmpp.Connect(self._next(), account.login, self._proof, account.version, stamp).encode(account.version)

    def goodbye(self) -> bytes:
        return cmpp.Bare(self._next(), cmpp.TERMINATE).encode()

    def test(self) -> bytes | None:
        return cmpp.Bare(self._next(), cmpp.ACTIVE_TEST).encode()

    def submit(self, part: Part, number: str, expires_ms: int, now_ms: int) -> tuple[Any, bytes, str]:
        account, sequence = self._account, self._next()
        frame = cmpp.Submit(
            sequence=sequence,
            sender=account.sender,
            numbers=(number,),
            content=part.content,
            coding=part.coding,
            source=account.login,
            service=account.service,
            number=part.number,
            total=part.total,
            has_header=part.has_header,
            valid=validity(expires_ms),
        ).encode(account.version)
        return sequence, frame, ""

    def read(self, frame: bytes, now_ms: int) -> Meaning:
        message = cmpp.decode(frame, self._account.version)
        match message:
            case cmpp.Result(sequence, command, message_id, result) if command == cmpp.SUBMIT | cmpp.ANSWER:
                verdict = VERDICTS.get(result, Verdict.REFUSED)
                return Answered(sequence, verdict, f"{message_id:016x}", f"cmpp_{result}")
            case cmpp.Deliver(is_receipt=True):
                return self._receipt(message, now_ms)
            case cmpp.Deliver():
                done, busy = self._pair(message)
                return Received(
                    f"{message.message_id:016x}",
                    message.number,
                    message.to,
                    message.content,
                    message.coding,
                    message.has_header,
                    done,
                    busy,
                )
            case cmpp.ConnectAnswer():
                return self._logged_in(message)
            case cmpp.Bare(_, command) if command == cmpp.ACTIVE_TEST | cmpp.ANSWER:
                return Tested()
            case cmpp.Bare(sequence, cmpp.ACTIVE_TEST):
                return Reply(cmpp.Bare(sequence, cmpp.ACTIVE_TEST | cmpp.ANSWER).encode())
            case cmpp.Bare(sequence, cmpp.TERMINATE):
                return Reply(cmpp.Bare(sequence, cmpp.TERMINATE | cmpp.ANSWER).encode(), closes=True)
            case cmpp.Bare():
                return Reply(b"", closes=True)
        return None

    def _receipt(self, message: cmpp.Deliver, now_ms: int) -> Meaning:
        done, busy = self._pair(message)
        try:
            receipt = cmpp.decode_receipt(message.content)
        except WireError:
            # A receipt that cannot be read would come again for ever.
            return Reply(done)
        at_ms = instant_ms(receipt.done, "%y%m%d%H%M", now_ms)
        name = f"{receipt.message_id:016x}"
        return Reported(name, state_of(receipt.stat), receipt.stat, at_ms, done, busy)

    def _logged_in(self, answer: cmpp.ConnectAnswer) -> LoggedIn:
        """Judge the answer; where the gateway proves itself, the proof must be right."""
        if answer.status != cmpp.OK:
            fault = _LOGIN_FAULTS.get(answer.status, f"status {answer.status}")
            return LoggedIn(False, fault, answer.status in _PERMANENT)
        # Gateways of version 2.0 hash the status as one byte or as four.
        proofs = [cmpp.answer_authenticator(bytes(size), self._proof, self._account.password) for size in (1, 4)]
        if any(answer.authenticator) and not any(hmac.compare_digest(answer.authenticator, one) for one in proofs):
            return LoggedIn(False, "the gateway does not know our password", True)
        return LoggedIn(True)

    def _pair(self, message: cmpp.Deliver) -> tuple[bytes, bytes]:
        command = cmpp.DELIVER | cmpp.ANSWER
        done = cmpp.Result(message.sequence, command, message.message_id)
        busy = cmpp.Result(message.sequence, command, message.message_id, cmpp.FLOW)
        return done.encode(self._account.version), busy.encode(self._account.version)

    def _next(self) -> int:
        self._sequence = (self._sequence + 1) & 0x7FFFFFFF
        return self._sequence
