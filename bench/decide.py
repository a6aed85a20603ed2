"""What a candidate costs in `decide`, by where it ends; the ledger answers at no cost of its own."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
from msgspec import UNSET

from engine.decide import Decider, ProfileTable, encode_lines
from engine.definitions import (
    Cap,
    CellTable,
    Compare,
    Content,
    Every,
    HasTag,
    Limits,
    OfferDefinition,
    Placeholder,
    Policy,
    QuietHours,
    Reentry,
    Scenario,
    UsageTrigger,
)
from engine.model import Candidate, Mode, ReserveAnswer, ReserveRequest, Scope, Trigger

NOON_MS = 1_767_585_600_000
_GRANT, _REFUSE = ReserveAnswer(0), ReserveAnswer(-1, ("cap:all",))
_NO_CELLS = CellTable((), *(np.zeros(0) for _ in range(4)))
_DAY_MS = 86_400_000


def grant_all(requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
    return [_GRANT] * len(requests)


def refuse_all(requests: Sequence[ReserveRequest]) -> list[ReserveAnswer]:
    return [_REFUSE] * len(requests)


def build(scenarios: int = 255, users: int = 100_000, **change: Any) -> tuple[Decider, ProfileTable]:
    """Make a decider with that many like scenarios and users with two tags, two attributes and two consents."""
    offer = OfferDefinition(
        benefit="电影票五折券",
        benefit_class="entertainment",
        partner="partner",
        offer_class="marketing",
        channels=("sms", "push"),
        text="尊敬的{level}用户，您附近的影院有五折电影票，点击领取。",
        placeholders=(Placeholder("level", "attribute:level", default="会员"),),
    )
    fields: dict[str, Any] = {
        "audience": Every((HasTag("video"), Compare("arpu", ">=", 50))),
        "limits": Limits(caps=(Cap(Scope.SCENARIO, 2, "week"),)),
        "reentry": Reentry("cooldown", _DAY_MS),
        "quiet_hours": QuietHours(),
        "holdout_percent": 0.0,
    }
    fields |= change
    made = tuple(
        Scenario(f"national/s{row:04d}", "", Mode.LIVE, UsageTrigger(()), offer, **fields) for row in range(scenarios)
    )
    policy = Policy(
        caps=(Cap(Scope.ALL, 3, "day"), Cap(Scope.CATEGORY, 2, "rolling", _DAY_MS)),
        min_gap_ms=3_600_000,
        universal_holdout_percent=0.000001,
    )
    profiles = ProfileTable(policy)
    profiles.ensure(users)
    names = ("tags", "attributes", "person", "organisation", "home", "time_zone", "dnd", "province")
    given = {"tags": ("video", "vip"), "attributes": {"arpu": 88, "level": "金卡"}, "time_zone": "Asia/Shanghai"}
    event = SimpleNamespace(**(dict.fromkeys(names, UNSET) | {"add_tags": None, "remove_tags": None} | given))
    for slot in range(users):
        profiles.apply_profile(slot, event, NOON_MS)
        for purpose in ("marketing.sms", "marketing.push"):
            profiles.set_consent(slot, purpose, True, NOON_MS, "app")
    content = Content("v1", (), _NO_CELLS, made, policy)
    return Decider(content, profiles, "default", b"k" * 32, grant_all), profiles


def candidates(count: int, scenarios: int = 255, users: int = 100_000, repeat: bool = False) -> list[Candidate]:
    """Make usage candidates of ever new users; `repeat`: of one and the same."""
    made = []
    for number in range(count):
        user = 7 if repeat else number % users
        now_ms = NOON_MS + number // 16
        trigger = Trigger("usage", f"dpi|{number:08d}", now_ms, None, None, (), {"app": "video"})
        row = 3 if repeat else number % scenarios
        made.append(Candidate(row, user, f"user-{user:08d}", trigger, now_ms, number))
    return made


CASES: dict[str, dict[str, Any]] = {
    "granted": {},
    "refused_audience": {"audience": Every((HasTag("video"), Compare("arpu", ">=", 500)))},
    "refused_consent": {"deny": True},
    "refused_quiet_hours": {"quiet_hours": QuietHours(0, 1440, "discard")},
    "refused_cap": {"reserve": refuse_all},
    "repeated_audience": {"audience": Every((HasTag("video"), Compare("arpu", ">=", 500))), "repeat": True},
    "repeated_reentry": {"repeat": True, "reentry": Reentry("once")},
}


def run(smoke: bool = False) -> list[dict[str, Any]]:
    """Return one figure per case: microseconds a candidate, median of several runs over fresh deciders."""
    count, rounds, users = (2_000, 1, 2_000) if smoke else (40_000, 5, 100_000)
    figures: list[dict[str, Any]] = []
    for name, change in CASES.items():
        change = dict(change)
        deny, repeat = change.pop("deny", False), change.pop("repeat", False)
        reserve = change.pop("reserve", grant_all)
        spans, lines, made = [], b"", 0
        for _ in range(rounds):
            decider, profiles = build(16 if smoke else 255, users, **change)
            decider.reserve = reserve
            if deny:
                for column in profiles.purposes.values():
                    column.array[:] = column.array & ~3 | 2
            batch = candidates(count, len(decider.content.scenarios), users, repeat)
            decisions = []
            start = time.perf_counter()
            for first in range(0, count, 512):
                decisions += decider.decide(batch[first : first + 512])
            spans.append(time.perf_counter() - start)
            lines, made = encode_lines(decisions), len(decisions)
        digest = hashlib.sha256(lines).hexdigest()[:16]
        value = round(sorted(spans)[len(spans) // 2] / count * 1e6, 3)
        figures.append({"name": f"decide.{name}.us", "value": value, "unit": "us", "decisions": made, "hash": digest})
    _, profiles = build(1, users)
    size = sum(column.array.nbytes for column in profiles._columns()) / profiles.capacity
    figures.append({"name": "decide.profile.bytes_per_user", "value": round(size, 1), "unit": "B"})
    return figures


if __name__ == "__main__":
    for figure in run():
        print(figure)
