"""What records say beside pings and usage: facts about users, and what ops ask of the running engine.

Each is applied at its place in the log, between two batches.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Any

import orjson

from engine.changes import Change
from engine.decide.profiles import PERSON_SOURCE
from engine.decode.events import (
    AddressChanged,
    Consent,
    InboundMessage,
    Profile,
    Receipt,
    Redemption,
    UserClosed,
)
from engine.effects import ConsentChange, Effects, Redeemed
from engine.model import Block, Drop
from engine.pipeline.stages import Stages
from engine.settings import FeedTable

_DEFINITE_FAILURES = frozenset({"rejected", "failed", "expired"})
_RECEIVED = frozenset({"accepted", "delivered"})


def apply_fact(stages: Stages, slot: int, read: Any, at_ms: int, position: int, effects: Effects) -> None:
    """Apply a profile, consent, receipt, ... and what it means for other users who are the same person.

    slot  of the user;  read  the event, one of `engine.decode.events`, observed at `at_ms`;  position  of its record
    """
    user_id, said_before = read.user, len(effects.consents)
    old = _consents_before(stages, slot, read)
    match read:
        case Profile():
            stages.profiles.apply_profile(slot, read, stages.now_ms)
        case Consent():
            if stages.profiles.apply_consent(slot, read):
                effects.consents.append(
                    ConsentChange(user_id, read.purpose, read.granted, at_ms, read.source or "consent")
                )
        case InboundMessage():
            purpose = stages.profiles.apply_inbound(slot, read)
            if purpose is not None:
                said = ConsentChange(user_id, purpose, False, at_ms, "inbound-message", read.text)
                effects.consents.append(said)
        case UserClosed() | AddressChanged() if stages.profiles.was_closed_since(slot, at_ms):
            # Delivered again: the user who has the slot by now is another one (T7).
            effects.drops[Drop.DUPLICATE] += 1
        case UserClosed() | AddressChanged():
            stages.note(stages.decider.close(slot, stages.now_ms), effects)
            stages.presence.reset_user(slot)
            stages.behavior.close_user(slot)
            effects.closed_users.append(user_id)
            told = "user-closed" if isinstance(read, UserClosed) else "address-changed"
            void = ConsentChange(user_id, "*", None, at_ms, told)
            effects.changes.append(_consent_change(stages, position, void, None))
            effects.closed_at.append((len(effects.consents), len(effects.offers)))
        case Receipt():
            effects.receipts.append(read)
            offer_id = read.offer_id or (read.dispatch_id or "").partition("/")[0]
            if read.state in _DEFINITE_FAILURES and read.definite and offer_id:
                stages.ledger.release(offer_id)
                stages.decider.released(slot, offer_id)
                stages.decider.responses.answered(slot, offer_id, None, stages.now_ms)
            elif read.state == "delivered" and offer_id:
                _arrived(stages, slot, offer_id)
            if read.state in _RECEIVED and offer_id:
                stages.decider.responses.received(slot, offer_id, stages.now_ms)
        case Redemption():
            effects.redemptions.append(_redeemed(stages.feeds, read))
            if not read.refund:
                if read.offer_id:
                    _arrived(stages, slot, read.offer_id)
                stages.decider.responses.answered(slot, read.offer_id, read.benefit, stages.now_ms)
    for bound in stages.profiles.take_bound():
        change = ConsentChange(stages.users.id_of(bound.slot), bound.purpose, False, bound.at_ms, PERSON_SOURCE)
        effects.consents.append(change)
    for said in effects.consents[said_before:]:
        before = old.get(said.purpose) if said.user_id == user_id else None
        effects.changes.append(_consent_change(stages, position, said, before))


def _arrived(stages: Stages, slot: int, offer_id: str) -> None:
    """Let an offer keep what it took, whatever fails afterwards: it was delivered, or somebody has used it (G1, O3)."""
    stages.ledger.delivered(offer_id)
    stages.decider.arrived(slot, offer_id)


def apply_control(stages: Stages, block: Block, record: int, effects: Effects) -> None:
    """Apply what ops ask in a control record: pause a scenario, or move codes between codes.db and the engine."""
    control = orjson.loads(bytes(block.data[int(block.start[record]) : int(block.end[record])]))
    match control:
        case {"pause": scenario, "paused": paused}:
            is_paused = scenario in stages.decider.pauses
            stages.decider.pause(scenario, paused)
            effects.pauses.append((scenario, paused))
            who, position = str(control.get("by", "unknown")), int(block.position[record])
            effects.changes.append(Change(position, stages.now_ms, who, "pause", scenario, is_paused, paused))
            return
        case {"lease": pool, "first": first, "count": count, "epoch": epoch}:
            stages.ledger.lease_codes(pool, first, count, epoch)
        case {"recall": pool, "epoch": epoch}:
            stages.ledger.recall_codes(pool, epoch)
        case {"spent": pool, "spans": spans}:
            stages.ledger.spend_codes(pool, spans)
        case {"returned": pool, "spans": spans}:
            stages.ledger.accept_return(pool, spans)
    effects.code_records += 1


def _consents_before(stages: Stages, slot: int, read: Any) -> dict[str, bool]:
    """Return what a user had said of the purpose that this event may change."""
    if not isinstance(read, Consent | InboundMessage):
        return {}
    purpose = read.purpose if isinstance(read, Consent) else f"marketing.{read.channel}"
    evidence = stages.profiles.evidence(slot, purpose) if slot < stages.profiles.count else None
    return {} if evidence is None else {purpose: evidence.granted}


def _consent_change(stages: Stages, position: int, said: ConsentChange, before: bool | None) -> Change:
    given = (said.source, "consent", said.user_id, before, said.granted, said.purpose, said.at_ms)
    return Change(position, stages.now_ms, *given)


def _redeemed(feeds: FeedTable, read: Redemption) -> Redeemed:
    identity: tuple[Any, ...] = (read.id,)
    if read.id is None:
        identity = (None, read.user, read.at_ms, read.offer_id, read.benefit, read.amount_fen)
    if read.refund:
        identity = (*identity, "refund")
    key = blake2b(orjson.dumps([feeds.names[read.feed], *identity]), digest_size=16).digest()
    return Redeemed(key, read.user, read.at_ms, read.offer_id, read.benefit, read.amount_fen, read.refund)
