"""A backtest counts what the pipeline decides, hides what few people did, and shows it in three forms."""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from rich.console import Console

from engine.console.backtest_page import page
from engine.console.backtest_report import build_report
from engine.console.backtest_tables import print_report
from engine.definitions import BenefitDefinition, Cap, Content, StockLimits
from engine.model import Block, Scope
from engine.runtime.backtest import Tally, run
from engine.settings import Settings
from tests.world import (
    KEY,
    NOON_MS,
    block_of,
    consent,
    make_pipeline,
    ping,
    profile,
    small_content,
    small_policy,
    told,
    usage,
)

DOCS = Path(__file__).resolve().parents[2] / "docs"
MINUTE_MS = 60_000
USERS = 24


class Blocks:
    """Events as a source, so many records at once."""

    def __init__(self, events: list[dict[str, Any]], at_once: int) -> None:
        self.total_bytes = self.done_bytes = 0
        self._blocks = [
            block_of(events[first : first + at_once], position=first) for first in range(0, len(events), at_once)
        ]

    def poll(self, most: int) -> list[Block]:
        return [self._blocks.pop(0)] if self._blocks else []


def events() -> list[dict[str, Any]]:
    """Users of two organisations, a few of a third, shop twice and walk into the mall."""
    made: list[dict[str, Any]] = []
    for number in range(USERS):
        user, at = f"u{number}", NOON_MS + number
        organisation = "北京/海淀/一" if number < 12 else "上海" if number < 21 else "青海"
        tags = ["member"] if number % 2 else ["member", "rare"] if number < 4 else []
        made += [profile(user, at, organisation=organisation, tags=tags), consent(user, at)]
    for step in range(2):
        for number in range(USERS):
            at = NOON_MS + (1 + 90 * step) * MINUTE_MS + number
            props = {"amount_fen": 2_000}
            made.append(usage(f"u{number}", at, category="ecommerce", props=props, id=f"e{step}.{number}"))
    for number in range(USERS):
        at = NOON_MS + 150 * MINUTE_MS + number
        made.append(ping(f"u{number}", at, 116.45, 39.9, id=f"a{number}"))
        made.append(ping(f"u{number}", at + 5 * MINUTE_MS, 116.4015, 39.9, id=f"b{number}"))
    return sorted(made, key=lambda event: event["at"])


def tally_of(content: Content, at_once: int = 50, **more: Any) -> Tally:
    return run(Blocks(events(), at_once), content, Settings(), id_key=KEY, endless_codes=True, **more)


@pytest.fixture(scope="module")
def report() -> dict[str, Any]:
    tighter = small_content("v2", policy=small_policy(caps=(Cap(Scope.ALL, 1, "rolling", 86_400_000),)))
    return build_report([("now", tally_of(small_content())), ("tighter", tally_of(tighter))], ["day.ndjson"])


def test_t3_every_decision_is_the_pipelines_own() -> None:
    lines: list[bytes] = []
    decided = []
    tally = tally_of(small_content(), on_effects=lambda effects: decided.extend(effects.decisions))
    pipeline = make_pipeline(small_content())
    offers: Counter[str] = Counter()
    for block in Blocks(events(), 50)._blocks:
        effects = pipeline.process(block)
        lines += told(pipeline, effects)
        offers.update(one.scenario for one in effects.decisions if one.outcome == "offer")
    assert {one.decision_id for one in decided if one.outcome == "offer"} <= {
        json.loads(line)["decision_id"] for line in lines if b'"outcome":"offer"' in line
    }
    assert offers == Counter(
        {scenario: number for (scenario, outcome, _), number in tally.outcomes.items() if outcome == "offer"}
    )
    assert sum(offers.values()) > USERS


def test_t4_however_the_recording_is_cut_the_counts_are_the_same() -> None:
    one, other = tally_of(small_content(), 1), tally_of(small_content(), 1_000)
    assert one.first_ms == other.first_ms == events()[0]["at"]
    for name in ("outcomes", "by_slot", "by_fence", "segments", "messages", "parts", "given", "refused_users"):
        assert getattr(one, name) == getattr(other, name), name


def test_a_run_of_equal_refusals_counts_every_candidate() -> None:
    tally = tally_of(small_content())
    assert sum(tally.outcomes.values()) >= tally.candidates


def test_a13_what_few_people_did_is_not_told(report: dict[str, Any]) -> None:
    segments = {(row["kind"], row["name"]): row for row in report["sides"][0]["segments"]}
    assert segments["organisation", "北京/海淀"]["users"] == 12
    assert segments["organisation", "青海"] == {
        "kind": "organisation", "name": "青海", "users": "<10", "offers": "<10",
    }  # fmt: skip
    assert segments["tag", "rare"]["offers"] == "<10"
    hidden = [row for row in report["difference"]["segments"] if "<10" in (row["before"], row["after"])]
    assert hidden
    assert all(row["change"] is None for row in hidden)


def test_two_contents_are_compared_by_scenario_reason_and_segment(report: dict[str, Any]) -> None:
    before, after = (side["totals"]["offer"] for side in report["sides"])
    assert before > after
    difference = report["difference"]
    assert {row["what"]: row["change"] for row in difference["totals"]}["offer"] == after - before
    assert sum(row["change"] for row in difference["scenarios"]) == after - before
    capped = next(row for row in difference["reasons"] if row["reason"] == "cap:all")
    assert capped["change"] > 0
    assert sum(row["refused"] for row in report["sides"][1]["pressure"]["limits"] if row["reason"] == "cap:all")


def test_o3_stock_that_runs_out_is_told_with_the_instant_it_did() -> None:
    limited = BenefitDefinition(
        "national/film", "观影券", "entertainment", "wanda", cost_fen=1_200, stock=StockLimits(total=5)
    )
    scenarios = tuple(replace(one, offer=replace(one.offer, terms=(limited,))) for one in small_content().scenarios)
    content = small_content(benefits=(limited,), scenarios=scenarios)
    (side,) = build_report([("one", tally_of(content))], [])["sides"]
    (row,) = side["pressure"]["stock"]
    assert (row["given"], row["total"], row["cost_fen"]) == (5, 5, 6_000)
    assert row["refused"] > 0
    assert NOON_MS < row["exhausted_at"] < NOON_MS + 2 * MINUTE_MS


def test_hours_are_those_of_the_deployment(report: dict[str, Any]) -> None:
    (side, _) = report["sides"]
    assert sum(row["offers"] for row in side["hours"]) == side["totals"]["offer"]
    assert all(row["hour"] % 3_600_000 == 0 for row in side["hours"])  # Beijing is whole hours off UTC
    zone = ZoneInfo(report["time_zone"])
    assert zone.key == "Asia/Shanghai"


def test_the_page_needs_nothing_else_and_escapes_what_it_shows(report: dict[str, Any]) -> None:
    named = [{**side, "name": f"<b>{side['name']}"} for side in report["sides"]]
    made = page({**report, "sides": named}, [small_content(), small_content("v2")])
    assert re.findall(r"(?:src|href)=|https?://|<script|@import|url\(", made) == []
    assert "<b>now" not in made
    assert "&lt;b&gt;now" in made
    assert made.count("<svg") == 5
    assert "prefers-color-scheme: dark" in made


def test_the_terminal_shows_one_content_and_two(report: dict[str, Any]) -> None:
    single = build_report([("one", tally_of(small_content()))], [])
    for one, words in (
        (single, ("national/shop", "holdout", "北京/海淀")),
        (report, ("tighter", "change", "not told")),
    ):
        out = io.StringIO()
        print_report(Console(file=out, width=160), one)
        for word in words:
            assert word in out.getvalue()


def test_a_scenario_stands_on_one_line_in_a_terminal_of_80_columns() -> None:
    report = build_report([("one", tally_of(small_content()))], [])
    (side,) = report["sides"]
    for row in side["scenarios"]:
        row["id"] = "national/ecommerce-join-the-plan"
    out = io.StringIO()
    print_report(Console(file=out, width=80), report)
    (costs,) = [line for line in out.getvalue().splitlines() if line.startswith("all together") and "yuan" in line]
    assert costs.count("yuan") == 2
    lines = [line for line in out.getvalue().splitlines() if line.startswith("national/ecommerce-join-the-plan ")]
    assert len(lines) > len(side["scenarios"])  # of both tables


def test_every_field_of_the_report_is_documented(report: dict[str, Any]) -> None:
    text = (DOCS / "backtest.md").read_text()

    def fields(value: Any) -> set[str]:
        if isinstance(value, dict):
            inner = set().union(*(fields(one) for one in value.values())) if value else set()
            return {str(name) for name in value} | inner
        return set().union(*(fields(one) for one in value)) if isinstance(value, list) and value else set()

    told = fields({**report, "dropped": {}})
    assert [name for name in sorted(told) if f"`{name}`" not in text] == []
