"""Makes small contents, profiles and candidates for tests of deciding; the noon of a Monday in Shanghai is NOON_MS."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from msgspec import UNSET

from engine.decide import Decider, ProfileTable
from engine.definitions import (
    CellTable,
    Content,
    OfferDefinition,
    Policy,
    PresenceTrigger,
    QuietHours,
    Scenario,
    UsageTrigger,
)
from engine.model import Candidate, Mode, Trigger
from tests.oracle.caps_oracle import CapsOracle

NOON_MS = 1_767_585_600_000  # 2026-01-05T04:00:00Z, a Monday
MINUTE_MS = 60_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
KEY = b"0123456789abcdef"
NO_CELLS = CellTable((), *(np.zeros(0) for _ in range(4)))
NO_QUIET = QuietHours(0, 0)


def scenario(name: str = "national/cinema", **change: Any) -> Scenario:
    """A live usage scenario with nothing in its way; offer fields are given as offer__<field>."""
    offer = {
        "benefit": "电影票五折券",
        "benefit_class": "entertainment",
        "partner": "cinema-partner",
        "offer_class": "marketing",
        "channels": ("sms",),
        "text": "您有一张电影票五折券。",
    }
    offer |= {key[7:]: change.pop(key) for key in list(change) if key.startswith("offer__")}
    fields: dict[str, Any] = {"mode": Mode.LIVE, "trigger": UsageTrigger(()), "quiet_hours": NO_QUIET}
    return Scenario(id=name, name=name, offer=OfferDefinition(**offer), **(fields | change))


def presence(name: str = "national/mall", kind: str = "enter", **change: Any) -> Scenario:
    return scenario(name, trigger=PresenceTrigger(kind, ("national/fence",)), **change)


def content(*scenarios: Scenario, version: str = "v1", **policy: Any) -> Content:
    policy.setdefault("assumed_consent", frozenset({"marketing.sms", "marketing.push"}))
    return Content(version, (), NO_CELLS, scenarios, Policy(**policy))


class World:
    """A decider over the plain ledger, with users u0, u1, ... known by an empty profile."""

    def __init__(self, *scenarios: Scenario, users: int = 4, known: bool = True, **policy: Any) -> None:
        self.content = content(*scenarios, **policy)
        self.profiles = ProfileTable(self.content.policy)
        self.profiles.ensure(users)
        self.ledger = CapsOracle()
        self.decider = Decider(self.content, self.profiles, "default", KEY, self.ledger.reserve)
        if known:
            for slot in range(users):
                self.profiles.apply_profile(slot, profile(), NOON_MS)

    def decide(self, *candidates: Candidate) -> list[Any]:
        return self.decider.decide(candidates)

    def one(self, user: int = 0, now_ms: int = NOON_MS, row: int = 0, **change: Any) -> Any:
        """Decide a single candidate and return its decision."""
        decisions = self.decide(candidate(user, now_ms, row, **change))
        assert len(decisions) == 1, decisions
        return decisions[0]


def candidate(user: int = 0, now_ms: int = NOON_MS, row: int = 0, **change: Any) -> Candidate:
    position = change.pop("position", now_ms)
    item = change.pop("item", -1)
    fields: dict[str, Any] = {"kind": "usage", "key": f"app|{user}.{now_ms}.{row}", "at_ms": now_ms}
    return Candidate(row, user, f"u{user}", Trigger(**(fields | change)), now_ms, position, item)


def profile(**fields: Any) -> SimpleNamespace:
    names = ("tags", "attributes", "person", "organisation", "home", "time_zone", "dnd", "province")
    return SimpleNamespace(**(dict.fromkeys(names, UNSET) | {"add_tags": None, "remove_tags": None} | fields))


def consent(purpose: str, granted: bool, at_ms: int = NOON_MS, source: str = "app") -> SimpleNamespace:
    return SimpleNamespace(purpose=purpose, granted=granted, at_ms=at_ms, source=source)


def message(text: str, channel: str = "sms", at_ms: int = NOON_MS) -> SimpleNamespace:
    return SimpleNamespace(channel=channel, text=text, at_ms=at_ms)
