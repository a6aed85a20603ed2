"""Places, scenarios and policy of the simulated city, as plain records that engine and auditor read separately."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.terms import Benefit, Pattern

TENANT = "default"
KEY = b"the simulation's key of offer ids"
START_MS = 1_767_304_800_000  # 2026-01-02 06:00 in Beijing, a Friday
HOUR_MS = 3_600_000
DAY_MS = 86_400_000
HOME_ZONE = "Asia/Shanghai"
LON, LAT = 116.40, 39.90
M_PER_DEGREE_LON, M_PER_DEGREE_LAT = 85_390.0, 111_030.0


def degrees(east_m: float, north_m: float) -> tuple[float, float]:
    """Turn metres from the city's centre into lon, lat, on the engine's grid of 1e-7 degree."""
    return round(LON + east_m / M_PER_DEGREE_LON, 7), round(LAT + north_m / M_PER_DEGREE_LAT, 7)


@dataclass(frozen=True)
class Place:
    """A fence: circle (radius_m), square (half_m), or cells alone."""

    id: str
    east_m: float = 0.0
    north_m: float = 0.0
    radius_m: float = 0.0
    half_m: float = 0.0
    cells: tuple[str, ...] = ()
    size_m: float = 0.0  # which of two is the smaller (P8)
    time_zone: str | None = None
    hours: str | None = None
    enter_delay_s: float | None = None
    exit_delay_s: float | None = None


@dataclass(frozen=True)
class Tower:
    id: str
    east_m: float
    north_m: float
    radius_m: float = 500.0


@dataclass(frozen=True)
class Limit:
    scope: str  # all channel scenario category partner
    most: int
    window: str  # rolling hour day week month
    span_ms: int = 0


@dataclass(frozen=True)
class Plan:
    """One scenario.

    trigger  (kind, fences, threshold_s), ("usage", ((field, op, value), ...)) or ("pattern", Pattern)
    takes    the benefit, and after it the parts of which it is made
    tag      what a grant puts on the user, and for how many ms; `is_tag`: that is all it does
    inside   and the user is in one of these (B4);  asked  and this count is true
    """

    id: str
    trigger: tuple[Any, ...]
    mode: str = "live"
    service: bool = False
    channels: tuple[str, ...] = ("sms",)
    text: str = "您好，为您准备了一份优惠。"
    category: str = "travel"
    partner: str = "national/demo"
    needs: tuple[str, ...] = ()  # attributes that the text needs
    audience: tuple[Any, ...] | None = None
    send_only_to: str | None = None
    limits: tuple[Limit, ...] = ()
    min_gap_ms: int = 0
    bypass: bool = False
    counts: bool = True
    hourly: int | None = None
    daily: int | None = None
    once: bool = False
    cooldown_ms: int = 0
    quiet: tuple[int, int, str | None] | None = None  # minutes, policy
    windows: tuple[tuple[int, int], ...] = ()
    weekdays: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6)
    deadline_s: int | None = None
    max_age_ms: int = 600_000
    holdout: float = 0.0
    substitute: bool = False
    priority: float = 1.0
    value: float = 1.0
    takes: tuple[str, ...] = ()
    tag: tuple[str, int] | None = None
    is_tag: bool = False
    pause_after: tuple[int, int, int] | None = None  # ignores, within ms, for ms
    lottery: tuple[int, str] | None = None
    switch_to: str | None = None
    inside: tuple[str, ...] = ()
    asked: Pattern | None = None

    @property
    def is_presence(self) -> bool:
        return self.trigger[0] in ("enter", "dwell", "exit")

    @property
    def is_free(self) -> bool:
        """Whether it is bound by nothing that protects from marketing."""
        return self.service or self.is_tag

    @property
    def benefit(self) -> str:
        return self.takes[0] if self.takes else f"{self.id}-benefit"

    @property
    def reachable(self) -> tuple[str, ...]:
        extra = self.switch_to is None or self.switch_to in self.channels
        return self.channels if extra else (*self.channels, self.switch_to)  # type: ignore[return-value]

    @property
    def deadline_ms(self) -> int:
        if self.deadline_s is not None:
            return self.deadline_s * 1000
        return 600_000 if self.is_presence else DAY_MS

    @property
    def may_hold(self) -> bool:
        policy = self.quiet[2] if self.quiet else None
        return (policy or ("discard" if self.is_presence else "hold")) == "hold"


@dataclass(frozen=True)
class City:
    """One content set."""

    version: str
    places: tuple[Place, ...]
    towers: tuple[Tower, ...]
    plans: tuple[Plan, ...]
    limits: tuple[Limit, ...] = ()
    min_gap_ms: int = 0
    quiet: tuple[int, int] = (21 * 60, 8 * 60)
    assumed: frozenset[str] = frozenset()
    universal_holdout: float = 0.0
    salt: str = "opportune"
    home_zone: str = HOME_ZONE
    window_ms: int = 0  # of arbitration
    benefits: tuple[Benefit, ...] = ()
    apps: tuple[tuple[str, str], ...] = ()
    by_id: dict[str, Plan] = field(default_factory=dict, compare=False)

    def __post_init__(self) -> None:
        self.by_id.update({plan.id: plan for plan in self.plans})

    def terms_of(self, plan: Plan) -> list[Benefit]:
        """The benefit of an offer, and after it its parts."""
        return [one for name in plan.takes for one in self.benefits if one.id == name]


PLACES = (
    Place("sim/mall", 0, 0, radius_m=200, cells=("c-mall",), size_m=200),
    Place("sim/cinema", 20, 0, radius_m=60, size_m=60),
    Place("sim/metro", cells=("c-metro",)),
    Place("sim/park", 1500, 0, radius_m=150, size_m=150, enter_delay_s=120, exit_delay_s=300),
    Place("sim/office", 0, 2000, half_m=120, size_m=135),
    Place("sim/market", -1500, 0, radius_m=120, size_m=120, hours="10:00-20:00", time_zone=HOME_ZONE),
    # Until noon in Beijing it is quiet here, and nowhere else.
    Place("sim/airport", 5000, 3000, radius_m=400, size_m=400, time_zone="Asia/Dubai"),
    Place("sim/kiosk", 3000, -2500, radius_m=100, size_m=100),
)
EXPO = Place("sim/expo", 0, -2000, radius_m=150, size_m=150)
TOWERS = (
    Tower("c-mall", 900, 900),
    Tower("c-metro", -900, -900),
    *(Tower(f"c-{number}", -2000.0 + 1300 * (number % 4), 3200.0 + 900 * (number // 4)) for number in range(8)),
)
FREE = ("sim/mall", "sim/cinema", "sim/park", "sim/office", "sim/market", "sim/airport", "sim/metro", "sim/expo")
"""Places that people go to; the kiosk is for scripted visits alone."""


def usage(*tests: tuple[str, str, Any]) -> tuple[Any, ...]:
    return ("usage", tests)


def category(name: str) -> tuple[Any, ...]:
    return usage(("category", "==", name))


def make_plans(dice: random.Random) -> tuple[Plan, ...]:
    """Every kind of scenario, with limits that differ from seed to seed."""
    few = dice.choice
    return (
        Plan(
            "sim/arrive-mall",
            ("enter", ("sim/mall", "sim/cinema"), 0),
            holdout=few((10.0, 25.0)),
            priority=2.0,
            limits=(Limit("scenario", 2, "rolling", 6 * HOUR_MS),),
            category="video",
        ),
        Plan(
            "sim/arrive-cinema",
            ("enter", ("sim/cinema",), 0),
            holdout=40.0,
            substitute=True,
            priority=3.0,
            limits=(Limit("category", few((1, 2)), "day"),),
            category="entertainment",
        ),
        Plan("sim/dwell-mall", ("dwell", ("sim/mall", "sim/park"), 900), cooldown_ms=3 * HOUR_MS),
        Plan("sim/leave-mall", ("exit", ("sim/mall",), 0), audience=("tag", "member"), deadline_s=240),
        Plan(
            "sim/metro",
            ("enter", ("sim/metro",), 0),
            partner="national/metro",
            limits=(Limit("partner", few((1, 2)), "rolling", 8 * HOUR_MS),),
        ),
        Plan(
            "sim/metro-news",
            ("enter", ("sim/metro",), 0),
            partner="national/metro",
            quiet=(0, 11 * 60, "hold"),
            deadline_s=8 * 3600,
            limits=(Limit("partner", 2, "day"),),
        ),
        Plan("sim/park", ("enter", ("sim/park",), 0), send_only_to="trial", channels=("push", "sms")),
        Plan("sim/office", ("enter", ("sim/office",), 0), once=True, audience=("none", (("tag", "student"),))),
        Plan("sim/market", ("dwell", ("sim/market",), 600), limits=(Limit("scenario", 1, "week"),)),
        Plan("sim/airport", ("enter", ("sim/airport",), 0), limits=(Limit("all", 3, "hour"),)),
        Plan("sim/kiosk", ("enter", ("sim/kiosk",), 0), service=True, category="living"),
        Plan(
            "sim/shop",
            usage(("category", "==", "ecommerce"), ("props.amount_fen", "range", (1000, None))),
            limits=(Limit("scenario", few((1, 2)), "day"),),
            quiet=(22 * 60, 9 * 60, "discard"),
            category="living",
        ),
        Plan("sim/flash", category("ecommerce"), hourly=few((2, 4)), daily=few((8, 16)), priority=0.5, min_gap_ms=0),
        Plan("sim/watch", usage(("app", "==", "iqiyi")), mode="shadow", category="video"),
        Plan(
            "sim/watch-live",
            usage(("app", "in", ("iqiyi", "youku"))),
            channels=("push", "sms"),
            category="video",
            limits=(Limit("channel", 1, "rolling", 4 * HOUR_MS),),
        ),
        Plan(
            "sim/read",
            category("news"),
            channels=("push", "sms"),
            limits=(Limit("channel", 2, "rolling", 6 * HOUR_MS),),
        ),
        Plan(
            "sim/trip",
            category("travel"),
            text="{who}，出行礼包一份。",
            needs=("nickname",),
            audience=("all", (("organisation", "北京"), ("attribute", "arpu", ">=", 50))),
        ),
        Plan("sim/urgent", usage(("app", "==", "bank")), deadline_s=45, max_age_ms=300_000),
        Plan("sim/bill", usage(("app", "==", "bill")), service=True, category="living"),
        Plan("sim/draft", category("ecommerce"), mode="draft"),
        Plan("sim/stopped", usage(("app", "==", "youku")), mode="paused"),
        Plan(
            "sim/lunch",
            category("food"),
            windows=((11 * 60, 14 * 60), (17 * 60, 20 * 60)),
            weekdays=(0, 1, 2, 3, 4),
            min_gap_ms=few((20, 40)) * 60_000,
        ),
        Plan("sim/music", usage(("app", "==", "music")), bypass=True, counts=False, max_age_ms=60_000),
        Plan(
            "sim/sport",
            category("sport"),
            audience=("any", (("tag", "member"), ("attribute", "age", "<", 30))),
            limits=(Limit("scenario", 2, "month"),),
            cooldown_ms=HOUR_MS,
        ),
        Plan("sim/late-shift", category("night"), quiet=(20 * 60, 10 * 60, "hold"), deadline_s=4 * 3600),
    )
