"""What the days of all people look like from outside: fixes with noise and gaps, cells with ping-pong, app usage.

All streams are rows of one array in time order; random draws are made per stream over all legs at once, so the same
people and seed give the same rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from engine.city.apps import UsageSort
from engine.city.day import DESK, HOME, WAY, Leg
from engine.city.people import Person
from engine.city.places import METRES_PER_DEGREE, Places

GPS, WIFI, CELL, USAGE, INBOUND = range(5)

ROW = np.dtype(
    [
        ("at_ms", "i8"),
        ("lon", "f8"),
        ("lat", "f8"),
        ("accuracy_m", "f4"),
        ("person", "i4"),
        ("index", "i4"),  # CELL: row of the cell table; USAGE: row of the usage sorts
        ("what", "u1"),
    ]
)

LEG = np.dtype(
    [("begin_s", "f8"), ("end_s", "f8"), ("from", "f8", 2), ("to", "f8", 2), ("place", "i4"), ("person", "i4")]
)
PING_PONG = 0.05
SIGMA_OF_68 = 1 / 1.51  # of each axis, for a circle that holds 68 % of a plane Gaussian


def leg_array(people: Sequence[Person], days: Sequence[list[Leg]]) -> np.ndarray:
    rows = [
        (leg.begin_s, leg.end_s, (leg.lon, leg.lat), (leg.to_lon, leg.to_lat), leg.place, person.number)
        for person, legs in zip(people, days, strict=True)
        for leg in legs
    ]
    return np.array(rows, LEG)


def fixes(legs: np.ndarray, people: Sequence[Person], midnight_ms: int, rng: np.random.Generator) -> np.ndarray:
    """GPS and wifi fixes of those who have the app: every minute on the way, every few minutes at rest."""
    has_app = np.array([person.has_app for person in people])
    mine = legs[has_app[legs["person"]]]
    period_s = np.choose(_sort_of(mine), (420.0, 300.0, 70.0, 150.0))
    leg, at_s, share = _moments(mine, period_s, rng)
    heard = ~_in_gap(mine["person"][leg], at_s, len(people), rng) & (rng.random(len(leg)) > 0.02)
    leg, at_s, share = leg[heard], at_s[heard], share[heard]
    sort = _sort_of(mine)[leg]
    is_wifi = rng.random(len(leg)) < np.choose(sort, (0.85, 0.7, 0.03, 0.6))
    accuracy_m = np.where(is_wifi, rng.uniform(18, 55, len(leg)), np.clip(rng.lognormal(2.5, 0.5, len(leg)), 4, 90))
    bad = rng.random(len(leg)) < 0.02
    accuracy_m = np.where(bad, rng.uniform(90, 600, len(leg)), accuracy_m)
    lon, lat = _where(mine[leg], share)
    wander_m = np.choose(sort, (4.0, 6.0, 0.0, 12.0))
    sigma_m = np.hypot(SIGMA_OF_68 * accuracy_m, wander_m)
    lon = lon + rng.normal(0.0, 1.0, len(leg)) * sigma_m / (METRES_PER_DEGREE * np.cos(np.radians(lat)))
    lat = lat + rng.normal(0.0, 1.0, len(leg)) * sigma_m / METRES_PER_DEGREE
    return _rows(midnight_ms, at_s, mine["person"][leg], np.where(is_wifi, WIFI, GPS), lon, lat, accuracy_m, 0)


def cell_fixes(legs: np.ndarray, places: Places, people: int, midnight_ms: int, rng: np.random.Generator) -> np.ndarray:
    """Signalling of everybody: a cell every few minutes on the way, now and then at rest, 5 % of them the neighbour."""
    if not len(places.cell_ids):
        return np.zeros(0, ROW)
    period_s = np.choose(_sort_of(legs), (2_400.0, 1_800.0, 210.0, 600.0))
    leg, at_s, share = _moments(legs, period_s, rng)
    begin, end = _two_nearest(places, legs["from"]), _two_nearest(places, legs["to"])
    near = np.where((share < 0.5)[:, None], begin[leg], end[leg])
    cell = np.where(rng.random(len(leg)) < PING_PONG, near[:, 1], near[:, 0])
    member = _member_cell(places, legs["place"][leg], rng.random(len(leg)))
    cell = np.where((member >= 0) & (rng.random(len(leg)) < 0.85), member, cell)
    return _rows(midnight_ms, at_s, legs["person"][leg], CELL, 0.0, 0.0, 0.0, cell)


def usage(
    legs: np.ndarray,
    people: Sequence[Person],
    sorts: Sequence[UsageSort],
    quiet_places: np.ndarray,
    midnight_ms: int,
    rng: np.random.Generator,
) -> np.ndarray:
    """App usage: mostly at home and on the way, hardly at night, none in `quiet_places` (rows of places)."""
    period_s = np.choose(_sort_of(legs), (900.0, 1_800.0, 600.0, 700.0))
    quiet = np.isin(legs["place"], quiet_places)
    awake = legs[~quiet]
    leg, at_s, _ = _moments(awake, period_s[~quiet], rng)
    hour = at_s / 3600
    kept = rng.random(len(leg)) < np.where(hour < 6, 0.03, np.where((hour > 18.5) & (hour < 23), 1.0, 0.7))
    leg, at_s = leg[kept], at_s[kept]
    weights = np.array([sort.weight for sort in sorts])
    likes = np.empty((len(people), len(sorts)))
    for person in people:
        likes[person.number] = weights * np.exp(np.random.default_rng(person.taste).normal(0.0, 1.0, len(sorts)))
    likes = np.cumsum(likes, axis=1)
    who = awake["person"][leg]
    sort = (rng.random(len(leg)) * likes[who, -1])[:, None] > likes[who]
    return _rows(midnight_ms, at_s, who, USAGE, 0.0, 0.0, 0.0, sort.sum(axis=1))


def opt_outs(people: Sequence[Person], midnight_ms: int) -> np.ndarray:
    leaving = [person for person in people if person.opts_out_at_s is not None]
    at_s = np.array([person.opts_out_at_s for person in leaving], np.float64)
    who = np.array([person.number for person in leaving], np.int64)
    return _rows(midnight_ms, at_s, who, INBOUND, 0.0, 0.0, 0.0, 0)


def _sort_of(legs: np.ndarray) -> np.ndarray:
    """0 at home, 1 at the desk, 2 on the way, 3 in a place."""
    place = legs["place"]
    return np.select([place == HOME, place == DESK, place == WAY], [0, 1, 2], 3)


def _moments(
    legs: np.ndarray, period_s: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Spread about one moment per period over each leg: (row of the leg, second of the day, share of the leg)."""
    lasts_s = legs["end_s"] - legs["begin_s"]
    count = np.floor(lasts_s / period_s + rng.random(len(legs))).astype(np.int64)
    leg = np.repeat(np.arange(len(legs)), count)
    within = np.arange(len(leg)) - np.repeat(np.cumsum(count) - count, count)
    share = (within + rng.random(len(leg))) / count[leg]
    return leg, legs["begin_s"][leg] + share * lasts_s[leg], share


def _where(legs: np.ndarray, share: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    point = legs["from"] + (legs["to"] - legs["from"]) * share[:, None]
    return point[:, 0], point[:, 1]


def _in_gap(person: np.ndarray, at_s: np.ndarray, people: int, rng: np.random.Generator) -> np.ndarray:
    """Each phone is off or out of reach twice a day for 5 to 50 minutes."""
    silent = np.zeros(len(person), bool)
    for _ in range(2):
        begin_s = rng.uniform(0, 86_400, people)
        lasts_s = rng.uniform(300, 3_000, people)
        silent |= (at_s >= begin_s[person]) & (at_s < (begin_s + lasts_s)[person])
    return silent


def _two_nearest(places: Places, points: np.ndarray) -> np.ndarray:
    """Return int64[N, 2]: the nearest street cell of each point and the one after it."""
    rows = places.cell_outdoor
    if len(rows) == 1:
        return np.full((len(points), 2), rows[0])
    nearest = np.empty((len(points), 2), np.int64)
    squeeze = math.cos(math.radians(float(places.cell_lat[rows].mean())))
    lon, lat = places.cell_lon[rows] * squeeze, places.cell_lat[rows]
    for begin in range(0, len(points), 4_096):
        chunk = points[begin : begin + 4_096]
        away = (chunk[:, :1] * squeeze - lon) ** 2 + (chunk[:, 1:] - lat) ** 2
        two = np.argpartition(away, 1, axis=1)[:, :2]
        swap = np.take_along_axis(away, two, 1)
        two = np.where((swap[:, 0] <= swap[:, 1])[:, None], two, two[:, ::-1])
        nearest[begin : begin + 4_096] = rows[two]
    return nearest


def _member_cell(places: Places, place: np.ndarray, draw: np.ndarray) -> np.ndarray:
    """Choose a member cell of the place stayed in; -1 where it has none."""
    counts = np.array([len(one) for one in places.members] or [0])
    flat = np.concatenate([*places.members, np.array([-1])])
    start = np.cumsum(counts) - counts
    row = np.where(place >= 0, place, 0)
    has = (place >= 0) & (counts[row] > 0)
    return np.where(has, flat[np.where(has, start[row] + (draw * counts[row]).astype(np.int64), -1)], -1)


def _rows(
    midnight_ms: int,
    at_s: np.ndarray,
    person: np.ndarray,
    what: np.ndarray | int,
    lon: np.ndarray | float,
    lat: np.ndarray | float,
    accuracy_m: np.ndarray | float,
    index: np.ndarray | int,
) -> np.ndarray:
    rows = np.zeros(len(at_s), ROW)
    rows["at_ms"] = midnight_ms + (at_s * 1000).astype(np.int64)
    rows["person"], rows["what"], rows["index"] = person, what, index
    rows["lon"], rows["lat"], rows["accuracy_m"] = lon, lat, accuracy_m
    return rows
