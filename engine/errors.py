"""The tree of errors.

OpportuneError
├── ContentError       faults of a content folder, all at once, each with file, path, found, expected and hint
├── SettingsError      a setting that cannot work; says which and what to do
├── UnknownScenario    nobody knows the scenario that was asked about
├── EventError         one event that cannot be read -> a dead letter with its reason
├── StoreError         journal, ledger, checkpoint or address book
│   ├── StoreUnavailable   may come back: wait, do not send
│   ├── StoreCorrupt       will not heal by waiting: stop, name the place
│   └── StoreFenced        another process took the shard over: stop working on it
└── GatewayError       what a gateway answered
    ├── GatewayRetryable   provably not accepted: may be sent again
    │   └── GatewayThrottled   by a gateway that is well and asks for less
    ├── GatewayPermanent   refused for good
    └── GatewayUnknown     sent, no answer: never resent

Assertions are for our own bugs, exceptions for the world, values for "no". No message holds an address or a secret.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from engine.model import DeadReason


class OpportuneError(Exception):
    """Base of everything this package raises on purpose."""


@dataclass(frozen=True, slots=True, order=True)
class Fault:
    """One thing that is wrong in content: where, what stands there, what should, and how to mend it."""

    file: str
    path: str
    found: str
    expected: str
    hint: str = ""
    severity: str = "error"  # error | warning

    def __str__(self) -> str:
        line = f"{self.file}: {self.path}: found {self.found}, expected {self.expected}"
        return f"{line} ({self.hint})" if self.hint else line


class ContentError(OpportuneError):
    """A content set that cannot be used; `faults` lists everything that is wrong with it."""

    def __init__(self, faults: list[Fault]) -> None:
        self.faults = sorted(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))


class SettingsError(OpportuneError):
    """A setting that cannot work; `faults` lists them one by one where a file has several."""

    def __init__(self, message: str, faults: Sequence[Fault] = ()) -> None:
        super().__init__(message)
        self.faults = tuple(faults)


def slip_of(word: str, known: Iterable[str]) -> str:
    """Ask, to be put behind a message, whether a known word near this one was meant; '' where none is near."""
    near = difflib.get_close_matches(word, sorted(known), 1)
    return f"; did you mean {near[0]!r}?" if near else ""


class UnknownScenario(OpportuneError):
    """No scenario has the id that was asked about."""

    def __init__(self, scenario: str, known: Iterable[str]) -> None:
        super().__init__(f"no scenario has the id {scenario!r}{slip_of(scenario, known)}")


class EventError(OpportuneError):
    """One event that cannot be read."""

    def __init__(self, reason: DeadReason, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason.value}: {detail}")


class StoreError(OpportuneError):
    """A store did not do what it must."""


class StoreUnavailable(StoreError):
    """The store may come back; nothing is sent until it does."""


class StoreCorrupt(StoreError):
    """The store holds something it cannot have written."""


class StoreFenced(StoreError):
    """Another process took this shard over; whatever this one still does to it is refused."""


class GatewayError(OpportuneError):
    """What a gateway answered."""


class GatewayRetryable(GatewayError):
    """Provably not accepted; `retry_after_s` where the gateway said so."""

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        self.retry_after_s = retry_after_s
        super().__init__(message)


class GatewayThrottled(GatewayRetryable):
    """Not accepted because it came too fast; says nothing against the message or the gateway's health."""


class GatewayPermanent(GatewayError):
    """Refused for good."""


class GatewayGone(GatewayPermanent):
    """Refused for good because the address does not exist any more (a push token of a removed app): it is dropped."""


class GatewayUnknown(GatewayError):
    """Sent, but no answer came: the message may have gone out, so it is never sent again.

    gateway_ids  of the parts whose names are known all the same, so that receipts can settle it
    """

    def __init__(self, message: str, gateway_ids: tuple[str, ...] = ()) -> None:
        self.gateway_ids = gateway_ids
        super().__init__(message)
