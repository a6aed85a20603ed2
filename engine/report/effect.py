"""Per scenario: what was sent, what came of it, what it changed, what it cost and brought (MISSION: evaluate)."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Protocol

from engine.report.credit import WITHIN_DAYS, Credited, Grant, TermsOf, Use, credit
from engine.report.lift import UNFAIR_BELOW, lift, split_p_value
from engine.report.sheet import Sheet, people

SENT_STATES = frozenset({"accepted", "delivered", "unknown"})
_DAY_MS = 86_400_000

COLUMNS = (
    "scenario",
    "granted",
    "sent",
    "delivered",
    "redeemed",
    "refunded",
    "treated_users",
    "withheld_users",
    "treated_rate",
    "withheld_rate",
    "lift",
    "lift_low",
    "lift_high",
    "split_p",
    "split",
    "cost_fen",
    "income_fen",
)


class Dispatched(Protocol):
    """The states that an offer's dispatches reached."""

    @property
    def states(self) -> frozenset[str]: ...


def effect_sheet(
    grants: Sequence[Grant],
    dispatched: Mapping[str, Dispatched],
    uses: Sequence[Use],
    refunds: Sequence[Use],
    terms_of: TermsOf,
    within_days: int = WITHIN_DAYS,
) -> Sheet:
    """Return one row a scenario. Grants are those of the period; uses and refunds may reach `within_days` beyond it.

    Rates are of users: of those first offered (or withheld) in the period, who redeemed the benefit, however credited,
    within `within_days`. Cost is what partners are owed for redemptions not refunded, income what these brought.
    """
    credited, _ = credit(grants, uses, refunds, terms_of, within_days)
    by_scenario: dict[str, list[Grant]] = defaultdict(list)
    for grant in grants:
        by_scenario[grant.scenario].append(grant)
    credits: dict[str, list[Credited]] = defaultdict(list)
    for one in credited:
        credits[one.grant.scenario].append(one)
    redeemed_at = _redeemed_at(uses, grants, terms_of)
    rows = [
        _row(name, made, credits[name], dispatched, terms_of, redeemed_at, within_days)
        for name, made in sorted(by_scenario.items())
    ]
    return Sheet("effect of scenarios", COLUMNS, rows)


def _row(
    scenario: str,
    made: list[Grant],
    credited: list[Credited],
    dispatched: Mapping[str, Dispatched],
    terms_of: TermsOf,
    redeemed_at: Mapping[tuple[str, str], list[int]],
    within_days: int,
) -> tuple[object, ...]:
    offered = [one for one in made if not one.withheld]
    states = [dispatched[one.offer_id].states for one in offered if one.offer_id in dispatched]
    first: dict[str, Grant] = {}
    for one in made:  # by instant: who was offered first and withheld later belongs to the arm of the first
        first.setdefault(one.user, one)
    arms = {False: [0, 0], True: [0, 0]}  # users, of them redeemed
    expected = 0.0
    for user, one in first.items():
        terms = terms_of.get((one.content_version, scenario))
        expected += terms.holdout_share if terms is not None else 0.0
        names = terms.names if terms is not None else frozenset()
        until_ms = one.at_ms + within_days * _DAY_MS
        arm = arms[one.withheld]
        arm[0] += 1
        arm[1] += any(one.at_ms <= at < until_ms for name in names for at in redeemed_at.get((user, name), ()))
    found = lift(*arms[False], *arms[True])
    p_value = split_p_value(arms[False][0], arms[True][0], expected)
    kept = [one for one in credited if not one.refunded]
    cost = income = 0
    for credit_ in kept:
        terms = terms_of.get((credit_.grant.content_version, scenario))
        if terms is not None:
            cost += sum(fen for _, _, _, fen in terms.owed(credit_.use.benefit))
            price = terms.terms[0].price_fen if terms.terms else 0
            income += credit_.use.amount_fen if credit_.use.amount_fen is not None else price
    return (
        scenario,
        len(offered),
        sum(bool(one & SENT_STATES) for one in states),
        sum("delivered" in one for one in states),
        len(kept),
        len(credited) - len(kept),
        people(found.treated),
        people(found.withheld),
        found.treated_rate,
        # A rate of a few withheld users would tell of them.
        found.withheld_rate if found.withheld >= 10 else None,
        *((found.difference, found.low, found.high) if found.withheld >= 10 else (None, None, None)),
        p_value,
        "" if p_value is None else "fair" if p_value >= UNFAIR_BELOW else "UNFAIR",
        cost,
        income,
    )


def _redeemed_at(uses: Iterable[Use], grants: Iterable[Grant], terms_of: TermsOf) -> dict[tuple[str, str], list[int]]:
    """Return when users redeemed what: by the benefit the event names, or by that of the offer it names."""
    made = {one.offer_id: one for one in grants}
    out: dict[tuple[str, str], list[int]] = defaultdict(list)
    for use in uses:
        name = use.benefit
        grant = made.get(use.offer_id or "")
        if grant is not None and (terms := terms_of.get((grant.content_version, grant.scenario))) is not None:
            # An offer that went to another user of the person is that user's redemption all the same.
            out[grant.user, terms.benefit].append(use.at_ms)
        elif name is not None:
            out[use.user, name].append(use.at_ms)
    return out
