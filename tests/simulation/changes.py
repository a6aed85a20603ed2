"""What changes what the auditor knows of users: profiles, consents, receipts, redemptions, closings, controls."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING, Any

from tests.simulation.ground import Person, is_opt_out

if TYPE_CHECKING:
    from tests.simulation.auditor import Auditor


def apply(auditor: Auditor, event: dict[str, Any]) -> None:
    who, kind, at_ms = auditor.person(event["user"]), event["type"], event["at"]
    if kind == "profile":
        who.take_profile(event)
        _link(auditor, who)
    elif kind == "consent":
        _say(auditor, who, event["purpose"], event["granted"], at_ms)
    elif kind == "inbound-message" and is_opt_out(event["text"]):
        _say(auditor, who, f"marketing.{event['channel']}", False, at_ms)
    elif kind in ("user-closed", "address-changed") and event["id"] not in who.closings:
        who.closings.add(event["id"])
        who.close(auditor.now_ms)
        auditor.closed_log[who.name].append(auditor.now_ms)
        for name, purpose in list(auditor.consent_log):
            if name == who.name:
                auditor.consent_log[name, purpose].append((auditor.now_ms, None))
        auditor.walk.forget(who.name)
        auditor.answers.forget(who.name)
        for key in [key for key in auditor.runs if key[0] == who.name]:
            run = auditor.runs.pop(key)
            auditor.check(run.swallowed == 0, f"a run of {key[1]} to {key[0]} was not closed with the user")
    elif kind == "receipt":
        _hear(auditor, event)
    elif kind == "redemption":
        auditor.redeemed.hear(event)
        auditor.links.hear(event)
        if not event.get("refund"):
            auditor.book.keep(event.get("offer_id"))
            auditor.answers.answered(who.name, event.get("offer_id"), event.get("benefit"), auditor.now_ms)


def _hear(auditor: Auditor, event: dict[str, Any]) -> None:
    user, offer_id, state = event["user"], event["offer_id"], event["state"]
    auditor.told_states.setdefault((offer_id, state), auditor.position)
    if auditor.book.hear(offer_id, state):
        auditor.shelf.release(offer_id)
    if state in ("rejected", "failed", "expired"):
        auditor.answers.answered(user, offer_id, None, auditor.now_ms)
    elif state in ("accepted", "delivered"):
        auditor.answers.received(user, offer_id, auditor.now_ms)


def forget(auditor: Auditor, user: str) -> None:
    """Whoever comes under this id from now on is somebody else (I2)."""
    who = auditor.person(user)
    auditor.book.forget(who.subject)
    auditor.shelf.forget(who.subject)
    for part in (auditor.walk, auditor.answers, auditor.waiting, auditor.redeemed):
        part.forget(user)
    del auditor.people[user]
    auditor.consent_log = defaultdict(list, {key: log for key, log in auditor.consent_log.items() if key[0] != user})
    auditor.runs = {key: run for key, run in auditor.runs.items() if key[0] != user}
    auditor.gone |= {one for one, decision in auditor.decided.items() if decision == user}


def _say(auditor: Auditor, who: Person, purpose: str, granted: bool, at_ms: int) -> None:
    """A yes or no of one number; a no is the person's, on whichever number it was said (A4)."""
    if who.take_consent(purpose, granted, at_ms):
        auditor.consent_log[who.name, purpose].append((auditor.now_ms, granted))
    if not granted and at_ms > who.void_ms:
        _refuse_for(auditor, who.person, purpose, at_ms)


def _link(auditor: Auditor, who: Person) -> None:
    """A number given to a person: their refusals become each other's."""
    for purpose, (granted, at_ms) in list(who.consents.items()):
        if not granted:
            _refuse_for(auditor, who.person, purpose, at_ms)
    for (person, purpose), at_ms in list(auditor.refusals.items()):
        if person == who.person:
            _refuse_for(auditor, person, purpose, at_ms)


def _refuse_for(auditor: Auditor, person: str | None, purpose: str, at_ms: int) -> None:
    if person is None:
        return
    newest = auditor.refusals[person, purpose] = max(at_ms, auditor.refusals.get((person, purpose), at_ms))
    for one in auditor.people.values():
        if one.person == person and one.hear_person(purpose, newest):
            auditor.consent_log[one.name, purpose].append((auditor.now_ms, False))


def control(auditor: Auditor, control: dict[str, Any]) -> None:
    if auditor.shelf.control(control):
        if "recall" in control:
            auditor.recalls[control["recall"]].append(auditor.now_ms)
        return
    name, is_paused = control["pause"], control["paused"]
    auditor.pause_log[name].append((auditor.now_ms, is_paused))
    if is_paused:
        auditor.paused.add(name)
        return
    auditor.paused.discard(name)
    auditor.auto_paused = set() if name == "*" else auditor.auto_paused - {name}
