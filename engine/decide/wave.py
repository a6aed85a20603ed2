"""Arbitration of one user's surviving candidates, and what the ledger's answer makes of them (rules D1-D3)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from engine.decide.case import Case
from engine.decide.profiles import ProfileTable
from engine.decide.stock import stock_values
from engine.model import Offer, Option, Outcome, Reason, ReserveAnswer, ReserveRequest

if TYPE_CHECKING:
    from engine.decide.decider import Decider

_GRANTED, _OFFER, _REFUSED = Reason.GRANTED.value, Outcome.OFFER.value, Outcome.REFUSED.value
_LOST, _OUTSCORED, _PAUSED = Outcome.LOST.value, Reason.OUTSCORED.value, Reason.PAUSED.value
_WITHHELD, _HOLDOUT, _DUPLICATE = Outcome.WITHHELD.value, Reason.HOLDOUT.value, Reason.DUPLICATE.value
_STOCK, _BUDGET = Reason.STOCK.value, Reason.BUDGET.value
_STORE_UNAVAILABLE = Reason.STORE_UNAVAILABLE.value


class Alarm(msgspec.Struct):
    """A scenario was paused because it reached its limit over the deployment (rule C7)."""

    scenario: str
    at_ms: int
    values: dict[str, Any]


class Group:
    """The candidates of one user and instant.

    cases      in log order, refused ones included
    ranked     the survivors of each request, in arbitration order; shadow scenarios compete among themselves
    owners     for each request the case of each option
    remembers  the outcome may bear on the re-entry gate of this user's next candidate
    """

    __slots__ = (
        "cases",
        "may_substitute",
        "now_ms",
        "owners",
        "ranked",
        "remembers",
        "requests",
        "subject",
    )

    def __init__(self, cases: list[Case]) -> None:
        self.cases = cases
        self.now_ms = cases[0].now_ms
        self.subject = ""
        self.requests: list[ReserveRequest] = []
        self.ranked: list[list[Case]] = []
        self.owners: list[list[Case]] = []
        self.may_substitute = False
        self.remembers = False


def request_alone(case: Case, profiles: ProfileTable, default_zone: str) -> ReserveRequest:
    """Score one candidate that has no competitor and write its request: `build_group` without the group.

    The scenario must be bound by no cap on channels.
    """
    plan, slot, user_id, now_ms = case.plan, case.slot, case.user_id, case.now_ms
    subject, zone = user_id, default_zone
    if slot < profiles.count:
        if profiles.person is not None or profiles.generation:
            subject = profiles.subject(slot, user_id)
        zone = profiles.zone.get(slot) or default_zone
    case.factors = plan.score(case)
    for _, arm in plan.arms:
        if arm(user_id):
            case.is_withheld = True
            break
    scenario, category, partner = plan.labels
    channel, rules = case.channels[0], plan.rules(zone, now_ms)
    counts, withheld, shadow = plan.counts, case.is_withheld, plan.is_shadow
    take = plan.take(now_ms) if plan.take is not None else None
    option = Option(case.id(), scenario, channel, category, partner, rules, counts, withheld, shadow, None, take)
    return ReserveRequest(subject, user_id, now_ms, (option,))


def settle_alone(decider: Decider, case: Case, request: ReserveRequest, answer: ReserveAnswer | None) -> None:
    """Emit the outcome of a candidate that competed with nobody; answer None: the ledger has none (C4)."""
    plan = case.plan
    if answer is not None and not answer.granted and not answer.duplicate and not case.is_withheld:
        case.channel = request.options[0].channel
        case.code = answer.code
        values = _granted_values(case)
        if not plan.is_tag:
            values["channel"] = case.channel
        if plan.is_shadow:
            values["shadow"] = True
            decider.recorder.emit(case, _OFFER, _GRANTED, values)
            return
        decision = decider.recorder.emit(case, _OFFER, _GRANTED, values)
        if not plan.is_tag:
            decision.grant(make_offer(case, decider.profiles))
        if plan.remembers:
            decider.remember(case, is_offer=True)
        return
    if answer is None:
        case.end(_REFUSED, _STORE_UNAVAILABLE, {})
    else:
        judge(decider, request, [case], [case], answer)
    _emit(decider, case)


def rank(cases: Iterable[Case]) -> list[Case]:
    """Order candidates by score; ties by earliest trigger, then scenario id (D2)."""
    return sorted(cases, key=lambda case: (-case.score, case.trigger.at_ms, case.plan.scenario.id))


def build_group(cases: list[Case], survivors: int, profiles: ProfileTable, default_zone: str) -> Group:
    """Score and rank the survivors, and write the request to the ledger."""
    group = Group(cases)
    if not survivors:
        return group
    first = cases[0]
    slot = first.slot
    known = slot < profiles.count
    group.subject = profiles.subject(slot, first.user_id) if known else first.user_id
    zone = (profiles.zone.get(slot) if known else None) or default_zone
    tags: list[list[Case]] = []
    shadow: list[Case] = []
    live: list[Case] = []
    for case in cases:
        if case.reason is None:
            case.factors = case.plan.score(case)
            if case.plan.is_tag:
                tags.append([case])
            else:
                (shadow if case.plan.is_shadow else live).append(case)
            if case.plan.remembers:
                group.remembers = True
    # Tags compete with nobody. A shadow request writes nothing, so it may go first: it sees the user as the live do.
    for competitors in (*tags, shadow, live):
        if competitors:
            if len(competitors) > 1:
                competitors = rank(competitors)
            request, owners = build_request(group.subject, competitors, zone, first.user_id, group.now_ms)
            group.requests.append(request)
            group.owners.append(owners)
            group.ranked.append(competitors)
    if len(live) > 1:
        group.may_substitute = any(case.is_withheld and case.plan.scenario.substitute for case in live)
    return group


def build_request(
    subject: str, ranked: list[Case], zone: str, user_id: str, now_ms: int
) -> tuple[ReserveRequest, list[Case]]:
    """Return the request, and for each of its options the case it belongs to.

    A case has an option per allowed channel where a cap looks at channels, else one for the channel it prefers.
    """
    options: list[Option] = []
    owners: list[Case] = []
    for case in ranked:
        plan = case.plan
        for _, arm in plan.arms:
            if arm(user_id):
                case.is_withheld = True
                break
        offer_id, rules, (scenario, category, partner) = case.id(), plan.rules(zone, now_ms), plan.labels
        counts, withheld, shadow = plan.counts, case.is_withheld, plan.is_shadow
        take = plan.take(now_ms) if plan.take is not None else None
        for channel in case.channels if plan.has_channel_cap else case.channels[:1]:
            options.append(
                Option(offer_id, scenario, channel, category, partner, rules, counts, withheld, shadow, None, take)
            )
            owners.append(case)
    return ReserveRequest(subject, user_id, now_ms, tuple(options)), owners


def in_shadow(request: ReserveRequest) -> ReserveRequest:
    """Return the same question, of which nothing is written."""
    options = tuple(msgspec.structs.replace(option, shadow=True) for option in request.options)
    return msgspec.structs.replace(request, options=options)


def settle_group(decider: Decider, group: Group, answers: list[ReserveAnswer] | None) -> None:
    """Emit one outcome for every case of a group, in log order.

    answers  to the group's requests; None: the ledger has none, so nothing is sent (C4)
    """
    for number, request in enumerate(group.requests):
        if answers is None:
            for case in group.ranked[number]:
                case.end(_REFUSED, _STORE_UNAVAILABLE, {})
        else:
            judge(decider, request, group.ranked[number], group.owners[number], answers[number])
    recorder = decider.recorder
    for case in group.cases:
        plan = case.plan
        if plan.is_limited and plan.id in decider.pauses:
            # Paused by its limit since the gates were asked: as if the mode gate had said so.
            case.release_ms = 0
            values = {"mode": plan.scenario.mode.value, "paused": [plan.scenario.id]}
            recorder.refuse_with(case, _PAUSED, values)
        elif case.outcome:
            _emit(decider, case)
        else:
            recorder.refuse_by_gate(case)


class Asker(Protocol):
    """Whom judging asks once more where a withheld winner's slot goes to the next; None: no answer."""

    def ask(self, requests: list[ReserveRequest]) -> list[ReserveAnswer] | None: ...


def judge(
    decider: Asker, request: ReserveRequest, ranked: list[Case], owners: list[Case], answer: ReserveAnswer
) -> None:
    """End every case of one request as the ledger's answer says.

    ranked  the cases in arbitration order; owners: for each option of the request its case
    """
    granted = answer.granted
    winner = owners[granted] if granted >= 0 else None
    if granted:
        for number in range(len(owners) if winner is None else granted):
            case = owners[number]
            # A case with several channels keeps the reason of the one it prefers.
            if case is not winner and not case.outcome:
                reason = answer.refusals[number]
                case.end(_REFUSED, reason, refusal_values(request.options[number], number, answer))
    if winner is None:
        return
    channel = request.options[granted].channel
    if answer.duplicate:
        winner.end(_REFUSED, _DUPLICATE, {"code": answer.code}, channel)
    elif winner.is_withheld:
        arms = [name for name, arm in winner.plan.arms if arm(winner.user_id)]
        winner.end(_WITHHELD, _HOLDOUT, {"arm": arms[0], **_score_values(winner)}, channel)
    else:
        winner.code = answer.code
        winner.end(_OFFER, _GRANTED, _granted_values(winner), channel)
    if winner is ranked[-1]:
        return
    rest = ranked[ranked.index(winner) + 1 :]
    if winner.is_withheld and winner.plan.scenario.substitute and not answer.duplicate:
        # The slot goes to the next: a second question with those that are left.
        first = next(number for number, case in enumerate(owners) if case is rest[0])
        again = ReserveRequest(request.subject, request.user_id, request.now_ms, request.options[first:])
        replies = decider.ask([again])
        if replies is None:
            for case in rest:
                case.end(_REFUSED, _STORE_UNAVAILABLE, {})
        else:
            judge(decider, again, rest, owners[first:], replies[0])
        return
    for case in rest:
        values = {**_score_values(case), "winner": winner.plan.scenario.id, "winner_score": winner.score}
        case.end(_LOST, _OUTSCORED, values)


def _score_values(case: Case) -> dict[str, Any]:
    return {"score": case.score, "factors": case.factors}


def _granted_values(case: Case) -> dict[str, Any]:
    mark = case.plan.on_grant
    if mark is None:
        return {"score": case.score, "factors": case.factors}
    until_ms = case.now_ms + mark.span_ms
    return {"score": case.score, "factors": case.factors, "tag": mark.tag, "tag_until": until_ms}


def refusal_values(option: Option, number: int, answer: ReserveAnswer) -> dict[str, Any]:
    """Say what the ledger compared when it refused option `number` of a request."""
    reason = answer.refusals[number]
    if option.take is not None and reason in (_STOCK, _BUDGET):
        return stock_values(option.take, next((short for place, short in answer.shorts if place == number), None))
    return {"rules": [{"most": rule.most, "since": rule.since_ms} for rule in option.rules if rule.reason == reason]}


def _emit(decider: Decider, case: Case) -> None:
    plan, outcome, reason, values = case.plan, case.outcome, case.reason, case.values
    assert reason is not None
    recorder = decider.recorder
    if outcome is _REFUSED and reason is not _DUPLICATE:
        if reason == _PAUSED:
            decider.pause_by_limit(case, values)
        recorder.refuse_with(case, reason, values)
        return
    if case.channel and not plan.is_tag:
        values["channel"] = case.channel
    if plan.is_shadow:
        values["shadow"] = True
        recorder.emit(case, outcome, reason, values)
        return
    decision = recorder.emit(case, outcome, reason, values)
    if outcome is _OFFER and not plan.is_tag:
        decision.grant(make_offer(case, decider.profiles))
    if plan.remembers and (outcome is _OFFER or outcome is _WITHHELD):
        decider.remember(case, is_offer=outcome is _OFFER)


def make_offer(case: Case, profiles: ProfileTable) -> Offer:
    """Return the offer of a granted case, ready to be handed over until its deadline (D6)."""
    plan = case.plan
    offer = plan.scenario.offer
    return Offer(
        case.offer_id,
        plan.id,
        case.user_id,
        case.channel,
        case.text if case.text is not None else offer.text,
        offer.benefit,
        offer.offer_class,
        case.trigger.at_ms + plan.deadline_ms,
        case.now_ms,
        case.score,
        case.code,
        profiles.province_of(case.slot) if case.slot < profiles.count else None,
        offer.fallback_channel if offer.fallback_channel != case.channel else None,
        offer.fallback_after_ms,
        benefit_class=offer.benefit_class,
    )
