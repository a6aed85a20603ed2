"""What offers changed: treated against withheld users, with an interval, and a check that the arms are fair (D3).

The statistics are scipy's: Wilson's interval of each rate, joined to Newcombe's interval of their difference (Newcombe
1998, method 10); the chi-square test of the split, or the exact one where few are expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

CONFIDENCE = 0.95
UNFAIR_BELOW = 0.001
"""A split as odd as this comes by chance once in a thousand reports: something chose who was withheld."""


@dataclass(frozen=True, slots=True)
class Lift:
    """Rates of users who redeemed, their difference with its interval; None where an arm is empty."""

    treated: int
    withheld: int
    treated_rate: float | None
    withheld_rate: float | None
    difference: float | None
    low: float | None
    high: float | None


def lift(treated: int, treated_redeemed: int, withheld: int, withheld_redeemed: int) -> Lift:
    """Compare the share of users who redeemed in two arms."""
    if not treated or not withheld:
        rate = treated_redeemed / treated if treated else None
        control = withheld_redeemed / withheld if withheld else None
        return Lift(treated, withheld, rate, control, None, None, None)
    from scipy.stats import binomtest

    one, other = treated_redeemed / treated, withheld_redeemed / withheld
    interval = binomtest(treated_redeemed, treated).proportion_ci(CONFIDENCE, method="wilson")
    control_interval = binomtest(withheld_redeemed, withheld).proportion_ci(CONFIDENCE, method="wilson")
    difference = one - other
    low = difference - math.hypot(one - interval.low, control_interval.high - other)
    high = difference + math.hypot(interval.high - one, other - control_interval.low)
    return Lift(treated, withheld, one, other, difference, float(low), float(high))


def split_p_value(treated: int, withheld: int, expected_withheld: float) -> float | None:
    """Return the probability of a split at least as odd as this one; None where nobody should have been withheld.

    expected_withheld  sum over users of the share that the content said at their first decision
    """
    users = treated + withheld
    if not users or (expected_withheld <= 0 and not withheld):
        return None
    if not 0 < expected_withheld < users:
        return 0.0
    from scipy.stats import binomtest, chisquare

    if min(expected_withheld, users - expected_withheld) < 5:
        return float(binomtest(withheld, users, expected_withheld / users).pvalue)
    return float(chisquare([withheld, treated], [expected_withheld, users - expected_withheld]).pvalue)
