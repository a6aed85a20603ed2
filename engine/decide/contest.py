"""Who would win if all triggers came to one user now: arbitration explained (D1-D3). Nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from engine.decide.case import Case
from engine.decide.explain import subject_and_zone
from engine.decide.held import Held
from engine.decide.profiles import ProfileTable
from engine.decide.wave import build_request, in_shadow, judge, rank
from engine.errors import StoreUnavailable
from engine.model import Outcome, Reason, ReserveAnswer, ReserveRequest

Reserve = Callable[[list[ReserveRequest]], list[ReserveAnswer]]


class Competitor(msgspec.Struct):
    """One that passed its gates, and how it would end.

    outcome, reason  of docs/decisions.md; `lost` and `outscored` beside a winner, or refused by limits or stock
    waits            its trigger did come, and it waits in the user's open window
    """

    scenario: str
    score: float
    factors: dict[str, Any]
    outcome: str
    reason: str
    waits: bool = False


class Waiting(msgspec.Struct):
    """A candidate that waits, until when and for what: `arbitration` or `quiet_hours`."""

    scenario: str
    until: int
    why: str


class Contest(msgspec.Struct):
    """One arbitration as of now.

    window_ms    how long competitors are gathered; 0: only those of one event compete
    closes       when the user's open window ends; None: none is open
    waiting      by the instant at which they are released
    competitors  in arbitration order
    winner       the scenario that would speak, or be withheld; None: nobody
    """

    window_ms: int
    closes: int | None
    waiting: list[Waiting]
    competitors: list[Competitor]
    winner: str | None


class _Asking:
    """What judging asks while it explains: the ledger, in shadow."""

    def __init__(self, reserve: Reserve) -> None:
        self._reserve = reserve

    def ask(self, requests: list[ReserveRequest]) -> list[ReserveAnswer] | None:
        try:
            return self._reserve([in_shadow(request) for request in requests])
        except StoreUnavailable:
            return None


def passing(cases: Iterable[Case]) -> list[Case]:
    """Return the cases that every gate lets pass and that compete: no tag, no shadow."""
    return [
        case
        for case in cases
        if not case.plan.is_tag
        and not case.plan.is_shadow
        and all(gate(case, None) is None for gate in case.plan.gates)
    ]


def hold_contest(
    cases: list[Case],
    waiting: list[Held],
    window_ms: int,
    now_ms: int,
    profiles: ProfileTable,
    default_zone: str,
    reserve: Reserve,
) -> Contest:
    """Judge cases of one user, all of which passed their gates, as one arbitration would.

    waiting  what waits for this user; a case of a scenario that gathers is the waiting candidate's own
    """
    told = [
        Waiting(one.scenario, one.release_ms, "arbitration" if one.gathers else Reason.QUIET_HOURS.value)
        for one in sorted(waiting, key=lambda one: (one.release_ms, one.scenario))
    ]
    closes = next((one.release_ms for one in waiting if one.gathers), None)
    if not cases:
        return Contest(window_ms, closes, told, [], None)
    for case in cases:
        case.factors = case.plan.score(case)
    ranked = rank(cases)
    subject, zone = subject_and_zone(ranked[0], profiles, default_zone)
    request, owners = build_request(subject, ranked, zone, ranked[0].user_id, now_ms)
    asking = _Asking(reserve)
    answers = asking.ask([request])
    if answers is None:
        for case in ranked:
            case.end(Outcome.REFUSED.value, Reason.STORE_UNAVAILABLE.value, {})
    else:
        judge(asking, request, ranked, owners, answers[0])
    gathering = {one.scenario for one in waiting if one.gathers}
    return Contest(
        window_ms,
        closes,
        told,
        [
            Competitor(
                case.plan.id, case.score, case.factors, case.outcome, str(case.reason), case.plan.id in gathering
            )
            for case in ranked
        ],
        next((case.plan.id for case in ranked if case.outcome in _SPEAKS), None),
    )


_SPEAKS = (Outcome.OFFER.value, Outcome.WITHHELD.value)
