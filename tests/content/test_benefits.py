"""The catalogue of benefits: what it becomes, and one bad entry for each fault with the words `check` answers (O3)."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from sets import scenario, write_set

from engine.content import Inspection, inspect_content, outdated
from engine.content.benefit_model import PRODUCT_KINDS, STAGES, SUB_CLASSES
from engine.definitions import Stage

DOCS = Path(__file__).resolve().parents[2] / "docs"
FILM: dict[str, Any] = {
    "id": "film",
    "name": "观影券",
    "class": "entertainment",
    "sub_class": "tickets",
    "partner": "cinema",
    "face_value_fen": 2000,
    "cost_fen": 1200,
}
VIDEO = {
    **FILM,
    "id": "video",
    "name": "视频月卡",
    "class": "video",
    "sub_class": "live",
    "partner": "tv",
    "cost_fen": 800,
}
PACK: dict[str, Any] = {"id": "pack", "name": "包", "kind": "package", "of": ["video"], "data_mb": 1024}


def film(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**copy.deepcopy(FILM), **changes}.items() if value is not None}


def pack(**changes: Any) -> dict[str, Any]:
    return {key: value for key, value in {**copy.deepcopy(PACK), **changes}.items() if value is not None}


def inspect(root: Path, benefits: Any = (), products: Any = (), offered: Any = "film", **more: Any) -> Inspection:
    text = yaml.safe_dump({"benefits": list(benefits), "products": list(products)}, allow_unicode=True, sort_keys=False)
    given = scenario(offer__benefit=offered, **more)
    return inspect_content(*write_set(root, scenarios=[given], files={"scenarios/benefits/a/b.yaml": text}))


def test_a_scenario_names_a_benefit_by_its_id(tmp_path: Path) -> None:
    stock = {"total": 9, "per_user": 1, "budget_per_day_fen": 1200, "codes": "film-2030"}
    validity = {"from": "2026-01-01", "until": "2030-01-01", "for": "1 day"}
    found = inspect(tmp_path, [film(stock=stock, validity=validity, stage="paused", value=1.5)], mode="shadow")
    assert found.faults == ()
    assert found.content is not None
    offer = found.content.scenarios[0].offer
    (terms,) = offer.terms
    assert (offer.benefit, offer.benefit_class, offer.partner, offer.value) == ("film", "entertainment", "cinema", 1.5)
    assert (terms.sub_class, terms.face_value_fen, terms.cost_fen) == ("tickets", 2000, 1200)
    assert terms.stage is Stage.PAUSED
    assert terms.stock is not None
    assert (terms.stock.total, terms.stock.per_user, terms.stock.budget_per_day_fen) == (9, 1, 1200)
    assert (terms.stock.pool, terms.stock.per_day, terms.stock.budget_fen) == ("film-2030", None, None)
    granted_ms = terms.valid_until_ms - 3_600_000  # type: ignore[operator]
    assert terms.usable_until_ms(granted_ms) == terms.valid_until_ms
    assert terms.usable_until_ms(granted_ms - 10 * 86_400_000) == granted_ms - 9 * 86_400_000
    assert found.content.benefits == (terms,)


def test_a_product_sums_up_its_parts(tmp_path: Path) -> None:
    bundle = {"id": "duo", "name": "双享", "kind": "bundle", "of": ["film", "video"], "price_fen": 900}
    ends = film(validity={"until": "2030-01-01"})
    found = inspect(tmp_path, [ends, VIDEO], [bundle], "duo")
    assert found.faults == ()
    assert found.content is not None
    product, *parts = found.content.scenarios[0].offer.terms
    assert [part.id for part in parts] == ["film", "video"]
    assert (product.face_value_fen, product.cost_fen, product.price_fen) == (4000, 2000, 900)
    assert (product.partner, product.benefit_class, product.product) == ("cinema", "entertainment", "bundle")
    assert product.valid_until_ms == parts[0].valid_until_ms
    assert [one.id for one in found.content.benefits] == ["duo", "film", "video"]


def test_an_inline_benefit_is_in_the_list_of_benefits_too(tmp_path: Path) -> None:
    inline = {"id": "x", "name": "券", "class": "living", "partner": "shop", "face_value_fen": 5, "cost_fen": 3}
    found = inspect(tmp_path, offered=inline)
    assert found.faults == ()
    assert found.content is not None
    assert [(one.id, one.cost_fen) for one in found.content.benefits] == [("x", 3)]


FAULTS: dict[str, tuple[list[Any], list[Any], Any, str, str]] = {
    "an unknown id": ([FILM], [], "flim", "$.offer.benefit", "did you mean 'film'?"),
    "no sub-class": ([film(sub_class=None)], [], "film", "$.benefits[0].sub_class", "found nothing"),
    "a sub-class of another": ([film(sub_class="live")], [], "film", "$.benefits[0]", "a sub-class of entertainment"),
    "no cost": ([film(cost_fen=None)], [], "film", "$.benefits[0].cost_fen", "found nothing"),
    "money in yuan": ([film(cost_fen=12.5)], [], "film", "$.benefits[0].cost_fen", "a whole number"),
    "an unknown stage": ([film(stage="live")], [], "film", "$.benefits[0].stage", "'running'"),
    "empty stock": ([film(stock={})], [], "film", "$.benefits[0].stock", "at least one limit"),
    "a stock of none": ([film(stock={"total": 0})], [], "film", "$.benefits[0].stock.total", "greater than or equal"),
    "a budget without cost": (
        [film(cost_fen=0, stock={"budget_fen": 5})],
        [],
        "film",
        "$.benefits[0].stock.budget_fen",
        "a benefit with `cost_fen`",
    ),
    "a budget for none": (
        [film(stock={"budget_per_user_fen": 1199})],
        [],
        "film",
        "$.benefits[0].stock.budget_per_user_fen",
        "at least the cost of one, 1200 fen",
    ),
    "a validity the wrong way round": (
        [film(validity={"from": "2026-02-01", "until": "2026-01-01"})],
        [],
        "film",
        "$.benefits[0].validity.until",
        "an instant after `from`",
    ),
    "no validity": ([film(validity={})], [], "film", "$.benefits[0].validity", "`from` and `until`, or `for`"),
    "an id twice": ([FILM, film()], [], "film", "$.benefits[1].id", "an id used once"),
    "a product of the unknown": ([VIDEO], [pack(of=["vidoe"])], "pack", "$.products[0].of[0]", "did you mean 'video'?"),
    "a product of products": (
        [VIDEO],
        [PACK, pack(id="more", of=["pack"])],
        "more",
        "$.products[1].of[0]",
        "a product is made of benefits",
    ),
    "a package of nothing more": ([VIDEO], [pack(data_mb=None)], "pack", "$.products[0]", "`data_mb` or `voice_min`"),
    "a card without plan": ([VIDEO], [pack(kind="card", data_mb=None)], "pack", "$.products[0]", "`plan` in a card"),
    "a bundle of one": ([VIDEO], [pack(kind="bundle", data_mb=None)], "pack", "$.products[0]", "at least two benefits"),
    "a bundle of one partner": (
        [FILM, film(id="other")],
        [pack(kind="bundle", of=["film", "other"], data_mb=None)],
        "pack",
        "$.products[0].of",
        "benefits of several partners",
    ),
    "codes from two pools": (
        [film(stock={"codes": "a"}), {**VIDEO, "stock": {"codes": "b"}}],
        [pack(of=["film", "video"])],
        "pack",
        "$.products[0]",
        "codes from one pool",
    ),
    "an inline id of the catalogue": (
        [FILM],
        [],
        {"id": "film", "name": "券", "class": "living", "partner": "shop"},
        "$.offer.benefit.id",
        "write `benefit: film`",
    ),
    "an inline class": (
        [],
        [],
        {"id": "f", "name": "券", "class": "x", "partner": "s"},
        "$.offer.benefit.class",
        "'video'",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_catalogue_is_refused_with_its_place_and_a_reason(name: str, tmp_path: Path) -> None:
    benefits, products, offered, path, words = FAULTS[name]
    found = inspect(tmp_path, benefits, products, offered).errors
    assert [fault.path for fault in found] == [path], [str(fault) for fault in found]
    assert words in str(found[0])


def test_two_scenarios_cannot_give_one_inline_benefit_two_costs(tmp_path: Path) -> None:
    one = {"id": "x", "name": "券", "class": "living", "partner": "shop", "cost_fen": 3}
    two = [scenario(offer__benefit=one), scenario(id="a/b", offer__benefit={**one, "cost_fen": 4})]
    (fault,) = inspect_content(*write_set(tmp_path, scenarios=two)).errors
    assert fault.path == "$.offer.benefit.cost_fen"
    assert "put it into scenarios/benefits" in fault.hint


@pytest.mark.parametrize("stage", [one for one in STAGES if one != "running"])
def test_a_live_scenario_with_a_benefit_that_is_not_running_is_warned_of(stage: str, tmp_path: Path) -> None:
    found = inspect(tmp_path, [film(stage=stage)])
    assert [(fault.severity, fault.found) for fault in found.faults] == [("warning", f"film, which is {stage}")]
    assert found.content is not None


def test_a_code_in_a_text_needs_a_benefit_with_codes(tmp_path: Path) -> None:  # O1
    (fault,) = inspect(tmp_path, [FILM], offer__text="您的券码{code}").errors
    assert fault.expected == "a benefit that has codes"
    given = film(stock={"codes": "film"})
    found = inspect(tmp_path / "with", [given], offer__text="您的券码{code}")
    assert found.faults == ()


def test_a_benefit_that_is_over_is_warned_of(tmp_path: Path) -> None:
    found = inspect(tmp_path, [film(validity={"until": "2026-01-01"})])
    assert found.content is not None
    until_ms = found.content.benefits[0].valid_until_ms
    assert until_ms is not None
    assert outdated(found.content, until_ms - 1) == []
    assert [fault.path for fault in outdated(found.content, until_ms)] == ["benefit film"]


def test_the_document_names_every_class_stage_and_kind() -> None:
    text = (DOCS / "benefits.md").read_text()
    words = [*SUB_CLASSES, *(one for some in SUB_CLASSES.values() for one in some), *STAGES, *PRODUCT_KINDS]
    assert [word for word in words if f"`{word}`" not in text] == []


def test_the_catalogue_in_the_document_loads(tmp_path: Path) -> None:
    text = (DOCS / "benefits.md").read_text().split("```yaml\n")[1].split("```")[0]
    folders = write_set(tmp_path, files={"scenarios/benefits/doc.yaml": text})
    found = inspect_content(*folders)
    assert found.faults == ()
    assert found.content is not None
    assert len(found.content.benefits) == 4
