"""Points per second through the fence index, beside Shapely's STRtree in the same run on the same points.

Fences are stars of 4 to 24 corners, some 30 to 400 m across, clustered as shops are; one in a thousand is a
district.  Points spread as people do; about one in twenty lies inside some fence.

`points_per_s`        coarse fixes: which fences cover the point?  STRtree answers the same (covered_by, from points
                      made beforehand) and must answer alike; the index gives the confidence of L7 too.
`mixed_points_per_s`  gps, wifi and cell as 4 : 2 : 4, the fine ones touching fences up to 60 m away.  STRtree is
                      asked dwithin(accuracy) on a plane, which is about the same question, so answers are not compared.

Batches of 4,096 events lie in the cache when their time begins, as decode leaves them.
"""

from __future__ import annotations

import hashlib
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import shapely

from engine.definitions import CellTable, Fence, Shape
from engine.locate import FenceIndex
from engine.locate.kernel import locate_one
from engine.model import EVENT, FINE_ACCURACY_M, HIT, EventType

SEED = 20_240_601
METRES_PER_E7 = 0.0111
BATCH = 4_096
SPREAD = 6.0
"""People roam this much wider than shops cluster."""
NO_CELLS = CellTable((), np.zeros(0, np.int32), np.zeros(0, np.int32), np.zeros(0), np.zeros(0, bool))


def run(smoke: bool = False) -> list[dict[str, Any]]:
    """Measure every size; a smoke run is small and fast, and its figures mean nothing."""
    sizes = (1_000,) if smoke else (1_000, 10_000, 100_000)
    points = 20_000 if smoke else 500_000
    figures = []
    for place in ("city", "country"):
        first_ns = 0.0
        for count in sizes:
            rows, ns = measure(place, count, points)
            figures += rows
            first_ns = first_ns or ns
            if count != sizes[0]:
                figures.append({"name": f"locate.{place}.{count}.growth", "value": ns / first_ns, "unit": "ratio"})
    figures.append(one_point_figure())
    return figures


def measure(place: str, count: int, points: int) -> tuple[list[dict[str, Any]], float]:
    """Build one world, locate its points with both, compare the answers; return figures and ns per point."""
    random = np.random.default_rng([SEED, count, place == "country"])
    centres, spread_e7 = clusters(random, place, count)
    fences = make_fences(random, centres, spread_e7, count)
    events = make_events(random, centres, spread_e7, points)

    started = time.perf_counter()
    index = FenceIndex.build(fences, NO_CELLS)
    build_s = time.perf_counter() - started
    mixed_m = events["accuracy_m"].copy()
    mixed_s = locate_s(index, events)
    events["accuracy_m"] = 1_000.0
    hit_start, hits = index.locate(events)
    event_of_hit = np.repeat(np.arange(points), np.diff(hit_start))
    ours = pair_hash(event_of_hit, hits["fence"], count)

    polygons = [shapely.Polygon(fence.parts[0][0]) for fence in index.fences]
    places = shapely.points(events["lon_e7"].astype(float), events["lat_e7"].astype(float))
    tree = shapely.STRtree(polygons)
    # In turn, so that a noisy neighbour on the machine disturbs both alike.
    ours_s = theirs_s = float("inf")
    for _ in range(3):
        ours_s = min(ours_s, locate_s(index, events, 3))
        theirs_s = min(theirs_s, best_of(lambda: tree.query(places, predicate="covered_by"), 1))
    theirs = pair_hash(*tree.query(places, predicate="covered_by"), count)
    if ours != theirs:
        raise AssertionError(f"the index and STRtree differ on {place} {count}: {ours} and {theirs}")

    name = f"locate.{place}.{count}"
    figures = [
        {
            "name": f"{name}.points_per_s",
            "value": points / ours_s,
            "unit": "1/s",
            "peer": "shapely STRtree covered_by",
            "peer_value": points / theirs_s,
            "ratio": theirs_s / ours_s,
            "result": ours,
            "inside": round(len(np.unique(event_of_hit)) / points, 4),
            "hits_per_point": round(len(hits) / points, 4),
        },
        {"name": f"{name}.mixed_points_per_s", "value": points / mixed_s, "unit": "1/s"},
        {"name": f"{name}.build_s", "value": build_s, "unit": "s"},
        {"name": f"{name}.bytes_per_fence", "value": index.nbytes / count, "unit": "B"},
    ]
    if place == "city":
        plane = np.array([METRES_PER_E7 * np.cos(np.radians(39.9)), METRES_PER_E7])
        flat = shapely.STRtree(shapely.transform(polygons, lambda corners: corners * plane))
        flat_places = shapely.transform(places, lambda corners: corners * plane)
        reach_m = np.where(mixed_m <= FINE_ACCURACY_M, mixed_m, 0.0)
        near_s = best_of(lambda: flat.query(flat_places, predicate="dwithin", distance=reach_m), 1)
        figures[1] |= {"peer": "shapely STRtree dwithin", "peer_value": points / near_s, "ratio": near_s / mixed_s}
    return figures, ours_s / points * 1e9


def locate_s(index: FenceIndex, events: np.ndarray, rounds: int = 5) -> float:
    """Least processor seconds to locate all events in batches; copying a batch into place is not counted."""
    batch = events[:BATCH].copy()
    least = float("inf")
    for _ in range(rounds):
        spent = 0.0
        for start in range(0, len(events), BATCH):
            part = batch[: len(events) - start]
            part[:] = events[start : start + BATCH]
            began = time.thread_time()
            index.locate(part)
            spent += time.thread_time() - began
        least = min(least, spent)
    return least


def clusters(random: np.random.Generator, place: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Hot spots (lon_e7, lat_e7) and how far each reaches; the area grows with the count, so the hit rate does not."""
    spots = max(4, count // 160)
    if place == "city":
        half = int(20_000 * (count / 10_000) ** 0.5 / METRES_PER_E7)
        centres = random.integers(-half, half, (spots, 2)) + np.array([1_164_000_000, 399_000_000])
    else:
        centres = random.integers((780_000_000, 220_000_000), (1_300_000_000, 480_000_000), (spots, 2))
    return centres, random.lognormal(np.log(900), 0.6, spots) / METRES_PER_E7


def scatter(random: np.random.Generator, centres: np.ndarray, spread_e7: np.ndarray, count: int) -> np.ndarray:
    """Points around hot spots, int64[count, 2]; a few spots draw most."""
    weight = 1 / np.arange(1, len(centres) + 1) ** 0.3
    spot = random.choice(len(centres), count, p=weight / weight.sum())
    return (centres[spot] + random.normal(0, 1, (count, 2)) * spread_e7[spot, None]).astype(np.int64)


def make_fences(random: np.random.Generator, centres: np.ndarray, spread_e7: np.ndarray, count: int) -> list[Fence]:
    middles = scatter(random, centres, spread_e7, count)
    radii = np.clip(random.lognormal(np.log(50), 0.6, count), 15, 200) / METRES_PER_E7
    radii[::1000] *= 10
    corners = random.integers(4, 25, count)
    corners[::1000] = 60
    fences = []
    for i in range(count):
        angle = np.sort(random.random(corners[i])) * 2 * np.pi
        reach = radii[i] * random.uniform(0.7, 1.0, corners[i])
        ring = middles[i] + np.stack([reach * np.cos(angle) * 1.3, reach * np.sin(angle)], axis=1).astype(np.int64)
        parts = ((ring,),)
        fences.append(Fence(f"bench/{i:06d}", "", "shop", Shape.POLYGON, parts))
    return fences


def make_events(random: np.random.Generator, centres: np.ndarray, spread_e7: np.ndarray, points: int) -> np.ndarray:
    """All rows are pings: gps, wifi and cell as 4 : 2 : 4."""
    events = np.zeros(points, EVENT)
    places = scatter(random, centres, spread_e7 * SPREAD, points)
    events["lon_e7"], events["lat_e7"] = places[:, 0], places[:, 1]
    events["accuracy_m"] = random.choice([20.0, 60.0, 1000.0], points, p=[0.4, 0.2, 0.4])
    events["cell"] = -1
    events["type"] = EventType.PING
    return events


def pair_hash(events: np.ndarray, fences: np.ndarray, count: int) -> str:
    """Digest of the (event, fence) pairs, whatever their order."""
    keys = np.sort(np.asarray(events, np.int64) * count + np.asarray(fences, np.int64))
    return f"{len(keys)}:{hashlib.sha256(keys.tobytes()).hexdigest()[:12]}"


def one_point_figure() -> dict[str, Any]:
    """What one event alone costs through `FenceIndex.locate`, the call from Python included."""
    random = np.random.default_rng(SEED)
    centres, spread_e7 = clusters(random, "city", 1_000)
    index = FenceIndex.build(make_fences(random, centres, spread_e7, 1_000), NO_CELLS)
    event = make_events(random, centres, spread_e7, 1)
    locate_one(index.index, 0, 0, 20.0, -1, np.zeros(8, HIT), 0)

    def thousand() -> None:
        for _ in range(1_000):
            index.locate(event)

    return {"name": "locate.one_event_us", "value": best_of(thousand) * 1e3, "unit": "us"}


def best_of(act: Callable[[], object], times: int = 5) -> float:
    """Least processor seconds of this thread over some runs: neighbours on the machine do not count."""
    act()
    least = float("inf")
    for _ in range(times):
        started = time.thread_time()
        act()
        least = min(least, time.thread_time() - started)
    return least


if __name__ == "__main__":
    for figure in run("--smoke" in sys.argv):
        print(figure)
