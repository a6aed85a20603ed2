"""The auditor's second half: what reached the gateway, and whether dying changed anything (D6-D8, A3, A4, G1, T3)."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from typing import TYPE_CHECKING

from tests.simulation.story import COMPARED, Message, Told

if TYPE_CHECKING:
    from tests.simulation.auditor import Auditor

SOON_MS = 1000
"""An opt-out and a pause bind within a second."""
SLOW_MS = 240_000


def check_replays(auditor: Auditor) -> None:
    """Whatever was processed live, replayed or cut otherwise says the same as the undisturbed run (T3, T4)."""
    positions = [record.position for record in auditor.story.records]
    reached = -1
    for first, last, told in auditor.story.blocks:
        low, high = bisect_left(positions, first), bisect_left(positions, last) + 1
        same = Told()
        for one in auditor.told[low:high]:
            same.add(one)
        auditor._where = f"block of records {low} to {high - 1}"
        auditor.check(low < len(positions) and positions[low] == first, "begins where no record was acknowledged")
        for name in COMPARED:
            if name == "drops" and not told.events and not same.events:
                continue
            if getattr(told, name) != getattr(same, name):
                auditor.say(f"{name} differ from an undisturbed replay: {_difference(told, same, name)}")
        reached = max(reached, high)
    auditor._where = "at the end"
    auditor.check(reached == len(positions), "acknowledged records were never processed")
    auditor.check(auditor.story.committed == sorted(auditor.story.committed), "the ledger went back")
    decided = {
        line[line.index(b'"decision_id":"') + 15 :][:32].decode() for one in auditor.told for line in one.decisions
    }
    auditor.check(
        len(decided - auditor.gone) == auditor.story.stored_decisions, "the ledger does not hold what was decided"
    )


def _difference(told: Told, same: Told, name: str) -> str:
    ours, theirs = getattr(told, name), getattr(same, name)
    if not isinstance(ours, list):
        return f"{ours} and {theirs}"
    for one, other in zip(ours, theirs, strict=False):
        if one != other:
            return f"{one!r} and {other!r}"
    return f"{len(ours)} and {len(theirs)} of them"


def check_deliveries(auditor: Auditor) -> None:
    """Every message must be one that was offered, may go out, and goes out once."""
    sent = Counter(message.offer_id for message in auditor.story.messages)
    for offer_id, times in sent.items():
        auditor.check(times == 1, f"offer {offer_id} was handed over {times} times")
    claimed = Counter(offer_id for _, offer_id, answer in auditor.story.claims if answer == "claimed")
    for offer_id, times in claimed.items():
        auditor.check(times == 1, f"offer {offer_id} was claimed {times} times")
    for message in auditor.story.messages:
        auditor._where = f"message {message.offer_id}"
        _check_message(auditor, message)
    auditor._where = "at the end"
    _check_codes(auditor)
    left = set(auditor.story.left_in_outbox)
    for offer_id in auditor.granted_ids.keys() - auditor.gone:
        ending = auditor.story.endings.get(offer_id, [])
        auditor.check(bool(ending) or offer_id in left, f"offer {offer_id} was lost")
        _check_ending(auditor, offer_id, sent[offer_id])
    offered = {one[0] for told in auditor.told for one in told.offers}
    auditor.check(offered == set(auditor.granted_ids), "offers and the decisions that grant them differ")


def _check_message(auditor: Auditor, message: Message) -> None:
    decision = auditor.granted_ids.get(message.offer_id)
    if decision is None:
        auditor.say("handed over, never granted" + (" (shadow)" if message.offer_id in auditor.shadow_ids else ""))
        return
    plan = next(city.by_id[message.scenario] for city in auditor.cities.values() if message.scenario in city.by_id)
    auditor.check(decision["user"] == message.user and decision["scenario"] == message.scenario, "to somebody else")
    auditor.check("{" not in message.text, "with a placeholder left in it")
    auditor.check(message.at_ms >= decision["at"], "before it was decided")
    auditor.check(message.at_ms < decision["trigger"]["at"] + plan.deadline_ms, "after its deadline")
    for name in (plan.id, "*"):
        auditor.check(not _held_for_a_second(auditor.pause_log[name], message.at_ms, True), f"while {name} was paused")
    if not plan.service:
        assumed = f"marketing.{message.channel}" in auditor.city.assumed
        log = auditor.consent_log[message.user, f"marketing.{message.channel}"]
        wanting = (False,) if assumed else (False, None)
        auditor.check(not _held_for_a_second(log, message.at_ms, *wanting), "without consent")
    for closed_ms in auditor.closed_log[message.user]:
        is_after = decision["at"] <= closed_ms < message.at_ms - SOON_MS
        auditor.check(not is_after, "to a user who was closed meanwhile")


def _check_codes(auditor: Auditor) -> None:
    """A code reaches a second user only when the first message with it definitely failed; early receipts are told."""
    by_code: dict[str, list[Message]] = {}
    for message in auditor.story.messages:
        is_meant = (message.code is not None) == ("\ue000" in auditor.texts.get(message.offer_id, ""))
        auditor.check(is_meant and "\ue000" not in message.text, f"message {message.offer_id} has code {message.code}")
        if message.code is not None:
            by_code.setdefault(message.code, []).append(message)
    for code, messages in by_code.items():
        for message in messages[:-1]:
            grant = auditor.book.by_id.get(message.offer_id)
            given_back = grant is not None and grant.is_released
            auditor.check(given_back, f"code {code} went out again though {message.offer_id} holds it")
        for message in messages:
            decided_ms = auditor.granted_ids[message.offer_id]["at"] if message.offer_id in auditor.granted_ids else 0
            for recalled_ms in auditor.recalls.get(code.split("-")[0].lower(), ()):
                # The engine may be behind by so much.
                is_expired = decided_ms < recalled_ms < message.at_ms - 2 * SLOW_MS
                auditor.check(not is_expired, f"code {code} went out after it was recalled")
    for offer_id in auditor.story.early:
        is_told = (offer_id, "delivered") in auditor.told_states
        auditor.check(is_told, f"the receipt of {offer_id}, which came too early, was lost")


def _held_for_a_second(log: list[tuple[int, bool | None]], at_ms: int, *values: bool | None) -> bool:
    """Whether the state was one of `values` throughout the second before an instant; None before the first entry."""
    state: bool | None = None
    for since_ms, one in log:
        if since_ms > at_ms:
            break
        if since_ms > at_ms - SOON_MS and state not in values:
            return False
        state = one
    return state in values


def _check_ending(auditor: Auditor, offer_id: str, messages: int) -> None:
    """A dispatch that never reached the gateway must say so, and one that did must not be called unsent by us."""
    states = [one["state"] for one in auditor.story.endings.get(offer_id, []) if one["applied"]]
    if not states:
        return
    if messages:
        auditor.check(states[0] == "submitting", f"offer {offer_id} went out without a claim")
    else:
        unsent = {"rejected", "failed", "expired", "unknown"}
        auditor.check(states[-1] in unsent, f"offer {offer_id} is {states[-1]} and never went out")
