"""Offers on their way out: the outbox, the claim, and what became of dispatches (rules D7, G1, A2).

Functions over a cursor inside a transaction; the caller owns it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import orjson

from engine.ledger import fallbacks, receipts
from engine.ledger.dispatch import NOT_SENT, Claim, may_follow
from engine.model import DispatchState, Offer


class ConsentRow(Protocol):
    """One change of consent; `granted` None voids it, as if it had never been given."""

    user_id: str
    purpose: str
    granted: bool | None
    at_ms: int
    source: str
    text: str | None


class DispatchRow(Protocol):
    """What became of one dispatch."""

    @property
    def dispatch_id(self) -> str: ...
    @property
    def offer_id(self) -> str: ...
    @property
    def state(self) -> DispatchState: ...
    @property
    def at_ms(self) -> int: ...
    @property
    def gateway_id(self) -> str | None: ...
    @property
    def code(self) -> str | None: ...
    @property
    def gateway(self) -> str: ...
    @property
    def gateway_ids(self) -> Sequence[str]: ...


@dataclass(frozen=True, slots=True)
class Asking:
    """Who claims, when, and what holds for every claim of one transaction."""

    now_ms: int  # wall time
    is_current: bool  # whether the claimant's epoch is the newest
    epoch: int
    paused: frozenset[str]
    assumed_consent: frozenset[str]
    expired_codes: tuple[tuple[str, int, int, int], ...] = ()  # pool, first, end, position of the recall


def claim(cursor: sqlite3.Cursor, asking: Asking, key: bytes, dispatch_id: str) -> Claim:
    """Check in the order of docs/contracts.md, and write SUBMITTING where nothing stands against it."""
    offer = cursor.execute(
        "SELECT user, subject, scenario, channel, service, deadline_ms FROM offers WHERE offer_id = ?", (key,)
    ).fetchone()
    if offer is None:
        return Claim.UNKNOWN_OFFER
    user, subject, scenario, channel, service, deadline_ms = offer
    is_fallback = fallbacks.is_second(dispatch_id) and dispatch_id.split("/")[1] != channel
    if is_fallback:
        channel = dispatch_id.split("/")[1]
    dispatches = _dispatches(cursor, key)
    if any(one == dispatch_id for one, _, _ in dispatches):
        return Claim.ALREADY
    states = {one: state for one, state, applied in dispatches if applied}
    if is_fallback:
        if not fallbacks.may_claim(cursor, key, channel, list(states.values())):
            return Claim.ALREADY
    elif not all(state in NOT_SENT for state in states.values()):
        return Claim.ALREADY
    if "*" in asking.paused or scenario in asking.paused:
        return Claim.PAUSED
    if not service and not _has_consent(cursor, user, subject, f"marketing.{channel}", asking.assumed_consent):
        return Claim.NO_CONSENT
    if asking.now_ms >= deadline_ms:
        return Claim.EXPIRED
    if asking.expired_codes and _is_expired(cursor, key, asking):
        return Claim.CODE_EXPIRED
    if not asking.is_current:
        return Claim.FENCED
    cursor.execute(
        "INSERT INTO dispatches VALUES (?,?,?,?,?,?,1,NULL,NULL)",
        (key, dispatch_id, len(dispatches), "submitting", asking.now_ms, asking.epoch),
    )
    cursor.execute("INSERT OR REPLACE INTO submitting VALUES (?,?)", (key, dispatch_id))
    cursor.execute("DELETE FROM outbox WHERE offer_id = ?", (key,))
    if fallbacks.is_second(dispatch_id):
        fallbacks.drop(cursor, key)
    return Claim.CLAIMED


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


def put_dispatch(cursor: sqlite3.Cursor, record: DispatchRow, epoch: int) -> bool:
    """Write what became of a dispatch; say whether that changed its state (G1)."""
    key = bytes.fromhex(record.offer_id)
    dispatches = _dispatches(cursor, key)
    before: DispatchState | None = None
    for dispatch_id, reached, changed in dispatches:
        if changed and dispatch_id == record.dispatch_id:
            before = reached
    state = DispatchState(record.state)
    if before is state:
        return False
    applied = may_follow(before, state)
    if applied:
        fallbacks.note(
            cursor, key, record.dispatch_id, state, record.at_ms, record.code or "", bool(record.gateway_ids)
        )
    if applied and (state is DispatchState.UNKNOWN or (state is DispatchState.ACCEPTED and record.gateway_ids)):
        receipts.await_receipt(cursor, record.dispatch_id, record.at_ms)
    cursor.execute(
        "INSERT INTO dispatches VALUES (?,?,?,?,?,?,?,?,?)",
        (
            key,
            record.dispatch_id,
            len(dispatches),
            state.value,
            record.at_ms,
            epoch,
            applied,
            record.gateway_id,
            record.code,
        ),
    )
    if applied:
        cursor.execute("DELETE FROM submitting WHERE offer_id = ? AND dispatch_id = ?", (key, record.dispatch_id))
        cursor.execute("DELETE FROM outbox WHERE offer_id = ?", (key,))
    return applied


def put_receipt(cursor: sqlite3.Cursor, record: DispatchRow, epoch: int) -> bool:
    """Write what a receipt said, where its offer and its dispatch are known here; a forgotten user leaves no trace."""
    try:
        key = bytes.fromhex(record.offer_id)
    except ValueError:
        return False
    if receipts.state_of(cursor, key, record.dispatch_id) is None:
        return False
    return put_dispatch(cursor, record, epoch)


def why_not_again(cursor: sqlite3.Cursor, key: bytes, asking: Asking, channel: str) -> str | None:
    """Say why what is claimed must not be submitted once more: the claim's checks as they stand now."""
    offer = cursor.execute("SELECT user, subject, scenario, service FROM offers WHERE offer_id = ?", (key,)).fetchone()
    if offer is None:
        return Claim.UNKNOWN_OFFER.value
    user, subject, scenario, service = offer
    if "*" in asking.paused or scenario in asking.paused:
        return Claim.PAUSED.value
    if not service and not _has_consent(cursor, user, subject, f"marketing.{channel}", asking.assumed_consent):
        return Claim.NO_CONSENT.value
    return None if asking.is_current else Claim.FENCED.value


def settle_submitting(cursor: sqlite3.Cursor, epoch: int) -> int:
    """Claims found SUBMITTING at a start were cut off by a crash: UNKNOWN, and never submitted again (D7)."""
    rows = cursor.execute("SELECT offer_id, dispatch_id FROM submitting").fetchall()
    for key, dispatch_id in rows:
        seq, at_ms = cursor.execute("SELECT max(seq), max(at_ms) FROM dispatches WHERE offer_id = ?", (key,)).fetchone()
        cursor.execute(
            "INSERT INTO dispatches VALUES (?,?,?,?,?,?,1,NULL,'restart')",
            (key, dispatch_id, seq + 1, DispatchState.UNKNOWN.value, at_ms, epoch),
        )
        receipts.await_receipt(cursor, dispatch_id, at_ms)
    cursor.execute("DELETE FROM submitting")
    return len(rows)


def distrust_outbox(cursor: sqlite3.Cursor, epoch: int) -> None:
    """What is queued may have been claimed and sent before a power loss took the claim: UNKNOWN, never submitted."""
    queued = cursor.execute("SELECT offer_id, channel, body FROM outbox JOIN offers USING (offer_id)").fetchall()
    for key, channel, body in queued:
        at_ms = orjson.loads(body)["created_ms"]
        _end_unclaimed(cursor, key, channel, DispatchState.UNKNOWN, at_ms, epoch, "power_loss")


def put_offers(cursor: sqlite3.Cursor, offers: Sequence[Offer], subjects: Mapping[str, str], position: int) -> None:
    """Store offers and queue those that are new here: one that a replay brings again may have been claimed."""
    for offer in offers:
        key = bytes.fromhex(offer.offer_id)
        row = (
            key,
            offer.user_id,
            subjects.get(offer.offer_id, offer.user_id),
            offer.scenario,
            offer.channel,
            offer.offer_class == "service",
            offer.deadline_ms,
            position,
            orjson.dumps(offer),
        )
        cursor.execute("INSERT OR IGNORE INTO offers VALUES (?,?,?,?,?,?,?,?,?)", row)
        if cursor.rowcount:
            cursor.execute("INSERT OR IGNORE INTO outbox VALUES (?)", (key,))
            fallbacks.put(cursor, key, offer)


def offers_of(cursor: sqlite3.Cursor, user: str) -> list[bytes]:
    """The ids of a user's or subject's offers; reads the whole table."""
    return [key for (key,) in cursor.execute("SELECT offer_id FROM offers WHERE user = ? OR subject = ?", (user, user))]


def put_consents(cursor: sqlite3.Cursor, changes: Sequence[ConsentRow]) -> None:
    for change in changes:
        if change.granted is None:
            cursor.execute("DELETE FROM consents WHERE user = ? AND purpose = ?", (change.user_id, change.purpose))
        else:
            cursor.execute(
                "INSERT OR REPLACE INTO consents VALUES (?,?,?,?,?)",
                (change.user_id, change.purpose, change.granted, change.at_ms, change.source),
            )
        if change.text is not None:
            cursor.execute(
                "INSERT INTO evidence VALUES (NULL,?,?,?,?,?,?)",
                (change.user_id, change.purpose, change.granted, change.at_ms, change.source, change.text),
            )


def close_user(cursor: sqlite3.Cursor, user: str, now_ms: int, epoch: int, later: frozenset[str] = frozenset()) -> None:
    """Void consent and cancel what is queued but `later` offers: the number may be somebody else's tomorrow (A4)."""
    cursor.execute("DELETE FROM consents WHERE user = ?", (user,))
    fallbacks.drop_of_user(cursor, user)
    queued = cursor.execute("SELECT offer_id, channel FROM outbox JOIN offers USING (offer_id) WHERE user = ?", (user,))
    for key, channel in queued.fetchall():
        if key.hex() not in later:
            _end_unclaimed(cursor, key, channel, DispatchState.FAILED, now_ms, epoch, "user_closed")


def put_pauses(cursor: sqlite3.Cursor, pauses: Sequence[tuple[str, bool]], position: int) -> None:
    for scenario, paused in pauses:
        if paused:
            cursor.execute("INSERT OR IGNORE INTO pauses VALUES (?,?)", (scenario, position))
        else:
            cursor.execute("DELETE FROM pauses WHERE scenario = ?", (scenario,))


def _end_unclaimed(
    cursor: sqlite3.Cursor, key: bytes, channel: str, state: DispatchState, at_ms: int, epoch: int, code: str
) -> None:
    """End the next dispatch of a queued offer before anybody claims it; under its id, so that a claim is too late."""
    seq = len(_dispatches(cursor, key))
    cursor.execute(
        "INSERT INTO dispatches VALUES (?,?,?,?,?,?,1,NULL,?)",
        (key, f"{key.hex()}/{channel}/1", seq, state.value, at_ms, epoch, code),
    )
    cursor.execute("DELETE FROM outbox WHERE offer_id = ?", (key,))


def _has_consent(
    cursor: sqlite3.Cursor, user: str, subject: str, purpose: str, assumed_consent: frozenset[str]
) -> bool:
    """Whoever withdrew it anywhere has withdrawn it: user and subject are both asked (A4)."""
    answers = [
        granted
        for (granted,) in cursor.execute(
            "SELECT granted FROM consents WHERE user IN (?,?) AND purpose = ?", (user, subject, purpose)
        )
    ]
    return all(answers) if answers else purpose in assumed_consent


def _dispatches(cursor: sqlite3.Cursor, key: bytes) -> list[tuple[str, DispatchState, int]]:
    """Every state an offer's dispatches were said to reach, in order: dispatch id, state, whether it changed anything.

    Sequence numbers have no holes, so that their count is the next one.
    """
    rows = cursor.execute("SELECT dispatch_id, state, applied FROM dispatches WHERE offer_id = ? ORDER BY seq", (key,))
    return [(dispatch_id, DispatchState(state), applied) for dispatch_id, state, applied in rows]
