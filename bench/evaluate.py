"""How much of real movement coarse signalling still shows: GeoLife as an operator's cells would have seen it.

Every trace is thinned to one fix per 30 +- 10 min and snapped to synthetic towers, 5 % of the fixes hop to the next
tower and back. The truth is what presence makes of the full GPS trace. What the rows mean and what they cannot tell:
docs/evaluation.md. Needs ../shared/data; without it there is one row that says so.
"""

from __future__ import annotations

import math
import random
import statistics
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.definitions import CellTable, Fence
from tests.oracle.locate_oracle import FenceShape
from tests.real import convert, places
from tests.real.drive import not_alternating, run_engine

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
TRACE = "traces/geolife_beijing_9users.csv.gz"
SEEDS = (1, 2, 3, 4, 5)
MINUTE_MS = 60_000
DAY_MS = 86_400_000
BEIJING_OFFSET_MS = 8 * 3_600_000
TOWER_GRID_M = 500.0
TOWER_JITTER_M = 150.0
TOWER_RADIUS_M = 400.0
PING_PONG_SHARE = 0.05
PLACES = 40
PLACE_RADIUS_M = 300.0
LONG_VISIT_MS = 45 * MINUTE_MS
SERVED_SHARE = 0.1
"""A cell belongs to a fence when its tower stands in it, or is the nearest of at least this share of its area."""

Ping = dict[str, Any]
Stays = dict[tuple[str, str], list[tuple[int, int]]]  # (user, fence) -> (crossed in, crossed out), ms


class Towers:
    """An endless grid of towers, each moved a little by the seed; `nearest` is found among the neighbours."""

    def __init__(self, seed: int, lat: float) -> None:
        self.seed = seed
        self.step_lat = TOWER_GRID_M / places.METRES_PER_DEGREE
        self.step_lon = self.step_lat / math.cos(math.radians(lat))

    def place(self, column: int, row: int) -> tuple[float, float]:
        dice = random.Random(f"{self.seed}/{column}/{row}")
        share = TOWER_JITTER_M / TOWER_GRID_M
        return (
            (column + dice.uniform(-share, share)) * self.step_lon,
            (row + dice.uniform(-share, share)) * self.step_lat,
        )

    def nearest(self, lon: float, lat: float) -> list[tuple[int, int]]:
        """The two nearest towers, the nearest first."""
        column, row = round(lon / self.step_lon), round(lat / self.step_lat)
        around = [(column + i, row + j) for i in (-1, 0, 1) for j in (-1, 0, 1)]

        def squared(tower: tuple[int, int]) -> float:
            tower_lon, tower_lat = self.place(*tower)
            return ((tower_lon - lon) / self.step_lon) ** 2 + ((tower_lat - lat) / self.step_lat) ** 2

        return sorted(around, key=squared)[:2]


def run(smoke: bool = False) -> list[dict[str, Any]]:
    """Measure, as rows of name, value and unit; medians over seeds of towers, thinning and hops."""
    if not (DATA / TRACE).exists():
        return [{"name": "evaluate.telecom.skipped", "value": 1, "unit": "no ../shared/data"}]
    users = ("000", "004") if smoke else ()
    events = [
        event for event in convert.geolife(DATA / TRACE) if not users or event["user"].removeprefix("geolife-") in users
    ]
    pings = convert.pings_of(convert.sorted_events(events))
    fences = fences_of(pings)
    full = run_engine(fences, pings, {}, pings[-1]["now_ms"] + 2 * DAY_MS)
    truth = stays_of(full)
    rounds = [measure(pings, fences, truth, seed) for seed in SEEDS[: 1 if smoke else None]]
    rows = [
        {"name": f"evaluate.telecom.{name}", "value": statistics.median(one[name] for one in rounds), "unit": unit}
        for name, unit in UNITS.items()
    ]
    rows.append({"name": "evaluate.full.alternation_errors", "value": not_alternating(full), "unit": "count"})
    return rows


UNITS = {
    "long_visits": "count",
    "long_visits_found": "share",
    "long_visits_seen_by_a_listed_cell": "share",
    "long_visits_found_of_those": "share",
    "false_enters_per_user_day": "1/d",
    "false_enters_by_hop_per_user_day": "1/d",
    "enters": "count",
    "user_days": "count",
    "fixes": "count",
    "alternation_errors": "count",
}


def fences_of(pings: Sequence[Ping]) -> tuple[Fence, ...]:
    """The 40 places where the traces spend most time, as circles of 300 m that lie apart, and some drawn places."""
    apart: list[Fence] = []
    for fence in places.frequent_places(pings, 200, "place"):
        if all(metres_between(fence, other) > 2 * PLACE_RADIUS_M for other in apart):
            apart.append(places.circle(fence.name, fence.lon, fence.lat, PLACE_RADIUS_M))
    drawn = [
        places.circle("wudaokou", 116.3318, 39.9922, 400.0),
        places.circle("zhongguancun", 116.3110, 39.9830, 800.0),
        places.polygon("tsinghua", places.box(116.3150, 39.9950, 116.3330, 40.0120)),
        places.circle("yuyuantan", 116.3370, 39.9257, 600.0),
        places.circle("xizhimen", 116.3490, 39.9400, 300.0),
    ]
    return places.in_row_order([*apart[:PLACES], *drawn])


def metres_between(one: Fence, other: Fence) -> float:
    """Near enough for keeping places apart."""
    east = (one.lon - other.lon) * math.cos(math.radians(one.lat))
    return math.hypot(east, one.lat - other.lat) * places.METRES_PER_DEGREE


def measure(pings: Sequence[Ping], fences: Sequence[Fence], truth: Stays, seed: int) -> dict[str, float]:
    """One seed: build towers, thin and snap the traces, run them, compare with the truth."""
    towers = Towers(seed, pings[0]["lat_e7"] / 1e7)
    thinned, hops = thin(pings, towers, random.Random(seed))
    served = places.in_row_order(places.cell_set(fence.name, cells_serving(fence, towers)) for fence in fences)
    cells = table_of(towers, [ping["cell"] for ping in thinned], served)
    seen = run_engine(served, thinned, {}, pings[-1]["now_ms"] + 2 * DAY_MS, cells)
    found = stays_of(seen)
    long = [(key, stay) for key, stays in truth.items() for stay in stays if stay[1] - stay[0] >= LONG_VISIT_MS]
    members = {fence.id: set(fence.cells) for fence in served}
    showable = [
        (key, stay)
        for key, stay in long
        if any(is_within(ping, key[0], stay) and ping["cell"] in members[key[1]] for ping in thinned)
    ]
    entered = [(key, stay) for key, stays in found.items() for stay in stays]
    false = [(key, stay) for key, stay in entered if not meets(truth, key, stay)]
    days = len({(ping["user"], (ping["at_ms"] + BEIJING_OFFSET_MS) // DAY_MS) for ping in thinned})
    return {
        "long_visits": len(long),
        "long_visits_found": sum(meets(found, key, stay) for key, stay in long) / max(1, len(long)),
        "long_visits_seen_by_a_listed_cell": len(showable) / max(1, len(long)),
        "long_visits_found_of_those": sum(meets(found, key, stay) for key, stay in showable) / max(1, len(showable)),
        "false_enters_per_user_day": len(false) / days,
        "false_enters_by_hop_per_user_day": sum((key[0], stay[0]) in hops for key, stay in false) / days,
        "enters": len(entered),
        "user_days": days,
        "fixes": len(thinned),
        "alternation_errors": not_alternating(seen),
    }


def thin(pings: Sequence[Ping], towers: Towers, dice: random.Random) -> tuple[list[Ping], set[tuple[str, int]]]:
    """Keep one fix per 30 +- 10 min of each user, at its nearest tower; 5 % hop to the second and back in 1-3 min.

    Returns the fixes in log order, and (user, instant) of those that hopped.
    """
    kept: list[Ping] = []
    hops: set[tuple[str, int]] = set()
    next_ms: dict[str, float] = {}
    for ping in pings:
        user, at = ping["user"], ping["at_ms"]
        if at < next_ms.get(user, -math.inf):
            continue
        next_ms[user] = at + dice.uniform(20, 40) * MINUTE_MS
        nearest, second = towers.nearest(ping["lon_e7"] / 1e7, ping["lat_e7"] / 1e7)
        if dice.random() < PING_PONG_SHARE:
            hops.add((user, at))
            kept.append(fix_at(ping, towers, second, at))
            kept.append(fix_at(ping, towers, nearest, at + dice.randrange(1, 4) * MINUTE_MS))
        else:
            kept.append(fix_at(ping, towers, nearest, at))
    kept.sort(key=lambda ping: ping["at_ms"])
    return kept, hops


def fix_at(ping: Ping, towers: Towers, tower: tuple[int, int], at_ms: int) -> Ping:
    lon, lat = towers.place(*tower)
    return {
        "user": ping["user"],
        "at_ms": at_ms,
        "now_ms": at_ms,
        "lon_e7": round(lon * 1e7),
        "lat_e7": round(lat * 1e7),
        "accuracy_m": TOWER_RADIUS_M,
        "method": "cell",
        "cell": name_of(tower),
        "feed": "signalling",
        "id": None,
    }


def name_of(tower: tuple[int, int]) -> str:
    return f"{tower[0]}/{tower[1]}"


def table_of(towers: Towers, names: Iterable[str], fences: Sequence[Fence]) -> CellTable:
    """Every cell that a fix or a fence names."""
    ids = tuple(sorted({*names, *(cell for fence in fences for cell in fence.cells)}))
    spots = [towers.place(*(int(part) for part in cell.split("/"))) for cell in ids]
    snapped = np.array([(round(lon * 1e7), round(lat * 1e7)) for lon, lat in spots], np.int32).reshape(-1, 2)
    radius = np.full(len(ids), TOWER_RADIUS_M)
    return CellTable(ids, snapped[:, 0].copy(), snapped[:, 1].copy(), radius, np.zeros(len(ids), bool))


def cells_serving(fence: Fence, towers: Towers) -> list[str]:
    """The towers an engineer would list for a place: those within it, and those nearest to a tenth of it or more."""
    shape = FenceShape(fence)
    west, south, east, north = (bound / 1e7 for bound in shape.geometry.buffer(extent_e7(fence)).bounds)
    served: Counter[str] = Counter()
    for lon in np.linspace(west, east, 21):
        for lat in np.linspace(south, north, 21):
            if shape.covers(round(lon * 1e7), round(lat * 1e7)):
                served[name_of(towers.nearest(float(lon), float(lat))[0])] += 1
    least = SERVED_SHARE * served.total()
    return sorted(cell for cell, count in served.items() if count >= least or stands_in(cell, shape, towers))


def stands_in(cell: str, shape: FenceShape, towers: Towers) -> bool:
    column, row = (int(part) for part in cell.split("/"))
    lon, lat = towers.place(column, row)
    return shape.covers(round(lon * 1e7), round(lat * 1e7))


def extent_e7(fence: Fence) -> float:
    """Degrees x 1e7 that surely reach as far as the fence around its centre."""
    return 1.4 * fence.radius_m / places.METRES_PER_DEGREE * 1e7


def stays_of(transitions: Sequence[Ping]) -> Stays:
    """Pair each ENTER with its EXIT, by the instants crossed."""
    open_since: dict[tuple[str, str], int] = {}
    stays: Stays = defaultdict(list)
    for one in transitions:
        key = (one["user"], one["fence"])
        if one["kind"] == "enter":
            open_since[key] = one["crossed_at"]
        elif one["kind"] == "exit":
            stays[key].append((open_since.pop(key), one["crossed_at"]))
    return stays


def meets(stays: Stays, key: tuple[str, str], stay: tuple[int, int]) -> bool:
    """Whether one of these stays of the same user and fence overlaps this one."""
    return any(start <= stay[1] and stay[0] <= end for start, end in stays.get(key, ()))


def is_within(ping: Ping, user: str, stay: tuple[int, int]) -> bool:
    return ping["user"] == user and stay[0] <= ping["at_ms"] <= stay[1]
