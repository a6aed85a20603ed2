"""A refusal for want of stock or money says which limit failed, live and explained (O3, D5)."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from engine.decide.records import encode
from engine.definitions import BenefitDefinition, FieldTest, Scenario, StockLimits, UsageTrigger
from engine.model import RecordKind
from engine.pipeline import Pipeline
from tests.world import NOON_MS, block_of, consent, make_pipeline, offer, scenario, small_content, usage

TEA = "national/tea"
LEASE = b'{"lease":"tea-codes","first":0,"count":1,"epoch":1}'


def shop(**limits: Any) -> Scenario:
    tea = BenefitDefinition(TEA, "tea", "living", "wanda", cost_fen=300, stock=StockLimits(**limits))
    return scenario("tea", UsageTrigger((FieldTest("app", "==", "tea"),)), offer=offer(benefit=TEA, terms=(tea,)))


def take(pipeline: Pipeline, now_ms: int, *values: Any) -> list[dict[str, Any]]:
    """Process events at one instant, as one block; return the decisions as they are stored."""
    kinds = [RecordKind.CONTROL if isinstance(value, bytes) else RecordKind.EVENTS for value in values]
    block = block_of(list(values), position=now_ms - NOON_MS, append_ms=now_ms, kinds=kinds)
    return [orjson.loads(encode(one)) for one in pipeline.process(block).decisions]


@pytest.mark.parametrize(
    ("limits", "reason", "failed"),
    [
        ({"total": 1}, "stock", {"benefit": TEA, "limit": "total", "most": 1, "used": 1, "asked": 1}),
        ({"per_day": 1, "total": 9}, "stock", {"benefit": TEA, "limit": "per_day", "most": 1, "used": 1, "asked": 1}),
        (
            {"budget_fen": 500},
            "budget",
            {"benefit": TEA, "limit": "budget_fen", "most": 500, "used": 300, "asked": 300},
        ),
        ({"pool": "tea-codes"}, "stock", {"pool": "tea-codes", "limit": "codes", "most": 1, "used": 1, "asked": 1}),
    ],
)
def test_the_limit_that_failed_is_named_with_what_is_used_and_what_was_asked(limits, reason, failed):
    pipeline = make_pipeline(small_content(scenarios=(shop(**limits),)))
    take(pipeline, NOON_MS, *(consent(user, NOON_MS) for user in "ab"), LEASE)
    asked = [usage(user, NOON_MS + 1000, id=user, app="tea") for user in "ab"]
    first, second = take(pipeline, NOON_MS + 1000, *asked)
    assert (first["reason"], second["reason"]) == ("granted", reason)
    assert second["values"]["failed"] == failed
    (trace,) = pipeline.decider.explain_user(pipeline.users.slot_of("b", intern=False), "b", NOON_MS + 2000)
    assert trace.reason == reason
    (values,) = [step.values for step in trace.steps if step.gate == "reservation"]
    assert values["failed"] == failed
    assert values["stock"][0]["benefit"] == TEA
