"""The events as typed objects: what the typed reader returns, and what `Decoder.read` gives to the few that ask."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, UnsetType

from engine.model import EventType, Method

Scalar = str | int | float | bool
ShortText = Annotated[str, Meta(min_length=1, max_length=256)]
Purpose = Annotated[str, Meta(pattern=r"^(location|usage|marketing\.[a-z][a-z0-9_-]{0,31})$")]
Longitude = Annotated[float, Meta(ge=-180, le=180)]
Latitude = Annotated[float, Meta(ge=-90, le=90)]


class Origin(msgspec.Struct, frozen=True, kw_only=True):
    """What every event has: where it came from, whose it is, when it was observed."""

    feed: int  # row of the feed table
    user: str
    at_ms: int
    id: str | None = None


class Ping(Origin, frozen=True, kw_only=True):
    """One position report, as sent: degrees in the feed's datum, accuracy before any conversion."""

    lon: float | None = None
    lat: float | None = None
    cell: int = -1  # row of the cell table
    accuracy_m: float = 0.0  # 0: unknown (L6)
    method: Method = Method.UNKNOWN


class UsageEvent(Origin, frozen=True, kw_only=True):
    """One app-usage fact. Empty text counts as absent."""

    app: str | None = None
    category: str | None = None
    action: str | None = None
    props: dict[str, Scalar] = {}


class UsageNames(msgspec.Struct, frozen=True, gc=False):
    """What names a usage event and what it is about, read without the rest; its type says whether that was it."""

    type: Literal["usage"]
    id: str | None = None
    app: str | None = None
    category: str | None = None
    action: str | None = None


class UsageFacts(UsageNames, frozen=True, gc=False):
    """The same with its properties; those that are null are absent."""

    props: dict[str, Scalar | None] | None = None


class Home(msgspec.Struct, frozen=True):
    lon: Longitude
    lat: Latitude


class Profile(Origin, frozen=True, kw_only=True):
    """A profile, or a change of one. UNSET: stays as it is; None: cleared; a value replaces (A1)."""

    tags: tuple[ShortText, ...] | UnsetType | None = UNSET
    add_tags: tuple[ShortText, ...] | None = None  # single tags, whoever set the others
    remove_tags: tuple[ShortText, ...] | None = None
    attributes: dict[str, Scalar | None] | UnsetType | None = UNSET
    person: ShortText | UnsetType | None = UNSET
    organisation: ShortText | UnsetType | None = UNSET
    home: Home | UnsetType | None = UNSET
    time_zone: ShortText | UnsetType | None = UNSET
    dnd: bool | UnsetType | None = UNSET
    province: ShortText | UnsetType | None = UNSET


class Consent(Origin, frozen=True, kw_only=True):
    """A user's yes or no to one purpose (A2)."""

    purpose: Purpose
    granted: bool
    source: str | None = None


class Receipt(Origin, frozen=True, kw_only=True):
    """What a gateway reports of one dispatch; names the offer, the dispatch, or both."""

    state: Literal["accepted", "rejected", "delivered", "failed", "expired", "unknown"]
    offer_id: ShortText | None = None
    dispatch_id: ShortText | None = None
    code: str | None = None
    definite: bool = True  # False: a failure that does not prove that nothing arrived; nothing is given back


class Redemption(Origin, frozen=True, kw_only=True):
    """The user used a benefit, or got the money back for one; names the offer, the benefit, or both."""

    offer_id: ShortText | None = None
    benefit: ShortText | None = None
    amount_fen: Annotated[int, Meta(ge=0, le=10**15)] | None = None
    refund: bool = False


class InboundMessage(Origin, frozen=True, kw_only=True):
    """What the user sent to us (A3)."""

    channel: ShortText
    text: str


class UserClosed(Origin, frozen=True, kw_only=True):
    """The number was given up (A4)."""


class AddressChanged(Origin, frozen=True, kw_only=True):
    """The number went to somebody else, or the user took another (A4)."""


RareEvent = Profile | Consent | Receipt | Redemption | InboundMessage | UserClosed | AddressChanged
Event = Ping | UsageEvent | RareEvent

RARE_TYPES: dict[EventType, type[RareEvent]] = {
    EventType.PROFILE: Profile,
    EventType.CONSENT: Consent,
    EventType.RECEIPT: Receipt,
    EventType.REDEMPTION: Redemption,
    EventType.INBOUND_MESSAGE: InboundMessage,
    EventType.USER_CLOSED: UserClosed,
    EventType.ADDRESS_CHANGED: AddressChanged,
}
EVENT_TYPES: dict[type[Event], EventType] = {
    Ping: EventType.PING,
    UsageEvent: EventType.USAGE,
    **{both: one for one, both in RARE_TYPES.items()},
}
