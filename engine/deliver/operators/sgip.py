"""SGIP 1.2 of China Unicom (October 2001), byte for byte. No I/O.

Header: length 4, command 4, sequence 3 x 4 (node, MMDDHHMMSS, counter); an answer carries the sequence of its command.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass

from engine.deliver.operators.wire import WireError, expect_length, fixed, number_within, unfixed

HEADER = 20
BIND, UNBIND, SUBMIT, DELIVER, REPORT, USER_REPORT = 0x1, 0x2, 0x3, 0x4, 0x5, 0x11
ANSWER = 0x80000000
SP_TO_SMG, SMG_TO_SP = 1, 2

OK, BAD_LOGIN, TWICE, BAD_PARAMETER, BAD_COMMAND, BAD_SEQUENCE, BUSY = 0, 1, 2, 5, 7, 9, 11

Sequence = tuple[int, int, int]

_HEAD = struct.Struct(">5I")
_BIND = struct.Struct(">B16s16s8s")
_SUBMIT_HEAD = struct.Struct(">21s21sB")
_SUBMIT_BODY = struct.Struct(">5s10sB6s6sBBB16s16s5BI")
_DELIVER = struct.Struct(">21s21sBBBI")
_REPORT = struct.Struct(">3IB21sBB8s")
_USER_REPORT = struct.Struct(">21s21sB8s")
_FORM_TAIL = struct.Struct(">16s5BI")  # ScheduleTime and what follows it in a submit
_BEFORE_EXPIRY = 31  # bytes of a submit between the numbers and ExpireTime
_RESERVE = bytes(8)
_BARE = (UNBIND, UNBIND | ANSWER)


@dataclass(frozen=True, slots=True)
class Bind:
    sequence: Sequence
    login_type: int
    name: str
    password: str

    def encode(self) -> bytes:
        name, password = fixed(self.name, 16, "login name"), fixed(self.password, 16, "password")
        return _frame(BIND, self.sequence, _BIND.pack(self.login_type, name, password, _RESERVE))


@dataclass(frozen=True, slots=True)
class Bare:
    """A message without body: Unbind and its answer."""

    sequence: Sequence
    command: int

    def encode(self) -> bytes:
        return _frame(self.command, self.sequence, b"")


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to any command but Unbind: a result."""

    sequence: Sequence
    command: int  # with the bit of an answer
    result: int = OK

    def encode(self) -> bytes:
        return _frame(self.command, self.sequence, bytes((number_within(self.result, 255, "result"),)) + _RESERVE)


@dataclass(frozen=True, slots=True)
class Submit:
    """One message to one or more numbers, each with 86 in front."""

    sequence: Sequence
    sender: str
    numbers: tuple[str, ...]
    corporation: str
    service: str
    content: bytes
    coding: int
    charged: str = "0" * 21  # all zeros: the sender pays
    has_header: bool = False
    fee_type: int = 1
    fee_value: str = "0"
    given_value: str = "0"
    agent: int = 0
    more_related: int = 2  # not caused by a user's message
    priority: int = 0
    expires: str = ""
    schedule: str = ""
    report: int = 1  # always
    protocol: int = 0
    message_type: int = 0

    def encode(self) -> bytes:
        if not 1 <= len(self.numbers) <= 100:
            raise WireError("numbers must be 1 to 100")
        body = [
            _SUBMIT_HEAD.pack(
                fixed(self.sender, 21, "SPNumber"), fixed(self.charged, 21, "ChargeNumber"), len(self.numbers)
            ),
            *(fixed(number, 21, "UserNumber") for number in self.numbers),
            _SUBMIT_BODY.pack(
                fixed(self.corporation, 5, "CorpId"),
                fixed(self.service, 10, "ServiceType"),
                self.fee_type,
                fixed(self.fee_value, 6, "FeeValue"),
                fixed(self.given_value, 6, "GivenValue"),
                self.agent,
                self.more_related,
                self.priority,
                fixed(self.expires, 16, "ExpireTime"),
                fixed(self.schedule, 16, "ScheduleTime"),
                self.report,
                self.protocol,
                self.has_header,
                self.coding,
                self.message_type,
                len(self.content),
            ),
            self.content,
            _RESERVE,
        ]
        return _frame(SUBMIT, self.sequence, b"".join(body))


class SubmitForm:
    """A submit to one number with everything filled in that is the same for every message of an account.

    filled   an example with one number and no content
    """

    def __init__(self, filled: Submit) -> None:
        frame = filled.encode()
        at = HEADER + _SUBMIT_HEAD.size
        self._head = frame[HEADER:at]
        # Up to ExpireTime nothing differs between messages; behind it only a few bytes do.
        self._middle = frame[at + 21 : at + 21 + _BEFORE_EXPIRY]
        self._size = len(frame)

    def encode(
        self, sequence: Sequence, number: str, content: bytes, coding: int, has_header: bool, expires: bytes
    ) -> bytes:
        """`expires`: 16 bytes. The same bytes as Submit.encode."""
        return b"".join(
            (
                _HEAD.pack(self._size + len(content), SUBMIT, *sequence),
                self._head,
                fixed(number, 21, "UserNumber"),
                self._middle,
                expires,
                _FORM_TAIL.pack(b"", 1, 0, has_header, coding, 0, len(content)),
                content,
                _RESERVE,
            )
        )


@dataclass(frozen=True, slots=True)
class Deliver:
    """A message that a user sent."""

    sequence: Sequence
    number: str
    to: str
    content: bytes
    coding: int
    has_header: bool = False
    protocol: int = 0

    def encode(self) -> bytes:
        number, to = fixed(self.number, 21, "UserNumber"), fixed(self.to, 21, "SPNumber")
        head = _DELIVER.pack(number, to, self.protocol, self.has_header, self.coding, len(self.content))
        return _frame(DELIVER, self.sequence, head + self.content + _RESERVE)


@dataclass(frozen=True, slots=True)
class Report:
    """What became of a submit."""

    sequence: Sequence
    submitted: Sequence
    number: str
    state: int  # 0 delivered, 1 under way, 2 failed
    error: int = 0
    report_type: int = 0

    def encode(self) -> bytes:
        number = fixed(self.number, 21, "UserNumber")
        return _frame(
            REPORT,
            self.sequence,
            _REPORT.pack(*self.submitted, self.report_type, number, self.state, self.error, _RESERVE),
        )


@dataclass(frozen=True, slots=True)
class UserReport:
    """What became of a number: 0 given up, 1 barred for debt, 2 restored."""

    sequence: Sequence
    to: str
    number: str
    condition: int

    def encode(self) -> bytes:
        to, number = fixed(self.to, 21, "SPNumber"), fixed(self.number, 21, "UserNumber")
        return _frame(USER_REPORT, self.sequence, _USER_REPORT.pack(to, number, self.condition, _RESERVE))


Message = Bind | Bare | Answer | Submit | Deliver | Report | UserReport


def decode(frame: bytes) -> Message:
    """Read one whole frame; raise WireError for what is no message of SGIP."""
    expect_length(frame, HEADER, "header")
    length, command, *parts = _HEAD.unpack_from(frame)
    if length != len(frame):
        raise WireError(f"a length of {length} in a frame of {len(frame)} bytes")
    sequence: Sequence = (parts[0], parts[1], parts[2])
    if command in _BARE:
        return Bare(sequence, command)
    if command & ANSWER:
        expect_length(frame, HEADER + 1, "answer")
        return Answer(sequence, command, frame[HEADER])
    reader = _READERS.get(command)
    if reader is None:
        raise WireError(f"command {command:#x} is not known")
    return reader(frame, sequence)


def _bind(frame: bytes, sequence: Sequence) -> Bind:
    expect_length(frame, HEADER + _BIND.size, "Bind")
    login_type, name, password, _ = _BIND.unpack_from(frame, HEADER)
    return Bind(sequence, login_type, unfixed(name), unfixed(password))


def _submit(frame: bytes, sequence: Sequence) -> Submit:
    expect_length(frame, HEADER + _SUBMIT_HEAD.size, "Submit")
    sender, charged, count = _SUBMIT_HEAD.unpack_from(frame, HEADER)
    at = HEADER + _SUBMIT_HEAD.size
    expect_length(frame, at + 21 * count + _SUBMIT_BODY.size, "Submit")
    if not 1 <= count <= 100:
        raise WireError("Submit must name 1 to 100 numbers")
    numbers = tuple(unfixed(frame[at + 21 * one : at + 21 * one + 21]) for one in range(count))
    at += 21 * count
    (
        corporation, service, fee_type, fee_value, given_value, agent, more_related, priority, expires, schedule,
        report, protocol, has_header, coding, message_type, length,
    ) = _SUBMIT_BODY.unpack_from(frame, at)  # fmt: skip
    return Submit(
        sequence=sequence,
        sender=unfixed(sender),
        numbers=numbers,
        corporation=unfixed(corporation),
        service=unfixed(service),
        content=_content(frame, at + _SUBMIT_BODY.size, length),
        coding=coding,
        charged=unfixed(charged),
        has_header=bool(has_header & 1),
        fee_type=fee_type,
        fee_value=unfixed(fee_value),
        given_value=unfixed(given_value),
        agent=agent,
        more_related=more_related,
        priority=priority,
        expires=unfixed(expires),
        schedule=unfixed(schedule),
        report=report,
        protocol=protocol,
        message_type=message_type,
    )


def _deliver(frame: bytes, sequence: Sequence) -> Deliver:
    expect_length(frame, HEADER + _DELIVER.size, "Deliver")
    number, to, protocol, has_header, coding, length = _DELIVER.unpack_from(frame, HEADER)
    content = _content(frame, HEADER + _DELIVER.size, length)
    return Deliver(sequence, unfixed(number), unfixed(to), content, coding, bool(has_header & 1), protocol)


def _report(frame: bytes, sequence: Sequence) -> Report:
    # The reserve at the end is left out by some peers.
    expect_length(frame, HEADER + _REPORT.size - 8, "Report")
    node, stamp, counter, report_type, number, state, error, _ = _REPORT.unpack(
        frame[HEADER : HEADER + _REPORT.size].ljust(_REPORT.size, b"\0")
    )
    return Report(sequence, (node, stamp, counter), unfixed(number), state, error, report_type)


def _user_report(frame: bytes, sequence: Sequence) -> UserReport:
    expect_length(frame, HEADER + _USER_REPORT.size - 8, "UserRpt")
    to, number, condition, _ = _USER_REPORT.unpack(
        frame[HEADER : HEADER + _USER_REPORT.size].ljust(_USER_REPORT.size, b"\0")
    )
    return UserReport(sequence, unfixed(to), unfixed(number), condition)


_READERS: dict[int, Callable[[bytes, Sequence], Message]] = {
    BIND: _bind,
    SUBMIT: _submit,
    DELIVER: _deliver,
    REPORT: _report,
    USER_REPORT: _user_report,
}


def _content(frame: bytes, at: int, length: int) -> bytes:
    if length > len(frame) - at:
        raise WireError(f"a text of {length} bytes where {len(frame) - at} are left")
    return frame[at : at + length]


def _frame(command: int, sequence: Sequence, body: bytes) -> bytes:
    return _HEAD.pack(HEADER + len(body), command, *sequence) + body


def name_of(sequence: Sequence) -> str:
    """Write a sequence as the name by which receipts find their message."""
    return f"{sequence[0]}.{sequence[1]:010d}.{sequence[2]}"
