"""What may stand under `trigger` and `while` of a scenario: presence, usage events, patterns (rules B1-B4)."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from engine.content.conditions import FenceChoice, Model, UsageFilter, exactly_one
from engine.content.faults import refuse
from engine.content.fence_model import Word
from engine.content.spans import Span


class Presence(FenceChoice):
    """ENTER or EXIT of the chosen fences."""

    min_confidence: Literal["LOW", "MEDIUM", "HIGH"] | None = Field(
        None, description="ignore transitions less sure than this (rule L7)"
    )


class Dwell(Presence):
    """Staying inside one of the chosen fences for a time."""

    span: Span = Field(alias="for", description="how long, counted from entering, e.g. 15 min")


class Step(Model):
    """One thing that happens, as a part of a pattern."""

    usage: UsageFilter | None = None
    enter: Presence | None = None
    exit: Presence | None = None

    @model_validator(mode="after")
    def _one(self) -> Step:
        exactly_one(self, ("usage", "enter", "exit"))
        return self


class Count(Model):
    """At least n such things within a span (rule B2)."""

    of: Step
    at_least: int = Field(ge=1, le=128)
    within: Span


class Distinct(Count):
    """At least n different values of a field within a span."""

    field: Word = Field(description="app, category, action or props.<name>; of enter and exit: fence")


class Sum(Model):
    """A field's sum of at least x within a span."""

    of: Step
    field: Word = Field(description="props.<name>, a number")
    at_least: float = Field(gt=0)
    within: Span


class Sequence(Model):
    """These things in this order within a span (rule B3)."""

    steps: list[Step] = Field(min_length=2, max_length=8)
    within: Span
    same: Word | None = Field(None, description="a field that must be equal in all of them")


class Absence(Model):
    """A thing not followed by another within a span (rule B3)."""

    after: Step
    without: Step
    within: Span
    same: Word | None = Field(None, description="a field that must be equal in both")


TRIGGERS = ("enter", "dwell", "exit", "usage", "count", "sum", "distinct", "sequence", "absence")


class Trigger(Model):
    """What starts the scenario: exactly one of these."""

    enter: Presence | None = None
    dwell: Dwell | None = None
    exit: Presence | None = None
    usage: UsageFilter | None = None
    count: Count | None = None
    sum: Sum | None = None
    distinct: Distinct | None = None
    sequence: Sequence | None = None
    absence: Absence | None = None

    @model_validator(mode="after")
    def _one(self) -> Trigger:
        exactly_one(self, TRIGGERS)
        return self


class While(Model):
    """What must hold besides, at the instant of the trigger (rule B4)."""

    inside: FenceChoice | None = Field(None, description="the user is inside one of these fences")
    pattern: Count | None = Field(None, description="so many such things within a span, up to the trigger")

    @model_validator(mode="after")
    def _some(self) -> While:
        if self.inside is None and self.pattern is None:
            raise refuse("`inside`, `pattern` or both")
        return self
