"""Which offer a redemption is credited to (STYLE: attribution), and what one is worth."""

from __future__ import annotations

import bisect
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from engine.definitions import BenefitDefinition

WITHIN_DAYS = 30
_DAY_MS = 86_400_000


class Grant(Protocol):
    """An offer made, or one withheld."""

    @property
    def offer_id(self) -> str: ...
    @property
    def user(self) -> str: ...
    @property
    def scenario(self) -> str: ...
    @property
    def withheld(self) -> bool: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def content_version(self) -> str: ...


class Use(Protocol):
    """A redemption or a refund."""

    @property
    def user(self) -> str: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def offer_id(self) -> str | None: ...
    @property
    def benefit(self) -> str | None: ...
    @property
    def amount_fen(self) -> int | None: ...


@dataclass(frozen=True, slots=True)
class Terms:
    """What a scenario offered in one version of the content: the benefit, the parts of a product, the holdout."""

    terms: tuple[BenefitDefinition, ...]
    benefit: str
    partner: str
    holdout_share: float  # of users withheld, universal and own together

    @property
    def names(self) -> frozenset[str]:
        """Every id a redemption may name it by."""
        return frozenset({self.benefit, *(one.id for one in self.terms)})

    def owed(self, named: str | None) -> list[tuple[str, str, int, int]]:
        """Return (partner, benefit, face value, cost) owed for one redemption: every part, or the named."""
        if not self.terms:
            return [(self.partner, self.benefit, 0, 0)]
        parts = self.terms[1:] or self.terms[:1]
        chosen = [one for one in parts if one.id == named] or parts
        return [(one.partner, one.id, one.face_value_fen, one.cost_fen) for one in chosen]


TermsOf = Mapping[tuple[str, str], Terms]
"""By content version and scenario."""


@dataclass(frozen=True, slots=True)
class Credited:
    """A redemption and the offer that it is credited to; `refunded_ms` is the instant it was given back, if it was."""

    use: Use
    grant: Grant
    refunded_ms: int | None = None

    @property
    def refunded(self) -> bool:
        return self.refunded_ms is not None


def credit(
    grants: Sequence[Grant],
    uses: Iterable[Use],
    refunds: Iterable[Use],
    terms_of: TermsOf,
    within_days: int = WITHIN_DAYS,
) -> tuple[list[Credited], list[Use]]:
    """Credit redemptions to offers; return those credited, and those that no offer explains.

    By the offer id where the event names one; else to the user's newest offer of that benefit, at most `within_days`
    before. Refunds cancel as many redemptions of the same offer, or of the same user and benefit, the newest first.
    """
    made = {one.offer_id: one for one in grants if not one.withheld}
    by_user: dict[tuple[str, str], list[Grant]] = defaultdict(list)
    for one in sorted(made.values(), key=lambda one: (one.at_ms, one.offer_id)):
        terms = terms_of.get((one.content_version, one.scenario))
        for name in terms.names if terms is not None else ():
            by_user[one.user, name].append(one)
    matched: list[tuple[Use, Grant]] = []
    unexplained: list[Use] = []
    for use in uses:
        grant = _grant_of(use, made, by_user, within_days)
        if grant is None:
            unexplained.append(use)
        else:
            matched.append((use, grant))
    back: dict[str, list[int]] = defaultdict(list)
    for use in sorted(refunds, key=lambda one: one.at_ms):
        grant = _grant_of(use, made, by_user, within_days)
        if grant is not None:
            back[grant.offer_id].append(use.at_ms)
    credited = []
    for use, grant in sorted(matched, key=lambda pair: pair[0].at_ms, reverse=True):
        given_back = back[grant.offer_id]
        credited.append(Credited(use, grant, given_back.pop() if given_back else None))
    credited.reverse()
    return credited, unexplained


def _grant_of(
    use: Use, made: Mapping[str, Grant], by_user: Mapping[tuple[str, str], list[Grant]], within_days: int
) -> Grant | None:
    if use.offer_id is not None:
        return made.get(use.offer_id)
    candidates = by_user.get((use.user, use.benefit or ""), [])
    place = bisect.bisect_right([one.at_ms for one in candidates], use.at_ms)
    if not place or use.at_ms - candidates[place - 1].at_ms > within_days * _DAY_MS:
        return None
    return candidates[place - 1]
