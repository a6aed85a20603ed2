"""Whether a candidate might have been offered at all: the gates, asked by the auditor itself (A1-A3, C5, D3, D6)."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from typing import Any

from tests.simulation.ground import Person
from tests.simulation.limits import QUARTER_MS, local
from tests.simulation.plan import City, Plan

GOOD_NAMES = {"小王", "阿明"}
MINUTE_MS = 60_000


@dataclass(frozen=True)
class Trigger:
    """What started a candidate."""

    kind: str
    key: str
    at_ms: int
    fence: str | None
    is_stale: bool = False
    is_silent: bool = False


def objections(
    city: City,
    plan: Plan,
    who: Person,
    trigger: Trigger,
    at_ms: int,
    arrived_ms: int,
    channels: tuple[str, ...],
    offer_id: str,
) -> set[str]:
    """Every reason for which a gate must refuse this candidate on all of `channels`."""
    found: set[str] = set()
    if plan.mode == "draft" or not _is_scheduled(city, plan, at_ms):
        found.add("not_live")
    if arrived_ms - trigger.at_ms > plan.max_age_ms:
        found.add("too_old")
    if at_ms - trigger.at_ms > plan.deadline_ms:
        found.add("deadline")
    if trigger.is_stale:
        found.add("stale_presence")
    if trigger.is_silent:
        found.add("feed_silent")
    if (plan.audience is not None or plan.send_only_to) and not who.is_known:
        found.add("no_profile")
    elif (plan.send_only_to and not who.bears(plan.send_only_to, at_ms)) or (
        plan.audience is not None and not _is_in(plan.audience, who, at_ms)
    ):
        found.add("audience")
    if plan.lottery is not None and not has_won(plan, offer_id):
        found.add("not_drawn")
    if plan.is_tag:
        return found
    if who.is_dnd:
        found.add("dnd")
    if not plan.service:
        said = [who.says(f"marketing.{one}", city.assumed) for one in channels]
        if not any(said):
            found.add("opted_out" if False in said else "no_consent")
    allowed = [one for one in channels if plan.service or who.says(f"marketing.{one}", city.assumed)]
    left = [one for one in allowed if f"suppressed.{one}" not in who.tags]
    if "suppressed" in who.tags or (allowed and not left):
        found.add("suppressed")
    quiet = is_quiet(city, plan, who, trigger, at_ms)
    if plan.switch_to is not None:
        if quiet and plan.switch_to not in left:
            found.add("quiet_hours")
        if not quiet and left and not set(left) & set(plan.channels):
            found.add("no_consent")
    elif quiet:
        found.add("quiet_hours")
        if plan.may_hold and quiet_ends(city, plan, who, trigger, at_ms) > trigger.at_ms + plan.deadline_ms:
            found.add("deadline")
    for name in plan.needs:
        value = who.attributes.get(name)
        if value in (None, ""):
            found.add("missing_value")
        elif value not in GOOD_NAMES:
            found.add("bad_value")
    return found


def _is_scheduled(city: City, plan: Plan, at_ms: int) -> bool:
    if not plan.windows and len(plan.weekdays) == 7:
        return True
    here = local(city.home_zone, at_ms)
    minute = here.hour * 60 + here.minute
    in_window = not plan.windows or any(start <= minute < end for start, end in plan.windows)
    return in_window and here.weekday() in plan.weekdays


def has_won(plan: Plan, offer_id: str) -> bool:
    """The draw, which is the same in every replay: a ticket of so many, by a salted hash of the offer id."""
    assert plan.lottery is not None
    one_in, salt = plan.lottery
    drawn = blake2b(f"lottery\0{salt}\0{plan.id}\0{offer_id}".encode(), digest_size=8).digest()
    return int.from_bytes(drawn, "big") * one_in < 2**64


def _is_in(told: tuple[Any, ...], who: Person, at_ms: int) -> bool:
    word = told[0]
    if word == "tag":
        return who.bears(told[1], at_ms)
    if word == "organisation":
        path = who.organisation or ""
        return path == told[1] or path.startswith(told[1] + "/")
    if word == "attribute":
        _, name, op, wanted = told
        held = who.attributes.get(name)
        if not isinstance(held, int | float):
            return False
        return held >= wanted if op == ">=" else held < wanted
    answers = [_is_in(part, who, at_ms) for part in told[1]]
    return {"all": all(answers), "any": any(answers), "none": not any(answers)}[word]


def zones(city: City, who: Person, trigger: Trigger) -> set[str]:
    """Where it must not be quiet: with the user and at the fence."""
    place = next((one for one in city.places if one.id == trigger.fence), None)
    here = {who.zone or city.home_zone}
    return here | {place.time_zone} if place is not None and place.time_zone else here


def is_quiet(city: City, plan: Plan, who: Person, trigger: Trigger, at_ms: int) -> bool:
    window = _quiet_window(city, plan)
    return any(_is_within(window, zone, at_ms // QUARTER_MS * 15) for zone in zones(city, who, trigger))


def quiet_ends(city: City, plan: Plan, who: Person, trigger: Trigger, at_ms: int) -> int:
    """The first minute that is quiet nowhere; all windows here end, and all zones differ, by quarters of an hour."""
    ends_ms = _loud_quarter(_quiet_window(city, plan), frozenset(zones(city, who, trigger)), at_ms // QUARTER_MS)
    return max(at_ms, ends_ms * QUARTER_MS)


@lru_cache(maxsize=1 << 14)
def _loud_quarter(window: tuple[int, int], here: frozenset[str], quarter: int) -> int:
    while any(_is_within(window, zone, quarter * 15) for zone in here):
        quarter += 1
    return quarter


def _quiet_window(city: City, plan: Plan) -> tuple[int, int]:
    """Minutes of the local day, half open; empty where it is never quiet."""
    if plan.is_free:
        return 0, 0
    return plan.quiet[:2] if plan.quiet else city.quiet


@lru_cache(maxsize=1 << 17)
def _is_within(window: tuple[int, int], zone: str, epoch_minute: int) -> bool:
    start, end = window
    here = local(zone, epoch_minute * MINUTE_MS)
    minute = here.hour * 60 + here.minute
    return start <= minute < end if start <= end else (minute >= start or minute < end)


def is_held_out(city: City, plan: Plan, user: str) -> bool:
    """D3: the universal arm, of which service is no part, and the scenario's."""
    universal = 0.0 if plan.is_free else city.universal_holdout
    return _is_in_arm(city.salt, "universal", universal, user) or _is_in_arm(
        city.salt, f"scenario/{plan.id}", plan.holdout, user
    )


def _is_in_arm(salt: str, arm: str, percent: float, user: str) -> bool:
    hashed = blake2b(f"{salt}\0{arm}\0{user}".encode(), digest_size=8).digest()
    return int.from_bytes(hashed, "big") < percent / 100 * 2**64
