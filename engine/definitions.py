"""What ops define, once checked: fences, cells, scenarios, policy. Built by `engine.content`, used by everyone.

Instants are epoch milliseconds, lengths metres, coordinates degrees x 1e7 in WGS-84 (snapped, datum already converted).
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Literal

import numpy as np

from engine.model import Confidence, Mode, Scope

# --- geofences ------------------------------------------------------------------------------------------------------


class Shape(StrEnum):
    POLYGON = "polygon"
    CIRCLE = "circle"
    CORRIDOR = "corridor"
    CELLS = "cells"


@dataclass(frozen=True, slots=True)
class Fence:
    """One geofence (rule L4).

    parts    POLYGON: tuple of polygons, each a tuple of rings, the outer first, each ring int64[V, 2] of
             (lon_e7, lat_e7), open (no repeated last vertex), unwrapped over the antimeridian (lon may pass 180).
             CIRCLE: (((centre,),),) with centre int64[1, 2].  CORRIDOR: (((line,),),) with line int64[V, 2].
             CELLS: ().
    """

    id: str  # owner/name
    name: str
    kind: str
    shape: Shape
    parts: tuple[tuple[np.ndarray, ...], ...] = ()
    radius_m: float = 0.0
    buffer_m: float = 0.0
    cells: tuple[str, ...] = ()
    tags: frozenset[str] = frozenset()
    opening_hours: str | None = None
    time_zone: str | None = None
    valid_from_ms: int | None = None
    valid_until_ms: int | None = None
    enter_delay_s: float | None = None  # None: the default of P2 and L8
    exit_delay_s: float | None = None  # None: two fixes (P3)
    min_confidence: Confidence = Confidence.MEDIUM
    tiling: bool = False
    crowd_at: int | None = None  # so many inside are an alarm (P9)
    lon: float = 0.0  # a point to draw it at
    lat: float = 0.0
    state_hash: str = ""  # of geometry and settings (L10); text edits keep it


@dataclass(frozen=True, slots=True)
class CellTable:
    """Where cells are (rule L2): row i of every array is cells[i]."""

    ids: tuple[str, ...]
    lon_e7: np.ndarray  # int32[N]
    lat_e7: np.ndarray  # int32[N]
    radius_m: np.ndarray  # float64[N]
    indoor: np.ndarray  # bool[N]
    azimuth_deg: np.ndarray = field(default_factory=lambda: np.empty(0))  # float64[N], nan where omnidirectional
    beam_deg: np.ndarray = field(default_factory=lambda: np.empty(0))  # float64[N]


@dataclass(frozen=True, slots=True)
class AppTable:
    """The category of each app that a usage event may leave out (rule B1); sorted by app."""

    apps: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()

    def category_of(self, app: str) -> str | None:
        place = bisect_left(self.apps, app)
        return self.categories[place] if place < len(self.apps) and self.apps[place] == app else None


# --- audience -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class HasTag:
    tag: str


@dataclass(frozen=True, slots=True)
class Compare:
    """attribute <op> value; op is one of == != < <= > >= in prefix exists."""

    attribute: str
    op: str
    value: Any


@dataclass(frozen=True, slots=True)
class InOrganisation:
    """The profile's organisation path starts with this path (province/city/county/township/village)."""

    path: str


@dataclass(frozen=True, slots=True)
class Every:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Some:
    parts: tuple[Expression, ...]


@dataclass(frozen=True, slots=True)
class Neither:
    parts: tuple[Expression, ...]


Expression = HasTag | Compare | InOrganisation | Every | Some | Neither


# --- triggers -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FieldTest:
    """field <op> value on an event (rule B1); field is app, category, action or props.<name>."""

    field: str
    op: str  # == in range prefix
    value: Any  # range: (low, high), half-open, None where unbounded; in: a tuple


@dataclass(frozen=True, slots=True)
class UsageTrigger:
    """A usage event that passes every test."""

    tests: tuple[FieldTest, ...]


@dataclass(frozen=True, slots=True)
class PresenceTrigger:
    """A transition of one of `fences` (resolved from ids, kinds and tags at load)."""

    kind: str  # enter | dwell | exit
    fences: tuple[str, ...]
    threshold_s: int = 0  # dwell
    min_confidence: Confidence | None = None


@dataclass(frozen=True, slots=True)
class PatternTrigger:
    """A behavior pattern over usage events and transitions (rules B2, B3, B5).

    steps   count, sum, distinct: the one thing counted; sequence: in order; absence: what opens it, what answers it
    field   sum, distinct: app, category, action, props.<name> or fence
    same    a field that must be equal in all steps, or nothing
    """

    kind: str  # count | sum | distinct | sequence | absence
    steps: tuple[UsageTrigger | PresenceTrigger, ...]
    within_ms: int
    at_least: float = 1.0
    field: str = ""
    same: str = ""
    state_hash: str = ""  # of the definition as written (L10)


@dataclass(frozen=True, slots=True)
class While:
    """What must hold besides, at the instant of the trigger (rule B4): inside one of `fences`, a pattern, or both."""

    inside: tuple[str, ...] = ()
    pattern: PatternTrigger | None = None  # a count


TriggerDefinition = UsageTrigger | PresenceTrigger | PatternTrigger


# --- limits, offers, scenarios --------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Cap:
    """At most `most` offers per window (rule C1)."""

    scope: Scope
    most: int
    window: str  # rolling | hour | day | week | month
    span_ms: int = 0  # rolling


@dataclass(frozen=True, slots=True)
class QuietHours:
    """Half-open local window, minutes after midnight; may pass midnight (rule C5)."""

    start_minute: int = 21 * 60
    end_minute: int = 8 * 60
    policy: str | None = None  # discard | hold | switch; None: discard for presence, hold otherwise
    switch_to: str | None = None


@dataclass(frozen=True, slots=True)
class Placeholder:
    """A `{name}` of an offer text (rule O1)."""

    name: str
    source: str  # attribute:<name> | fence:name | benefit:name | constant | code | claim_url
    type: str = "text"  # text | number | money_fen | date
    default: str | None = None
    max_length: int = 40


class Stage(StrEnum):
    """The life of a benefit as ops set it; expired follows from its validity. Only a running one is offered."""

    DRAFT = "draft"
    LISTED = "listed"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True)
class StockLimits:
    """How many there are to give, and for how much (rule O3); None where there is no limit."""

    total: int | None = None
    per_day: int | None = None  # days of the policy's time zone
    per_user: int | None = None
    budget_fen: int | None = None  # sums of cost_fen
    budget_per_day_fen: int | None = None
    budget_per_user_fen: int | None = None
    pool: str | None = None  # codes; without codes there is nothing to give


BenefitClass = Literal["video", "travel", "living", "entertainment", "education", "health"]


@dataclass(frozen=True, slots=True)
class BenefitDefinition:
    """What a user gains: a benefit, or a product made of some. Money in integer fen.

    product  "" for a plain benefit, else package | card | bundle; `parts` are then the ids of its benefits, and face
             value and cost the sums over them
    """

    id: str
    name: str
    benefit_class: str  # one of the six classes; the category of caps
    partner: str
    sub_class: str = ""
    face_value_fen: int = 0
    cost_fen: int = 0  # what the operator owes the partner for one
    value: float = 1.0  # factor of the score (D2)
    stage: Stage = Stage.RUNNING
    valid_from_ms: int | None = None
    valid_until_ms: int | None = None  # from then on it is expired
    valid_for_ms: int | None = None  # from the offer on
    stock: StockLimits | None = None
    product: str = ""
    parts: tuple[str, ...] = ()
    price_fen: int = 0
    plan: str = ""  # card
    data_mb: int = 0  # package
    voice_min: int = 0  # package
    file: str = ""

    def usable_until_ms(self, granted_ms: int) -> int | None:
        """Return the end of what was granted then; None: never."""
        ends = [one for one in (self.valid_until_ms,) if one is not None]
        if self.valid_for_ms is not None:
            ends.append(granted_ms + self.valid_for_ms)
        return min(ends, default=None)


@dataclass(frozen=True, slots=True)
class GrantTag:
    """A dynamic tag that a grant puts on the user, for so long (rule A1)."""

    tag: str
    span_ms: int


TAG_CLASS = "tag"
"""The offer class of a scenario that sets a tag and makes no offer: it speaks to nobody and competes with nobody."""


@dataclass(frozen=True, slots=True)
class OfferDefinition:
    benefit: str
    benefit_class: str  # one of the six classes; the category of caps
    partner: str
    offer_class: str  # marketing | service | tag
    channels: tuple[str, ...]  # in order of preference
    text: str
    placeholders: tuple[Placeholder, ...] = ()
    title: str = ""
    approver: str | None = None  # service offers name theirs
    value: float = 1.0  # factor of the score (D2)
    deadline_s: int | None = None  # None: 10 min for presence, 24 h otherwise (D6)
    benefit_name: str = ""  # what people call the benefit
    fallback_channel: str | None = None  # after a definite failure or a missing receipt (G5)
    fallback_after_ms: int = 0
    terms: tuple[BenefitDefinition, ...] = ()  # the benefit itself, and after it the parts of a product
    on_grant: GrantTag | None = None


@dataclass(frozen=True, slots=True)
class Reentry:
    """once | every | cooldown (rule B5)."""

    policy: str = "every"
    cooldown_ms: int = 0


@dataclass(frozen=True, slots=True)
class PauseAfter:
    """So many offers ignored within a span pause the scenario for that user (docs/contracts.md, Ignores)."""

    ignores: int
    within_ms: int
    pause_ms: int


@dataclass(frozen=True, slots=True)
class Limits:
    caps: tuple[Cap, ...] = ()
    min_gap_ms: int = 0
    bypass: bool = False  # not bound by caps
    counts: bool = True  # counts toward caps
    hourly_limit: int | None = None  # over the deployment (C7)
    daily_limit: int | None = None
    send_only_to: str | None = None  # tag
    pause_after: PauseAfter | None = None

    @property
    def is_limited(self) -> bool:
        """Whether the deployment has a limit."""
        return self.hourly_limit is not None or self.daily_limit is not None


@dataclass(frozen=True, slots=True)
class Schedule:
    """When a scenario is valid: instants, and local weekdays and minutes in `time_zone`."""

    from_ms: int | None = None
    until_ms: int | None = None
    weekdays: frozenset[int] = frozenset(range(7))  # Monday is 0
    windows: tuple[tuple[int, int], ...] = ()  # local minutes, half-open; empty: all day
    time_zone: str | None = None


@dataclass(frozen=True, slots=True)
class Lottery:
    """One candidate in so many wins, by a salted hash of its offer id."""

    one_in: int
    salt: str = ""

    @property
    def odds(self) -> str:
        """As texts state it."""
        return f"1/{self.one_in}"


@dataclass(frozen=True, slots=True)
class Scenario:
    id: str  # owner/name
    name: str
    mode: Mode
    trigger: TriggerDefinition
    offer: OfferDefinition
    audience: Expression | None = None
    limits: Limits = field(default_factory=Limits)
    reentry: Reentry = field(default_factory=Reentry)
    quiet_hours: QuietHours | None = None  # None: the policy's
    schedule: Schedule = field(default_factory=Schedule)
    priority: float = 1.0
    holdout_percent: float = 0.0
    substitute: bool = False  # a withheld winner gives its slot to the next
    max_event_age_ms: int = 600_000
    goal: str = ""  # acquire | raise_revenue | retain | touchpoints
    file: str = ""
    lottery: Lottery | None = None
    while_: While | None = None

    @property
    def places(self) -> tuple[str, ...]:
        """Ids of the fences that its trigger knows one of: the trigger's own, else those of `while`."""
        if isinstance(self.trigger, PresenceTrigger):
            return self.trigger.fences
        return self.while_.inside if self.while_ else ()


@dataclass(frozen=True, slots=True)
class Policy:
    """Deployment-wide rules (scenarios/policy.yaml)."""

    time_zone: str = "Asia/Shanghai"
    caps: tuple[Cap, ...] = ()
    min_gap_ms: int = 0
    quiet_hours: QuietHours = field(default_factory=QuietHours)
    assumed_consent: frozenset[str] = frozenset()  # purposes that apply without a record (A2)
    universal_holdout_percent: float = 0.0
    holdout_salt: str = "opportune"
    claim_domains: tuple[str, ...] = ()
    signature: str = ""
    opt_out_text: str = ""
    arbitration_window_ms: int = 0  # how long competitors for one user are gathered first (D2)
    score_factors: frozenset[str] = frozenset(("priority", "propensity", "context", "value"))  # the others are 1
    message_cost_fen: tuple[tuple[str, int], ...] = ()  # by channel; of an SMS one segment


@dataclass(frozen=True, slots=True)
class Content:
    """One checked content set. `version` is the hash of everything a decision may depend on."""

    version: str
    fences: tuple[Fence, ...]
    cells: CellTable
    scenarios: tuple[Scenario, ...]
    policy: Policy
    benefits: tuple[BenefitDefinition, ...] = ()  # of the catalogue and inline, by id
    apps: AppTable = field(default_factory=AppTable)
