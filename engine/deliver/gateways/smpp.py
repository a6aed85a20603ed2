"""SMPP 3.4 as a transceiver: smpp34 encodes and decodes, our session keeps the connections.

The libraries' own sessions acknowledge a receipt before anybody has stored it; ours does so afterwards.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import smpp34

from engine.deliver.operators.dialect import (
    FINAL_STATS,
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
from engine.deliver.operators.wire import WireError, instant_ms, unfixed
from engine.model import DispatchState

HEADER = 16
ANSWER = 0x80000000
NACK, BIND, SUBMIT, UNBIND, TEST = ANSWER, 0x09, 0x04, 0x06, 0x15
DELIVER = 0x05

VERDICTS = {
    0x00: Verdict.OK,
    0x58: Verdict.THROTTLED,
    0x14: Verdict.THROTTLED,  # its queue is full
    0x08: Verdict.BUSY,  # system error
    0x64: Verdict.BUSY,  # ESME receiver: temporary
}
"""Statuses of a submit; every other one refuses the message."""

_LOGIN_FAULTS = {
    0x05: "already bound",
    0x0D: "bind failed",
    0x0E: "wrong password",
    0x0F: "wrong system id",
    0x58: "too many logins",
}
_PERMANENT = frozenset({0x0E, 0x0F})
_RECEIPT_MARK, _TYPE_BITS = 0x04, 0x3C  # of esm_class
_HAS_HEADER = 0x40
_STATES = dict(enumerate(("ENROUTE", "DELIVRD", "EXPIRED", "DELETED", "UNDELIV", "ACCEPTD", "UNKNOWN", "REJECTD"), 1))
_PAYLOAD, _RECEIPTED_ID, _MESSAGE_STATE = 0x0424, 0x001E, 0x0427
"""Tags of optional parameters."""
_FIELD = re.compile(rb"(id|submit date|done date|stat|err):\s*([^\s]*)", re.IGNORECASE)
_RESEND = 0x08  # system error: the peer keeps the message and sends it again

Ids = Literal["same", "hex_answer", "hex_receipt"]


@dataclass(frozen=True, slots=True)
class Account:
    """What the gateway's operator gave us.

    ids  how a message's name is written: the same everywhere, or hexadecimal in the answer and decimal in the receipt
         (`hex_answer`), or the other way round (`hex_receipt`)
    """

    login: str
    password: str
    sender: str
    service: str = ""
    system_type: str = ""
    sender_ton: int = 0
    sender_npi: int = 0
    number_ton: int = 1  # international
    number_npi: int = 1  # E.164
    ids: Ids = "same"


class SmppDialect:
    """Our side of one connection."""

    header = HEADER

    def __init__(self, account: Account, first_sequence: Callable[[], int]) -> None:
        self._account = account
        self._sequence = first_sequence() & 0x3FFFFFFF

    def login(self, now_ms: int) -> bytes:
        account = self._account
        texts = b"\0".join(text.encode("ascii") for text in (account.login, account.password, account.system_type))
        return _frame(BIND, self._next(), texts + b"\0" + bytes((0x34, 0, 0)) + b"\0")

    def goodbye(self) -> bytes:
        return _frame(UNBIND, self._next())

    def test(self) -> bytes | None:
        return _frame(TEST, self._next())

    def submit(self, part: Part, number: str, expires_ms: int, now_ms: int) -> tuple[Any, bytes, str]:
        account, sequence = self._account, self._next()
        try:
            frame = smpp34.SubmitSm(
                account.sender,
                number,
                part.content,
                service_type=account.service,
                source_addr_ton=account.sender_ton,
                source_addr_npi=account.sender_npi,
                dest_addr_ton=account.number_ton,
                dest_addr_npi=account.number_npi,
                esm_class=_HAS_HEADER if part.has_header else 0,
                validity_period=relative_validity(expires_ms - now_ms),
                registered_delivery=1,
                data_coding=part.coding,
                sequence_number=sequence,
            ).encode()
        except smpp34.SmppError as error:
            raise WireError(str(error)) from None
        return sequence, frame, ""

    def read(self, frame: bytes, now_ms: int) -> Meaning:
        try:
            message = smpp34.decode(frame)
        except smpp34.SmppError as error:
            raise WireError(str(error)) from None
        if isinstance(message, smpp34.DeliverSm):
            return self._receipt(message, now_ms) if _is_receipt(message) else _received(message, now_ms)
        if isinstance(message, smpp34.SubmitSm):
            raise WireError("a submit from a gateway")
        status, sequence = message.command_status, message.sequence_number
        match message.command_id:
            case command if command in (SUBMIT | ANSWER, NACK):
                verdict = VERDICTS.get(status, Verdict.REFUSED)
                name = self._answered_name(unfixed(message.body)) if verdict is Verdict.OK else ""
                if verdict is Verdict.OK and not name:
                    verdict = Verdict.REFUSED if command == NACK else Verdict.OK
                return Answered(sequence, verdict, name, f"smpp_{status:#x}")
            case command if command == BIND | ANSWER:
                if status == 0:
                    return LoggedIn(True)
                return LoggedIn(False, _LOGIN_FAULTS.get(status, f"status {status:#x}"), status in _PERMANENT)
            case command if command == TEST | ANSWER:
                return Tested()
            case command if command == TEST:
                return Reply(_frame(TEST | ANSWER, sequence))
            case command if command == UNBIND:
                return Reply(_frame(UNBIND | ANSWER, sequence), closes=True)
            case command if command == UNBIND | ANSWER:
                return Reply(b"", closes=True)
            case command if not command & ANSWER:
                return Reply(_frame(NACK, sequence, status=0x03))  # a command that is not for us
        return None

    def _receipt(self, message: smpp34.DeliverSm, now_ms: int) -> Meaning:
        done, busy = _pair(message)
        tlvs = {tlv.tag: tlv for tlv in message.tlvs}
        found = _FIELD.findall(message.short_message)
        fields = {name.decode().lower(): value.decode("latin-1") for name, value in found}
        named = tlvs.get(_RECEIPTED_ID)
        name = (named.as_string() if named is not None else None) or fields.get("id", "")
        stated = tlvs.get(_MESSAGE_STATE)
        stat = fields.get("stat") or (_STATES.get(stated.as_int() or 0, "") if stated is not None else "")
        if not name or not stat:
            # A receipt that cannot be read would come again for ever.
            return Reply(done)
        at_ms = instant_ms(fields.get("done date", "")[:10], "%y%m%d%H%M", now_ms)
        code = f"{stat} {fields.get('err', '')}".strip()
        state = state_of(stat) if stat.upper() in FINAL_STATS else DispatchState.FAILED
        return Reported(self._reported_name(name), state, code, at_ms, done, busy)

    def _answered_name(self, name: str) -> str:
        return _renamed(name, 16) if self._account.ids == "hex_answer" else name

    def _reported_name(self, name: str) -> str:
        return _renamed(name, 16) if self._account.ids == "hex_receipt" else name

    def _next(self) -> int:
        self._sequence = self._sequence % 0x7FFFFFFF + 1
        return self._sequence


def relative_validity(left_ms: int) -> str:
    """Return a span in SMPP's relative form YYMMDDhhmmss000R, from a second to 30 days."""
    seconds = max(1, min(left_ms // 1000, 30 * 86_400))
    days, rest = divmod(seconds, 86_400)
    return f"0000{days:02d}{rest // 3600:02d}{rest // 60 % 60:02d}{rest % 60:02d}000R"


def _renamed(name: str, base: int) -> str:
    """Write a name decimally; one that is no number stays as it is."""
    try:
        return str(int(name, base))
    except ValueError:
        return name


def _is_receipt(message: smpp34.DeliverSm) -> bool:
    return message.esm_class & _TYPE_BITS == _RECEIPT_MARK


def _received(message: smpp34.DeliverSm, now_ms: int) -> Received:
    done, busy = _pair(message)
    content = message.short_message
    if not content:
        content = next((tlv.value for tlv in message.tlvs if tlv.tag == _PAYLOAD), b"")
    # SMPP gives users' messages no name: sent again within the minute it is the same one.
    named = b"|".join(
        (message.source_addr.encode(), message.destination_addr.encode(), content, b"%d" % (now_ms // 60_000))
    )
    return Received(
        hashlib.blake2b(named, digest_size=12).hexdigest(),
        message.source_addr,
        message.destination_addr,
        content,
        message.data_coding,
        bool(message.esm_class & _HAS_HEADER),
        done,
        busy,
    )


def _pair(message: smpp34.DeliverSm) -> tuple[bytes, bytes]:
    sequence = message.sequence_number
    return _frame(DELIVER | ANSWER, sequence, b"\0"), _frame(DELIVER | ANSWER, sequence, b"\0", status=_RESEND)


def _frame(command: int, sequence: int, body: bytes = b"", *, status: int = 0) -> bytes:
    numbers = (HEADER + len(body), command, status, sequence)
    return b"".join(number.to_bytes(4, "big") for number in numbers) + body
