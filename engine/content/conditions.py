"""The small words scenarios are made of: which fences, which users, which usage events."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetJsonSchemaHandler,
    StringConstraints,
    WithJsonSchema,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from engine.content.faults import refuse
from engine.content.fence_model import Word


def _scalar(value: Any) -> Any:
    if not isinstance(value, str | int | float | bool):
        raise refuse("text, a number, true or false")
    return value


Scalar = Annotated[Any, BeforeValidator(_scalar), WithJsonSchema({"type": ["string", "number", "boolean"]})]


class Model(BaseModel):
    """A mapping of known fields; a number is no text and text no number."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def exactly_one(model: BaseModel, names: tuple[str, ...]) -> str:
    """Return the one of `names` that is given; refuse none or several."""
    given = [name for name in names if getattr(model, name) is not None]
    if len(given) != 1:
        raise refuse(f"exactly one of {', '.join(names)}", f"given: {', '.join(given)}" if given else "")
    return given[0]


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


_TEXTS_SCHEMA = {"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}
Texts = Annotated[list[Word], BeforeValidator(_as_list), Field(min_length=1), WithJsonSchema(_TEXTS_SCHEMA)]


class FenceChoice(Model):
    """Fences by id, kind or tag; with several of these a fence must match each."""

    fence: Texts | None = Field(None, description="ids, owner/name")
    kind: Texts | None = Field(None, description="cinema, mall, ...")
    tag: Texts | None = Field(None, description="fences that bear one of these tags")
    owner: Texts | None = Field(None, description="only fences of these owners")

    @model_validator(mode="after")
    def _some(self) -> FenceChoice:
        if not (self.fence or self.kind or self.tag or self.owner):
            raise refuse("a choice of fences: `fence`, `kind`, `tag` or `owner`")
        return self


# --- usage events ---------------------------------------------------------------------------------------------------


def _matcher(value: Any) -> Any:
    if isinstance(value, list):
        return {"in": value}
    return value if isinstance(value, dict) else {"is": value}


class Matcher(Model):
    """What a field must be: a value, one of a list, a beginning, or a range: at_least, and below."""

    is_: Scalar | None = Field(None, alias="is")
    in_: list[Scalar] | None = Field(None, alias="in", min_length=1, max_length=1000)
    starts_with: Annotated[str, StringConstraints(min_length=1)] | None = None
    at_least: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one(self) -> Matcher:
        kinds = [
            self.is_ is not None,
            self.in_ is not None,
            self.starts_with is not None,
            self.at_least is not None or self.below is not None,
        ]
        if sum(kinds) != 1:
            raise refuse("a value, a list, {starts_with: ...} or {at_least: ..., below: ...}")
        if self.at_least is not None and self.below is not None and self.at_least >= self.below:
            raise refuse("at_least less than below")
        return self


_MATCH_SCHEMA: dict[str, Any] = {
    "anyOf": [
        {"type": ["string", "number", "boolean"]},
        {"type": "array", "items": {"type": ["string", "number", "boolean"]}, "minItems": 1},
        {
            "type": "object",
            "properties": {
                "is": {"type": ["string", "number", "boolean"]},
                "in": {"type": "array", "minItems": 1},
                "starts_with": {"type": "string"},
                "at_least": {"type": "number"},
                "below": {"type": "number"},
            },
            "additionalProperties": False,
        },
    ]
}
Match = Annotated[Matcher, BeforeValidator(_matcher), WithJsonSchema(_MATCH_SCHEMA)]


class UsageFilter(Model):
    """A usage event whose every named field matches (rule B1)."""

    app: Match | None = None
    category: Match | None = None
    action: Match | None = None
    props: dict[Word, Match] = Field({}, max_length=10, description="fields of the event's `props`")

    @model_validator(mode="after")
    def _some(self) -> UsageFilter:
        if self.app is None and self.category is None and self.action is None and not self.props:
            raise refuse("at least one of app, category, action, props")
        for name in ("app", "category", "action"):
            match = getattr(self, name)
            if match is None:
                continue
            values = match.in_ or ([match.is_] if match.is_ is not None else [])
            if match.at_least is not None or match.below is not None or not all(isinstance(v, str) for v in values):
                raise refuse(f"text for {name}", "quote a number that is meant as text")
        return self


# --- audience -------------------------------------------------------------------------------------------------------

COMPARISONS = {
    "is_": "==",
    "is_not": "!=",
    "below": "<",
    "at_most": "<=",
    "above": ">",
    "at_least": ">=",
    "in_": "in",
    "starts_with": "prefix",
    "exists": "exists",
}


def _condition(value: Any) -> Any:
    return {"tag": value} if isinstance(value, str) else value


class ConditionModel(Model):
    """A tag, an attribute compared, an organisation, or all / any / none of further conditions."""

    tag: Word | None = None
    organisation: Annotated[str, StringConstraints(pattern=r"^[^/]+(/[^/]+){0,4}$")] | None = Field(
        None, description="province/city/county/township/village, or the beginning of it"
    )
    attribute: Word | None = None
    is_: Scalar | None = Field(None, alias="is")
    is_not: Scalar | None = None
    below: float | None = None
    at_most: float | None = None
    above: float | None = None
    at_least: float | None = None
    in_: list[Scalar] | None = Field(None, alias="in", min_length=1, max_length=1000)
    starts_with: Annotated[str, StringConstraints(min_length=1)] | None = None
    exists: bool | None = None
    all_: list[Condition] | None = Field(None, alias="all", min_length=1, max_length=50)
    any_: list[Condition] | None = Field(None, alias="any", min_length=1, max_length=50)
    none_: list[Condition] | None = Field(None, alias="none", min_length=1, max_length=50)

    @model_validator(mode="after")
    def _sensible(self) -> ConditionModel:
        single = [name for name in ("tag", "organisation", "attribute") if getattr(self, name) is not None]
        groups = [name for name in ("all_", "any_", "none_") if getattr(self, name) is not None]
        compared = [name for name in COMPARISONS if getattr(self, name) is not None]
        if len(single) + bool(groups) != 1:
            raise refuse("a tag, an attribute, an organisation, or all / any / none")
        if (self.attribute is not None) != bool(compared):
            raise refuse("an attribute with a comparison", "such as {attribute: arpu_fen, at_least: 5000}")
        return self


class OrTag:
    """Tells the JSON Schema that a condition may be just the name of a tag."""

    def __get_pydantic_json_schema__(self, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"anyOf": [{"type": "string", "description": "a tag"}, handler(core)]}


Condition = Annotated[ConditionModel, BeforeValidator(_condition), OrTag()]
ConditionModel.model_rebuild()
