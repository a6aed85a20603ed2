"""Who lives in the city: homes, desks, habits, profiles, consent and (fictional) addresses."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine.city.places import Places, moved
from engine.definitions import Compare, Content, Every, Expression, HasTag, InOrganisation, Neither, Some

SURNAMES = "王李张刘陈杨赵黄周吴徐孙胡朱高林何郭马罗"
PLANS = ("冰激凌129元套餐", "畅爽59元套餐", "大王卡", "5G畅爽199元套餐", "日租卡19元套餐")
CITY_ORGANISATIONS = ("北京/朝阳", "北京/海淀", "北京/东城", "北京/西城", "北京/丰台")


@dataclass(slots=True)
class Person:
    """One inhabitant. Streams of events: `app` (gps and wifi fixes), `cell` (signalling), usage."""

    number: int
    user: str
    home: tuple[float, float]
    desk: tuple[float, float] | None  # None: does not go to work
    desk_place: int  # row of the place worked in, -1 elsewhere
    has_app: bool  # reports gps and wifi fixes
    speed_mps: float
    outgoing: float  # how often this person goes somewhere for fun, 0..1
    taste: int  # seeds which apps this person opens
    consents: dict[str, bool] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    opts_out_at_s: int | None = None  # second of the day an opt-out message comes


def draw_people(content: Content, places: Places, count: int, seed: int, channels: tuple[str, ...]) -> list[Person]:
    """Draw `count` people; the same content, count and seed give the same people."""
    rng = np.random.default_rng([seed, 1])
    tags, attributes, organisations = _wanted(content)
    people = []
    for number in range(count):
        home = _free_point(places, rng, 2_500.0)
        works = rng.random() < 0.7
        desk_place = -1
        desk = None
        if works and rng.random() < 0.06 and len(places.use["leisure"]):
            desk_place = int(rng.choice(places.use["leisure"]))
            desk = (float(places.lon[desk_place]), float(places.lat[desk_place]))
        elif works:
            desk = _free_point(places, rng, 1_200.0)
        person = Person(
            number=number,
            user="u" + hashlib.blake2b(f"{seed}/{number}".encode(), digest_size=6).hexdigest(),
            home=home,
            desk=desk,
            desk_place=desk_place,
            has_app=bool(rng.random() < 0.7),
            speed_mps=float(rng.uniform(4.5, 10.0)),
            outgoing=float(rng.beta(2.0, 2.5)),
            taste=int(rng.integers(1 << 31)),
        )
        person.consents = _consents(rng, channels)
        person.profile = _profile(rng, person, tags, attributes, organisations)
        if rng.random() < 0.01:
            person.opts_out_at_s = int(rng.integers(11 * 3600, 20 * 3600))
        people.append(person)
    return people


def address(person: Person, channel: str) -> str:
    """A fictional address: numbers beginning with 12 are nobody's mobile."""
    return f"12{person.number:09d}" if channel == "sms" else f"demo-{channel}-{person.number:08d}"


def _free_point(places: Places, rng: np.random.Generator, spread_m: float) -> tuple[float, float]:
    """Draw a point near some place and inside none."""
    for _ in range(200):
        row = int(rng.integers(len(places.fences)))
        east_m, north_m = rng.normal(0.0, spread_m, 2)
        lon, lat = moved(float(places.lon[row]), float(places.lat[row]), float(east_m), float(north_m))
        if places.is_free(lon, lat):
            return lon, lat
    return lon, lat


def _consents(rng: np.random.Generator, channels: tuple[str, ...]) -> dict[str, bool]:
    """Most people agreed to most things; some never said anything, some said no."""
    if rng.random() < 0.04:
        return {}
    given = {"location": bool(rng.random() < 0.97), "usage": bool(rng.random() < 0.93)}
    for channel in channels:
        answer = rng.random()
        if answer < 0.86:
            given[f"marketing.{channel}"] = True
        elif answer < 0.93:
            given[f"marketing.{channel}"] = False
    return given


def _profile(
    rng: np.random.Generator,
    person: Person,
    tags: list[str],
    attributes: dict[str, list[Any]],
    organisations: list[str],
) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name in sorted(attributes):
        values[name] = _attribute(rng, name, attributes[name])
    return {
        "tags": [tag for tag in tags if rng.random() < 0.4],
        "attributes": values,
        "organisation": str(rng.choice(organisations)),
        "home": {"lon": round(person.home[0], 7), "lat": round(person.home[1], 7)},
        "time_zone": "Asia/Shanghai",
        "province": "beijing",
        "dnd": bool(rng.random() < 0.02),
    }


def _attribute(rng: np.random.Generator, name: str, seen: list[Any]) -> Any:
    """Draw a value on both sides of what scenarios compare this attribute with."""
    numbers = [one for one in seen if isinstance(one, int | float) and not isinstance(one, bool)]
    texts = sorted({one for one in seen if isinstance(one, str)})
    if any(isinstance(one, bool) for one in seen):
        return bool(rng.random() < 0.5)
    if numbers:
        middle = float(rng.choice(numbers))
        drawn = middle * rng.uniform(0.3, 1.9) if middle else rng.uniform(0.0, 2.0)
        return round(drawn) if all(float(one).is_integer() for one in numbers) else round(drawn, 2)
    if texts:
        return str(rng.choice(texts)) if rng.random() < 0.7 else "other"
    if "name" in name:
        return str(rng.choice(list(SURNAMES))) + str(rng.choice(["先生", "女士"]))
    return str(rng.choice(PLANS)) if "plan" in name or "package" in name else int(rng.integers(5, 200))


def _wanted(content: Content) -> tuple[list[str], dict[str, list[Any]], list[str]]:
    """Collect what audiences and texts ask of profiles: tags, attributes with their compared values, organisations."""
    tags: set[str] = set()
    attributes: dict[str, list[Any]] = {}
    organisations: set[str] = set(CITY_ORGANISATIONS)

    def walk(expression: Expression) -> None:
        if isinstance(expression, HasTag):
            tags.add(expression.tag)
        elif isinstance(expression, InOrganisation):
            organisations.add(expression.path)
        elif isinstance(expression, Compare):
            values = expression.value if isinstance(expression.value, tuple | list) else [expression.value]
            attributes.setdefault(expression.attribute, []).extend([] if expression.op == "exists" else values)
        elif isinstance(expression, Every | Some | Neither):
            for part in expression.parts:
                walk(part)

    for scenario in content.scenarios:
        if scenario.audience is not None:
            walk(scenario.audience)
        if scenario.limits.send_only_to:
            tags.add(scenario.limits.send_only_to)
        for place in scenario.offer.placeholders:
            kind, _, name = place.source.replace(".", ":", 1).partition(":")
            if kind == "attribute":
                attributes.setdefault(name, [])
                if place.type in ("number", "money_fen"):
                    attributes[name].append(3000 if place.type == "money_fen" else 10)
    return sorted(tags), attributes, sorted(organisations)
