"""What may stand in a scenario file. The descriptions become the JSON Schema that editors show."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import BeforeValidator, Field, StringConstraints, WithJsonSchema, model_validator

from engine.content.benefit_model import BenefitOrId
from engine.content.conditions import Condition, Model, exactly_one
from engine.content.faults import refuse
from engine.content.fence_model import ContentId, Word
from engine.content.spans import ClockTime, HoursWindow, InstantText, Span, ZoneName
from engine.content.trigger_model import Trigger, While

WEEKDAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
TEXT_LENGTH = 500

Channel = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_-]{0,19}$")]
PlaceholderName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{0,29}$")]
Percent = Annotated[float, Field(ge=0, lt=100)]


# --- offer ----------------------------------------------------------------------------------------------------------


class PlaceholderModel(Model):
    """Where the value of a `{name}` in the text comes from."""

    source: Annotated[
        str,
        Field(
            alias="from",
            pattern=r"^(attribute\.[A-Za-z_][A-Za-z0-9_]*|fence\.name|benefit\.name|lottery\.odds|constant|code|claim_url)$",
            description="attribute.<name>, fence.name, benefit.name, lottery.odds, constant, code or claim_url",
        ),
    ]
    type: Literal["text", "number", "money_fen", "date"] = "text"
    default: str | None = Field(None, max_length=100, description="used where the value is missing")
    max_length: int = Field(40, ge=1, le=200)


class GrantMark(Model):
    """A dynamic tag that a grant puts on the user (rule A1)."""

    tag: Word
    span: Span = Field(alias="for")

    @model_validator(mode="after")
    def _lasting(self) -> GrantMark:
        if self.span <= 0:
            raise refuse("a span longer than nothing", "e.g. {tag: film-goer, for: 7 days}")
        return self


class Fallback(Model):
    """Another channel after a definite failure or a missing receipt (rule G5)."""

    channel: Channel
    after: Span


class OfferModel(Model):
    """The message and the benefit it proposes."""

    benefit: BenefitOrId = Field(description="the id of a benefit or product of the catalogue, or all of it in place")
    offer_class: Literal["marketing", "service"] = Field("marketing", alias="class")
    approver: Word | None = Field(None, description="who approved a service message; service only")
    channels: list[Channel] = Field(min_length=1, max_length=5, description="in order of preference, e.g. [sms, app]")
    title: Annotated[str, StringConstraints(max_length=60)] = ""
    text: Annotated[str, StringConstraints(min_length=1, max_length=TEXT_LENGTH)] = Field(
        description="with {placeholders}; signature, opt-out text and claim link's domain come from the policy"
    )
    placeholders: dict[PlaceholderName, PlaceholderModel] = Field({}, max_length=10)
    deadline: Span | None = Field(None, description="default 10 min for presence triggers, else 24 h")
    on_grant: GrantMark | None = None
    fallback: Fallback | None = None

    @model_validator(mode="after")
    def _approved(self) -> OfferModel:
        if self.offer_class == "service" and not self.approver:
            raise refuse("`approver` for an offer of class service", "name who approved it as a service message")
        if self.offer_class == "marketing" and self.approver:
            raise refuse("no approver for an offer of class marketing", "leave it out, or set class: service")
        return self


# --- limits and times -----------------------------------------------------------------------------------------------


class CapModel(Model):
    """At most so many offers per window; `rolling: 24 h` or `calendar: day`."""

    at_most: int = Field(ge=1, le=1000)
    rolling: Span | None = None
    calendar: Literal["hour", "day", "week", "month"] | None = Field(None, description="in the user's zone; ISO weeks")
    scope: Literal["all", "channel", "scenario", "category", "partner"] | None = Field(
        None, description="what is counted: default `scenario` in a scenario, `all` in the policy"
    )

    @model_validator(mode="after")
    def _window(self) -> CapModel:
        exactly_one(self, ("rolling", "calendar"))
        if self.rolling is not None and self.at_most > 50:
            raise refuse("at most 50 in a rolling window", "use a calendar window, or `hourly` and `daily`")
        if self.rolling is not None and self.rolling <= 0:
            raise refuse("a rolling window longer than nothing")
        return self


class PauseAfterModel(Model):
    """Leave a user alone who does not answer: so many ignored offers within a span pause the scenario for that user."""

    ignores: int = Field(ge=1, le=20, description="offers received and not redeemed before their time ended")
    within: Span
    span: Span = Field(alias="for")

    @model_validator(mode="after")
    def _spans(self) -> PauseAfterModel:
        if self.within <= 0 or self.span <= 0:
            raise refuse("spans longer than nothing", "e.g. {ignores: 2, within: 30 days, for: 60 days}")
        return self


class LimitsModel(Model):
    """How often (rules C1-C7)."""

    caps: list[CapModel] = Field([], max_length=10)
    min_gap: Span | None = Field(None, description="between any two offers to one user")
    bypass_caps: bool = Field(False, description="not bound by caps")
    counts_toward_caps: bool = True
    hourly: int | None = Field(None, ge=1, description="over all users, then paused with an alarm")
    daily: int | None = Field(None, ge=1)
    send_only_to: Word | None = Field(None, description="a tag: only its users get the message (trials)")
    pause_after: PauseAfterModel | None = None


class QuietHoursModel(Model):
    """When no message goes out, local to the user and to the fence (rule C5)."""

    start: ClockTime = Field(alias="from")
    end: ClockTime = Field(alias="to")
    policy: Literal["discard", "hold", "switch"] | None = Field(
        None, description="default: discard for presence triggers, else hold"
    )
    switch_to: Channel | None = None

    @model_validator(mode="after")
    def _sensible(self) -> QuietHoursModel:
        if self.start % 1440 == self.end % 1440:
            raise refuse("quiet hours that begin and end at different times")
        if (self.policy == "switch") != (self.switch_to is not None):
            raise refuse("`switch_to` with policy switch, and only then")
        return self


def _reentry(value: Any) -> Any:
    return {"policy": value} if value in ("once", "every") else value


class ReentryModel(Model):
    """`once`, `every`, or `{cooldown: 7 day}` (rule B5)."""

    policy: Literal["once", "every", "cooldown"] = "cooldown"
    cooldown: Span | None = None

    @model_validator(mode="after")
    def _one(self) -> ReentryModel:
        if (self.policy == "cooldown") != bool(self.cooldown):
            raise refuse("once, every or {cooldown: 7 day}")
        return self


class ScheduleModel(Model):
    """When the scenario is valid."""

    start: InstantText | None = Field(None, alias="from")
    until: InstantText | None = Field(None, description="exclusive: a date means its first instant")
    days: list[Literal["mon", "tue", "wed", "thu", "fri", "sat", "sun"]] | None = Field(None, min_length=1)
    hours: list[HoursWindow] = Field([], max_length=10)
    time_zone: ZoneName | None = Field(None, description="default: the policy's")


class HoldoutModel(Model):
    """Users who get nothing, to measure what the offer is worth (rule D3)."""

    percent: Percent
    substitute: bool = Field(False, description="let the next best scenario use the slot of a withheld one")


class LotteryModel(Model):
    """A draw: who does not win gets nothing. The same candidate draws the same in every replay."""

    one_in: int = Field(ge=1, le=1_000_000_000, description="odds: one candidate in so many wins; {odds} in texts")
    salt: Word = Field("lottery", description="change it to draw anew")


class ScenarioModel(Model):
    """One scenario: when this happens to a user like that, offer this, so often, at such times."""

    id: ContentId
    name: Word
    goal: Literal["acquire", "raise_revenue", "retain", "touchpoints"]
    mode: Literal["draft", "shadow", "live", "paused"] = Field(description="shadow decides and records, sends nothing")
    trigger: Trigger
    while_: While | None = Field(None, alias="while")
    audience: Condition | None = Field(None, description="who; left out: every user with a profile")
    # Absent beside `set_tag`, but never null, which editors would then propose.
    offer: OfferModel = Field(default=cast(Any, None))
    set_tag: GrantMark | None = Field(None, description="instead of an offer: a tag that other scenarios ask for")
    limits: LimitsModel = Field(default_factory=lambda: LimitsModel.model_validate({}))
    reentry: Annotated[
        ReentryModel,
        BeforeValidator(_reentry),
        WithJsonSchema(
            {
                "anyOf": [
                    {"enum": ["once", "every"]},
                    {
                        "type": "object",
                        "properties": {"cooldown": {"type": "string"}},
                        "required": ["cooldown"],
                        "additionalProperties": False,
                    },
                ]
            }
        ),
    ] = Field(default_factory=lambda: ReentryModel(policy="every", cooldown=None))
    quiet_hours: QuietHoursModel | None = Field(None, description="default: the policy's")
    schedule: ScheduleModel = Field(default_factory=lambda: ScheduleModel.model_validate({}))
    priority: float = Field(1.0, gt=0, le=100, description="weight in arbitration; the greater wins (rule D2)")
    holdout: HoldoutModel | None = None
    lottery: LotteryModel | None = None
    max_event_age: Span = Field(600_000, description="older events make no offer; default 10 min")

    @model_validator(mode="after")
    def _does_one_thing(self) -> ScenarioModel:
        exactly_one(self, ("offer", "set_tag"))
        if self.offer is None and self.limits.pause_after is not None:
            raise refuse("no `limits.pause_after` without an offer", "there is nothing to ignore")
        return self


# --- policy ---------------------------------------------------------------------------------------------------------


class UniversalHoldout(Model):
    percent: Percent
    salt: Word = Field("opportune", description="change it to draw other users; keep it for months")


class ScoreModel(Model):
    """What a score is the product of; a factor left out is 1 (rule D2)."""

    factors: list[Literal["priority", "propensity", "context", "value"]] = Field(max_length=4)


class PolicyModel(Model):
    """scenarios/policy.yaml: what binds every scenario of the deployment."""

    time_zone: ZoneName = "Asia/Shanghai"
    caps: list[CapModel] = Field([], max_length=20)
    min_gap: Span | None = None
    quiet_hours: QuietHoursModel | None = Field(None, description="default 21:00 to 08:00")
    assumed_consent: list[
        Annotated[str, StringConstraints(pattern=r"^(location|usage|marketing\.[a-z][a-z0-9_-]{0,19})$")]
    ] = Field([], description="purposes that apply without a record: location, usage, marketing.<channel> (rule A2)")
    holdout: UniversalHoldout | None = None
    claim_domains: list[Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9.-]*\.[a-z]{2,}$")]] = Field(
        [], description="where {claim_url} may lead"
    )
    signature: Annotated[str, StringConstraints(max_length=20, pattern=r"^[^【】\n\r]*$")] = ""
    opt_out_text: Annotated[str, StringConstraints(max_length=30, pattern=r"^[^【】\n\r]*$")] = ""
    message_cost_fen: dict[Channel, Annotated[int, Field(ge=0, le=100_000)]] = Field(
        {}, description="what one message costs by channel; of an SMS one segment (rule O2)"
    )
    arbitration_window: Annotated[Span, Field(ge=0, le=300_000)] | None = Field(
        None, description="gather competing scenarios of a user so long before one is chosen; at most 5 min (rule D2)"
    )
    score: ScoreModel | None = Field(None, description="default: all factors")
