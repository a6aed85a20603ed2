"""What a batch brought about, for the ledger's rows and for the metrics."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from engine import metrics
from engine.decide.records import encode
from engine.effects import Effects
from engine.model import DispatchState, Drop, EventType, TransitionKind

_EVENT_NAMES = {int(kind): kind.name.lower() for kind in EventType}
_TRANSITION_NAMES = {int(kind): kind.name.lower() for kind in TransitionKind}


def rows_of(effects: Effects) -> dict[str, Any]:
    """Return what every ledger's `commit` takes of a batch, by the names of its arguments."""
    return {
        "offers": effects.offers,
        "consents": effects.consents,
        "closed_users": effects.closed_users,
        "closed_at": effects.closed_at,
        "pauses": effects.pauses,
        "dispatches": _dispatch_rows(effects.receipts),
    }


def encode_all(effects: Effects) -> list[tuple[str, str, bytes]]:
    """Return the rows of a batch's decisions as the ledger stores them."""
    return [(one.decision_id, one.user, encode(one)) for one in effects.decisions if one.reason != "duplicate"]


@dataclass(frozen=True, slots=True)
class ReportedState:
    """A receipt as the ledger stores it (ledger.outcomes.DispatchRow)."""

    dispatch_id: str
    offer_id: str
    state: DispatchState
    at_ms: int
    code: str | None = None
    gateway_id: str | None = None
    gateway: str = ""
    gateway_ids: tuple[str, ...] = ()


def _dispatch_rows(receipts: Sequence[Any]) -> list[ReportedState]:
    """Return what receipts say of dispatches; one that names an offer alone moves no dispatch."""
    return [
        ReportedState(
            one.dispatch_id,
            one.offer_id or one.dispatch_id.partition("/")[0],
            DispatchState(one.state),
            one.at_ms,
            one.code or None,
        )
        for one in receipts
        if one.dispatch_id
    ]


def count(effects: Effects) -> None:
    """Add a batch's counts to the metrics."""
    metrics.add_counts(metrics.EVENTS, {_EVENT_NAMES[kind]: n for kind, n in effects.types.items()})
    if effects.drops[1:].any():
        dropped = {drop.name.lower(): int(effects.drops[drop]) for drop in Drop if drop and effects.drops[drop]}
        metrics.add_counts(metrics.EVENTS_DROPPED, dropped)
    if effects.dead:
        metrics.add_counts(metrics.DEAD_LETTERS, Counter(letter.reason.value for letter in effects.dead))
    for transitions in effects.transitions:
        kinds = np.bincount(transitions["kind"], minlength=5)
        metrics.add_counts(metrics.TRANSITIONS, {name: int(kinds[kind]) for kind, name in _TRANSITION_NAMES.items()})
    if effects.evicted:
        metrics.USERS_EVICTED.inc(effects.evicted)
    if effects.hurried:
        metrics.EVENTS_HURRIED.inc(effects.hurried)
    if effects.patterns:
        metrics.add_counts(metrics.PATTERNS, effects.patterns)
    if not effects.decisions:
        return
    metrics.CANDIDATES.inc(effects.candidates)
    for (outcome, reason), number in Counter((one.outcome, one.reason) for one in effects.decisions).items():
        metrics.DECISIONS.labels(outcome, reason).inc(number)
    metrics.add_offers(Counter(offer.scenario for offer in effects.offers))
