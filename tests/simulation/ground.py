"""What the log says of users, read again by the auditor's own code (rules A1-A4, B1, T5, T7)."""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass, field
from typing import Any
from zoneinfo import ZoneInfo

NEVER = -(1 << 62)
LATENESS_MS = 60_000  # of every feed in the simulation
FUTURE_MS = 300_000
OPT_OUT = {"r", "td", "t", "n", "退订", "拒收"}


@dataclass
class Person:
    """One user as of some place in the log."""

    name: str
    is_known: bool = False
    tags: set[str] = field(default_factory=set)
    dynamic: dict[str, int] = field(default_factory=dict)  # until when
    attributes: dict[str, Any] = field(default_factory=dict)
    organisation: str | None = None
    person: str | None = None
    zone: str | None = None
    is_dnd: bool = False
    consents: dict[str, tuple[bool, int]] = field(default_factory=dict)
    void_ms: int = NEVER
    lives: int = 0
    closings: set[str] = field(default_factory=set)
    newest_usage: int = NEVER
    usage_seen: dict[tuple[str, str], int] = field(default_factory=dict)

    @property
    def subject(self) -> str:
        if self.person is not None:
            return f"person {self.person}"
        return self.number

    @property
    def number(self) -> str:
        return f"{self.name} in life {self.lives}"

    def says(self, purpose: str, assumed: frozenset[str]) -> bool | None:
        """True: may be served, False: the user said no, None: nobody said anything."""
        record = self.consents.get(purpose)
        if record is not None:
            return record[0]
        return True if purpose in assumed else None

    def take_profile(self, event: dict[str, Any]) -> None:
        self.is_known = True
        if "tags" in event:
            self.tags = set(event["tags"] or ())
        self.tags |= set(event.get("add_tags") or ())
        self.tags -= set(event.get("remove_tags") or ())
        if "attributes" in event:
            self.attributes = {name: one for name, one in (event["attributes"] or {}).items() if one is not None}
        if "organisation" in event:
            self.organisation = event["organisation"]
        if "person" in event:
            self.person = event["person"]
        if "time_zone" in event:
            self.zone = event["time_zone"] if is_zone(event["time_zone"]) else None
        if "dnd" in event:
            self.is_dnd = bool(event["dnd"])

    def bears(self, tag: str, at_ms: int) -> bool:
        """Whether the tag was imported, or set by a scenario and still lasts (A1)."""
        return tag in self.tags or self.dynamic.get(tag, NEVER) > at_ms

    def set_tag(self, tag: str, until_ms: int) -> None:
        self.dynamic[tag] = max(until_ms, self.dynamic.get(tag, NEVER))

    def take_consent(self, purpose: str, granted: bool, at_ms: int) -> bool:
        """The newest instant wins, of equal ones the later record; nothing counts that is older than this life."""
        before = self.consents.get(purpose)
        if at_ms <= self.void_ms or (before is not None and at_ms < before[1]):
            return False
        self.consents[purpose] = (granted, at_ms)
        return True

    def hear_person(self, purpose: str, at_ms: int) -> bool:
        """The same person refused on another number: binds this one, unless it said yes after that (A4)."""
        before = self.consents.get(purpose)
        if before is not None and (before[1] > at_ms or before == (False, at_ms)):
            return False
        self.consents[purpose] = (False, at_ms)
        return True

    def close(self, now_ms: int) -> None:
        """The number is given up: a new life, in which nothing is known (A4)."""
        fresh = Person(self.name, void_ms=now_ms, lives=self.lives + 1, closings=self.closings)
        # What was late by then is remembered no longer (T7).
        last = self.newest_usage - LATENESS_MS
        fresh.usage_seen = {name: at_ms for name, at_ms in self.usage_seen.items() if at_ms >= last}
        self.__dict__.update(fresh.__dict__)

    def admit_usage(self, feed: str, identity: str, at_ms: int) -> bool:
        """Count a usage event once, and not when it is late (T5, T7)."""
        if at_ms < self.newest_usage - LATENESS_MS:
            return False
        seen = self.usage_seen.get((feed, identity))
        if seen is not None and seen >= self.newest_usage - LATENESS_MS:
            return False
        self.usage_seen[feed, identity] = at_ms
        self.newest_usage = max(self.newest_usage, at_ms)
        return True


def category_of(event: dict[str, Any], apps: tuple[tuple[str, str], ...]) -> str | None:
    """What the event says, else what the catalogue says of its app."""
    return event.get("category") or dict(apps).get(event.get("app", ""))


def is_zone(name: Any) -> bool:
    if not name:
        return False
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError):
        return False
    return True


def is_opt_out(text: str) -> bool:
    return unicodedata.normalize("NFKC", text).strip().casefold() in OPT_OUT


def matches(tests: tuple[tuple[str, str, Any], ...], event: dict[str, Any], category: str | None) -> bool:
    """Whether a usage event passes every test of a trigger; its category may be the catalogue's (B1)."""
    event = {**event, "category": category}
    for name, op, wanted in tests:
        held = event.get("props", {}).get(name[6:]) if name.startswith("props.") else event.get(name)
        if held is None:
            return False
        if op == "==" and held != wanted:
            return False
        if op == "in" and held not in wanted:
            return False
        if op == "range":
            low, high = wanted
            if isinstance(held, bool) or not isinstance(held, int | float):
                return False
            if (low is not None and held < low) or (high is not None and held >= high):
                return False
    return True
