"""Claim links: what each scan must be answered, and that each redemption is in the log once (MISSION, O1, O3)."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from tests.simulation.campaigns import CLAIM_DOMAIN
from tests.simulation.plan import DAY_MS, KEY, Plan
from tests.simulation.story import Message, Scan

if TYPE_CHECKING:
    from tests.simulation.auditor import Auditor

MINUTE_MS = 60_000
LONGEST_MS = 29 * DAY_MS
IDENTITY = "claim:"
FINAL = ("delivered", "rejected", "failed", "expired")


@dataclass
class Sent:
    """A link that went out."""

    message: Message
    benefit: str
    until_ms: int
    first: Scan | None = None  # who redeemed it


class Links:
    """Hears what the log says of links; at the end judges every scan."""

    def __init__(self) -> None:
        self._told: dict[str, list[dict[str, Any]]] = {}

    def hear(self, event: dict[str, Any]) -> None:
        """A redemption in the log."""
        if event.get("id", "").startswith(IDENTITY):
            self._told.setdefault(event["id"].removeprefix(IDENTITY), []).append(event)

    def check(self, auditor: Auditor) -> None:
        sent = _sent(auditor)
        forgotten = {user: position for position, user in auditor.story.forgotten}
        for number, scan in enumerate(auditor.story.scans):
            auditor._where = f"scan {number} at {scan.at_ms}"
            link = sent.get(scan.token)
            is_gone = link is not None and scan.position >= forgotten.get(link.message.user, 1 << 62)
            expected = (404, "unknown_offer") if is_gone else _expected(auditor, link, scan)
            found = (scan.status, scan.answer.get("error") or scan.answer.get("state", ""))
            if scan.status:
                auditor.check(found == expected, f"answered {found}, not {expected}")
            if link is None or expected[0] != 200:
                continue
            if not scan.is_look and link.first is None:
                link.first = scan
            if found == expected:
                _check_answer(auditor, link, scan)
        auditor._where = "at the end"
        redeemed = {one.message.offer_id: one for one in sent.values() if one.first is not None}
        for offer_id in self._told.keys() - redeemed.keys():
            auditor.say(f"offer {offer_id} is told as redeemed by its link, which nobody did")
        for offer_id, link in redeemed.items():
            self._check_told(auditor, offer_id, link)

    def _check_told(self, auditor: Auditor, offer_id: str, link: Sent) -> None:
        """However often it is told, it is told alike; its id makes that count once (`redeemed`)."""
        told = self._told.get(offer_id, [])
        auditor.check(bool(told), f"offer {offer_id} was redeemed by its link, and the log does not say so")
        assert link.first is not None
        for event in told:
            facts = (event["user"], event["at"], event["offer_id"], event["benefit"], event.get("amount_fen"))
            wanted = (link.message.user, link.first.at_ms, offer_id, link.benefit, link.first.amount_fen)
            auditor.check(facts == wanted, f"redeemed as {wanted}, told as {facts}")


def _sent(auditor: Auditor) -> dict[str, Sent]:
    """Every link that went out, by its token; a link is a function of the offer and of when the benefit ends."""
    sent = {}
    for message in auditor.story.messages:
        auditor._where = f"message {message.offer_id}"
        decision = auditor.granted_ids.get(message.offer_id)
        if decision is None:
            continue  # said elsewhere
        plan = auditor.cities[decision["content_version"]].by_id[message.scenario]
        if "{claim_url}" not in plan.text:
            auditor.check("https:" not in message.text, "with a link that nobody asked for")
            continue
        until_ms = _until(auditor, plan, decision)
        token = token_of(message.offer_id, until_ms)
        auditor.check(message.text.count(f"https://{CLAIM_DOMAIN}/{token}") == 1, "without its link, or with another")
        start_ms = int(message.offer_id[:12], 16)
        sent[token] = Sent(message, plan.benefit, start_ms + (until_ms - start_ms) // MINUTE_MS * MINUTE_MS)
    return sent


def _until(auditor: Auditor, plan: Plan, decision: dict[str, Any]) -> int:
    """A link ends with its benefit, and after 29 days."""
    latest_ms = int(decision["decision_id"][:12], 16) + LONGEST_MS
    valid_ms = [one.valid_for_ms for one in auditor.city.terms_of(plan)[:1]]
    return latest_ms if valid_ms in ([], [None]) else min(latest_ms, decision["at"] + (valid_ms[0] or 0))


def token_of(offer_id: str, until_ms: int) -> str:
    """16 bytes of offer id, 3 of minutes since its trigger, 8 of a keyed hash over both."""
    body = bytes.fromhex(offer_id) + ((until_ms - int(offer_id[:12], 16)) // MINUTE_MS).to_bytes(3, "big")
    key = blake2b(key=KEY, digest_size=32, person=b"opportune claim").digest()
    return urlsafe_b64encode(body + blake2b(body, key=key, digest_size=8).digest()).decode()


def _expected(auditor: Auditor, link: Sent | None, scan: Scan) -> tuple[int, str]:
    """Status, and the state or the error."""
    if link is None:
        return 401, "bad_token"
    told = ((state, auditor.told_states.get((link.message.offer_id, state), 1 << 62)) for state in FINAL)
    states = {state for state, position in told if position < scan.position}
    is_withdrawn = bool(states & {"rejected", "failed", "expired"}) and "delivered" not in states
    is_over = scan.at_ms >= link.until_ms
    if scan.is_look:
        open_state = "not_sent" if is_withdrawn else "expired" if is_over else "open"
        return 200, open_state if link.first is None else "redeemed"
    is_same_till = link.first is not None and scan.till is not None and scan.till == link.first.till
    if is_over and not is_same_till:
        return 410, "expired"
    if link.first is None:
        return (410, "withdrawn") if is_withdrawn else (200, "redeemed")
    if not is_same_till:
        return 409, "already_redeemed"
    return (200, "redeemed") if scan.amount_fen == link.first.amount_fen else (422, "another_request")


def _check_answer(auditor: Auditor, link: Sent, scan: Scan) -> None:
    """What somebody gets to see: the facts of the offer, and the code only with the redemption."""
    answer = scan.answer
    auditor.check(answer["offer_id"] == link.message.offer_id, "about another offer")
    auditor.check(answer["benefit"] == link.benefit and answer["until_ms"] == link.until_ms, "about another benefit")
    redeemed_ms = link.first.at_ms if link.first is not None else None
    auditor.check(answer["redeemed_at_ms"] == redeemed_ms, f"redeemed at {answer['redeemed_at_ms']}")
    code = None if scan.is_look else link.message.code
    auditor.check(answer.get("code") == code, "with a code that is not this message's")
