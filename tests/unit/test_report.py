"""Reports: credit, lift with interval and fairness, settlement, reconciliation, safe files (MISSION, D3, FAULTS A7)."""

from __future__ import annotations

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from engine.cli.report import read_claims
from engine.definitions import BenefitDefinition
from engine.errors import OpportuneError
from engine.report.credit import Terms, credit
from engine.report.effect import COLUMNS, effect_sheet
from engine.report.lift import lift, split_p_value
from engine.report.settlement import Claimed, reconciliation_sheet, settlement_sheet
from engine.report.sheet import Sheet

DAY_MS = 86_400_000
T0 = 1_767_196_800_000


@dataclass(frozen=True)
class Grant:
    offer_id: str
    user: str
    at_ms: int = T0
    scenario: str = "beijing/film"
    withheld: bool = False
    content_version: str = "v1"


@dataclass(frozen=True)
class Use:
    user: str
    at_ms: int
    offer_id: str | None = None
    benefit: str | None = None
    amount_fen: int | None = None


@dataclass(frozen=True)
class Sent:
    states: frozenset[str] = frozenset({"accepted", "delivered"})
    province: str | None = None


FILM = BenefitDefinition("national/film", "film", "entertainment", "wanda", face_value_fen=3000, cost_fen=2000)
TAXI = BenefitDefinition("national/taxi", "taxi", "travel", "didi", face_value_fen=1500, cost_fen=1000)
BUNDLE = BenefitDefinition(
    "national/night", "night", "entertainment", "wanda", product="bundle", parts=(FILM.id, TAXI.id), price_fen=900
)
TERMS = {
    ("v1", "beijing/film"): Terms((FILM,), FILM.id, "wanda", 0.1),
    ("v1", "national/night"): Terms((BUNDLE, FILM, TAXI), BUNDLE.id, "wanda", 0.0),
}


def test_a_redemption_is_credited_to_the_offer_it_names_else_to_the_newest_of_its_benefit():
    grants = [Grant("1", "u1"), Grant("2", "u1", T0 + DAY_MS), Grant("3", "u2", withheld=True)]
    uses = [
        Use("u1", T0 + 3 * DAY_MS, offer_id="1"),
        Use("u1", T0 + 3 * DAY_MS, benefit=FILM.id),
        Use("u1", T0 + 5, benefit=FILM.id),
        Use("u1", T0 + 40 * DAY_MS, benefit=FILM.id),
        Use("u1", T0 + 5, offer_id="9"),
        Use("u2", T0 + 5, benefit=FILM.id),
        Use("u1", T0 - 5, benefit=FILM.id),
    ]
    credited, unexplained = credit(grants, uses, [Use("u1", T0 + 9, benefit=FILM.id)], TERMS)
    assert sorted((one.grant.offer_id, one.use.at_ms - T0, one.refunded) for one in credited) == [
        ("1", 5, False),
        ("1", 3 * DAY_MS, True),
        ("2", 3 * DAY_MS, False),
    ]
    assert unexplained == uses[3:]


def test_the_interval_of_a_difference_is_newcombes():
    """Newcombe 1998, table II, (a) 56/70 against 48/80 and (e) 10/10 against 0/20, method 10."""
    found = lift(70, 56, 80, 48)
    assert (found.difference, found.low, found.high) == pytest.approx((0.2, 0.0524, 0.3339), abs=5e-5)
    found = lift(10, 10, 20, 0)
    assert (found.difference, found.low, found.high) == pytest.approx((1.0, 0.6791, 1.0), abs=5e-5)
    assert lift(10, 1, 0, 0).difference is None


def test_a_split_that_chance_does_not_make_is_unfair():
    assert split_p_value(900, 100, 100.0) == pytest.approx(1.0)
    assert split_p_value(900, 100, 200.0) < 1e-6
    assert split_p_value(90, 0, 4.0) == pytest.approx(0.05, abs=0.05)
    assert split_p_value(90, 0, 0.0) is None
    assert split_p_value(90, 5, 0.0) == 0.0, "nobody should have been withheld"


def effect(grants, uses, refunds=()):
    sheet = effect_sheet(grants, {one.offer_id: Sent() for one in grants}, uses, refunds, TERMS)
    return [dict(zip(COLUMNS, row, strict=True)) for row in sheet.rows]


def test_effect_counts_users_once_in_the_arm_of_their_first_offer_and_hides_small_arms():
    grants = [Grant(f"{n}", f"u{n}") for n in range(900)] + [Grant(f"w{n}", f"w{n}", withheld=True) for n in range(100)]
    grants += [Grant("again", "u1", T0 + DAY_MS), Grant("late", "u2", T0 + DAY_MS, withheld=True)]
    uses = [Use(f"u{n}", T0 + 9, offer_id=f"{n}", amount_fen=100) for n in range(90)]
    uses += [Use("w1", T0 + 9, benefit=FILM.id), Use("w2", T0 + 31 * DAY_MS, benefit=FILM.id)]
    (row,) = effect(grants, uses, [Use("u5", T0 + 10, offer_id="5")])
    assert (row["granted"], row["sent"], row["delivered"]) == (901, 901, 901)
    assert (row["redeemed"], row["refunded"], row["cost_fen"], row["income_fen"]) == (89, 1, 89 * 2000, 8900)
    assert (row["treated_users"], row["withheld_users"]) == (900, 100)
    assert (row["treated_rate"], row["withheld_rate"]) == pytest.approx((0.1, 0.01))
    assert row["lift_low"] < row["lift"] < row["lift_high"]
    assert row["split"] == "fair"
    (row,) = effect(grants[:905], [])
    assert (row["withheld_users"], row["withheld_rate"], row["lift"], row["split"]) == ("<10", None, None, "UNFAIR")


def test_a_bundle_is_settled_with_every_partner_and_a_product_brings_its_price():
    grants = [Grant("1", "u1", scenario="national/night"), Grant("2", "u2", scenario="national/night")]
    uses = [Use("u1", T0 + 1, offer_id="1"), Use("u2", T0 + 1, offer_id="2", benefit=TAXI.id)]
    (row,) = effect(grants, uses)
    assert (row["cost_fen"], row["income_fen"]) == (2000 + 1000 + 1000, 1800)
    credited, _ = credit(grants, uses, [], TERMS)
    placed = {"1": Sent(province="beijing"), "2": Sent()}
    sheet = settlement_sheet(grants, credited, TERMS, placed, T0, T0 + DAY_MS)
    assert sheet.rows == [
        ("didi", "beijing", TAXI.id, 1, 1, 0, 1500, 1000),
        ("didi", "national", TAXI.id, 1, 1, 0, 1500, 1000),
        ("wanda", "beijing", FILM.id, 1, 1, 0, 3000, 2000),
        ("wanda", "national", FILM.id, 1, 0, 0, 0, 0),
        ("didi", "total", "total", 2, 2, 0, 3000, 2000),
        ("wanda", "total", "total", 2, 1, 0, 3000, 2000),
    ]
    assert sheet.notes == (f"sha256 {sheet.digest()}",)
    other = replace(sheet, rows=[*sheet.rows[:-1], ("wanda", "total", "total", 2, 1, 0, 3000, 2001)])
    assert other.digest() != sheet.digest()


def test_what_is_given_back_in_the_next_period_is_taken_off_there():
    grants = [Grant("1", "u1")]
    credited, _ = credit(grants, [Use("u1", T0 + 1, offer_id="1")], [Use("u1", T0 + DAY_MS, offer_id="1")], TERMS)
    first = settlement_sheet(grants, credited, TERMS, {}, T0, T0 + DAY_MS).rows[0]
    second = settlement_sheet(grants, credited, TERMS, {}, T0 + DAY_MS, T0 + 2 * DAY_MS).rows[0]
    assert first == ("wanda", "beijing", FILM.id, 1, 1, 0, 3000, 2000)
    assert second == ("wanda", "beijing", FILM.id, 0, 0, 1, -3000, -2000)


def test_every_way_in_which_three_books_disagree_is_listed():
    grants = {f"{n}": Grant(f"{n}", f"u{n}") for n in range(1, 8)}
    taxi = Terms((TAXI,), TAXI.id, "didi", 0.0)
    grants["8"] = Grant("8", "u8", scenario="national/taxi")
    terms = {**TERMS, ("v1", "national/taxi"): taxi}
    uses = [Use(f"u{n}", T0 + 1, offer_id=f"{n}") for n in (1, 2, 3, 4, 5)] + [Use("u9", T0 + 1, offer_id="99")]
    credited, unexplained = credit(list(grants.values()), uses, [Use("u4", T0 + 2, offer_id="4")], terms)
    claims = [
        Claimed(2, "1", "1", 2000),
        Claimed(3, "2", "2", 2500),
        Claimed(4, "3", "3", None),
        Claimed(5, "3", "3", None),
        Claimed(6, "4", "4", 2000),
        Claimed(7, "6", "6", 2000),
        Claimed(8, "=evil", None, 2000),
        Claimed(9, "8", "8", 1000),
    ]
    sheet = reconciliation_sheet("wanda", grants, credited, unexplained, claims, terms)
    assert [(row[0], row[1], row[3], row[4], row[5]) for row in sheet.rows] == [
        ("amount", "2", 2000, 2500, 3),
        ("claimed_twice", "3", 2000, None, 5),
        ("refunded", "4", 0, 2000, 6),
        ("not_redeemed", "6", 0, 2000, 7),
        ("not_issued", "=evil", None, 2000, 8),
        ("other_partner", "8", None, 1000, 9),
        ("not_claimed", "5", 2000, None, None),
        ("issued_unknown", "99", None, None, None),
    ]
    assert sheet.notes == ("7 issued, 4 redeemed, 8 claimed, 2 agree",)


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r", "\n"])
def test_a_cell_that_a_spreadsheet_would_run_is_only_text_in_csv(start):
    """FAULTS A7."""
    sheet = Sheet("t", ("a", "b"), [(f"{start}1+1", 5), ("plain", -5)])
    rows = list(csv.reader(io.StringIO(sheet.csv().decode(), newline="")))
    assert rows[1][0].startswith("'")
    assert (rows[1][1], rows[2][0]) == ("5", "plain")
    from pyarrow import BufferReader, parquet

    assert parquet.read_table(BufferReader(sheet.parquet())).to_pydict() == {
        "a": [f"{start}1+1", "plain"],
        "b": [5, -5],
    }


def test_a_partners_file_is_read_whole_or_refused_with_its_line(tmp_path: Path):
    path = tmp_path / "partner.csv"
    path.write_text("code,amount_fen\nA1,2000\n'=B,\n")
    assert read_claims(path) == [(2, "A1", 2000), (3, "=B", None)]
    path.write_text("code,amount_fen\nA1,20.00\n")
    with pytest.raises(OpportuneError, match="line 2"):
        read_claims(path)
    path.write_text("number\nA1\n")
    with pytest.raises(OpportuneError, match="offer_id or code"):
        read_claims(path)
