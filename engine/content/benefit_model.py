"""What may stand in a benefit: in a catalogue file `scenarios/benefits/*.yaml`, or inline in a scenario.

The six classes and their sub-classes are those of the operator's benefits business.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from engine.content.conditions import Model
from engine.content.faults import refuse
from engine.content.fence_model import Word
from engine.content.spans import InstantText, Span
from engine.definitions import BenefitClass

SUB_CLASSES: dict[str, tuple[str, ...]] = {
    "video": ("general", "sports", "live", "short"),
    "travel": ("city_transport", "airport_rail", "hotel", "tourism"),
    "living": ("ecommerce", "supermarket", "restaurant", "delivery", "car", "tools", "bills", "law_insurance"),
    "entertainment": ("game", "music", "reading", "audio", "tickets", "social"),
    "education": ("platform", "language", "exam"),
    "health": ("beauty_fitness", "appointments", "check_up"),
}
STAGES = ("draft", "listed", "running", "paused", "stopped")
PRODUCT_KINDS = ("package", "card", "bundle")

Stage = Literal["draft", "listed", "running", "paused", "stopped"]
Slug = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,99}$")]
BenefitId = Annotated[str, StringConstraints(pattern=r"^([a-z0-9][a-z0-9_-]*/)?[a-z0-9][a-z0-9._-]{0,99}$")]
PoolName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_-]{0,63}$")]
Fen = Annotated[int, Field(ge=0, le=10**12)]
PositiveFen = Annotated[int, Field(ge=1, le=10**15)]
Count = Annotated[int, Field(ge=1, le=10**12)]


class Stock(Model):
    """How many there are to give, and for how much (rule O3). Days are those of the policy's time zone."""

    total: Count | None = Field(None, description="over the benefit's whole life")
    per_day: Count | None = None
    per_user: Count | None = None
    budget_fen: PositiveFen | None = Field(None, description="the sum of cost_fen that may be given away")
    budget_per_day_fen: PositiveFen | None = None
    budget_per_user_fen: PositiveFen | None = None
    codes: PoolName | None = Field(None, description="name of a pool filled by `opportune codes import`")

    @model_validator(mode="after")
    def _some(self) -> Stock:
        if not self.model_fields_set:
            raise refuse("at least one limit, or `codes`", "leave `stock` out where there is none")
        return self


class Validity(Model):
    """When a benefit can be used: between two instants, or for a span from the offer on."""

    start: InstantText | None = Field(None, alias="from")
    until: InstantText | None = Field(None, description="exclusive; from then on the benefit is expired")
    span: Span | None = Field(None, alias="for", description="from the offer on, e.g. 30 days")

    @model_validator(mode="after")
    def _sensible(self) -> Validity:
        if self.start is None and self.until is None and self.span is None:
            raise refuse("`from` and `until`, or `for`")
        if self.span is not None and self.span < 60_000:
            raise refuse("at least a minute")
        return self


class Benefit(Model):
    """What the user gains."""

    id: BenefitId
    name: Word
    benefit_class: BenefitClass = Field(alias="class", description="one of the six classes; the category of caps")
    sub_class: Word | None = Field(None, description="of its class, e.g. sports of video; docs/benefits.md lists them")
    partner: Slug
    face_value_fen: Fen = Field(0, description="what it is worth to the user")
    cost_fen: Fen = Field(0, description="what the operator owes the partner for one; budgets count it")
    value: float = Field(1.0, gt=0, le=1000, description="factor of the score (rule D2)")
    stage: Stage = Field("running", description="only a running benefit is offered")
    validity: Validity | None = None
    stock: Stock | None = None

    @model_validator(mode="after")
    def _sub_class(self) -> Benefit:
        known = SUB_CLASSES[self.benefit_class]
        if self.sub_class is not None and self.sub_class not in known:
            raise refuse(f"a sub-class of {self.benefit_class}: {', '.join(known)}")
        return self


class CatalogueBenefit(Benefit):
    """A benefit of the catalogue: what settlement needs must be said."""

    sub_class: Word = Field(description="of its class, e.g. sports of video; docs/benefits.md lists them")
    face_value_fen: Fen = Field(description="what it is worth to the user")
    cost_fen: Fen = Field(description="what the operator owes the partner for one; budgets count it")


class Product(Model):
    """What is sold as one: a package (benefit and data or voice), a card (benefit and plan), a bundle of partners'."""

    id: BenefitId
    name: Word
    kind: Literal["package", "card", "bundle"]
    of: list[BenefitId] = Field(min_length=1, max_length=20, description="ids of the benefits in it")
    data_mb: int | None = Field(None, ge=1, description="package: data that comes with it")
    voice_min: int | None = Field(None, ge=1, description="package: voice minutes that come with it")
    plan: Word | None = Field(None, description="card: the plan it goes with")
    price_fen: Fen = Field(0, description="what the user pays")
    partner: Slug | None = Field(None, description="who caps of scope partner count it for; default that of the first")
    value: float = Field(1.0, gt=0, le=1000, description="factor of the score (rule D2)")
    stage: Stage = "running"
    validity: Validity | None = None
    stock: Stock | None = None

    @model_validator(mode="after")
    def _parts(self) -> Product:
        if len(set(self.of)) < len(self.of):
            raise refuse("each benefit once in `of`")
        if self.kind == "package" and self.data_mb is None and self.voice_min is None:
            raise refuse("`data_mb` or `voice_min` in a package")
        if self.kind != "package" and (self.data_mb is not None or self.voice_min is not None):
            raise refuse(f"no data and voice in a {self.kind}", "a package has them")
        if (self.kind == "card") != (self.plan is not None):
            raise refuse("`plan` in a card, and only there")
        if self.kind == "bundle" and len(self.of) < 2:
            raise refuse("at least two benefits in a bundle")
        return self


class BenefitFile(Model):
    """A file scenarios/benefits/*.yaml."""

    benefits: list[CatalogueBenefit] = Field([], max_length=10_000)
    products: list[Product] = Field([], max_length=10_000)


def _reference_or_inline(value: Any) -> str:
    return "<id>" if isinstance(value, str) else "<benefit>"


BenefitOrId = Annotated[
    Annotated[BenefitId, Tag("<id>")] | Annotated[Benefit, Tag("<benefit>")],
    Discriminator(_reference_or_inline),
]
"""`benefit: movie-voucher`, the id of a benefit or product of the catalogue, or all of it in place."""
