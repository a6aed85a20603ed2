"""SMGP 3.0.3 of China Telecom, byte for byte. No I/O.

Header: length 4, request 4, sequence 4. Optional parameters follow the fixed fields as tag 2, length 2, value. Receipts
are texts with labels whose spelling differs between gateways, and whose id is ten raw bytes.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from engine.deliver.operators.wire import WireError, expect_length, fixed, number_within, unfixed

HEADER = 12
LOGIN, SUBMIT, DELIVER, ACTIVE_TEST, EXIT = 0x1, 0x2, 0x3, 0x4, 0x6
ANSWER = 0x80000000
VERSION = 0x30
BOTH = 2  # sends and receives
OK, BUSY, TOO_MANY, DUPLICATE = 0, 1, 2, 12
DAILY_FLOW = 75
TAG_HEADER, TAG_TOTAL, TAG_NUMBER = 0x2, 0x9, 0xA

_HEAD = struct.Struct(">3I")
_LOGIN = struct.Struct(">8s16sBIB")
_LOGIN_ANSWER = struct.Struct(">I16sB")
_SUBMIT = struct.Struct(">3B10s2s6s6sB17s17s21s21sB")
_RESULT = struct.Struct(">10sI")
_DELIVER = struct.Struct(">10sBB14s21s21sB")
_RESERVE = bytes(8)

Tags = tuple[tuple[int, bytes], ...]


@dataclass(frozen=True, slots=True)
class Login:
    sequence: int
    client: str
    authenticator: bytes
    stamp: int  # MMDDHHMMSS
    mode: int = BOTH
    version: int = VERSION

    def encode(self) -> bytes:
        client = fixed(self.client, 8, "ClientID")
        body = _LOGIN.pack(client, self.authenticator, self.mode, self.stamp, self.version)
        return _frame(LOGIN, self.sequence, body)


@dataclass(frozen=True, slots=True)
class LoginAnswer:
    sequence: int
    status: int
    authenticator: bytes
    version: int

    def encode(self) -> bytes:
        body = _LOGIN_ANSWER.pack(self.status, self.authenticator, self.version)
        return _frame(LOGIN | ANSWER, self.sequence, body)


@dataclass(frozen=True, slots=True)
class Bare:
    """A message without body: Exit, Active_Test and their answers."""

    sequence: int
    command: int

    def encode(self) -> bytes:
        return _frame(self.command, self.sequence, b"")


@dataclass(frozen=True, slots=True)
class Submit:
    sequence: int
    sender: str
    numbers: tuple[str, ...]
    content: bytes
    coding: int
    service: str = ""
    report: int = 1
    priority: int = 1
    message_type: int = 6  # from the SP to a user
    fee_type: str = "00"
    fee_code: str = "0"
    fixed_fee: str = "0"
    valid: str = ""
    at: str = ""
    charged: str = ""
    tags: Tags = field(default=())

    def encode(self) -> bytes:
        if not 1 <= len(self.numbers) <= 100:
            raise WireError("numbers must be 1 to 100")
        number_within(len(self.content), 252, "MsgLength")
        body = [
            _SUBMIT.pack(
                self.message_type,
                self.report,
                self.priority,
                fixed(self.service, 10, "ServiceID"),
                fixed(self.fee_type, 2, "FeeType"),
                fixed(self.fee_code, 6, "FeeCode"),
                fixed(self.fixed_fee, 6, "FixedFee"),
                self.coding,
                fixed(self.valid, 17, "ValidTime"),
                fixed(self.at, 17, "AtTime"),
                fixed(self.sender, 21, "SrcTermID"),
                fixed(self.charged, 21, "ChargeTermID"),
                len(self.numbers),
            ),
            *(fixed(number, 21, "DestTermID") for number in self.numbers),
            bytes((len(self.content),)),
            self.content,
            _RESERVE,
            _tags(self.tags),
        ]
        return _frame(SUBMIT, self.sequence, b"".join(body))


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a submit or a deliver."""

    sequence: int
    command: int  # with the bit of an answer
    message_id: bytes  # 10 bytes
    status: int = OK

    def encode(self) -> bytes:
        if len(self.message_id) != 10:
            raise WireError("MsgID must be 10 bytes")
        return _frame(self.command, self.sequence, _RESULT.pack(self.message_id, self.status))


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message that a user sent, or (is_receipt) what became of a submit."""

    sequence: int
    message_id: bytes
    number: str
    to: str
    content: bytes
    coding: int
    is_receipt: bool = False
    received: str = ""  # YYYYMMDDHHMMSS
    tags: Tags = field(default=())

    @property
    def has_header(self) -> bool:
        return any(tag == TAG_HEADER and value[-1:] == b"\1" for tag, value in self.tags)

    def encode(self) -> bytes:
        number_within(len(self.content), 255, "MsgLength")
        head = _DELIVER.pack(
            self.message_id,
            self.is_receipt,
            self.coding,
            fixed(self.received, 14, "RecvTime"),
            fixed(self.number, 21, "SrcTermID"),
            fixed(self.to, 21, "DestTermID"),
            len(self.content),
        )
        return _frame(DELIVER, self.sequence, head + self.content + _RESERVE + _tags(self.tags))


@dataclass(frozen=True, slots=True)
class Receipt:
    """The text of a Deliver that reports on a submit."""

    message_id: bytes
    stat: str
    error: str = ""
    submitted: str = ""  # YYMMDDHHMM
    done: str = ""

    def encode(self) -> bytes:
        head = b"id:" + self.message_id + b" sub:001 dlvrd:001 "
        rest = f"Submit date:{self.submitted} done date:{self.done} stat:{self.stat} err:{self.error} Text:"
        return head + rest.encode("ascii")


Message = Login | LoginAnswer | Bare | Submit | Result | Deliver


def decode(frame: bytes) -> Message:
    """Read one whole frame; raise WireError for what is no message of SMGP."""
    expect_length(frame, HEADER, "header")
    length, command, sequence = _HEAD.unpack_from(frame)
    if length != len(frame):
        raise WireError(f"a length of {length} in a frame of {len(frame)} bytes")
    if command & ~ANSWER in (ACTIVE_TEST, EXIT):
        return Bare(sequence, command)
    if command == SUBMIT | ANSWER or command == DELIVER | ANSWER:
        expect_length(frame, HEADER + _RESULT.size, "answer")
        message_id, status = _RESULT.unpack_from(frame, HEADER)
        return Result(sequence, command, message_id, status)
    reader = _READERS.get(command)
    if reader is None:
        raise WireError(f"request {command:#x} is not known")
    return reader(frame, sequence)


_LABEL = re.compile(
    rb"\b(sub|dlvrd|submit[ _]?date|done[ _]?date|stat|err|text|txt) *: *",
    re.IGNORECASE,
)


def decode_receipt(content: bytes) -> Receipt:
    """Read a receipt by its labels, whatever their case and spelling; the id is ten raw bytes, or their digits.

    The id comes first and may hold any byte, so it is taken by its place; labels are looked for behind it.
    """
    begin = content[:3].lower().startswith(b"id:") and 3
    if not begin:
        raise WireError("a receipt that does not begin with id:")
    if content[begin : begin + 1] == b" " and content[begin + 11 : begin + 12] == b" ":
        begin += 1
    rest = content[begin:]
    if re.match(rb"[0-9A-Fa-f]{20}(?![0-9A-Fa-f])", rest):
        message_id, rest = bytes.fromhex(rest[:20].decode("ascii")), rest[20:]
    else:
        expect_length(rest, 10, "id")
        message_id, rest = rest[:10], rest[10:]
    values: dict[bytes, str] = {}
    found = list(_LABEL.finditer(rest))
    for one, after in zip(found, [*found[1:], None], strict=True):
        name = one[1].lower().replace(b"_", b"").replace(b" ", b"")
        end = after.start() if after is not None else len(rest)
        values.setdefault(name, rest[one.end() : end].strip().decode("latin-1"))
        if name in (b"text", b"txt"):
            break  # what follows is the text itself, in any encoding
    if b"stat" not in values:
        raise WireError("a receipt without stat:")
    return Receipt(
        message_id,
        values[b"stat"][:7],
        values.get(b"err", "")[:3],
        values.get(b"submitdate", "")[:10],
        values.get(b"donedate", "")[:10],
    )


def authenticator(client: str, secret: str, stamp: int) -> bytes:
    """Return what proves to the gateway that we know the secret."""
    text = client.encode("ascii") + bytes(7) + secret.encode("ascii") + f"{stamp:010d}".encode("ascii")
    return hashlib.md5(text, usedforsecurity=False).digest()


# --- inside ---------------------------------------------------------------------------------------------------------


def _login(frame: bytes, sequence: int) -> Login:
    expect_length(frame, HEADER + _LOGIN.size, "Login")
    client, proof, mode, stamp, version = _LOGIN.unpack_from(frame, HEADER)
    return Login(sequence, unfixed(client), proof, stamp, mode, version)


def _login_answer(frame: bytes, sequence: int) -> LoginAnswer:
    expect_length(frame, HEADER + _LOGIN_ANSWER.size, "Login_Resp")
    status, proof, version = _LOGIN_ANSWER.unpack_from(frame, HEADER)
    return LoginAnswer(sequence, status, proof, version)


def _submit(frame: bytes, sequence: int) -> Submit:
    expect_length(frame, HEADER + _SUBMIT.size, "Submit")
    (
        message_type, report, priority, service, fee_type, fee_code, fixed_fee, coding, valid, at_time, sender, charged,
        count,
    ) = _SUBMIT.unpack_from(frame, HEADER)  # fmt: skip
    at = HEADER + _SUBMIT.size
    expect_length(frame, at + 21 * count + 1, "Submit")
    if not 1 <= count <= 100:
        raise WireError("Submit must name 1 to 100 numbers")
    numbers = tuple(unfixed(frame[at + 21 * one : at + 21 * one + 21]) for one in range(count))
    content, tags = _content(frame, at + 21 * count)
    return Submit(
        sequence=sequence,
        sender=unfixed(sender),
        numbers=numbers,
        content=content,
        coding=coding,
        service=unfixed(service),
        report=report,
        priority=priority,
        message_type=message_type,
        fee_type=unfixed(fee_type),
        fee_code=unfixed(fee_code),
        fixed_fee=unfixed(fixed_fee),
        valid=unfixed(valid),
        at=unfixed(at_time),
        charged=unfixed(charged),
        tags=tags,
    )


def _deliver(frame: bytes, sequence: int) -> Deliver:
    expect_length(frame, HEADER + _DELIVER.size, "Deliver")
    message_id, is_receipt, coding, received, number, to, _ = _DELIVER.unpack_from(frame, HEADER)
    content, tags = _content(frame, HEADER + _DELIVER.size - 1)
    return Deliver(
        sequence,
        message_id,
        unfixed(number),
        unfixed(to),
        content,
        coding,
        bool(is_receipt),
        unfixed(received),
        tags,
    )


_READERS: dict[int, Callable[[bytes, int], Message]] = {
    LOGIN: _login,
    LOGIN | ANSWER: _login_answer,
    SUBMIT: _submit,
    DELIVER: _deliver,
}


def _content(frame: bytes, at: int) -> tuple[bytes, Tags]:
    """Read MsgLength, the text, the reserve and the tags; a tag that is cut off is left out."""
    length = frame[at]
    begin, end = at + 1, at + 1 + length
    if end > len(frame):
        raise WireError(f"a text of {length} bytes where {len(frame) - begin} are left")
    tags: list[tuple[int, bytes]] = []
    at = end + 8
    while at + 4 <= len(frame):
        tag, size = struct.unpack_from(">HH", frame, at)
        if at + 4 + size > len(frame):
            break
        tags.append((tag, frame[at + 4 : at + 4 + size]))
        at += 4 + size
    return frame[begin:end], tuple(tags)


def _tags(tags: Tags) -> bytes:
    return b"".join(struct.pack(">HH", tag, len(value)) + value for tag, value in tags)


def _frame(command: int, sequence: int, body: bytes) -> bytes:
    return _HEAD.pack(HEADER + len(body), command, sequence) + body
