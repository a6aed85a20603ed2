"""The claim: one atomic act between the outbox and any byte that leaves (rules D7, A2, D8).

Functions over a cursor inside a transaction; the caller owns it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from engine.ledger import fallbacks
from engine.ledger.dispatch import NOT_SENT, Claim
from engine.ledger.groups import KEY, field, fields, leave_outbox, pack, read, write
from engine.model import DispatchState


@dataclass(frozen=True, slots=True)
class Asking:
    """Who claims, when, and what holds for every claim of one transaction."""

    now_ms: int  # wall time
    is_current: bool  # whether the claimant's epoch is the newest
    epoch: int
    paused: frozenset[str]
    assumed_consent: frozenset[str]
    expired_codes: tuple[tuple[str, int, int, int], ...] = ()  # pool, first, end, position of the recall


@dataclass(slots=True)
class _Facts:
    """What the store knows of one offer. dispatches: id, state, whether it was applied; in order, without holes."""

    scenario: str
    channel: str
    is_service: bool
    deadline_ms: int
    dispatches: list[tuple[str, DispatchState, int]]
    said: list[tuple[str, int]]  # purpose and answer of user and subject, for the channel asked and the offer's first


_FACTS = f"""
SELECT json_group_array(json_array(
    o.scenario, o.channel, o.service, o.deadline_ms,
    json((SELECT json_group_array(json_array(d.dispatch_id, d.state, d.applied))
          FROM (SELECT * FROM dispatches WHERE offer_id = o.offer_id ORDER BY seq) AS d)),
    json((SELECT json_group_array(json_array(c.purpose, c.granted)) FROM consents AS c
          WHERE c.user IN (o.user, o.subject)
          AND c.purpose IN ('marketing.' || o.channel, 'marketing.' || asked.value)))))
FROM json_each(?2) AS asked LEFT JOIN offers AS o ON o.offer_id = {KEY} ORDER BY asked.key
"""


def claim(cursor: sqlite3.Cursor, asking: Asking, claims: Sequence[tuple[bytes, str]]) -> list[Claim]:
    """Check pairs of key and dispatch id in the order of docs/contracts.md; write SUBMITTING where nothing is against.

    Pairs of one call see each other.
    """
    facts = _facts(cursor, claims)
    answers: list[Claim] = []
    keys: list[bytes] = []
    rows: list[tuple[str, int]] = []
    for (key, dispatch_id), known in zip(claims, facts, strict=True):
        answer = _judge(cursor, asking, key, dispatch_id, known)
        answers.append(answer)
        if answer is Claim.CLAIMED and known is not None:
            keys.append(key)
            rows.append((dispatch_id, len(known.dispatches)))
            known.dispatches.append((dispatch_id, DispatchState.SUBMITTING, 1))
            if fallbacks.is_second(dispatch_id):
                fallbacks.drop(cursor, key)
    if keys:
        write(
            cursor,
            f"INSERT INTO dispatches SELECT {KEY}, {fields(2)}, 'submitting', ?3, ?4, 1, NULL, NULL "
            "FROM json_each(?2) AS asked",
            keys,
            rows,
            asking.now_ms,
            asking.epoch,
        )
        write(
            cursor,
            f"INSERT OR REPLACE INTO submitting SELECT {KEY}, {field(0)} FROM json_each(?2) AS asked",
            keys,
            rows,
        )
        leave_outbox(cursor, keys)
    return answers


def why_not_again(cursor: sqlite3.Cursor, key: bytes, asking: Asking, channel: str) -> str | None:
    """Say why what is claimed must not be submitted once more: the claim's checks as they stand now."""
    (known,) = _facts(cursor, [(key, f"/{channel}/2")])
    if known is None:
        return Claim.UNKNOWN_OFFER.value
    if "*" in asking.paused or known.scenario in asking.paused:
        return Claim.PAUSED.value
    if not _has_consent(known, channel, asking):
        return Claim.NO_CONSENT.value
    return None if asking.is_current else Claim.FENCED.value


def _facts(cursor: sqlite3.Cursor, claims: Sequence[tuple[bytes, str]]) -> list[_Facts | None]:
    """Read what is known of each, None for an unknown offer; an offer asked twice is one object."""
    channels = [dispatch_id.split("/")[1] if fallbacks.is_second(dispatch_id) else None for _, dispatch_id in claims]
    found: list[list[Any]] = read(cursor, _FACTS, pack(key for key, _ in claims), orjson.dumps(channels).decode())
    seen: dict[tuple[bytes, str | None], _Facts] = {}
    shared: dict[bytes, list[tuple[str, DispatchState, int]]] = {}
    facts: list[_Facts | None] = []
    for (key, _), channel, row in zip(claims, channels, found, strict=True):
        scenario, first_channel, service, deadline_ms, dispatches, said = row
        if scenario is None:
            facts.append(None)
            continue
        states = shared.setdefault(key, [(name, DispatchState(state), applied) for name, state, applied in dispatches])
        known = _Facts(scenario, first_channel, bool(service), deadline_ms, states, said)
        facts.append(seen.setdefault((key, channel), known))
    return facts


def _judge(cursor: sqlite3.Cursor, asking: Asking, key: bytes, dispatch_id: str, known: _Facts | None) -> Claim:
    if known is None:
        return Claim.UNKNOWN_OFFER
    if any(one == dispatch_id for one, _, _ in known.dispatches):
        return Claim.ALREADY
    states = {one: state for one, state, applied in known.dispatches if applied}
    channel = known.channel
    if fallbacks.is_second(dispatch_id) and dispatch_id.split("/")[1] != channel:
        channel = dispatch_id.split("/")[1]
        if not fallbacks.may_claim(cursor, key, channel, list(states.values())):
            return Claim.ALREADY
    elif not all(state in NOT_SENT for state in states.values()):
        return Claim.ALREADY
    if "*" in asking.paused or known.scenario in asking.paused:
        return Claim.PAUSED
    if not _has_consent(known, channel, asking):
        return Claim.NO_CONSENT
    if asking.now_ms >= known.deadline_ms:
        return Claim.EXPIRED
    if asking.expired_codes and _is_expired(cursor, key, asking):
        return Claim.CODE_EXPIRED
    return Claim.CLAIMED if asking.is_current else Claim.FENCED


def _has_consent(known: _Facts, channel: str, asking: Asking) -> bool:
    """Whoever withdrew it anywhere has withdrawn it: user and subject are both asked (A4).

    Who refuses the first channel of an offer refuses the offer: its second channel is silent too (A3, G5).
    """
    if known.is_service:
        return True
    if not all(granted for _, granted in known.said):
        return False
    purpose = f"marketing.{channel}"
    return purpose in asking.assumed_consent or any(one == purpose for one, _ in known.said)


def _is_expired(cursor: sqlite3.Cursor, key: bytes, asking: Asking) -> bool:
    """Say whether the offer's code was drawn from a lease that expired since (O3)."""
    body, position = cursor.execute("SELECT body, position FROM offers WHERE offer_id = ?", (key,)).fetchone()
    code = orjson.loads(body)["code"]
    if code is None:
        return False
    pool, _, number = code.partition("#")
    return any(
        name == pool and first <= int(number) < end and position <= recalled
        for name, first, end, recalled in asking.expired_codes
    )
