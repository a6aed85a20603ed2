"""The catalogue of benefits: files to definitions, references of scenarios resolved, every fault said (rule O3)."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from engine.content import benefit_model
from engine.content.benefit_model import Benefit, BenefitFile, Product, Stock, Validity
from engine.content.faults import Faults, Shown, did_you_mean
from engine.content.files import ReadLimits, read_yaml
from engine.content.spans import instant_ms
from engine.definitions import BenefitDefinition, Policy, Scenario, Stage, StockLimits

BENEFITS_FOLDER = "benefits"
NOTHING = BenefitDefinition("", "", "living", "")
"""Stands in for a benefit that a fault was said of."""

_KNOWN_FIELDS = frozenset(
    field.alias or name
    for model in vars(benefit_model).values()
    if isinstance(model, type) and issubclass(model, BaseModel)
    for name, field in model.model_fields.items()
)


class Catalogue:
    """The benefits and products of `scenarios/benefits/`, by id; and the inline ones, as scenarios name them."""

    def __init__(self, time_zone: str) -> None:
        self._time_zone = time_zone
        self._listed: dict[str, BenefitDefinition] = {}
        self._broken: set[str] = set()

    def terms_of(self, given: str | Benefit, mode: str, file: str, faults: Faults) -> tuple[BenefitDefinition, ...]:
        """Return the benefit of an offer, and after it the parts of a product; nothing after a fault."""
        where = "$.offer.benefit"
        if isinstance(given, str):
            found = self._listed.get(given)
            if found is None:
                if given not in self._broken:
                    hint = did_you_mean(given, self._listed)
                    faults.add(file, where, given, "the id of a benefit or product in scenarios/benefits", hint)
                return ()
            if mode == "live" and found.stage is not Stage.RUNNING:
                hint = "until its stage is running, the offer is refused"
                faults.warn(file, where, Shown(f"{given}, which is {found.stage.value}"), "a running benefit", hint)
            return (found, *(self._listed[part] for part in found.parts))
        if given.id in self._listed:
            hint = f"write `benefit: {given.id}`"
            faults.add(file, f"{where}.id", given.id, "an id that is not in the catalogue", hint)
        return (self._definition(given, file, where, faults),)

    def all_of(self, scenarios: Iterable[Scenario], faults: Faults) -> tuple[BenefitDefinition, ...]:
        """Return every benefit by id, inline ones included; one that stands inline twice has one stock or none."""
        found = dict(self._listed)
        for scenario in scenarios:
            for one in scenario.offer.terms[:1]:
                other = found.setdefault(one.id, one)
                if other is one or one.id in self._listed:
                    continue
                # The same coupon may be worth more to one scenario; its stock cannot be two stocks.
                for name in ("partner", "benefit_class", "cost_fen", "face_value_fen", "stock"):
                    if getattr(other, name) != getattr(one, name):
                        hint = "put it into scenarios/benefits and write its id in both"
                        field = {"benefit_class": "class"}.get(name, name)
                        expected = f"the same `{field}` as in {other.file}"
                        found_as = Shown(f"benefit {one.id} again")
                        faults.add(scenario.file, f"$.offer.benefit.{field}", found_as, expected, hint)
        return tuple(found[key] for key in sorted(found))

    def add_file(self, given: BenefitFile, file: str, faults: Faults) -> None:
        for at, benefit in enumerate(given.benefits):
            where = f"$.benefits[{at}]"
            self._add(self._definition(benefit, file, where, faults), where, faults)

    def add_products(self, given: BenefitFile, file: str, faults: Faults) -> None:
        """Add products; every benefit of every file has been added before."""
        for at, product in enumerate(given.products):
            where = f"$.products[{at}]"
            parts = self._parts(product, file, where, faults)
            if parts:
                self._add(self._product(product, parts, file, where, faults), where, faults)
            else:
                self._broken.add(product.id)

    def expect_nothing_of(self, raw: Any) -> None:
        """Note the ids of a file that a fault was said of, so that scenarios naming them are not faulted as well."""
        groups = (raw.get(name) for name in ("benefits", "products")) if isinstance(raw, dict) else ()
        for group in groups:
            for one in group if isinstance(group, list) else ():
                if isinstance(one, dict) and isinstance(one.get("id"), str):
                    self._broken.add(one["id"])

    # --- inside -----------------------------------------------------------------------------------------------------

    def _add(self, one: BenefitDefinition, where: str, faults: Faults) -> None:
        other = self._listed.setdefault(one.id, one)
        if other is not one:
            faults.add(one.file, f"{where}.id", one.id, "an id used once", f"it is also in {other.file}")

    def _definition(self, given: Benefit, file: str, where: str, faults: Faults) -> BenefitDefinition:
        from_ms, until_ms, for_ms = self._validity(given.validity, file, where, faults)
        stock = _stock(given.stock, given.cost_fen, file, where, faults)
        return BenefitDefinition(
            id=given.id,
            name=given.name,
            benefit_class=given.benefit_class,
            partner=given.partner,
            sub_class=given.sub_class or "",
            face_value_fen=given.face_value_fen,
            cost_fen=given.cost_fen,
            value=given.value,
            stage=Stage(given.stage),
            valid_from_ms=from_ms,
            valid_until_ms=until_ms,
            valid_for_ms=for_ms,
            stock=stock,
            file=file,
        )

    def _parts(self, given: Product, file: str, where: str, faults: Faults) -> list[BenefitDefinition]:
        parts = []
        for at, part in enumerate(given.of):
            found = self._listed.get(part)
            if found is None and part in self._broken:
                continue
            if found is None or found.product:
                what = Shown(f"{part}, a product") if found is not None else part
                hint = "a product is made of benefits" if found else did_you_mean(part, self._benefit_ids())
                faults.add(file, f"{where}.of[{at}]", what, "the id of a benefit in scenarios/benefits", hint)
            else:
                parts.append(found)
        if len(parts) < len(given.of):
            return []
        if given.kind == "bundle" and len({part.partner for part in parts}) < 2:
            faults.add(
                file, f"{where}.of", Shown("benefits of one partner"), "benefits of several partners in a bundle"
            )
        pools = {part.stock.pool for part in parts if part.stock is not None and part.stock.pool}
        if given.stock is not None and given.stock.codes:
            pools.add(given.stock.codes)
        if len(pools) > 1:
            hint = "give the product codes of its own, and take those of its parts out"
            faults.add(file, where, Shown(f"codes from {', '.join(sorted(pools))}"), "codes from one pool", hint)
        return parts

    def _product(
        self, given: Product, parts: list[BenefitDefinition], file: str, where: str, faults: Faults
    ) -> BenefitDefinition:
        from_ms, until_ms, for_ms = self._validity(given.validity, file, where, faults)
        cost_fen = sum(part.cost_fen for part in parts)
        starts = [one for one in (from_ms, *(part.valid_from_ms for part in parts)) if one is not None]
        ends = [one for one in (until_ms, *(part.valid_until_ms for part in parts)) if one is not None]
        spans = [one for one in (for_ms, *(part.valid_for_ms for part in parts)) if one is not None]
        return BenefitDefinition(
            id=given.id,
            name=given.name,
            benefit_class=parts[0].benefit_class,
            partner=given.partner or parts[0].partner,
            sub_class=parts[0].sub_class,
            face_value_fen=sum(part.face_value_fen for part in parts),
            cost_fen=cost_fen,
            value=given.value,
            stage=Stage(given.stage),
            valid_from_ms=max(starts, default=None),
            valid_until_ms=min(ends, default=None),
            valid_for_ms=min(spans, default=None),
            stock=_stock(given.stock, cost_fen, file, where, faults),
            product=given.kind,
            parts=tuple(part.id for part in parts),
            price_fen=given.price_fen,
            plan=given.plan or "",
            data_mb=given.data_mb or 0,
            voice_min=given.voice_min or 0,
            file=file,
        )

    def _benefit_ids(self) -> list[str]:
        return [key for key, one in self._listed.items() if not one.product]

    def _validity(
        self, given: Validity | None, file: str, where: str, faults: Faults
    ) -> tuple[int | None, int | None, int | None]:
        if given is None:
            return None, None, None
        from_ms = instant_ms(given.start, self._time_zone) if given.start else None
        until_ms = instant_ms(given.until, self._time_zone) if given.until else None
        if from_ms is not None and until_ms is not None and from_ms >= until_ms:
            expected = f"an instant after `from` ({given.start})"
            faults.add(file, f"{where}.validity.until", given.until, expected, "nobody could ever use it")
        return from_ms, until_ms, given.span


def load_benefits(folder: Path, policy: Policy, limits: ReadLimits, faults: Faults) -> Catalogue:
    """Read every scenarios/benefits/**/*.yaml; there need be none."""
    catalogue = Catalogue(policy.time_zone)
    files: list[tuple[BenefitFile, str]] = []
    for path in sorted((folder / BENEFITS_FOLDER).rglob("*.yaml")):
        file = f"{folder.name}/{path.relative_to(folder).as_posix()}"
        raw = read_yaml(path, file, limits, faults)
        if raw is None:
            continue
        try:
            files.append((BenefitFile.model_validate(raw), file))
        except ValidationError as error:
            faults.add_validation(file, "$", error, _KNOWN_FIELDS)
            catalogue.expect_nothing_of(raw)
    for given, file in files:
        catalogue.add_file(given, file, faults)
    for given, file in files:
        catalogue.add_products(given, file, faults)
    return catalogue


def _stock(given: Stock | None, cost_fen: int, file: str, where: str, faults: Faults) -> StockLimits | None:
    if given is None:
        return None
    for name in ("budget_fen", "budget_per_day_fen", "budget_per_user_fen"):
        budget = getattr(given, name)
        if budget is not None and cost_fen == 0:
            hint = "without a cost no budget is ever used up"
            faults.add(file, f"{where}.stock.{name}", budget, "a benefit with `cost_fen`", hint)
        elif budget is not None and budget < cost_fen:
            faults.add(file, f"{where}.stock.{name}", budget, f"at least the cost of one, {cost_fen} fen")
    return StockLimits(
        total=given.total,
        per_day=given.per_day,
        per_user=given.per_user,
        budget_fen=given.budget_fen,
        budget_per_day_fen=given.budget_per_day_fen,
        budget_per_user_fen=given.budget_per_user_fen,
        pool=given.codes,
    )
