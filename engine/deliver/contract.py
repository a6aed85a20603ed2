"""What the dispatcher needs from a gateway, the ledger and the address book (docs/contracts.md, Gateway, Claim).

A gateway is told of one dispatch at a time and answers by returning or raising; what comes back later - receipts,
users' messages, news about numbers - it puts into the `Inbox` that it was started with.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol, runtime_checkable

from engine.deliver.sms import count_segments, finish_text
from engine.model import DispatchState, GatewayReceipt, Match, Offer


class ClaimAnswer(StrEnum):
    """What the claim store said (rule D7). Only CLAIMED may submit."""

    CLAIMED = "claimed"
    ALREADY = "already"
    UNKNOWN_OFFER = "unknown_offer"
    PAUSED = "paused"
    NO_CONSENT = "no_consent"
    EXPIRED = "expired"
    FENCED = "fenced"
    CODE_EXPIRED = "code_expired"
    UNAVAILABLE = "unavailable"


# --- out ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Dispatch:
    """One attempt to deliver one offer; the only object that holds an address beside the address book."""

    dispatch_id: str  # offer id / channel / attempt (D4)
    offer_id: str
    address: str = field(repr=False)  # never in a log line or a traceback
    text: str  # signature and opt-out text included
    title: str
    deadline_ms: int  # travels as the gateway's validity period (D6)
    data: Mapping[str, Any] = field(default_factory=dict)  # scenario, benefit, code: no user, no place
    why_not_now: Callable[[], str | None] = field(default=lambda: None, repr=False, compare=False)
    """Asked before the first byte by a gateway that had to wait for a connection or for room: what is against it by now
    (deadline, consent, pause), to be raised as GatewayPermanent; None: nothing."""


@dataclass(frozen=True, slots=True)
class Submitted:
    """The gateway has it. `gateway_ids` are its own names for the parts of the message, found again in its receipts."""

    gateway_ids: tuple[str, ...]

    @property
    def gateway_id(self) -> str:
        return self.gateway_ids[0]


def _one(text: str) -> int:
    return 1


def _segments(text: str) -> int:
    return max(1, count_segments(text).segments)


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a gateway can do and stand (rule G4)."""

    window: int = 32  # submits without an answer, over all its connections
    messages_per_s: float = 1000.0  # parts, where a text has several
    receipts: bool = False  # whether it reports what became of a message
    signature: str | None = None  # of an SMS; None: the policy's
    opt_out_text: str | None = None  # likewise
    signature_at_end: bool = False  # where 【...】 must stand in an SMS
    sms: bool = False  # text gets signature and opt-out, and is counted in segments
    daily_quota: int | None = None  # parts a day
    timeout_s: float | None = None  # longest submit; None: the dispatcher's. A session's own timeout must be below
    count_parts: Callable[[str], int] | None = None  # of a finished text; None: segments of an SMS, else 1

    def finish(self, text: str, signature: str, opt_out: str, *, is_service: bool = False) -> str:
        """Add the policy's signature and opt-out text, or this gateway's own, where it wants them (rule O2)."""
        opt_out = opt_out if self.opt_out_text is None else self.opt_out_text
        return finish_text(
            text,
            signature=signature if self.signature is None else self.signature,
            opt_out="" if is_service else opt_out,
            signature_at_end=self.signature_at_end,
        )

    def parts(self, text: str) -> int:
        """Count the messages that a finished text becomes."""
        return (self.count_parts or (_segments if self.sms else _one))(text)


@dataclass(frozen=True, slots=True)
class Standing:
    """Whether a gateway can take a submit now; while it cannot nothing is claimed for it."""

    ready: bool = True
    detail: str = ""  # "no connection", "login refused: wrong password" - no address, no secret
    permanent: bool = False  # nobody but an operator can mend it


class Gateway(Protocol):
    """One way out.

    submit   returns once the gateway has the whole message. Raises
             GatewayThrottled   not accepted, come again: the lane slows down, nothing is counted against the message
             GatewayRetryable   provably not accepted by a gateway that is unwell
             GatewayPermanent   refused for good, no part was accepted
             GatewayUnknown     a byte may have left and no answer came, or only some parts were accepted
             It resends throttled parts of a half-accepted message itself; the caller resends whole messages only.
    start    begins to connect and returns at once; a peer that is away is no error. Called once, in the loop.
    close    takes no more submits, waits for answers at most `timeout_s`, says goodbye on the wire.
    """

    @property
    def name(self) -> str: ...

    @property
    def channel(self) -> str: ...

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def standing(self) -> Standing: ...

    async def start(self, inbox: Inbox) -> None: ...

    async def submit(self, dispatch: Dispatch) -> Submitted: ...

    async def close(self, timeout_s: float = 5.0) -> None: ...


class Sessionless:
    """Mixed into a gateway without connections to keep: always ready, nothing to start."""

    standing = Standing()

    async def start(self, inbox: Inbox) -> None:
        return None


# --- back -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class InboundText:
    """A message that a user sent; parts of a long one already joined."""

    channel: str
    sender: str = field(repr=False)
    text: str = field(repr=False)
    at_ms: int
    message_id: str  # unique within the gateway: the same one again is the same message (T7)
    gateway: str
    to: str = ""  # the number it was sent to


class NumberNews(StrEnum):
    """What an operator may tell of a number without being asked (SGIP UserRpt)."""

    CLOSED = "closed"  # given up: consent is void (A4)
    BARRED = "barred"  # for debt: nothing arrives
    RESTORED = "restored"


@dataclass(frozen=True, slots=True)
class NumberReport:
    channel: str
    address: str = field(repr=False)
    news: NumberNews
    at_ms: int
    message_id: str
    gateway: str


class UseKind(StrEnum):
    CLICK = "click"
    REDEMPTION = "redemption"


@dataclass(frozen=True, slots=True)
class OfferUse:
    """What a user did with an offer, as a page or a partner tells it."""

    kind: UseKind
    offer_id: str
    at_ms: int
    message_id: str
    gateway: str
    benefit: str | None = None  # None: that of the offer
    amount_fen: int | None = None
    refund: bool = False


class Inbox(Protocol):
    """Where gateways put what comes back. Each call returns once that is durable: only then acknowledge on the wire.

    Raises StoreUnavailable: answer "busy" or nothing, so that the peer sends it again.
    """

    async def receipts(self, receipts: Sequence[GatewayReceipt]) -> None: ...

    async def inbound(self, messages: Sequence[InboundText]) -> None: ...

    async def numbers(self, reports: Sequence[NumberReport]) -> None: ...

    async def used(self, uses: Sequence[OfferUse]) -> None: ...


@dataclass(frozen=True, slots=True)
class Callback:
    """An HTTP request by which a gateway tells what became of messages, or what users wrote."""

    method: str
    query: str  # as it came, percent-encoded
    headers: Mapping[str, str]  # names in lower case
    body: bytes = field(repr=False)
    peer: str = ""  # address of the caller


@dataclass(frozen=True, slots=True)
class Reply:
    """What the gateway wants to hear; Jasmin and others insist on the very words."""

    status: int = 200
    body: bytes = b""
    media_type: str = "text/plain"


class CallbackRefused(Exception):
    """A callback that is not taken; nothing changes. 401: it does not prove that the gateway sent it (FAULTS A10)."""

    def __init__(
        self,
        code: str = "bad_signature",
        message: str = "the callback does not prove that it comes from this gateway",
        status: int = 401,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.status = status


@runtime_checkable
class CallsBack(Protocol):
    """A gateway that reports by calling `/v1/callbacks/NAME`; raises CallbackRefused, StoreUnavailable."""

    async def on_callback(self, callback: Callback) -> Reply: ...


# --- ledger and address book ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class DispatchRecord:
    """What became of one claimed dispatch, for the ledger."""

    dispatch_id: str
    offer_id: str
    state: DispatchState  # ACCEPTED | REJECTED | UNKNOWN | EXPIRED | FAILED
    at_ms: int
    gateway_id: str | None = None
    code: str | None = None  # of the gateway, or ours: no_address, deadline, ...
    gateway: str = ""
    gateway_ids: tuple[str, ...] = ()  # of all parts, where receipts may name them


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

    def match_receipts(self, receipts: Sequence[GatewayReceipt], now_ms: int) -> Sequence[Match | None]:
        """Find whose receipts these are and keep for 72 h those that are nobody's yet (G3); one answer for each.

        An answer says what the receipt means for the whole dispatch; None: unknown so far, or parts are missing.
        """
        ...

    def find_offer(self, offer_id: str) -> Offer | None:
        """Return an offer that was made here and is still known."""
        ...

    def matched_late(self) -> Sequence[Match]:
        """List what receipts that had come before `record_dispatch` say of it, until `told_late`."""
        ...

    def told_late(self) -> None:
        """Note that what `matched_late` listed is in the log."""
        ...

    def silent(self, now_ms: int, limit: int = 500) -> Sequence[tuple[int, str, Match | None]]:
        """List dispatches of which nothing came for 48 h: (due, dispatch id, EXPIRED; None: it ended by itself)."""
        ...

    def told_silent(self, rows: Sequence[tuple[int, str]]) -> None:
        """Note that what `silent` listed is in the log."""
        ...


class Addresses(Protocol):
    """Where addresses come from, asked only between claim and submit (rule I2)."""

    def lookup(self, user_id: str, channel: str) -> str | None:
        """Return the address, or None."""
        ...

    def user_of(self, channel: str, address: str) -> str | None:
        """Return whose address this is, or None."""
        ...

    def drop(self, user_id: str, channel: str) -> bool:
        """Remove one address, which its gateway says is gone; say whether there was one."""
        ...
