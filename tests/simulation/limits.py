"""Caps, gaps, re-entry and limits recounted by the auditor from what was granted (rules B5, C1-C3, C7)."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from zoneinfo import ZoneInfo

from tests.simulation.plan import City, Limit, Plan

QUARTER_MS = 900_000


@dataclass
class Grant:
    """An offer made or withheld; `user` is the number in its present life."""

    offer_id: str
    subject: str
    user: str
    at_ms: int
    plan: Plan
    channel: str
    is_withheld: bool
    is_final: bool = False
    is_released: bool = False

    @property
    def counts(self) -> bool:
        return self.plan.counts and not self.plan.is_free


class Book:
    """Every grant, by subject and by scenario."""

    def __init__(self) -> None:
        self.by_id: dict[str, Grant] = {}
        self.by_subject: dict[str, list[Grant]] = {}
        self.by_scenario: dict[str, list[Grant]] = {}

    def add(self, grant: Grant) -> None:
        self.by_id[grant.offer_id] = grant
        self.by_subject.setdefault(grant.subject, []).append(grant)
        self.by_scenario.setdefault(grant.plan.id, []).append(grant)

    def hear(self, offer_id: str, state: str) -> bool:
        """A receipt: the first final state counts, and a definite failure gives back (C2, G1); say whether it does."""
        grant = self.by_id.get(offer_id)
        if grant is None or grant.is_final or state not in ("delivered", "rejected", "failed", "expired"):
            return False
        grant.is_final = True
        grant.is_released = state != "delivered"
        return grant.is_released

    def keep(self, offer_id: str | None) -> None:
        """Somebody used it: whatever is reported from now on, it was there to be used (O3)."""
        grant = self.by_id.get(offer_id or "")
        if grant is not None:
            grant.is_final = True

    def forget(self, subject: str) -> None:
        """Nothing is known of what a subject was granted (I2)."""
        for grant in self.by_subject.pop(subject, []):
            del self.by_id[grant.offer_id]
            self.by_scenario[grant.plan.id].remove(grant)

    def bars(self, plan: Plan, user: str, at_ms: int) -> bool:
        """Whether the gate of re-entry stands against it: it knows the last of this number, the ledger the person's."""
        same = [one for one in self.by_scenario.get(plan.id, ()) if one.user == user]
        if not same or not _holds(same[-1]):
            return False
        return plan.once or at_ms - same[-1].at_ms < plan.cooldown_ms

    def objections(
        self, city: City, plan: Plan, subject: str, zone: str, at_ms: int, channel: str, is_withheld: bool
    ) -> set[str]:
        """Every reason for which the ledger must refuse."""
        found: set[str] = set()
        for window, most in (("hour", plan.hourly), ("day", plan.daily)):
            if most is not None:
                since = window_start(window, city.home_zone, at_ms)
                sent = [one for one in self.by_scenario.get(plan.id, ()) if not one.is_withheld and _holds(one)]
                if sum(one.at_ms >= since for one in sent) >= most:
                    found.add("paused")
        mine = [one for one in self.by_subject.get(subject, ()) if _holds(one)]
        same = [one.at_ms for one in mine if one.plan.id == plan.id]
        if (plan.once and same) or any(at_ms - other < plan.cooldown_ms for other in same):
            found.add("reentry")
        if plan.is_free or plan.bypass:
            return found
        counted = [one for one in mine if one.counts and (is_withheld or not one.is_withheld)]
        for limit in city.limits + plan.limits:
            if sum(_is_within(limit, one, plan, channel, zone, at_ms) for one in counted) >= limit.most:
                found.add(f"cap:{limit.scope}")
        gap_ms = max(plan.min_gap_ms, city.min_gap_ms)
        if any(at_ms - one.at_ms < gap_ms for one in counted):
            found.add("min_gap")
        return found


def _holds(grant: Grant) -> bool:
    return not grant.is_released


def _is_within(limit: Limit, grant: Grant, plan: Plan, channel: str, zone: str, at_ms: int) -> bool:
    in_scope = {
        "all": True,
        "channel": grant.channel == channel,
        "scenario": grant.plan.id == plan.id,
        "category": grant.plan.category == plan.category,
        "partner": grant.plan.partner == plan.partner,
    }[limit.scope]
    if not in_scope:
        return False
    if limit.window == "rolling":
        return at_ms - grant.at_ms < limit.span_ms
    return grant.at_ms >= window_start(limit.window, zone, at_ms)


def local(zone: str, at_ms: int) -> datetime:
    return datetime.fromtimestamp(at_ms / 1000, UTC).astimezone(ZoneInfo(zone))


def window_start(window: str, zone: str, at_ms: int) -> int:
    """First millisecond of the local hour, day, ISO week or month; no zone here differs by less than a quarter."""
    return _window_start(window, zone, at_ms // QUARTER_MS)


@lru_cache(maxsize=1 << 14)
def _window_start(window: str, zone: str, quarter: int) -> int:
    here = local(zone, quarter * QUARTER_MS).replace(minute=0, second=0, microsecond=0)
    if window != "hour":
        here = here.replace(hour=0)
    if window == "week":
        here -= timedelta(days=here.weekday())
    if window == "month":
        here = here.replace(day=1)
    return round(here.timestamp() * 1000)
