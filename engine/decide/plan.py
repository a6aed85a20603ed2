"""A scenario compiled for deciding: its gates, its score, its arms, and its limits as rules for the ledger."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.decide import gates, timing_gates
from engine.decide.case import Case, Gate
from engine.decide.compose import is_fixed
from engine.decide.ids import arm_maker, offer_id_maker
from engine.decide.local_time import LocalTime
from engine.decide.profiles import ProfileTable
from engine.decide.responses import Responses
from engine.decide.stock import compile_take
from engine.definitions import TAG_CLASS, Cap, Content, Scenario
from engine.model import Mode, Reason, Rule, Scope, Take

CONTEXT_WEIGHT = {"HIGH": 1.0, "MEDIUM": 0.8, "LOW": 0.5}
FACTORS = ("priority", "propensity", "context", "value")
"""What a score is the product of, in this order (D2); each can be switched off, and is then 1."""

Rules = Callable[[str, int], tuple[Rule, ...]]

Propensity = Callable[[int, Scenario], float | None]
"""How likely the user in a slot is to use a scenario's benefit: 0 to 10, 1 is neutral; None: the model does not know.

It must be a function of the profile and the scenario alone, for a replay has to get the same (T3).
"""

UNIVERSAL_ARM = "universal"
_FOREVER_MS = -1
_MOST_PROPENSITY = 10.0


class Plan:
    """One scenario, compiled.

    named_gates  in the order of D1, only those that ask something of this scenario; `gates` without the names
    rules        takes the user's zone and now_ms
    score        sets the score of a case and returns its factors
    take         what the offer takes of stock at an instant; None: nothing that runs out
    """

    __slots__ = (
        "arms",
        "channels",
        "counts",
        "deadline_ms",
        "fixed_text",
        "gates",
        "has_channel_cap",
        "has_reentry",
        "id",
        "is_limited",
        "is_service",
        "is_shadow",
        "is_tag",
        "labels",
        "make_id",
        "named_gates",
        "on_grant",
        "remembers",
        "row",
        "rules",
        "scenario",
        "score",
        "take",
        "watches",
    )

    def __init__(self, row: int, scenario: Scenario, make_id: Callable[[str, str, int], str]) -> None:
        self.row = row
        self.id = scenario.id
        self.labels = (scenario.id, scenario.offer.benefit_class, scenario.offer.partner)
        self.scenario = scenario
        self.make_id = make_id
        self.is_tag = scenario.offer.offer_class == TAG_CLASS
        # Neither is bound by what protects from marketing.
        self.is_service = self.is_tag or scenario.offer.offer_class == "service"
        self.is_shadow = scenario.mode is Mode.SHADOW
        self.deadline_ms = timing_gates.deadline_of(scenario) * 1000
        self.counts = scenario.limits.counts and not self.is_service
        self.is_limited = scenario.limits.is_limited
        self.fixed_text = scenario.offer.text if is_fixed(scenario.offer) else None
        self.channels: tuple[str, ...] = scenario.offer.channels
        self.named_gates: tuple[tuple[str, Gate], ...] = ()
        self.gates: tuple[Gate, ...] = ()
        self.has_channel_cap = False
        self.has_reentry = scenario.reentry.policy != "every"
        self.on_grant = scenario.offer.on_grant
        self.watches = scenario.limits.pause_after is not None
        # Whether a grant bears on the user's next candidate.
        self.remembers = self.has_reentry or self.watches or self.on_grant is not None
        self.arms: tuple[tuple[str, Callable[[str], bool]], ...] = ()
        self.rules: Rules
        self.score: Callable[[Case], dict[str, float]]
        self.take: Callable[[int], Take] | None = None

    def ends_ms(self, case: Case) -> int:
        """Return until when an offer may be answered: the benefit's validity, or its deadline where it has none."""
        terms = self.scenario.offer.terms
        usable_until_ms = terms[0].usable_until_ms(case.now_ms) if terms else None
        return usable_until_ms if usable_until_ms is not None else case.trigger.at_ms + self.deadline_ms


def compile_plan(
    row: int,
    scenario: Scenario,
    content: Content,
    profiles: ProfileTable,
    clock: LocalTime,
    *,
    tenant: str,
    id_key: bytes,
    pauses: frozenset[str],
    reserved: dict[int, int],
    fence_names: dict[str, str],
    shapes: dict[Any, Rules],
    tag_gates: dict[tuple[str, ...], Gate],
    responses: Responses,
    factors: frozenset[str] = frozenset(FACTORS),
    propensity: Propensity | None = None,
) -> Plan:
    """Compile one scenario of a content set.

    pauses       scenario ids, or *, that are paused now
    shapes       limits compiled so far for this content
    tag_gates    what asks for tags of suppression, by channels, compiled so far for this content
    reserved     what the re-entry gate remembers, shared by all plans
    responses    who answers, shared by all plans
    factors      those of FACTORS that are switched on
    propensity   a model, or None: the profile's numbers
    """
    policy = content.policy
    plan = Plan(row, scenario, offer_id_maker(id_key, tenant, scenario.id))
    if not plan.is_service:
        plan.channels = timing_gates.reachable_channels(scenario, policy)
    fixed = plan.fixed_text is not None
    named = (
        ("mode", gates.mode_gate(scenario, pauses)),
        ("match", gates.match_gate(scenario)),
        ("validity", timing_gates.validity_gate(scenario, policy, clock)),
        ("audience", gates.audience_gate(scenario, profiles)),
        ("consent", None if plan.is_tag else gates.consent_gate(scenario, policy, profiles)),
        (
            "suppression",
            None if plan.is_tag else gates.suppression_gate(scenario, row, policy, profiles, responses, tag_gates),
        ),
        ("reentry", gates.reentry_gate(scenario, row, reserved)),
        ("quiet_hours", None if plan.is_tag else timing_gates.quiet_gate(scenario, policy, profiles, clock)),
        ("lottery", gates.lottery_gate(scenario)),
        ("compose", gates.compose_gate(scenario, policy, profiles, fence_names, fixed, id_key)),
    )
    plan.named_gates = tuple((name, gate) for name, gate in named if gate is not None)
    plan.gates = tuple(gate for _, gate in plan.named_gates)
    plan.arms = _compile_arms(plan, content)
    caps = () if plan.is_service or scenario.limits.bypass else policy.caps + scenario.limits.caps
    plan.has_channel_cap = any(cap.scope is Scope.CHANNEL for cap in caps)
    # Scenarios with the same limits share one maker of rules, which remembers the last instant it was asked about.
    shape = (caps, scenario.limits, scenario.reentry, plan.is_service)
    if shape not in shapes:
        shapes[shape] = _compile_rules(plan, content, caps, clock)
    plan.rules = shapes[shape]
    plan.score = _compile_score(scenario, profiles, factors, propensity)
    plan.take = compile_take(scenario.offer, clock, policy.time_zone)
    return plan


def _compile_arms(plan: Plan, content: Content) -> tuple[tuple[str, Callable[[str], bool]], ...]:
    """D3: the universal holdout, then the scenario's. The universal one measures marketing, so service is not in it."""
    salt = content.policy.holdout_salt
    universal = 0.0 if plan.is_service else content.policy.universal_holdout_percent
    arms = (
        (UNIVERSAL_ARM, arm_maker(salt, UNIVERSAL_ARM, universal)),
        ("scenario", arm_maker(salt, f"scenario/{plan.scenario.id}", plan.scenario.holdout_percent)),
    )
    return tuple((name, arm) for name, arm in arms if arm is not None)


def _compile_rules(plan: Plan, content: Content, caps: tuple[Cap, ...], clock: LocalTime) -> Rules:
    """Return what turns the limits into rules at an instant, for a user in a zone.

    Order: the deployment's limits, re-entry, caps, minimum gap. A calendar window starts with its first millisecond.
    """
    limits, reentry = plan.scenario.limits, plan.scenario.reentry
    home = content.policy.time_zone
    paused, cap_reasons = Reason.PAUSED.value, {scope: f"cap:{scope.name.lower()}" for scope in Scope}
    blast = tuple(
        (window, most)
        for window, most in (("hour", limits.hourly_limit), ("day", limits.daily_limit))
        if most is not None
    )
    once = Rule(Scope.SCENARIO, _FOREVER_MS, 1, Reason.REENTRY.value, True) if reentry.policy == "once" else None
    cooldown_ms = reentry.cooldown_ms if reentry.policy == "cooldown" else 0
    rolling = tuple(
        (cap.scope, cap.span_ms, cap.most, cap_reasons[cap.scope]) for cap in caps if cap.window == "rolling"
    )
    calendar = tuple(
        (cap.scope, cap.window, cap.most, cap_reasons[cap.scope]) for cap in caps if cap.window != "rolling"
    )
    is_free = plan.is_service or limits.bypass
    gap_ms = 0 if is_free else max(limits.min_gap_ms, content.policy.min_gap_ms)
    min_gap, reentry_reason = Reason.MIN_GAP.value, Reason.REENTRY.value

    last: tuple[str, int, tuple[Rule, ...]] = ("", -1, ())

    def rules(zone: str, now_ms: int) -> tuple[Rule, ...]:
        nonlocal last
        if last[1] == now_ms and last[0] == zone:
            return last[2]
        made = []
        for window, most in blast:
            made.append(Rule(Scope.DEPLOYMENT, clock.window_start(window, home, now_ms) - 1, most, paused, True))
        if once is not None:
            made.append(once)
        elif cooldown_ms:
            made.append(Rule(Scope.SCENARIO, now_ms - cooldown_ms, 1, reentry_reason, True))
        for scope, span_ms, most, reason in rolling:
            made.append(Rule(scope, now_ms - span_ms, most, reason))
        for scope, window, most, reason in calendar:
            made.append(Rule(scope, clock.window_start(window, zone, now_ms) - 1, most, reason))
        if gap_ms:
            made.append(Rule(Scope.ALL, now_ms - gap_ms, 1, min_gap))
        last = (zone, now_ms, tuple(made))
        return last[2]

    return rules


def _compile_score(
    scenario: Scenario, profiles: ProfileTable, factors: frozenset[str], model: Propensity | None
) -> Callable[[Case], dict[str, float]]:
    """D2: priority x propensity x context x value.

    propensity  what the model says, else the profile's number `propensity.<benefit class>`, 0 to 10, else 1
    context     how sure the place is: CONTEXT_WEIGHT of the transition's confidence, 1 for anything else
    """
    priority = scenario.priority if "priority" in factors else 1.0
    value = scenario.offer.value if "value" in factors else 1.0
    name = f"propensity.{scenario.offer.benefit_class}"
    has_propensity, has_context = "propensity" in factors, "context" in factors

    usual = {"priority": priority, "propensity": 1.0, "context": 1.0, "value": value}
    usual_score = priority * value

    def score(case: Case) -> dict[str, float]:
        propensity = 1.0
        told = model(case.slot, scenario) if model is not None and has_propensity else None
        column = profiles.numbers.get(name) if has_propensity and told is None else None
        if told is not None and told == told:
            propensity = min(max(told, 0.0), _MOST_PROPENSITY)
        if column is not None and case.slot < profiles.count:
            held: Any = column.view[case.slot]
            if held == held:
                propensity = min(max(held, 0.0), _MOST_PROPENSITY)
        context = CONTEXT_WEIGHT.get(case.trigger.values.get("confidence", ""), 1.0) if has_context else 1.0
        if propensity == context == 1.0:
            case.score = usual_score
            return usual
        case.score = priority * propensity * context * value
        return {"priority": priority, "propensity": propensity, "context": context, "value": value}

    return score
