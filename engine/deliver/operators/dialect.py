"""What a session must be told of a protocol: how to log in, submit, test the link, and what a frame means. No I/O."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol

from engine.deliver.contract import NumberNews
from engine.deliver.operators.parts import Part
from engine.model import DispatchState


class Verdict(Enum):
    """What an answer to a submit means."""

    OK = auto()
    THROTTLED = auto()
    BUSY = auto()  # not accepted, the gateway is unwell
    REFUSED = auto()  # not accepted for good


@dataclass(frozen=True, slots=True)
class LoggedIn:
    """The answer to a login. `is_permanent`: wrong name or password, which no repetition will mend."""

    ok: bool
    detail: str = ""
    is_permanent: bool = False


@dataclass(frozen=True, slots=True)
class Answered:
    """The answer to a submit."""

    key: Any  # what `submit` returned
    verdict: Verdict
    gateway_id: str = ""
    code: str = ""


@dataclass(frozen=True, slots=True)
class Tested:
    """The answer to a test of the link."""


@dataclass(frozen=True, slots=True)
class Reply:
    """Something to answer at once."""

    frame: bytes
    closes: bool = False


@dataclass(frozen=True, slots=True)
class Reported:
    """A receipt; acknowledge with `done` once it is durable, with `busy` where it cannot be made so."""

    gateway_id: str
    state: DispatchState
    code: str
    at_ms: int
    done: bytes
    busy: bytes


@dataclass(frozen=True, slots=True)
class Received:
    """A user's message or a part of one."""

    message_id: str
    number: str = field(repr=False)
    to: str
    content: bytes = field(repr=False)
    coding: int
    has_header: bool
    done: bytes
    busy: bytes


@dataclass(frozen=True, slots=True)
class Heard:
    """News of a number."""

    message_id: str
    number: str = field(repr=False)
    news: NumberNews
    done: bytes
    busy: bytes


Meaning = LoggedIn | Answered | Tested | Reply | Reported | Received | Heard | None


class Dialect(Protocol):
    """One protocol as one login speaks it. One object a connection: it counts sequences."""

    header: int  # bytes of the shortest frame

    def login(self, now_ms: int) -> bytes: ...

    def goodbye(self) -> bytes: ...

    def test(self) -> bytes | None:
        """Return a frame that the peer must answer; None where the protocol has none."""
        ...

    def submit(self, part: Part, number: str, expires_ms: int, now_ms: int) -> tuple[Any, bytes, str]:
        """Return the key under which the answer comes, the frame, and the part's name where it is known already."""
        ...

    def read(self, frame: bytes, now_ms: int) -> Meaning:
        """Say what a frame means; None: nothing. Raises WireError."""
        ...


FINAL_STATS: dict[str, DispatchState] = {
    "DELIVRD": DispatchState.DELIVERED,
    "EXPIRED": DispatchState.EXPIRED,
    "DELETED": DispatchState.FAILED,
    "UNDELIV": DispatchState.FAILED,
    "REJECTD": DispatchState.FAILED,
    "UNKNOWN": DispatchState.UNKNOWN,
    "ACCEPTD": DispatchState.ACCEPTED,  # intermediate, never final
    "ENROUTE": DispatchState.ACCEPTED,
}

NO_ANSWER = ("MA:", "MC:", "CA:", "DA:", "IA:", "IC:", "SA:")
"""Somebody on the way did not answer: whether the message arrived is not known."""


def state_of(stat: str) -> DispatchState:
    """Read the state of a receipt; what is in no list says that the message failed, and why in its code."""
    known = FINAL_STATS.get(stat.upper())
    if known is not None:
        return known
    return DispatchState.UNKNOWN if stat.upper().startswith(NO_ANSWER) else DispatchState.FAILED


def with_country(number: str) -> str:
    """Write a number with 86 in front and nothing else, as operators want it."""
    digits = number.strip().removeprefix("+").removeprefix("00")
    return digits if len(digits) > 11 or not digits.isdigit() else f"86{digits}"


def without_country(number: str) -> str:
    digits = number.strip().removeprefix("+").removeprefix("00")
    return digits[2:] if len(digits) > 11 and digits.startswith("86") else digits
