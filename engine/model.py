"""The words every stage shares: enums, array layouts, records and candidates.

Left of `decide` an event is a row of an array (EVENT, HIT, TRANSITION); right of it a plain object (Candidate,
Decision, Offer). Layouts that are stored or cross a wire are described in docs/contracts.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

import msgspec
import numpy as np

CONTRACT_VERSION = 1
DEGREE_E7 = 10_000_000
CODE_MARK = "\ue000"
"""Stands in an offer's text where the code goes; replaced between claim and submit (O3). No text may hold it."""
FINE_ACCURACY_M = 60.0
"""A fix this good or better is *fine*: every fence it touches is found by the index (docs/contracts.md, P2)."""


class RecordKind(IntEnum):
    """What a log record carries."""

    EVENTS = 1
    TICK = 2
    CONTENT = 3
    CONTROL = 4


class EventType(IntEnum):
    PING = 1
    USAGE = 2
    PROFILE = 3
    CONSENT = 4
    RECEIPT = 5
    REDEMPTION = 6
    INBOUND_MESSAGE = 7
    USER_CLOSED = 8
    ADDRESS_CHANGED = 9


EVENT_TYPE_NAMES = {
    "ping": EventType.PING,
    "usage": EventType.USAGE,
    "profile": EventType.PROFILE,
    "consent": EventType.CONSENT,
    "receipt": EventType.RECEIPT,
    "redemption": EventType.REDEMPTION,
    "inbound-message": EventType.INBOUND_MESSAGE,
    "user-closed": EventType.USER_CLOSED,
    "address-changed": EventType.ADDRESS_CHANGED,
}


class Method(IntEnum):
    """How a fix was made."""

    UNKNOWN = 0
    GPS = 1
    WIFI = 2
    CELL = 3


DEFAULT_ACCURACY_M = {Method.UNKNOWN: 1000.0, Method.GPS: 20.0, Method.WIFI: 60.0, Method.CELL: 1000.0}


class Confidence(IntEnum):
    """How surely a fix is inside a fence (rule L7)."""

    OUT = 0
    LOW = 1
    MEDIUM = 2
    HIGH = 3


class TransitionKind(IntEnum):
    ENTER = 1
    DWELL = 2
    EXIT = 3
    CROSS = 4


class TransitionReason(IntEnum):
    """Why a transition happened; FIX is the ordinary one."""

    FIX = 0
    TIMER = 1
    CLOSED = 2
    OPENED = 3
    GAP = 4
    EXPIRED = 5
    REMOVED = 6
    RETURNED = 7


LOUD_REASONS = (TransitionReason.FIX, TransitionReason.TIMER)
"""Transitions for any other reason make no offer by themselves and move no pattern (L8, L9, L10, P7)."""


class DeadReason(StrEnum):
    """Why an event went to dead letters. Codes are only ever added."""

    BAD_JSON = "bad_json"
    TOO_LARGE = "too_large"
    TOO_DEEP = "too_deep"
    NOT_AN_OBJECT = "not_an_object"
    UNKNOWN_TYPE = "unknown_type"
    UNKNOWN_VERSION = "unknown_version"
    MISSING_FIELD = "missing_field"
    WRONG_TYPE = "wrong_type"
    BAD_VALUE = "bad_value"
    BAD_TIME = "bad_time"
    NO_ZONE = "no_zone"
    SECONDS_NOT_MS = "seconds_not_ms"
    FUTURE = "future"
    UNKNOWN_CELL = "unknown_cell"
    UNKNOWN_FEED = "unknown_feed"
    UNKNOWN_SCHEMA = "unknown_schema"  # the schema registry has none of that id, or one that cannot be read
    ENGINE_FAULT = "engine_fault"  # a bug of ours: the event was set aside so that the rest goes on


class Drop(IntEnum):
    """Why a well-formed event changed nothing (counted, never a dead letter). Rules L8, T5, T7, A2."""

    NONE = 0
    DUPLICATE = 1
    LATE = 2
    NULL_ISLAND = 3
    OUT_OF_RANGE = 4
    TOO_COARSE = 5
    TOO_FAST = 6
    NO_LOCATION_CONSENT = 7
    NO_USAGE_CONSENT = 8


class Outcome(StrEnum):
    """How a candidate ended (rule D5)."""

    OFFER = "offer"
    REFUSED = "refused"
    WITHHELD = "withheld"
    LOST = "lost"
    HELD = "held"
    EXPIRED = "expired"


class Reason(StrEnum):
    """The closed list of reasons (rule D5). A refused cap is written `cap:<scope>`. Codes are only ever added."""

    GRANTED = "granted"
    NOT_LIVE = "not_live"
    TOO_OLD = "too_old"
    NO_PROFILE = "no_profile"
    AUDIENCE = "audience"
    NO_CONSENT = "no_consent"
    OPTED_OUT = "opted_out"
    DND = "dnd"
    SUPPRESSED = "suppressed"
    REENTRY = "reentry"
    QUIET_HOURS = "quiet_hours"
    NOT_DRAWN = "not_drawn"
    STALE_PRESENCE = "stale_presence"
    OUTSCORED = "outscored"
    CAP = "cap"
    MIN_GAP = "min_gap"
    STOCK = "stock"
    BUDGET = "budget"
    MISSING_VALUE = "missing_value"
    BAD_VALUE = "bad_value"
    DEADLINE = "deadline"
    PAUSED = "paused"
    FEED_SILENT = "feed_silent"
    STORE_UNAVAILABLE = "store_unavailable"
    HOLDOUT = "holdout"
    DUPLICATE = "duplicate"


class Mode(StrEnum):
    """What a scenario may do (rule D8)."""

    DRAFT = "draft"
    SHADOW = "shadow"
    LIVE = "live"
    PAUSED = "paused"


class DispatchState(StrEnum):
    """Where one attempt to deliver stands (rule G1)."""

    PLANNED = "planned"
    RESERVED = "reserved"
    SUBMITTING = "submitting"
    ACCEPTED = "accepted"
    REJECTED = "rejected"
    UNKNOWN = "unknown"
    DELIVERED = "delivered"
    FAILED = "failed"
    EXPIRED = "expired"


# --- array layouts of the hot half ------------------------------------------------------------------------------

EVENT = np.dtype(
    [
        ("at_ms", "i8"),  # event time (T1)
        ("now_ms", "i8"),  # the log's now when this event is processed (T2); running maximum, never falls
        ("id_hash", "u8"),  # of feed and id; without an id of feed, user, at and payload (T7); never 0
        ("app_hash", "u8"),  # 64-bit hash of the decoded UTF-8 text, 0 where absent; usage only
        ("category_hash", "u8"),
        ("action_hash", "u8"),
        ("span_start", "i8"),  # bytes of this event in Block.data, half-open
        ("span_end", "i8"),
        ("lon_e7", "i4"),  # WGS-84, snapped to 1e-7 degree (L3); of the tower for a cell fix
        ("lat_e7", "i4"),
        ("accuracy_m", "f4"),  # 68 % radius after the feed's conversion and the method's default (L6); > 0
        ("user", "i4"),  # slot in the user table
        ("cell", "i4"),  # row of the cell table, -1 where the ping carries coordinates
        ("record", "i4"),  # row of the block
        ("item", "i4"),  # which event of that record, from 0
        ("feed", "u1"),  # row of the feed table
        ("method", "u1"),  # Method
        ("type", "u1"),  # EventType
        ("drop", "u1"),  # Drop; set by later stages, the row is then skipped
    ]
)

HIT = np.dtype(
    [
        # Signed distance to the boundary, + inside; +inf for a member cell; nan where the point is inside and
        # confidence did not turn on it: who wants it asks engine.geometry_kernel.signed_distance_m.
        ("distance_m", "f8"),
        ("fence", "i4"),  # row of the fence set
        ("confidence", "u1"),  # Confidence; OUT never appears as a hit
        ("inside", "u1"),  # 1 if the point itself is covered (L5), or the cell is a member
    ],
    align=True,
)

TRANSITION = np.dtype(
    [
        ("crossed_ms", "i8"),
        ("confirmed_ms", "i8"),
        ("now_ms", "i8"),
        ("gap_ms", "i8"),  # ENTER: since the last fix that was OUT, -1 unknown
        ("duration_ms", "i8"),  # EXIT: between the two crossings, else -1
        ("distance_m", "f4"),  # signed, at the fix that confirmed; nan for a timer
        ("accuracy_m", "f4"),
        ("user", "i4"),
        ("fence", "i4"),
        ("event", "i4"),  # row of the event that fired it, or the row before which a timer fired
        ("threshold_s", "i4"),  # DWELL, else -1
        ("kind", "u1"),  # TransitionKind
        ("reason", "u1"),  # TransitionReason
        ("confidence", "u1"),
        ("method", "u1"),
        ("initial", "u1"),
        ("by_timer", "u1"),
        ("wide_gap", "u1"),  # ENTER: gap_ms above max_gap of its feed (P2); it leads to dwell only
    ],
    align=True,
)

FEED = np.dtype(
    [
        ("period_ms", "i8"),  # how often the feed normally reports a user
        ("expected_delay_ms", "i8"),  # as declared, and what the reorder buffer adds (T5, T8)
        ("reorder_ms", "i8"),
        ("allowed_lateness_ms", "i8"),
        ("max_accuracy_m", "f8"),  # inf: no limit
        ("radius_factor", "f8"),  # 1 for 68 %, 1 / 1.62 for 95 % (L6)
        ("datum", "u1"),  # Datum
        ("signalling", "u1"),  # 1: a cell feed for max_gap, presence_ttl and max_silence
    ],
    align=True,
)


class Datum(IntEnum):
    WGS84 = 0
    GCJ02 = 1
    BD09 = 2


# --- records --------------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Block:
    """What a RecordSource hands over: one buffer and arrays, never a list of record objects.

    data         bytes          all values, one after another
    start, end   int64[N]       value i is data[start[i]:end[i]]
    position     int64[N]       of the record in its partition, rising
    append_ms    int64[N]       append time; -1 in a file without append times (T2)
    kind         uint8[N]       RecordKind
    """

    data: bytes
    start: np.ndarray
    end: np.ndarray
    position: np.ndarray
    append_ms: np.ndarray
    kind: np.ndarray
    partition: int = 0

    def __len__(self) -> int:
        return len(self.start)

    def part(self, first: int, last: int) -> Block:
        """Return the records first:last, over the same bytes and arrays."""
        if first == 0 and last == len(self):
            return self
        return Block(
            self.data,
            self.start[first:last],
            self.end[first:last],
            self.position[first:last],
            self.append_ms[first:last],
            self.kind[first:last],
            self.partition,
        )


@dataclass(slots=True)
class DeadLetter:
    """One event that could not be read: why and where. `detail` names the field, never its value."""

    reason: DeadReason
    detail: str
    position: int
    item: int
    partition: int = 0


class Trigger(msgspec.Struct, gc=False):
    """What started a candidate, in the form that decisions store. `key` is the trigger key of rule D4."""

    kind: str  # enter | dwell | exit | usage | pattern | absence
    key: str
    at_ms: int
    fence: str | None = None
    time_zone: str | None = None  # of the fence, for quiet hours (C5)
    also_fences: tuple[str, ...] = ()
    values: dict[str, Any] = {}  # evidence; each instance gets its own: gap_s, threshold_s, confidence, app, ...


class Candidate(msgspec.Struct, gc=False):
    """One scenario that might speak to one user now.

    Consecutive candidates with equal user, position, item and now_ms come from one event and are arbitrated together.
    """

    scenario: int  # row of the compiled content's scenario list
    user: int  # slot
    user_id: str
    trigger: Trigger
    now_ms: int
    position: int = -1
    item: int = -1  # which event of that record, where the maker knows it


@dataclass(slots=True)
class Offer:
    """A granted decision, ready to be composed. Carries no address and no coordinates."""

    offer_id: str
    scenario: str
    user_id: str
    channel: str
    text: str
    benefit: str
    offer_class: str  # marketing | service
    deadline_ms: int
    created_ms: int
    priority: float = 0.0
    code: str | None = None
    province: str | None = None  # of the user when it was granted, for settlement
    fallback_channel: str | None = None  # where it goes after a definite failure or a missing receipt (G5)
    fallback_after_ms: int = 0
    attempt: int = 1  # 2: on the fallback channel
    benefit_class: str = ""  # one of the six classes, for routing


@dataclass(frozen=True, slots=True)
class GatewayReceipt:
    """A gateway's report on one part of a message. Names it by its own id, or by our dispatch id where it echoes that.

    state   ACCEPTED (still under way) | DELIVERED | FAILED | EXPIRED | REJECTED | UNKNOWN (the gateway gave up)
    """

    gateway: str  # name of the gateway
    state: DispatchState
    at_ms: int
    gateway_id: str = ""
    dispatch_id: str = ""
    code: str = ""  # the gateway's own, at most 64 characters


@dataclass(frozen=True, slots=True)
class Match:
    """What a receipt says of a whole dispatch, once it says enough (every part arrived, or one failed)."""

    dispatch_id: str
    offer_id: str
    user_id: str
    state: DispatchState
    at_ms: int
    code: str = ""
    is_definite: bool = True  # False: a failure that proves nothing (some parts arrived, no receipt came in time)


# --- reserving ------------------------------------------------------------------------------------------------------


class Scope(IntEnum):
    """What a cap counts (rule C1). DEPLOYMENT counts one scenario over all subjects (C7)."""

    ALL = 0
    CHANNEL = 1
    SCENARIO = 2
    CATEGORY = 3
    PARTNER = 4
    DEPLOYMENT = 5


class Rule(msgspec.Struct, frozen=True, gc=False):
    """One limit as a question to the subject's grants.

    Refuse with `reason` when at least `most` counted grants of this scope have `at_ms > since_ms`. Rolling windows,
    calendar windows, minimum gaps and re-entry are all this one question; whoever builds the rule resolves the zone.
    Which grants are counted: with `uncounted_too` (re-entry) all of the scope; otherwise those with `counts`, and of
    these the withheld ones only if the option that asks is itself withheld (the holdout's own shadow, rule D3).

    A msgspec struct, because it is made by the hundred thousand a second: a tenth of the cost of a frozen dataclass.
    """

    scope: Scope
    since_ms: int
    most: int
    reason: str  # cap:all | cap:channel | cap:scenario | ... | min_gap | reentry | paused (deployment limit)
    uncounted_too: bool = False  # re-entry looks at grants that do not count toward caps as well


NO_LIMIT = 1 << 62


class StockLine(msgspec.Struct, frozen=True, gc=False):
    """One benefit an offer would take one of, and what limits it (rule O3); money in fen."""

    benefit: str
    cost_fen: int = 0
    total: int = NO_LIMIT
    per_day: int = NO_LIMIT
    per_user: int = NO_LIMIT
    budget_fen: int = NO_LIMIT
    budget_per_day_fen: int = NO_LIMIT
    budget_per_user_fen: int = NO_LIMIT

    @property
    def counts_users(self) -> bool:
        return self.per_user < NO_LIMIT or self.budget_per_user_fen < NO_LIMIT


class Take(msgspec.Struct, frozen=True, gc=False):
    """What an offer takes of stock: of every line, and a code of the pool; all or nothing.

    day_ms  first instant of the day that daily limits count in
    """

    lines: tuple[StockLine, ...]
    pool: str | None
    day_ms: int


STOCK_LIMITS = ("total", "per_day", "per_user", "budget_fen", "budget_per_day_fen", "budget_per_user_fen")
"""The limits of a StockLine."""
CODES = "codes"
"""The limit of a pool: as many as are leased to this worker."""


class Short(msgspec.Struct, frozen=True, gc=False):
    """The first limit of stock that refused an option: of `most` so many are `used`, and `asked` more do not fit.

    limit  one of STOCK_LIMITS, of the benefit `name`, or CODES, of the pool `name`; those in fen count fen
    """

    name: str
    limit: str
    most: int
    used: int
    asked: int

    @property
    def reason(self) -> Reason:
        return Reason.BUDGET if self.limit.startswith("budget") else Reason.STOCK


class Option(msgspec.Struct, frozen=True, gc=False):
    """One way to use the moment, with everything that must hold for it."""

    offer_id: str
    scenario: str
    channel: str
    category: str  # benefit class
    partner: str
    rules: tuple[Rule, ...]
    counts: bool = True  # whether this grant counts toward caps
    withheld: bool = False  # holdout: a shadow reservation
    shadow: bool = False  # scenario in shadow mode: answer as if, write nothing
    code: str | None = None
    take: Take | None = None  # of stock; a withheld or shadow option only asks whether there is some


class ReserveRequest(msgspec.Struct, frozen=True, gc=False):
    """Options of one subject in arbitration order; the first that passes all its rules is granted."""

    subject: str
    user_id: str
    now_ms: int
    options: tuple[Option, ...]


class ReserveAnswer(msgspec.Struct, frozen=True, gc=False):
    """granted: index of the option, or -1. refusals[i] is the reason of option i, for those tried before it.

    `duplicate`: this offer id was granted before; nothing was written, `code` is the stored one.
    `code` of stock is `pool#number`; the text behind it is known to codes.db alone.
    `shorts` says what stock lacked, by the place of the option: of those that stock refused, where it is known.
    """

    granted: int
    refusals: tuple[str, ...] = ()
    duplicate: bool = False
    code: str | None = None
    shorts: tuple[tuple[int, Short], ...] = ()
