"""What the dispatcher needs from a gateway, the ledger and the address book (docs/contracts.md, Gateway, Claim)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from engine.model import DispatchState, Offer


class ClaimAnswer(StrEnum):
    """What the claim store said (rule D7). Only CLAIMED may submit."""

    CLAIMED = "claimed"
    ALREADY = "already"
    UNKNOWN_OFFER = "unknown_offer"
    PAUSED = "paused"
    NO_CONSENT = "no_consent"
    EXPIRED = "expired"
    FENCED = "fenced"
    UNAVAILABLE = "unavailable"


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One attempt to deliver one offer; the only object that holds an address beside the address book."""

    dispatch_id: str  # offer id / channel / attempt (D4)
    offer_id: str
    address: str = field(repr=False)  # never in a log line or a traceback
    text: str
    title: str
    deadline_ms: int  # travels as the gateway's validity period (D6)
    data: Mapping[str, Any] = field(default_factory=dict)  # scenario, benefit, code: no user, no place


@dataclass(frozen=True, slots=True)
class Submitted:
    """The gateway has it; `gateway_id` is its own name for it, found again in its receipts."""

    gateway_id: str


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a gateway can do and stand (rule G4)."""

    window: int = 32  # submits without an answer
    messages_per_s: float = 1000.0
    receipts: bool = False  # whether it reports what became of a message
    signature_at_end: bool = False  # where 【...】 must stand in an SMS
    sms: bool = False  # text gets signature and opt-out, and is counted in segments


class Gateway(Protocol):
    """One way out. `submit` raises GatewayRetryable (provably not accepted), GatewayPermanent or GatewayUnknown."""

    @property
    def name(self) -> str: ...

    @property
    def channel(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    async def submit(self, dispatch: Dispatch) -> Submitted: ...

    async def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class DispatchRecord:
    """What became of one claimed dispatch, for the ledger."""

    dispatch_id: str
    offer_id: str
    state: DispatchState  # ACCEPTED | REJECTED | UNKNOWN | EXPIRED | FAILED
    at_ms: int
    gateway_id: str | None = None
    code: str | None = None  # of the gateway, or ours: no_address, deadline, ...


class DispatchLedger(Protocol):
    """The part of the ledger that hand-off uses; StoreUnavailable where it cannot answer: nothing is sent then."""

    @property
    def would_wait(self) -> bool:
        """Whether a call made now may wait, for a disk or for somebody else: then it is made in a thread."""
        ...

    def outbox(self, limit: int) -> Sequence[Offer]:
        """List offers committed and not claimed, oldest first."""
        ...

    def claim(self, claims: Sequence[tuple[str, str]], now_ms: int) -> Sequence[str]:
        """Claim (offer_id, dispatch_id) pairs at wall time `now_ms` in one transaction; a ClaimAnswer for each."""
        ...

    def record_dispatch(self, records: Sequence[DispatchRecord]) -> object:
        """Store outcomes in one transaction; a final state never regresses (G1)."""
        ...


class Addresses(Protocol):
    """Where addresses come from, asked only between claim and submit (rule I2)."""

    def lookup(self, user_id: str, channel: str) -> str | None:
        """Return the address, or None."""
        ...

    def user_of(self, channel: str, address: str) -> str | None:
        """Return whose address this is, or None."""
        ...
