"""What a person does on one day: a chain of stays and ways between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from engine.city.people import Person
from engine.city.places import METRES_PER_DEGREE, Places, moved

DAY_S = 86_400
HOME, DESK, WAY = -1, -2, -3
SHOWS_S = (10.5 * 3600, 13.5 * 3600, 15.5 * 3600, 18.5 * 3600, 19.25 * 3600, 20 * 3600)


@dataclass(slots=True)
class Leg:
    """Half-open span of one day, in seconds after midnight, from one point to another (equal while staying).

    place is the row of the place stayed in, or HOME, DESK, WAY.
    """

    begin_s: float
    end_s: float
    lon: float
    lat: float
    to_lon: float
    to_lat: float
    place: int


class _Walker:
    """Adds legs one after another."""

    def __init__(self, person: Person, places: Places, rng: np.random.Generator) -> None:
        self.person = person
        self.places = places
        self.rng = rng
        self.legs: list[Leg] = []
        self.t = 0.0
        self.at = person.home
        self.place = HOME

    def stay_until(self, end_s: float) -> None:
        if end_s > self.t:
            self.legs.append(Leg(self.t, end_s, *self.at, *self.at, self.place))
            self.t = end_s

    def go(self, to: tuple[float, float], place: int) -> None:
        """Travel there, with two bends on the way; below 1.2 km on foot."""
        east_m = (to[0] - self.at[0]) * METRES_PER_DEGREE * math.cos(math.radians(to[1]))
        north_m = (to[1] - self.at[1]) * METRES_PER_DEGREE
        length_m = math.hypot(east_m, north_m)
        speed_mps = 1.3 if length_m < 1_200 else self.person.speed_mps
        took_s = max(60.0, 1.25 * length_m / speed_mps)
        points = [self.at]
        for share in (0.33, 0.67):
            side_m = float(self.rng.normal(0.0, 0.08 * length_m))
            across = (-north_m / max(length_m, 1.0) * side_m, east_m / max(length_m, 1.0) * side_m)
            points.append(moved(*self.at, share * east_m + across[0], share * north_m + across[1]))
        points.append(to)
        for index in range(3):
            self.legs.append(
                Leg(
                    self.t + index * took_s / 3,
                    self.t + (index + 1) * took_s / 3,
                    *points[index],
                    *points[index + 1],
                    WAY,
                )
            )
        self.t += took_s
        self.at, self.place = to, place

    def visit(self, use: str, stay_s: float, within_m: float = 2_500.0) -> None:
        row = self.places.near(*self.at, use, within_m, self.rng)
        if row < 0:
            return
        spread_m = max(3.0, float(self.places.inner_m[row]) * 0.5)
        east_m, north_m = np.clip(self.rng.normal(0.0, spread_m, 2), -2 * spread_m, 2 * spread_m)
        self.go(moved(float(self.places.lon[row]), float(self.places.lat[row]), float(east_m), float(north_m)), row)
        self.stay_until(self.t + stay_s)

    def show(self) -> None:
        """Go to the cinema for the next show that can be reached."""
        starts = [start for start in SHOWS_S if start > self.t + 1_200]
        if not starts:
            return
        self.stay_until(max(self.t, starts[0] - 2_700))
        self.visit("cinema", 60.0, 4_000.0)
        if self.place >= 0:
            self.stay_until(max(self.t, starts[0]) + float(self.rng.uniform(6_000, 8_400)))

    def home(self) -> None:
        if self.place != HOME:
            self.go(self.person.home, HOME)


def plan(person: Person, places: Places, weekend: bool, rng: np.random.Generator) -> list[Leg]:
    """Return the person's legs from midnight to midnight, without gaps, in order."""
    walker = _Walker(person, places, rng)
    if person.desk is not None and (not weekend or person.desk_place >= 0):
        _work_day(walker, person)
    else:
        _free_day(walker, person, busier=1.4 if weekend else 1.0)
    walker.home()
    walker.stay_until(float(DAY_S))
    return walker.legs


def _work_day(walker: _Walker, person: Person) -> None:
    rng = walker.rng
    assert person.desk is not None
    desk_place = person.desk_place if person.desk_place >= 0 else DESK
    walker.stay_until(max(5.5 * 3600, float(rng.normal(7.6 * 3600, 2_200))))
    walker.go(person.desk, desk_place)
    walker.stay_until(max(walker.t, float(rng.normal(12.0 * 3600, 900))))
    if rng.random() < 0.25 + 0.3 * person.outgoing:
        walker.visit("leisure" if rng.random() < 0.6 else "errand", float(rng.uniform(1_500, 3_300)), 900.0)
        walker.go(person.desk, desk_place)
    walker.stay_until(max(walker.t, float(rng.normal(17.8 * 3600, 2_400))))
    _evening(walker, person, 1.0)


def _free_day(walker: _Walker, person: Person, busier: float) -> None:
    rng = walker.rng
    walker.stay_until(float(rng.uniform(8.5 * 3600, 10.5 * 3600)))
    if rng.random() < 0.45:
        walker.visit("errand", float(rng.uniform(1_200, 2_700)), 1_500.0)
        walker.home()
    if rng.random() < busier * (0.25 + 0.5 * person.outgoing):
        walker.stay_until(max(walker.t, float(rng.uniform(12.5 * 3600, 15 * 3600))))
        walker.visit("leisure", float(rng.uniform(3_000, 9_000)), 3_000.0)
        if rng.random() < 0.25 * busier:
            walker.show()
        walker.home()
    if rng.random() < 0.5 * busier * person.outgoing:
        walker.stay_until(max(walker.t, float(rng.uniform(17.0 * 3600, 18.5 * 3600))))
        _evening(walker, person, busier)


def _evening(walker: _Walker, person: Person, busier: float) -> None:
    rng = walker.rng
    what = rng.random() / busier
    if what < 0.12 * (0.5 + person.outgoing):
        walker.show()
    elif what < 0.42 * (0.5 + person.outgoing):
        walker.visit("leisure", float(rng.uniform(2_400, 8_100)))
    elif what < 0.6:
        walker.visit("errand", float(rng.uniform(900, 2_400)), 1_500.0)
