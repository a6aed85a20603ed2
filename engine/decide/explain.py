"""Why, or why not: the same gates run once more, writing down what they compare."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from engine.decide.again import Again, find_again
from engine.decide.case import Case
from engine.decide.compose import is_fixed
from engine.decide.gates import GATES
from engine.decide.profiles import ProfileTable
from engine.decide.stock import stock_values
from engine.decide.wave import build_request, in_shadow
from engine.errors import StoreUnavailable
from engine.model import Outcome, Reason


class Step(msgspec.Struct):
    """One gate: whether it let the candidate pass, its reason if not, and what it compared.

    asked  False where the scenario gives this gate nothing to ask, or an earlier gate had refused
    """

    gate: str
    passed: bool
    reason: str | None
    values: dict[str, Any]
    asked: bool = True


class Trace(msgspec.Struct):
    """All gates of one candidate, in the order of D1, and how it would end if nobody competed with it."""

    scenario: str
    user: str
    offer_id: str
    at: int
    outcome: str
    reason: str
    steps: list[Step]
    again: Again | None = None  # where the question was when this user could get it again


def explain_case(case: Case, profiles: ProfileTable, default_zone: str, reserve: Any) -> Trace:
    """Run every gate with its notes; the ledger is asked in shadow, so that nothing is written."""
    plan = case.plan
    gates = dict(plan.named_gates)
    steps: list[Step] = []
    outcome, refusal = Outcome.OFFER.value, None
    for name in GATES:
        values: dict[str, Any] = {}
        if refusal is not None:
            steps.append(Step(name, False, None, {}, asked=False))
            continue
        if name in gates:
            refusal = gates[name](case, values)
        elif name == "match":
            trigger = case.trigger
            values = {"kind": trigger.kind, "key": trigger.key, "fence": trigger.fence, **trigger.values}
        elif name == "arbitration":
            factors = plan.score(case)
            values = {"score": case.score, **factors}
        elif name == "arm":
            values = {arm: is_in(case.user_id) for arm, is_in in plan.arms}
            if any(values.values()):
                outcome = Outcome.WITHHELD.value
        elif name == "reservation":
            refusal, values = _ask(case, profiles, default_zone, reserve)
        asked = name in gates or name in ("match", "arbitration", "arm", "reservation")
        if name == "compose" and is_fixed(plan.scenario.offer):
            values, asked = {"text": "fixed"}, True
        steps.append(Step(name, refusal is None, refusal, values, asked))
    reason = Reason.HOLDOUT.value if outcome == Outcome.WITHHELD.value else Reason.GRANTED.value
    if refusal is not None:
        is_late = refusal == Reason.DEADLINE.value
        outcome = Outcome.HELD.value if case.release_ms else Outcome.EXPIRED.value if is_late else Outcome.REFUSED.value
        reason = refusal
    return Trace(plan.scenario.id, case.user_id, case.id(), case.now_ms, outcome, reason, steps)


def explain_again(
    case_at: Callable[[int], Case], now_ms: int, profiles: ProfileTable, default_zone: str, reserve: Any
) -> Again:
    """Say when the user of a case could get its scenario again; `case_at` makes the case of a trigger at an instant."""
    case = case_at(now_ms)
    subject, zone = subject_and_zone(case, profiles, default_zone)
    return find_again(case.plan, case_at, now_ms, subject, zone, reserve)


def subject_and_zone(case: Case, profiles: ProfileTable, default_zone: str) -> tuple[str, str]:
    """Whose limits count, and in which zone its days are."""
    known = case.slot < profiles.count
    subject = profiles.subject(case.slot, case.user_id) if known else case.user_id
    return subject, (profiles.zone.get(case.slot) if known else None) or default_zone


def _ask(case: Case, profiles: ProfileTable, default_zone: str, reserve: Any) -> tuple[str | None, dict[str, Any]]:
    subject, zone = subject_and_zone(case, profiles, default_zone)
    request, _ = build_request(subject, [case], zone, case.user_id, case.now_ms)
    values: dict[str, Any] = {
        "subject": subject,
        "zone": zone,
        "rules": [
            {"reason": rule.reason, "most": rule.most, "since": rule.since_ms} for rule in request.options[0].rules
        ],
    }
    take = request.options[0].take
    if take is not None:
        values |= stock_values(take)
    try:
        answer = reserve([in_shadow(request)])[0]
    except StoreUnavailable:
        return Reason.STORE_UNAVAILABLE.value, values
    if answer.duplicate:
        return Reason.DUPLICATE.value, values
    if answer.granted < 0:
        short = next((short for place, short in answer.shorts if place == 0), None)
        if take is not None and short is not None:
            values |= stock_values(take, short)
        return answer.refusals[0], values
    values["channel"] = request.options[answer.granted].channel
    return None, values
