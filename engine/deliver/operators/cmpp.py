"""CMPP 2.0 and 3.0 of China Mobile (QB-GF-028-2003), byte for byte. No I/O.

Header: length 4, command 4, sequence 4. Version 3.0 has longer numbers, results of 4 bytes and a LinkID.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from engine.deliver.operators.wire import WireError, expect_length, fixed, number_within, unfixed

HEADER = 12
CONNECT, TERMINATE, SUBMIT, DELIVER, ACTIVE_TEST = 0x1, 0x2, 0x4, 0x5, 0x8
ANSWER = 0x80000000
V2, V3 = 0x20, 0x30
OK, DUPLICATE, FLOW = 0, 3, 8

_HEAD = struct.Struct(">3I")
_CONNECT = struct.Struct(">6s16sBI")
_RECEIPT_HEAD = struct.Struct(">Q7s10s10s")


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the two versions differ."""

    number: int  # bytes of a phone number
    result: str  # struct code of a result
    tail: int  # LinkID or reserve
    has_type: bool  # a byte after each number: real or pseudonymous


_LAYOUTS = {V2: _Layout(21, "B", 8, False), V3: _Layout(32, "I", 20, True)}


@dataclass(frozen=True, slots=True)
class Connect:
    sequence: int
    source: str
    authenticator: bytes
    version: int
    stamp: int  # MMDDHHMMSS

    def encode(self, version: int = V3) -> bytes:
        source = fixed(self.source, 6, "Source_Addr")
        return _frame(CONNECT, self.sequence, _CONNECT.pack(source, self.authenticator, self.version, self.stamp))


@dataclass(frozen=True, slots=True)
class ConnectAnswer:
    sequence: int
    status: int
    authenticator: bytes
    version: int

    def encode(self, version: int = V3) -> bytes:
        body = struct.pack(f">{_LAYOUTS[version].result}16sB", self.status, self.authenticator, self.version)
        return _frame(CONNECT | ANSWER, self.sequence, body)


@dataclass(frozen=True, slots=True)
class Bare:
    """A message without fields that matter: Terminate, Active_Test and their answers."""

    sequence: int
    command: int

    def encode(self, version: int = V3) -> bytes:
        return _frame(self.command, self.sequence, b"\0" if self.command == ACTIVE_TEST | ANSWER else b"")


@dataclass(frozen=True, slots=True)
class Submit:
    sequence: int
    sender: str
    numbers: tuple[str, ...]
    content: bytes
    coding: int
    source: str  # Msg_src: the login
    service: str = ""
    number: int = 1  # Pk_number of Pk_total
    total: int = 1
    has_header: bool = False
    report: int = 1
    level: int = 0
    fee_user: int = 2  # the sender pays
    fee_number: str = ""
    fee_type: str = "01"
    fee_code: str = "0"
    valid: str = ""
    at: str = ""
    message_id: int = 0
    protocol: int = 0
    link_id: str = ""

    def encode(self, version: int = V3) -> bytes:
        layout = _LAYOUTS[version]
        if not 1 <= len(self.numbers) < 100:
            raise WireError("numbers must be 1 to 99")
        number_within(len(self.content), 159 if self.coding == 0 else 140, "Msg_Length")
        kind = b"\0" if layout.has_type else b""
        body = [
            struct.pack(">Q4B", self.message_id, self.total, self.number, self.report, self.level),
            fixed(self.service, 10, "Service_Id"),
            bytes((self.fee_user,)),
            fixed(self.fee_number, layout.number, "Fee_terminal_Id"),
            kind,
            bytes((self.protocol, self.has_header, self.coding)),
            fixed(self.source, 6, "Msg_src"),
            fixed(self.fee_type, 2, "FeeType"),
            fixed(self.fee_code, 6, "FeeCode"),
            fixed(self.valid, 17, "ValId_Time"),
            fixed(self.at, 17, "At_Time"),
            fixed(self.sender, 21, "Src_Id"),
            bytes((len(self.numbers),)),
            *(fixed(number, layout.number, "Dest_terminal_Id") for number in self.numbers),
            kind,
            bytes((len(self.content),)),
            self.content,
            fixed(self.link_id, layout.tail, "LinkID"),
        ]
        return _frame(SUBMIT, self.sequence, b"".join(body))


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to a submit or a deliver."""

    sequence: int
    command: int  # with the bit of an answer
    message_id: int
    result: int = OK

    def encode(self, version: int = V3) -> bytes:
        body = struct.pack(f">Q{_LAYOUTS[version].result}", self.message_id, self.result)
        return _frame(self.command, self.sequence, body)


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message that a user sent, or (is_receipt) what became of a submit."""

    sequence: int
    message_id: int
    number: str
    to: str
    content: bytes
    coding: int
    is_receipt: bool = False
    has_header: bool = False
    service: str = ""
    protocol: int = 0
    link_id: str = ""

    def encode(self, version: int = V3) -> bytes:
        layout = _LAYOUTS[version]
        number_within(len(self.content), 255, "Msg_Length")
        body = [
            struct.pack(">Q", self.message_id),
            fixed(self.to, 21, "Dest_Id"),
            fixed(self.service, 10, "Service_Id"),
            bytes((self.protocol, self.has_header, self.coding)),
            fixed(self.number, layout.number, "Src_terminal_Id"),
            b"\0" if layout.has_type else b"",
            bytes((self.is_receipt, len(self.content))),
            self.content,
            fixed(self.link_id, layout.tail, "LinkID"),
        ]
        return _frame(DELIVER, self.sequence, b"".join(body))


@dataclass(frozen=True, slots=True)
class Receipt:
    """The content of a Deliver that reports on a submit."""

    message_id: int
    stat: str
    submitted: str  # YYMMDDHHMM
    done: str
    number: str
    smsc_sequence: int = 0

    def encode(self, version: int = V3) -> bytes:
        stat, submitted = fixed(self.stat, 7, "Stat"), fixed(self.submitted, 10, "Submit_time")
        head = _RECEIPT_HEAD.pack(self.message_id, stat, submitted, fixed(self.done, 10, "Done_time"))
        number = fixed(self.number, _LAYOUTS[version].number, "Dest_terminal_Id")
        return head + number + struct.pack(">I", self.smsc_sequence)


Message = Connect | ConnectAnswer | Bare | Submit | Result | Deliver


def decode(frame: bytes, version: int = V3) -> Message:
    """Read one whole frame; raise WireError for what is no message of CMPP."""
    expect_length(frame, HEADER, "header")
    length, command, sequence = _HEAD.unpack_from(frame)
    if length != len(frame):
        raise WireError(f"a length of {length} in a frame of {len(frame)} bytes")
    if command & ~ANSWER in (TERMINATE, ACTIVE_TEST):
        return Bare(sequence, command)
    reader = _READERS.get(command)
    if reader is None:
        raise WireError(f"command {command:#x} is not known")
    return reader(_Cursor(frame, HEADER), sequence, version)


def decode_receipt(content: bytes) -> Receipt:
    """Read the content of a receipt; both lengths of numbers occur with either version."""
    expect_length(content, _RECEIPT_HEAD.size, "receipt")
    message_id, stat, submitted, done = _RECEIPT_HEAD.unpack_from(content)
    rest = content[_RECEIPT_HEAD.size :]
    number, smsc = (rest[:-4], rest[-4:]) if len(rest) >= 4 else (rest, b"")
    return Receipt(
        message_id, unfixed(stat), unfixed(submitted), unfixed(done), unfixed(number), int.from_bytes(smsc, "big")
    )


def authenticator(source: str, secret: str, stamp: int) -> bytes:
    """Return what proves to the gateway that we know the secret."""
    text = source.encode("ascii") + bytes(9) + secret.encode("ascii") + f"{stamp:010d}".encode("ascii")
    return hashlib.md5(text, usedforsecurity=False).digest()


def answer_authenticator(status: bytes, ours: bytes, secret: str) -> bytes:
    """Return what proves to us that the gateway knows it; `status` as it stands on the wire."""
    return hashlib.md5(status + ours + secret.encode("ascii"), usedforsecurity=False).digest()


# --- inside ---------------------------------------------------------------------------------------------------------


class _Cursor:
    """Takes fields off a frame one by one; a field that is not there is a WireError."""

    def __init__(self, frame: bytes, at: int) -> None:
        self._frame = frame
        self._at = at

    def take(self, size: int) -> bytes:
        if self._at + size > len(self._frame):
            raise WireError(f"a field of {size} bytes where {len(self._frame) - self._at} are left")
        self._at += size
        return self._frame[self._at - size : self._at]

    @property
    def left(self) -> int:
        return len(self._frame) - self._at

    def text(self, size: int) -> str:
        return unfixed(self.take(size))

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "big")

    def rest(self, size: int) -> str:
        """Take the last field, which some peers leave out or cut."""
        return unfixed(self._frame[self._at : self._at + size])


def _connect(cursor: _Cursor, sequence: int, version: int) -> Connect:
    return Connect(sequence, cursor.text(6), cursor.take(16), cursor.number(1), cursor.number(4))


def _connect_answer(cursor: _Cursor, sequence: int, version: int) -> ConnectAnswer:
    # A gateway answers a login of the wrong version in its own: the length says in which.
    status = cursor.number(1 if cursor.left == 18 else 4)
    return ConnectAnswer(sequence, status, cursor.take(16), cursor.number(1))


def _submit(cursor: _Cursor, sequence: int, version: int) -> Submit:
    layout = _LAYOUTS[version]
    message_id, total, number = cursor.number(8), cursor.number(1), cursor.number(1)
    report, level, service, fee_user = cursor.number(1), cursor.number(1), cursor.text(10), cursor.number(1)
    fee_number, _ = cursor.text(layout.number), cursor.take(layout.has_type)
    protocol, has_header, coding, source = cursor.number(1), cursor.number(1), cursor.number(1), cursor.text(6)
    fee_type, fee_code, valid, at = cursor.text(2), cursor.text(6), cursor.text(17), cursor.text(17)
    sender, count = cursor.text(21), cursor.number(1)
    if not 1 <= count < 100:
        raise WireError("Submit must name 1 to 99 numbers")
    numbers = tuple(cursor.text(layout.number) for _ in range(count))
    cursor.take(layout.has_type)
    return Submit(
        sequence=sequence,
        sender=sender,
        numbers=numbers,
        content=cursor.take(cursor.number(1)),
        coding=coding,
        source=source,
        service=service,
        number=number,
        total=total,
        has_header=bool(has_header & 1),
        report=report,
        level=level,
        fee_user=fee_user,
        fee_number=fee_number,
        fee_type=fee_type,
        fee_code=fee_code,
        valid=valid,
        at=at,
        message_id=message_id,
        protocol=protocol,
        link_id=cursor.rest(layout.tail),
    )


def _result(command: int, cursor: _Cursor, sequence: int, version: int) -> Result:
    return Result(sequence, command, cursor.number(8), cursor.number(1 if version == V2 else 4))


def _deliver(cursor: _Cursor, sequence: int, version: int) -> Deliver:
    layout = _LAYOUTS[version]
    message_id, to, service = cursor.number(8), cursor.text(21), cursor.text(10)
    protocol, has_header, coding = cursor.number(1), cursor.number(1), cursor.number(1)
    number, _ = cursor.text(layout.number), cursor.take(layout.has_type)
    is_receipt = bool(cursor.number(1))
    content = cursor.take(cursor.number(1))
    return Deliver(
        sequence,
        message_id,
        number,
        to,
        content,
        coding,
        is_receipt,
        bool(has_header & 1),
        service,
        protocol,
        cursor.rest(layout.tail),
    )


_READERS: dict[int, Callable[[_Cursor, int, int], Message]] = {
    CONNECT: _connect,
    CONNECT | ANSWER: _connect_answer,
    SUBMIT: _submit,
    SUBMIT | ANSWER: partial(_result, SUBMIT | ANSWER),
    DELIVER: _deliver,
    DELIVER | ANSWER: partial(_result, DELIVER | ANSWER),
}


def _frame(command: int, sequence: int, body: bytes) -> bytes:
    return _HEAD.pack(HEADER + len(body), command, sequence) + body
