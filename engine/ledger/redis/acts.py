"""A batch's effects in the order in which they happened, as lua/commit.lua reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import orjson

from engine.ledger.handoff import ConsentRow
from engine.ledger.history import DecisionRow
from engine.ledger.outcomes import DispatchRow
from engine.ledger.redis.log import GrantRow
from engine.model import DispatchState, Offer


def put_in_order(
    made: Sequence[GrantRow],
    offers: Sequence[Offer],
    consents: Sequence[ConsentRow],
    closed_users: Sequence[str],
    closed_at: Sequence[tuple[int, int]],
    pauses: Sequence[tuple[str, bool]],
    dispatches: Sequence[DispatchRow],
    decisions: Sequence[DecisionRow],
) -> list[tuple[Any, ...]]:
    """Put a batch's effects into the order in which they happened, as commit.lua reads them."""
    subjects = {row.offer_id: row.subject for row in made}
    acts: list[tuple[Any, ...]] = []
    said = offered = 0
    for row, user in enumerate(closed_users):
        consents_before, offers_before = closed_at[row] if closed_at else (len(consents), len(offers))
        acts += [_offer_act(offer, subjects) for offer in offers[offered:offers_before]]
        acts += [_consent_act(change) for change in consents[said:consents_before]]
        acts.append(("close", user))
        said, offered = consents_before, offers_before
    acts += [_offer_act(offer, subjects) for offer in offers[offered:]]
    acts += [_consent_act(change) for change in consents[said:]]
    acts += [("pause", scenario, paused) for scenario, paused in pauses]
    acts += [dispatch_act(record) for record in dispatches]
    acts += [("decision", offer_id, user, body.decode()) for offer_id, user, body in decisions]
    return acts


def _offer_act(offer: Offer, subjects: dict[str, str]) -> tuple[Any, ...]:
    return (
        "offer",
        offer.offer_id,
        offer.user_id,
        subjects.get(offer.offer_id, offer.user_id),
        offer.scenario,
        offer.channel,
        offer.offer_class == "service",
        offer.deadline_ms,
        orjson.dumps(offer).decode(),
        offer.fallback_channel or False,
        offer.fallback_after_ms,
        offer.code or False,
    )


def _consent_act(change: ConsentRow) -> tuple[Any, ...]:
    said = (change.at_ms, change.source, change.text) if change.text is not None else ()
    return ("consent", change.user_id, change.purpose, -1 if change.granted is None else int(change.granted), *said)


def dispatch_act(record: DispatchRow) -> tuple[Any, ...]:
    return (
        "dispatch",
        record.offer_id,
        record.dispatch_id,
        DispatchState(record.state).value,
        record.at_ms,
        record.gateway_id or False,
        record.code or False,
        bool(record.gateway_ids),
    )
