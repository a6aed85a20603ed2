"""Scores worked out again, and whether the best of those who compete has won (rule D2)."""

from __future__ import annotations

from typing import Any

from tests.simulation.ground import Person
from tests.simulation.plan import Plan

CONTEXT = {"HIGH": 1.0, "MEDIUM": 0.8, "LOW": 0.5}


def score_of(plan: Plan, who: Person, decision: dict[str, Any]) -> float:
    """Priority x propensity x context x value, in this order."""
    told = who.attributes.get(f"propensity.{plan.category}") if not plan.is_tag else None
    propensity = min(max(float(told), 0.0), 10.0) if isinstance(told, int | float) else 1.0
    context = CONTEXT.get(decision["trigger"]["values"].get("confidence", ""), 1.0)
    return plan.priority * propensity * context * plan.value


def place(plan: Plan, who: Person, decision: dict[str, Any]) -> tuple[float, int, str]:
    """Who comes first: the higher score, then the earlier trigger, then the smaller id."""
    return -score_of(plan, who, decision), decision["trigger"]["at"], plan.id
