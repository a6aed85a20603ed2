"""The gates of rule D1, in order: pure questions to one case, compiled once per scenario.

A gate returns the reason of its refusal, or None. Handed a dictionary, it also writes down what it compared: that is
what a decision stores as `values`, and what explain prints. A gate that has nothing to ask of a scenario is not
compiled for it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from engine.decide.audience import compile_expression, compile_findings, expression_text
from engine.decide.compose import Refusal, Sources, compile_text
from engine.decide.ids import claim_token, jitter_ms
from engine.decide.local_time import LocalTime
from engine.decide.profiles import DENIED, DO_NOT_DISTURB, GRANTED, KNOWN, ProfileTable
from engine.definitions import Expression, HasTag, Policy, PresenceTrigger, QuietHours, Scenario
from engine.model import Mode, Reason, Trigger

GATES = (
    "mode",
    "match",
    "validity",
    "audience",
    "consent",
    "suppression",
    "reentry",
    "quiet_hours",
    "compose",
    "arbitration",
    "arm",
    "reservation",
)
"""Every step a candidate passes, in order; the last three look at several candidates of one user at once."""

PRESENCE_DEADLINE_S = 600
OTHER_DEADLINE_S = 86_400
MAX_GAP_S = {"cell": 10_800}
DEFAULT_MAX_GAP_S = 3_600
HOLD_JITTER_MS = 600_000
SUPPRESSED_TAG = "suppressed"
PRESENCE_KINDS = frozenset({"enter", "dwell", "exit"})
NEVER_AN_OFFER = frozenset({"closed", "opened", "gap", "expired", "removed", "returned"})
"""Transition reasons that make no offer by themselves (L8-L10, P7)."""

_NOT_LIVE, _TOO_OLD, _NO_PROFILE = Reason.NOT_LIVE.value, Reason.TOO_OLD.value, Reason.NO_PROFILE.value
_AUDIENCE, _NO_CONSENT, _OPTED_OUT = Reason.AUDIENCE.value, Reason.NO_CONSENT.value, Reason.OPTED_OUT.value
_DND, _SUPPRESSED, _REENTRY = Reason.DND.value, Reason.SUPPRESSED.value, Reason.REENTRY.value
_QUIET, _STALE, _DEADLINE = Reason.QUIET_HOURS.value, Reason.STALE_PRESENCE.value, Reason.DEADLINE.value
_PAUSED = Reason.PAUSED.value


class Case:
    """One candidate on its way through the gates; what a gate finds out for later ones is kept here.

    arrived_ms  `now` when the trigger came; earlier than now_ms for a held candidate
    channels    that consent allows, in order of preference
    release_ms  > 0: held until then
    outcome, reason, values, channel   how it ended; reason alone: refused by `gate`
    """

    __slots__ = (
        "arrived_ms",
        "channel",
        "channels",
        "factors",
        "gate",
        "is_withheld",
        "now_ms",
        "offer_id",
        "outcome",
        "plan",
        "reason",
        "release_ms",
        "score",
        "slot",
        "text",
        "trigger",
        "user_id",
        "values",
    )

    def __init__(self, plan: Any, slot: int, user_id: str, trigger: Trigger, now_ms: int, arrived_ms: int) -> None:
        self.plan = plan
        self.slot = slot
        self.user_id = user_id
        self.trigger = trigger
        self.now_ms = now_ms
        self.arrived_ms = arrived_ms
        self.factors: dict[str, float]
        self.values: dict[str, Any]
        self.channel: str
        self.channels: tuple[str, ...] = plan.channels
        self.release_ms = 0
        self.reason: str | None = None
        self.gate: Gate | None = None
        self.outcome = ""
        self.text: str | None = None
        self.offer_id = ""
        self.score = 0.0
        self.is_withheld = False

    def end(self, outcome: str, reason: str, values: dict[str, Any], channel: str = "") -> None:
        """Note how the case ended."""
        self.outcome = outcome
        self.reason = reason
        self.values = values
        self.channel = channel

    def id(self) -> str:
        """Return the offer id, hashed at the first call."""
        if not self.offer_id:
            self.offer_id = self.plan.make_id(self.user_id, self.trigger.key, self.trigger.at_ms)
        return self.offer_id


Values = dict[str, Any]
Gate = Callable[[Case, Values | None], str | None]


def mode_gate(scenario: Scenario, pauses: frozenset[str]) -> Gate | None:
    """D8: draft and paused scenarios speak to nobody; `pauses` are scenario ids paused by hand or limit, or *."""
    if scenario.mode is Mode.DRAFT:
        answer = _NOT_LIVE
    elif scenario.mode is Mode.PAUSED or scenario.id in pauses or "*" in pauses:
        answer = _PAUSED
    else:
        return None

    def gate(case: Case, values: Values | None) -> str | None:
        if values is not None:
            values["mode"] = scenario.mode.value
            values["paused"] = sorted(pauses & {scenario.id, "*"})
        return answer

    return gate


def validity_gate(scenario: Scenario, policy: Policy, clock: LocalTime) -> Gate:
    """Schedule, age of the trigger at arrival (T6), deadline (D6), and presence too uncertain to act on (P2)."""
    schedule = scenario.schedule
    from_ms = schedule.from_ms
    until_ms = schedule.until_ms
    zone = schedule.time_zone or policy.time_zone
    is_scheduled = from_ms is not None or until_ms is not None
    is_local = len(schedule.weekdays) < 7 or bool(schedule.windows)
    windows = schedule.windows or ((0, 1440),)
    max_age_ms = scenario.max_event_age_ms
    deadline_ms = deadline_of(scenario) * 1000
    is_presence = isinstance(scenario.trigger, PresenceTrigger)

    def is_open(now_ms: int) -> bool:
        minute, weekday = clock.minute_and_weekday(zone, now_ms)
        for start, end in windows:
            if start <= minute < end and weekday in schedule.weekdays:
                return True
            if start > end:  # passes midnight: the window belongs to the day it starts
                if minute >= start and weekday in schedule.weekdays:
                    return True
                if minute < end and (weekday - 1) % 7 in schedule.weekdays:
                    return True
        return False

    def gate(case: Case, values: Values | None) -> str | None:
        now_ms = case.now_ms
        at_ms = case.trigger.at_ms
        if is_scheduled and not ((from_ms is None or now_ms >= from_ms) and (until_ms is None or now_ms < until_ms)):
            if values is not None:
                values |= {"now": now_ms, "from": from_ms, "until": until_ms}
            return _NOT_LIVE
        if is_local and not is_open(now_ms):
            if values is not None:
                minute, weekday = clock.minute_and_weekday(zone, now_ms)
                values |= {"minute": minute, "weekday": weekday, "zone": zone}
                values |= {"weekdays": sorted(schedule.weekdays), "windows": [list(one) for one in schedule.windows]}
            return _NOT_LIVE
        if case.arrived_ms - at_ms > max_age_ms:
            if values is not None:
                values |= {"age_ms": case.arrived_ms - at_ms, "max_event_age_ms": max_age_ms}
            return _TOO_OLD
        if now_ms - at_ms > deadline_ms:
            if values is not None:
                values |= {"now": now_ms, "deadline": at_ms + deadline_ms}
            return _DEADLINE
        if is_presence and is_stale(case.trigger):
            if values is not None:
                keys = ("initial", "gap_s", "reason", "method")
                values |= {key: case.trigger.values[key] for key in keys if key in case.trigger.values}
                values["max_gap_s"] = MAX_GAP_S.get(str(case.trigger.values.get("method")), DEFAULT_MAX_GAP_S)
            return _STALE
        if values is not None:
            values |= {"age_ms": case.arrived_ms - at_ms, "max_event_age_ms": max_age_ms}
            values["deadline"] = at_ms + deadline_ms
        return None

    return gate


def deadline_of(scenario: Scenario) -> int:
    """Return the seconds from the trigger to the last hand-off (D6)."""
    if scenario.offer.deadline_s is not None:
        return scenario.offer.deadline_s
    return PRESENCE_DEADLINE_S if isinstance(scenario.trigger, PresenceTrigger) else OTHER_DEADLINE_S


def is_stale(trigger: Trigger) -> bool:
    """Say whether a transition may lead to dwell only, or to nothing (P2, L8-L10, P7)."""
    values = trigger.values
    if values.get("reason") in NEVER_AN_OFFER and trigger.kind != "dwell":
        return True
    if trigger.kind != "enter":
        return False
    if values.get("initial"):
        return True
    if "wide_gap" in values:  # presence knows the feed, and so the limit
        return bool(values["wide_gap"])
    gap_s = values.get("gap_s")
    return gap_s is not None and gap_s > MAX_GAP_S.get(values.get("method", ""), DEFAULT_MAX_GAP_S)


def audience_gate(scenario: Scenario, profiles: ProfileTable) -> Gate | None:
    """A1, and `send_only_to` (C7). Without an audience nothing need be known of the user."""
    parts: list[Expression] = []
    if scenario.limits.send_only_to:
        parts.append(HasTag(scenario.limits.send_only_to))
    if scenario.audience is not None:
        parts.append(scenario.audience)
    if not parts:
        return None
    tests = tuple(compile_expression(part, profiles) for part in parts)
    findings = tuple(compile_findings(part, profiles) for part in parts)
    wanted = " and ".join(expression_text(part) for part in parts)
    flags = profiles.flags

    def gate(case: Case, values: Values | None) -> str | None:
        slot, now_ms = case.slot, case.now_ms
        if slot >= profiles.count or not flags.view[slot] & KNOWN:
            if values is not None:
                values["wanted"] = wanted
            return _NO_PROFILE
        if values is not None:
            values["wanted"] = wanted
            for finding in findings:
                values |= finding(slot, now_ms)
        for test in tests:
            if not test(slot, now_ms):
                return _AUDIENCE
        return None

    return gate


def reachable_channels(scenario: Scenario, policy: Policy) -> tuple[str, ...]:
    """Return the offer's channels, and after them the one that quiet hours switch to."""
    channels = scenario.offer.channels
    quiet = scenario.quiet_hours or policy.quiet_hours
    extra = quiet.switch_to if quiet_policy(scenario, quiet) == "switch" else None
    return channels if extra is None or extra in channels else (*channels, extra)


def consent_gate(scenario: Scenario, policy: Policy, profiles: ProfileTable) -> Gate:
    """A2: do-not-disturb, then `marketing.<channel>` for each channel in order of preference; service skips consent."""
    channels = reachable_channels(scenario, policy)
    is_service = scenario.offer.offer_class == "service"
    flags = profiles.flags
    purposes = tuple((one, f"marketing.{one}", profiles.purpose_column(f"marketing.{one}")) for one in channels)

    def gate(case: Case, values: Values | None) -> str | None:
        slot = case.slot
        if slot < profiles.count and flags.view[slot] & DO_NOT_DISTURB:
            if values is not None:
                values["dnd"] = True
            return _DND
        if is_service:
            if values is not None:
                values["class"] = "service"
            return None
        allowed = []
        is_denied = False
        for channel, purpose, column in purposes:
            state = column.view[slot] & 3 if slot < profiles.count else 0
            if state == GRANTED or (state != DENIED and purpose in profiles.assumed):
                allowed.append(channel)
            elif state == DENIED:
                is_denied = True
        if values is not None:
            for _, purpose, column in purposes:
                packed = column.view[slot] if slot < profiles.count else 0
                said = packed & 3
                values[purpose] = (
                    "granted"
                    if said == GRANTED
                    else "denied"
                    if said == DENIED
                    else "assumed"
                    if purpose in profiles.assumed
                    else "none"
                )
                if said:
                    values[f"{purpose}.at"] = packed >> 16
        if not allowed:
            return _OPTED_OUT if is_denied else _NO_CONSENT
        case.channels = channels if len(allowed) == len(channels) else tuple(allowed)
        return None

    return gate


def suppression_gate(scenario: Scenario, policy: Policy, profiles: ProfileTable) -> Gate:
    """A user tagged `suppressed`, or `suppressed.<channel>`, gets nothing there: complaints, disputes, staff lists."""
    everywhere = compile_expression(HasTag(SUPPRESSED_TAG), profiles)
    names = {channel: f"{SUPPRESSED_TAG}.{channel}" for channel in reachable_channels(scenario, policy)}
    by_channel = {channel: compile_expression(HasTag(name), profiles) for channel, name in names.items()}
    places = [profiles.tag_place(name) for name in (SUPPRESSED_TAG, *names.values())]
    words = tuple({id(column): column for column, _ in places}.values())
    masks = tuple((word, sum(mask for column, mask in places if column is word)) for word in words)
    dynamic = profiles.dynamic

    def gate(case: Case, values: Values | None) -> str | None:
        slot, now_ms = case.slot, case.now_ms
        if slot >= profiles.count:
            return None
        if values is None and slot not in dynamic:
            for word, mask in masks:
                if word.view[slot] & mask:
                    break
            else:
                return None
        if everywhere(slot, now_ms):
            if values is not None:
                values[SUPPRESSED_TAG] = True
            return _SUPPRESSED
        hit = [channel for channel in case.channels if by_channel[channel](slot, now_ms)]
        if values is not None:
            values |= {names[channel]: True for channel in hit} or {SUPPRESSED_TAG: False}
        if hit:
            case.channels = tuple(channel for channel in case.channels if channel not in hit)
            return None if case.channels else _SUPPRESSED
        return None

    return gate


def reentry_gate(scenario: Scenario, row: int, reserved: dict[int, tuple[int, str]]) -> Gate | None:
    """B5: granted and withheld offers of this scenario count, from the reservation.

    reserved  instant and offer id of the last reservation by slot << 20 | scenario row, for those still remembered; the
              ledger knows all of them and is asked again when reserving
    """
    policy = scenario.reentry.policy
    if policy == "every":
        return None
    cooldown_ms = scenario.reentry.cooldown_ms

    def gate(case: Case, values: Values | None) -> str | None:
        last = reserved.get(case.slot << 20 | row)
        last_ms = last[0] if last is not None else None
        if values is not None:
            values |= {"policy": policy, "last": last_ms}
            if policy == "cooldown":
                values["cooldown_ms"] = cooldown_ms
        if last_ms is None or (policy == "cooldown" and case.now_ms - last_ms >= cooldown_ms):
            return None
        return _REENTRY

    return gate


def quiet_policy(scenario: Scenario, quiet: QuietHours) -> str:
    """Return discard | hold | switch: presence triggers discard where nothing is said, others hold (C5)."""
    return quiet.policy or ("discard" if isinstance(scenario.trigger, PresenceTrigger) else "hold")


def quiet_gate(scenario: Scenario, policy: Policy, profiles: ProfileTable, clock: LocalTime) -> Gate | None:
    """C5: quiet in the profile's zone or in the fence's. A hold that could not end before the deadline is expired."""
    quiet = scenario.quiet_hours or policy.quiet_hours
    start, end = quiet.start_minute, quiet.end_minute
    if scenario.offer.offer_class == "service" or start == end:
        return None
    act = quiet_policy(scenario, quiet)
    channels = scenario.offer.channels
    is_switching = act == "switch" and quiet.switch_to not in channels
    deadline_ms = deadline_of(scenario) * 1000
    default_zone = policy.time_zone
    zones_of_users = profiles.zone

    def gate(case: Case, values: Values | None) -> str | None:
        now_ms = case.now_ms
        zone = (zones_of_users.get(case.slot) if case.slot < profiles.count else None) or default_zone
        fence_zone = case.trigger.time_zone
        is_quiet = clock.is_between(start, end, zone, now_ms)
        if not is_quiet and fence_zone is not None and fence_zone != zone:
            is_quiet = clock.is_between(start, end, clock.known(fence_zone), now_ms)
        if values is not None:
            values |= {"from_minute": start, "to_minute": end, "zone": zone, "quiet": is_quiet}
            values["minute"] = clock.minute_and_weekday(zone, now_ms)[0]
            if fence_zone is not None:
                values["fence_zone"] = fence_zone
        if not is_quiet:
            if is_switching:
                case.channels = tuple(one for one in case.channels if one in channels)
                return None if case.channels else _NO_CONSENT
            return None
        if values is not None:
            values["policy"] = act
        if act == "switch":
            if quiet.switch_to not in case.channels:
                return _QUIET
            case.channels = (quiet.switch_to,)
            return None
        if act == "discard":
            return _QUIET
        zones = (zone,) if fence_zone is None else (zone, clock.known(fence_zone))
        ends_ms = clock.end_of_quiet(start, end, zones, now_ms)
        last_ms = case.trigger.at_ms + deadline_ms
        if values is not None:
            values |= {"ends": ends_ms, "deadline": last_ms}
        if ends_ms > last_ms:
            return _DEADLINE
        case.release_ms = ends_ms + jitter_ms(case.id(), min(HOLD_JITTER_MS, last_ms - ends_ms))
        if values is not None:
            values["release"] = case.release_ms
        return _QUIET

    return gate


def compose_gate(
    scenario: Scenario, policy: Policy, profiles: ProfileTable, fence_names: dict[str, str], is_fixed: bool
) -> Gate | None:
    """O1: an offer whose text cannot be written is refused before it competes."""
    if is_fixed:
        return None
    offer = scenario.offer
    fill = compile_text(offer)
    domain = policy.claim_domains[0] if policy.claim_domains else None
    needs_link = any(one.source == "claim_url" for one in offer.placeholders)

    def gate(case: Case, values: Values | None) -> str | None:
        slot = case.slot
        written = fill(
            Sources(
                attribute=lambda name: profiles.attribute(slot, name) if slot < profiles.count else None,
                fence_name=fence_names.get(case.trigger.fence or ""),
                benefit_name=offer.benefit,
                claim_url=f"https://{domain}/{claim_token(case.id())}" if needs_link and domain else None,
            )
        )
        if isinstance(written, Refusal):
            if values is not None:
                values |= written.detail
            return written.reason.value
        case.text = written
        return None

    return gate
