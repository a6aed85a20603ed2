"""People and what they send over a day, before anything goes wrong: events with the instant they arrive."""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Any

from tests.simulation.plan import DAY_MS, FREE, HOUR_MS, PLACES, START_MS, City, degrees

MINUTE_MS = 60_000
SCRIPTED = (
    "w-dwell",
    "w-close",
    "w-delay",
    "w-twice",
    "w-stay",
    "w-stop",
    "w-soon",
    "w-left",
    "w-right",
    "w-third",
    "w-play",
    "w-fly",
)


@dataclass
class Event:
    """One event on its way. `value` is a dict, or bytes that nobody can read."""

    arrival_ms: int
    value: dict[str, Any] | bytes
    is_poison: bool = False
    is_fixed: bool = False  # of a scripted user, not to be spoilt


@dataclass(frozen=True)
class Expected:
    """A transition that must appear: what a scripted user did is known to the millisecond."""

    user: str
    fence: str
    kind: str
    reason: str
    crossed_ms: int
    confirmed_ms: int


@dataclass
class Day:
    events: list[Event] = field(default_factory=list)
    expected: list[Expected] = field(default_factory=list)
    users: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Visit:
    place: str
    from_ms: int
    until_ms: int


POINTS = {place.id: (place.east_m, place.north_m) for place in PLACES} | {"sim/expo": (0.0, -2000.0)}
POINTS["sim/metro"] = (-900.0, -900.0)
APPS = (
    {"category": "ecommerce", "app": "taobao"},
    {"app": "iqiyi", "category": "video"},
    {"app": "youku", "category": "video"},
    {"category": "news"},
    {"category": "travel"},
    {"app": "bank"},
    {"app": "bill"},
    {"category": "food"},
    {"app": "music"},
    {"category": "sport"},
    {"category": "night"},
    {"category": "ecommerce", "app": "jd"},
    {"app": "didi"},
    {"app": "kuaishou"},
    {"app": "luckin"},
    {"app": "luckin", "category": "cafe"},
    {"category": "game"},
    {"app": "bank"},
    {"category": "ecommerce", "app": "taobao"},
)
ORGANISATIONS = ("北京/海淀", "北京", "上海/浦东", "北京/海淀/中关村", "北京/海淀区", "北京/海淀/上地/一村")
ZONES = (None, None, None, None, "Asia/Shanghai", "Asia/Shanghai", "Asia/Tokyo", "Europe/London")


def make_day(seed: int, city: City, *, people: int, hours: int) -> Day:
    """Make everybody's day: profiles and consents first, then pings, usage events and messages."""
    day = Day()
    for number in range(people):
        name = f"u{number}"
        day.users.append(name)
        _person(random.Random(f"{seed}/{name}"), name, number, city, day, hours * HOUR_MS)
    _scripted(random.Random(f"{seed}/scripted"), city, day, hours * HOUR_MS)
    return day


def _send(day: Day, delay_ms: int, is_fixed: bool = False, **value: Any) -> None:
    day.events.append(Event(value["at"] + delay_ms, value, is_fixed=is_fixed))


def _person(dice: random.Random, name: str, number: int, city: City, day: Day, span_ms: int) -> None:
    _known(dice, name, number, city, day, span_ms)
    visits = _itinerary(dice, span_ms)
    home = (dice.uniform(-6000, -4000), dice.uniform(4000, 7000))
    _pings(dice, name, visits, home, day, span_ms)
    _cells(dice, name, visits, number, day, span_ms)
    _apps(dice, name, day, span_ms)


def _known(dice: random.Random, name: str, number: int, city: City, day: Day, span_ms: int) -> None:
    """What is known of a person from the start, and what changes in the course of the day."""
    at = START_MS - 3_000 + number
    if dice.random() < 0.9:
        profile: dict[str, Any] = {
            "tags": [tag for tag, share in TAG_SHARES if dice.random() < share],
            "attributes": _attributes(dice),
            "organisation": dice.choice(ORGANISATIONS),
        }
        zone = dice.choice(ZONES)
        if zone is not None:
            profile["time_zone"] = zone
        if dice.random() < 0.06:
            profile["dnd"] = True
        if number % 9 < 2:
            profile["person"] = f"p{number // 9}"
        _send(day, 10, type="profile", user=name, at=at, **profile)
    for purpose, share in (("location", 0.93), ("usage", 0.93), ("marketing.sms", 0.8), ("marketing.push", 0.5)):
        if dice.random() < share:
            if purpose in city.assumed and dice.random() < 0.7:
                continue
            granted = dice.random() < 0.94
            _send(day, 20, type="consent", user=name, at=at, purpose=purpose, granted=granted)
    for _ in range(dice.choice((0, 0, 1, 2))):
        at = START_MS + dice.randrange(span_ms)
        _send(day, dice.randrange(500), type="profile", user=name, at=at, **change(dice))
    for _ in range(dice.choice((0, 0, 0, 1, 2))):
        at = START_MS + dice.randrange(span_ms)
        text = dice.choice(("TD", " td ", "退订", "拒收", "谢谢", "T恤", "R", "Ｔ"))
        channel = dice.choice(("sms", "sms", "push"))
        _send(day, dice.randrange(500), type="inbound-message", user=name, at=at, channel=channel, text=text)
    for _ in range(dice.choice((0, 0, 1))):
        at = START_MS + dice.randrange(span_ms)
        granted, purpose = dice.random() < 0.6, dice.choice(("marketing.sms", "marketing.push", "location", "usage"))
        _send(day, dice.randrange(500), type="consent", user=name, at=at, purpose=purpose, granted=granted)
    if dice.random() < 0.08:
        at = START_MS + dice.randrange(span_ms)
        _send(day, 100, type=dice.choice(("user-closed", "address-changed")), user=name, at=at, id=f"{name}/closed")
        if dice.random() < 0.7:
            for purpose in ("location", "usage", "marketing.sms"):
                _send(day, 100, type="consent", user=name, at=at + 600_000, purpose=purpose, granted=True)


TAG_SHARES = (("member", 0.5), ("student", 0.3), ("trial", 0.4), ("suppressed", 0.04), ("suppressed.sms", 0.06))


def _attributes(dice: random.Random) -> dict[str, Any]:
    attributes: dict[str, Any] = {"arpu": dice.choice((20, 50, 88, 120)), "age": dice.randrange(18, 60)}
    if dice.random() < 0.4:
        attributes |= {f"propensity.{name}": dice.choice((0.5, 2, 20)) for name in ("travel", "living", "video")}
    nickname = dice.choice((None, "", "小王", "阿明", "名字太长了不能用的", "【王】", "a.cn", "李\n四"))
    if nickname is not None:
        attributes["nickname"] = nickname
    return attributes


def change(dice: random.Random) -> dict[str, Any]:
    """What a profile event says that changes one thing."""
    what = dice.randrange(9)
    if what == 0:
        return {"tags": [tag for tag, share in TAG_SHARES if dice.random() < share]}
    if what == 1:
        return {"dnd": dice.random() < 0.5}
    if what == 2:
        return {"time_zone": dice.choice((None, "Asia/Tokyo", "Asia/Shanghai"))}
    if what == 3:
        return {"attributes": _attributes(dice)}
    if what == 4:
        return {"tags": None, "organisation": None}
    if what == 5:
        return {"organisation": dice.choice(ORGANISATIONS), "province": dice.choice((None, "北京"))}
    if what == 6:
        return {"add_tags": [dice.choice(TAG_SHARES)[0]], "home": {"lon": 116.3, "lat": 39.95}}
    if what == 7:
        return {"remove_tags": ["member", "student", "suppressed.sms"]}
    return {"person": dice.choice((None, "p0", "p1"))}


def _itinerary(dice: random.Random, span_ms: int) -> list[Visit]:
    visits, at = [], START_MS + dice.randrange(HOUR_MS, 4 * HOUR_MS)
    while at < START_MS + span_ms - HOUR_MS:
        place = dice.choice(FREE)
        stay = dice.choice((6, 12, 20, 25, 40, 75)) * MINUTE_MS
        visits.append(Visit(place, at, at + stay))
        at += stay + dice.choice((15, 25, 40, 90, 200)) * MINUTE_MS
        if (at - START_MS) % DAY_MS > 18 * HOUR_MS:  # after midnight people are at home
            break
    return visits


def _where(visits: list[Visit], home: tuple[float, float], at: int) -> tuple[float, float, bool]:
    """Where somebody is: in a place, on the way (1.2 km beside the next place), or at home."""
    for visit in visits:
        if at < visit.from_ms - 20 * MINUTE_MS:
            break
        east, north = POINTS[visit.place]
        if at < visit.from_ms:
            return east - 700, north - 600, False
        if at < visit.until_ms:
            return east, north, True
        if at < visit.until_ms + 12 * MINUTE_MS:
            return east + 650, north + 700, False
    return (*home, False)


def _pings(
    dice: random.Random, name: str, visits: list[Visit], home: tuple[float, float], day: Day, span_ms: int
) -> None:
    cadence = dice.choice((8, 12, 16, 22)) * MINUTE_MS
    at, number = START_MS + dice.randrange(cadence), 0
    while at < START_MS + span_ms:
        east, north, is_there = _where(visits, home, at)
        noise = dice.choice((5, 10, 15))
        east, north = east + dice.gauss(0, noise), north + dice.gauss(0, noise)
        accuracy: Any = dice.choice((8, 12, 15, 20, 45, 150))
        method = "wifi" if accuracy == 45 else "gps"
        if dice.random() < 0.02:
            east += dice.choice((-1, 1)) * 90_000  # a fix from nowhere
        lon, lat = degrees(east, north)
        value: dict[str, Any] = {"type": "ping", "feed": "app", "id": f"{name}/p{number}", "user": name, "at": at}
        value |= {"lon": lon, "lat": lat, "accuracy_m": accuracy, "method": method}
        if dice.random() < 0.005:
            value |= dice.choice(({"lon": 0, "lat": 0}, {"lon": 191.5}, {"accuracy_m": 0}, {"accuracy_m": 9000}))
        _send(day, dice.choice((50, 200, 900, 2000)), **value)
        number += 1
        active = is_there or not 7 * HOUR_MS <= at % DAY_MS <= 22 * HOUR_MS
        step = cadence if active else 2 * cadence
        if (at - START_MS) % DAY_MS > 18 * HOUR_MS:
            step = 90 * MINUTE_MS
        at += round(step * dice.uniform(0.5, 1.4))
        if dice.random() < 0.02:
            at += dice.choice((40, 70, 200)) * MINUTE_MS  # a phone switched off


def _cells(dice: random.Random, name: str, visits: list[Visit], number: int, day: Day, span_ms: int) -> None:
    at = START_MS + dice.randrange(30 * MINUTE_MS)
    while at < START_MS + span_ms:
        cell = f"c-{number % 8}"
        for visit in visits:
            if visit.from_ms <= at < visit.until_ms and visit.place in ("sim/metro", "sim/mall"):
                cell = "c-" + visit.place[4:]
        if dice.random() < 0.06:
            cell = f"c-{(number + 1) % 8}"
        _send(day, dice.choice((1000, 5000, 20_000)), type="ping", feed="signalling", user=name, at=at, cell=cell)
        at += round(dice.uniform(40, 90) * MINUTE_MS)
    for visit in visits:
        if visit.place == "sim/metro":
            for at in (visit.from_ms + 5000, visit.from_ms + 200_000, visit.until_ms - 3000):
                _send(day, 1500, type="ping", feed="signalling", user=name, at=at, cell="c-metro")
            at = visit.from_ms - 400_000
            _send(day, 1500, type="ping", feed="signalling", user=name, at=at, cell=f"c-{number % 8}")


def _apps(dice: random.Random, name: str, day: Day, span_ms: int) -> None:
    for number in range(dice.randrange(28, 44)):
        at = START_MS + dice.randrange(span_ms)
        if at % DAY_MS > 17 * HOUR_MS and dice.random() < 0.6:  # fewer after one in the night
            at -= 9 * HOUR_MS
        value: dict[str, Any] = {"type": "usage", "feed": "dpi", "user": name, "at": at, "action": "open"}
        value |= dice.choice(APPS)
        if value.get("category") == "ecommerce":
            value["props"] = {"amount_fen": dice.choice((300, 999, 1000, 5000, True, "2000"))}
        if dice.random() < 0.9:
            value["id"] = f"{name}/e{number}"
        _send(day, dice.choice((100, 700, 3000)), **value)


def _scripted(dice: random.Random, city: City, day: Day, span_ms: int) -> None:
    """Visits whose transitions are known beforehand; no fault touches them but a crash of the service."""
    for name in SCRIPTED:
        for purpose in ("location", "usage", "marketing.sms"):
            _send(day, 5, True, type="consent", user=name, at=START_MS, purpose=purpose, granted=True)
        _send(day, 6, True, type="profile", user=name, at=START_MS, tags=["member"])
    minute = START_MS + dice.randrange(3 * HOUR_MS, 4 * HOUR_MS)

    def fix(name: str, place: str, at: int, *, away_m: float = 0.0) -> None:
        east, north = POINTS[place]
        lon, lat = degrees(east + away_m, north + away_m)
        value = {"type": "ping", "feed": "app", "user": name, "at": at, "lon": lon, "lat": lat, "id": f"{name}/{at}"}
        _send(day, 300, True, **value, accuracy_m=10, method="gps")

    fix("w-dwell", "sim/mall", minute - 300_000, away_m=800)
    fix("w-dwell", "sim/mall", minute)
    fix("w-dwell", "sim/mall", minute + 480_000)
    day.expected.append(Expected("w-dwell", "sim/mall", "dwell", "timer", minute, minute + 900_000))

    fix("w-delay", "sim/park", minute - 300_000, away_m=800)
    fix("w-delay", "sim/park", minute)
    day.expected.append(Expected("w-delay", "sim/park", "enter", "timer", minute, minute + 120_000))

    # Nobody offers anything at the airport while it is night there, whatever the time is where the traveller lives.
    fix("w-fly", "sim/airport", minute - 300_000, away_m=1200)
    fix("w-fly", "sim/airport", minute)

    closing = START_MS + 14 * HOUR_MS  # 20:00
    if span_ms > 15 * HOUR_MS:
        fix("w-close", "sim/market", closing - 1_500_000, away_m=700)
        for before in (1_200_000, 700_000, 100_000):
            fix("w-close", "sim/market", closing - before)
        day.expected.append(Expected("w-close", "sim/market", "exit", "closed", closing, closing))

    # The same arrival twice, with the number given up in between: one offer, and a duplicate refused.
    for again in (0, 120_000):
        for at, away_m in ((minute - 60_000, 600.0), (minute, 0.0)):
            east, north = POINTS["sim/kiosk"]
            lon, lat = degrees(east + away_m, north)
            value = {"type": "ping", "feed": "app", "user": "w-twice", "at": at, "lon": lon, "lat": lat}
            _send(day, 400 + again, True, **value, accuracy_m=10, method="gps", id=f"w-twice/{at}")
    at = minute + 30_000
    _send(day, 100, True, type="user-closed", user="w-twice", at=at, id="w-twice/closed")
    _send(day, 200, True, type="consent", user="w-twice", at=at + 150, purpose="location", granted=True)

    # Two offers that can be claimed half an hour later only: one user says no meanwhile, the other's is due by then.
    noon = START_MS + 5 * HOUR_MS + 300_000
    for name, app in (("w-stop", "iqiyi"), ("w-soon", "bank")):
        _send(day, 200, True, type="usage", feed="dpi", user=name, at=noon, app=app, id=f"{name}/1")
    for channel in ("sms", "push"):
        _send(day, 200, True, type="inbound-message", user="w-stop", at=noon + 60_000, channel=channel, text="td")

    # Three numbers of one person: a refusal on the first binds the second, at the claim too, and the third once linked.
    for name in ("w-left", "w-right"):
        _send(day, 7, True, type="profile", user=name, at=START_MS, person="w-person")
    _send(day, 8, True, type="profile", user="w-third", at=noon + 1_800_000, person="w-person")
    for channel in ("sms", "push"):
        _send(day, 200, True, type="inbound-message", user="w-left", at=noon + 60_000, channel=channel, text="td")
    for name, after_ms, app in (
        ("w-right", 0, "iqiyi"),
        ("w-right", 3_600_000, "bank"),
        ("w-third", 600_000, "bank"),
        ("w-third", 3_600_000, "bank"),
    ):
        identity = f"{name}/{after_ms}"
        _send(day, 200, True, type="usage", feed="dpi", user=name, at=noon + after_ms, app=app, id=identity)

    # Somebody who plays all day, and seldom takes what he is offered: he is left alone for some hours, again and again.
    for number, at in enumerate(range(START_MS + 1_200_000, START_MS + span_ms - HOUR_MS, 2_100_000)):
        _send(day, 200, type="usage", feed="dpi", user="w-play", at=at, category="game", id=f"w-play/{number}")

    # Somebody who may be forgotten in between, and comes back as somebody of whom nothing is known.
    for number, at in enumerate(range(START_MS + 1_500_000, START_MS + span_ms - HOUR_MS, 3_300_000)):
        app = ("iqiyi", "jd", "luckin")[number % 3]
        category = {"category": "ecommerce"} if app == "jd" else {}
        value = {"app": app, "id": f"w-gone/{number}", **category}
        _send(day, 200, True, type="usage", feed="dpi", user="w-gone", at=at, **value)
        fix("w-gone", "sim/kiosk", at + 60_000, away_m=900.0 * (number % 2))
    for purpose in ("location", "usage", "marketing.sms"):
        at = START_MS + 6 * HOUR_MS
        _send(day, 5, True, type="consent", user="w-gone", at=at, purpose=purpose, granted=True)

    # Somebody inside all day: who forgets him at a change of content tells of a second arrival.
    fix("w-stay", "sim/cinema", START_MS + 600_000, away_m=900)
    for at in range(START_MS + 900_000, START_MS + span_ms, 1_200_000):
        fix("w-stay", "sim/cinema", at)
