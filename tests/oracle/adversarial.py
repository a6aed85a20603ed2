"""Seeded traces that look for trouble: edges, nesting, hops, jumps, silence, repeats, lateness, lying accuracy.

One seed gives one world: fences around a point, cells, a few users and their pings in log order.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from engine.definitions import CellTable, Fence
from engine.model import Confidence
from tests.oracle.locate_oracle import metres_per_degree
from tests.real import places

START_MS = round(datetime(2026, 3, 2, 1, 0, tzinfo=UTC).timestamp() * 1000)
CITIES = ((116.4, 39.9), (139.76, 35.68), (-0.12, 51.5), (25.7, 66.5), (-58.4, -34.6))
HOURS = ("Mo-Su 09:00-10:30", "Mo-Su 08:00-22:00", "Mo-Fr 22:00-02:00")
SPAN_M = 2_500.0
ACCURACIES: tuple[tuple[str | None, float | None], ...] = (
    ("gps", 5.0),
    ("gps", 20.0),
    ("gps", None),
    ("wifi", 35.0),
    ("wifi", 60.0),
    ("wifi", 61.0),
    ("wifi", 250.0),
    ("cell", 900.0),
    ("cell", 55.0),
    (None, None),
    (None, 3000.0),
)


@dataclass(frozen=True)
class World:
    fences: tuple[Fence, ...]
    cells: CellTable
    pings: list[dict[str, Any]]
    thresholds: dict[str, tuple[int, ...]]
    end_now_ms: int


class Ground:
    """Metres east and north of a point as degrees."""

    def __init__(self, lon: float, lat: float) -> None:
        self.lon, self.lat = lon, lat
        self.metres_lon, self.metres_lat = metres_per_degree(lat)

    def at(self, east_m: float, north_m: float) -> tuple[float, float]:
        return self.lon + east_m / self.metres_lon, self.lat + north_m / self.metres_lat


def world(seed: int, steps: int = 250, stalest_ms: int = 20 * 3_600_000) -> World:
    """One world. `stalest_ms` bounds how long before `now` a fix may have been made."""
    dice = random.Random(seed)
    ground = Ground(*dice.choice(CITIES))
    cells = _cells(dice, ground)
    fences = places.in_row_order(_fences(dice, ground, cells))
    pings = _pings(dice, ground, cells, steps, stalest_ms)
    thresholds = {
        fence.id: dice.choice([(60,), (120, 600), (600, 1800), (30, 5400)]) for fence in fences if dice.random() < 0.6
    }
    return World(fences, cells, pings, thresholds, pings[-1]["now_ms"] + 3 * 86_400_000)


def _cells(dice: random.Random, ground: Ground) -> CellTable:
    count = 9
    spots = [ground.at(dice.uniform(-SPAN_M, SPAN_M), dice.uniform(-SPAN_M, SPAN_M)) for _ in range(count)]
    snapped = np.array([(round(lon * 1e7), round(lat * 1e7)) for lon, lat in spots], np.int32)
    radius_m = np.array([dice.choice([40.0, 150.0, 300.0, 800.0, 1500.0]) for _ in range(count)])
    ids = tuple(f"cell-{i}" for i in range(count))
    return CellTable(ids, snapped[:, 0].copy(), snapped[:, 1].copy(), radius_m, np.zeros(count, bool))


def _settings(dice: random.Random) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    if dice.random() < 0.35:
        settings["enter_delay_s"] = dice.choice([0.0, 30.0, 120.0, 600.0])
    if dice.random() < 0.35:
        settings["exit_delay_s"] = dice.choice([0.0, 60.0, 300.0, 2400.0])
    settings["min_confidence"] = dice.choice([Confidence.MEDIUM] * 3 + [Confidence.LOW, Confidence.HIGH])
    if dice.random() < 0.2:
        settings["opening_hours"] = dice.choice(HOURS)
        settings["time_zone"] = dice.choice(["Asia/Shanghai", "Asia/Tokyo", "Europe/London"])
    if dice.random() < 0.1:
        settings["valid_from_ms"] = START_MS + dice.randrange(7_200_000)
        settings["valid_until_ms"] = settings["valid_from_ms"] + dice.randrange(1, 14_400_000)
    return settings


def _fences(dice: random.Random, ground: Ground, cells: CellTable) -> list[Fence]:
    fences = []
    for i in range(dice.randint(4, 9)):
        lon, lat = ground.at(dice.uniform(-SPAN_M, SPAN_M) / 2, dice.uniform(-SPAN_M, SPAN_M) / 2)
        settings = _settings(dice)
        if dice.random() < 0.15:
            settings["cells"] = tuple(dice.sample(cells.ids, 2))
        kind = dice.randrange(4)
        if kind == 0:
            fences.append(places.circle(f"c{i}", lon, lat, dice.choice([40.0, 150.0, 500.0, 2_500.0]), **settings))
        elif kind == 1:
            radius = dice.choice([80.0, 300.0, 1200.0])
            holes = [places.ring(lon, lat, radius / 3, 5)] if dice.random() < 0.4 else []
            fences.append(
                places.polygon(f"p{i}", places.ring(lon, lat, radius, dice.randint(3, 9)), *holes, **settings)
            )
        elif kind == 2:
            line = [ground.at(dice.uniform(-SPAN_M, SPAN_M), dice.uniform(-SPAN_M, SPAN_M)) for _ in range(3)]
            fences.append(places.corridor(f"k{i}", line, dice.choice([30.0, 120.0]), **settings))
        else:
            fences.append(
                places.cell_set(f"s{i}", dice.sample(cells.ids, dice.randint(1, 3)), **settings_of_cells(settings))
            )
    if dice.random() < 0.4:
        fences += _tiles(ground)
    lon, lat = ground.at(0.0, 0.0)
    fences += [places.circle(f"n{i}", lon, lat, 60.0 * 1.6**i, **_settings(dice)) for i in range(dice.randint(0, 5))]
    return fences


def _tiles(ground: Ground) -> list[Fence]:
    """A chessboard of four tiles that share edges and one corner, exactly under the fixes at (0, 0)."""
    corners = [[ground.at(east, north) for east in (-700.0, 0.0, 700.0)] for north in (-700.0, 0.0, 700.0)]
    tiles = []
    for row in range(2):
        for column in range(2):
            ring = [
                corners[row][column],
                corners[row][column + 1],
                corners[row + 1][column + 1],
                corners[row + 1][column],
            ]
            tiles.append(places.polygon(f"t{row}{column}", ring, tiling=True, kind="tile"))
    return tiles


def settings_of_cells(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != "cells"}


@dataclass
class _Walker:
    east_m: float
    north_m: float
    cell: str
    other_cell: str
    lag_ms: int = 0


def _pings(dice: random.Random, ground: Ground, cells: CellTable, steps: int, stalest_ms: int) -> list[dict[str, Any]]:
    walkers = {
        f"u{i}": _Walker(dice.uniform(-900, 900), dice.uniform(-900, 900), *dice.sample(cells.ids, 2)) for i in range(3)
    }
    now_ms = START_MS
    pings: list[dict[str, Any]] = []
    for step in range(steps):
        now_ms += _pause_ms(dice)
        name = dice.choice(list(walkers))
        walker = walkers[name]
        if pings and dice.random() < 0.03:
            repeated = dice.choice(pings[-5:])
            if now_ms - repeated["at_ms"] < stalest_ms:
                pings.append({**repeated, "now_ms": now_ms})
                continue
        if dice.random() < 0.03:
            walker.lag_ms = dice.choice([0, 0, 0, 4 * 60_000, 15 * 60_000, 90 * 60_000])
        at_ms = now_ms - walker.lag_ms - dice.choice([0, 0, 0, 0, 1_000, 1_999, 2_000, 20_000, 240_000])
        mine = [ping for ping in pings if ping["user"] == name]
        if mine and dice.random() < 0.05 and now_ms - mine[-1]["at_ms"] < stalest_ms:
            at_ms = mine[-1]["at_ms"]
        ping = {
            "user": name,
            "at_ms": at_ms,
            "now_ms": now_ms,
            "id": f"e{step}" if dice.random() < 0.3 else None,
            **_place(dice, ground, cells, walker),
        }
        pings.append(ping)
    return pings


def _pause_ms(dice: random.Random) -> int:
    draw = dice.random()
    if draw < 0.75:
        return dice.choice([0, 1_000, 5_000, 10_000, 20_000, 30_000, 45_000])
    if draw < 0.93:
        return dice.choice([60_000, 120_000, 200_000, 300_000, 599_000, 600_000, 601_000])
    return dice.choice([1_799_000, 1_800_000, 1_860_000, 3_600_000, 3_660_000, 10_900_000, 86_400_000, 90_000_000])


def _place(dice: random.Random, ground: Ground, cells: CellTable, walker: _Walker) -> dict[str, Any]:
    draw = dice.random()
    if draw < 0.28:
        if dice.random() < 0.5:
            walker.cell, walker.other_cell = walker.other_cell, walker.cell
        elif dice.random() < 0.2:
            walker.cell = dice.choice(cells.ids)
        row = cells.ids.index(walker.cell)
        return {
            "lon_e7": int(cells.lon_e7[row]),
            "lat_e7": int(cells.lat_e7[row]),
            "accuracy_m": float(cells.radius_m[row]),
            "method": "cell",
            "cell": walker.cell,
            "feed": dice.choice(["signalling", "signalling", "app"]),
        }
    if draw < 0.80:
        turn, step_m = dice.uniform(0, 2 * math.pi), dice.choice([0.0, 3.0, 15.0, 40.0, 150.0, 600.0])
        walker.east_m += step_m * math.cos(turn)
        walker.north_m += step_m * math.sin(turn)
    elif draw < 0.90:
        walker.east_m, walker.north_m = dice.uniform(-SPAN_M, SPAN_M), dice.uniform(-SPAN_M, SPAN_M)
    elif draw < 0.94:
        walker.east_m, walker.north_m = dice.choice(
            [(0.0, 0.0), (30_000.0, 0.0), (0.0, -400_000.0), (1_500.0, 1_500.0)]
        )
    elif draw < 0.95:
        return {"lon_e7": 0, "lat_e7": 0, "accuracy_m": 5.0, "method": "gps", "cell": None, "feed": "app"}
    lon, lat = ground.at(walker.east_m, walker.north_m)
    method, accuracy_m = dice.choice(ACCURACIES)
    return {
        "lon_e7": round(lon * 1e7),
        "lat_e7": round(lat * 1e7),
        "accuracy_m": accuracy_m,
        "method": method,
        "cell": None,
        "feed": dice.choice(["app", "app", "app", "signalling", "owntracks"]),
    }
