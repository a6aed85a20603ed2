"""The states of a dispatch as a table, and what a claim may answer (rules D7, G1, G2)."""

from __future__ import annotations

from enum import StrEnum

from engine.model import DispatchState as S


class Claim(StrEnum):
    """The answers of the claim store; only CLAIMED may submit."""

    CLAIMED = "claimed"
    ALREADY = "already"
    UNKNOWN_OFFER = "unknown_offer"
    PAUSED = "paused"
    NO_CONSENT = "no_consent"
    EXPIRED = "expired"
    FENCED = "fenced"
    CODE_EXPIRED = "code_expired"
    UNAVAILABLE = "unavailable"


FOLLOWS: dict[S | None, frozenset[S]] = {
    None: frozenset({S.PLANNED, S.RESERVED, S.SUBMITTING, S.EXPIRED, S.FAILED}),
    S.PLANNED: frozenset({S.RESERVED, S.SUBMITTING, S.EXPIRED, S.FAILED}),
    S.RESERVED: frozenset({S.SUBMITTING, S.EXPIRED, S.FAILED}),
    S.SUBMITTING: frozenset({S.ACCEPTED, S.REJECTED, S.UNKNOWN, S.DELIVERED, S.FAILED, S.EXPIRED}),
    S.UNKNOWN: frozenset({S.ACCEPTED, S.REJECTED, S.DELIVERED, S.FAILED, S.EXPIRED}),
    S.ACCEPTED: frozenset({S.DELIVERED, S.FAILED, S.EXPIRED}),
    S.REJECTED: frozenset(),
    S.DELIVERED: frozenset(),
    S.FAILED: frozenset(),
    S.EXPIRED: frozenset(),
}
"""What may follow what. A receipt may overtake the answer to the submit (G3); a final state is followed by nothing."""

FINAL = frozenset(state for state, after in FOLLOWS.items() if state is not None and not after)

NOT_SENT = frozenset({S.REJECTED, S.FAILED, S.EXPIRED})
"""Definite failures: another attempt may be claimed."""


def may_follow(before: S | None, after: S) -> bool:
    return after in FOLLOWS[before]


def print_table() -> str:
    """Show the table as text, one state a line."""
    lines = []
    for before, after in FOLLOWS.items():
        names = ", ".join(sorted(state.value for state in after)) or "(final)"
        lines.append(f"{before.value if before else 'none':<11} -> {names}")
    return "\n".join(lines)
