"""The gates that ask what time it is: validity and quiet hours (rules C5, D6, P2, T6)."""

from __future__ import annotations

from engine.decide.case import Case, Gate, Values
from engine.decide.columns import MISSING
from engine.decide.ids import jitter_ms
from engine.decide.local_time import MINUTE_MS, LocalTime
from engine.decide.profiles import ProfileTable
from engine.definitions import Policy, PresenceTrigger, QuietHours, Scenario
from engine.model import Reason, Trigger

PRESENCE_DEADLINE_S = 600
OTHER_DEADLINE_S = 86_400
MAX_GAP_S = {"cell": 10_800}
DEFAULT_MAX_GAP_S = 3_600
HOLD_JITTER_MS = 600_000
NEVER_AN_OFFER = frozenset({"closed", "opened", "gap", "expired", "removed", "returned"})
"""Transition reasons that make no offer by themselves (L8-L10, P7)."""

_NOT_LIVE, _TOO_OLD, _NO_CONSENT = Reason.NOT_LIVE.value, Reason.TOO_OLD.value, Reason.NO_CONSENT.value
_QUIET, _STALE, _DEADLINE = Reason.QUIET_HOURS.value, Reason.STALE_PRESENCE.value, Reason.DEADLINE.value


def validity_gate(scenario: Scenario, policy: Policy, clock: LocalTime) -> Gate:
    """Schedule, age of the trigger at arrival (T6), deadline (D6), and presence too uncertain to act on (P2)."""
    schedule = scenario.schedule
    terms = scenario.offer.terms  # a benefit is not offered before it can be used, nor once it has expired
    from_ms = max(
        (one for one in (schedule.from_ms, *(x.valid_from_ms for x in terms)) if one is not None), default=None
    )
    until_ms = min(
        (one for one in (schedule.until_ms, *(x.valid_until_ms for x in terms)) if one is not None), default=None
    )
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
    values, kind = trigger.values, trigger.kind
    if kind != "dwell" and "reason" in values and values["reason"] in NEVER_AN_OFFER:
        return True
    if kind != "enter":
        return False
    if values.get("initial"):
        return True
    if "wide_gap" in values:  # presence knows the feed, and so the limit
        return bool(values["wide_gap"])
    gap_s = values.get("gap_s")
    return gap_s is not None and gap_s > MAX_GAP_S.get(values.get("method", ""), DEFAULT_MAX_GAP_S)


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
    loud_minute = -1  # the minute last found not to be quiet in the deployment's zone

    def gate(case: Case, values: Values | None) -> str | None:
        nonlocal loud_minute
        now_ms = case.now_ms
        if values is None and now_ms // MINUTE_MS == loud_minute and case.trigger.time_zone is None:
            slot = case.slot
            if not is_switching and (slot >= profiles.count or zones_of_users.view[slot] == MISSING):
                return None
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
            if zone == default_zone:
                loud_minute = now_ms // MINUTE_MS
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


def reachable_channels(scenario: Scenario, policy: Policy) -> tuple[str, ...]:
    """Return the offer's channels, and after them the one that quiet hours switch to."""
    channels = scenario.offer.channels
    quiet = scenario.quiet_hours or policy.quiet_hours
    extra = quiet.switch_to if quiet_policy(scenario, quiet) == "switch" else None
    return channels if extra is None or extra in channels else (*channels, extra)
