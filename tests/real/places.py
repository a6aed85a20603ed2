"""Fences around real places, for the traces of ../shared/data; every shape and every presence setting occurs.

Some are drawn by hand, `frequent_places` where a trace spends its time, `venues` around those of a check-in file.
"""

from __future__ import annotations

import csv
import itertools
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from engine.definitions import Fence, Shape
from engine.model import Confidence
from tests.real.convert import opened

METRES_PER_DEGREE = 111_195.0
SHOPPING = ("Mall", "Department Store", "Movie Theater", "Multiplex", "Theater")

# Settings that take turns, so that every one of them meets real movement.
SETTINGS: tuple[dict[str, Any], ...] = (
    {},
    {"enter_delay_s": 60.0},
    {"exit_delay_s": 120.0},
    {"min_confidence": Confidence.HIGH},
    {"enter_delay_s": 180.0, "exit_delay_s": 300.0},
    {"min_confidence": Confidence.LOW},
    {"enter_delay_s": 0.0, "exit_delay_s": 0.0},
)
THRESHOLDS_S: tuple[tuple[int, ...], ...] = ((300,), (600, 1800), (), (60, 900, 7200))


def _snapped(points: Iterable[tuple[float, float]]) -> np.ndarray:
    return np.array([(round(lon * 1e7), round(lat * 1e7)) for lon, lat in points], np.int64)


def _fence(name: str, shape: Shape, parts: Any, lon: float, lat: float, **settings: Any) -> Fence:
    settings = {"kind": "place", **settings}
    return Fence(id=f"real/{name}", name=name, shape=shape, parts=parts, lon=lon, lat=lat, state_hash=name, **settings)


def circle(name: str, lon: float, lat: float, radius_m: float, **settings: Any) -> Fence:
    return _fence(name, Shape.CIRCLE, ((_snapped([(lon, lat)]),),), lon, lat, radius_m=radius_m, **settings)


def polygon(
    name: str, outer: Sequence[tuple[float, float]], *holes: Sequence[tuple[float, float]], **settings: Any
) -> Fence:
    lon, lat = outer[0]
    return _fence(name, Shape.POLYGON, (tuple(_snapped(ring) for ring in (outer, *holes)),), lon, lat, **settings)


def corridor(name: str, line: Sequence[tuple[float, float]], buffer_m: float, **settings: Any) -> Fence:
    lon, lat = line[0]
    return _fence(name, Shape.CORRIDOR, ((_snapped(line),),), lon, lat, buffer_m=buffer_m, **settings)


def cell_set(name: str, cells: Sequence[str], **settings: Any) -> Fence:
    return _fence(name, Shape.CELLS, (), 0.0, 0.0, cells=tuple(cells), **settings)


def box(west: float, south: float, east: float, north: float) -> list[tuple[float, float]]:
    return [(west, south), (east, south), (east, north), (west, north)]


def ring(lon: float, lat: float, radius_m: float, corners: int, turn: float = 0.2) -> list[tuple[float, float]]:
    """Corners of a regular polygon, as drawn by hand around a place."""
    step = 2 * math.pi / corners
    east = radius_m / METRES_PER_DEGREE / math.cos(math.radians(lat))
    north = radius_m / METRES_PER_DEGREE
    return [(lon + east * math.cos(turn + i * step), lat + north * math.sin(turn + i * step)) for i in range(corners)]


def beijing() -> list[Fence]:
    """Known places of Beijing and Tianjin, nested and overlapping."""
    campus = box(116.3150, 39.9950, 116.3330, 40.0120)
    return [
        polygon("tsinghua", campus),
        polygon("tsinghua-without-its-middle", campus, box(116.3210, 39.9990, 116.3280, 40.0060)),
        polygon("tsinghua-library", box(116.3195, 40.0025, 116.3225, 40.0050), exit_delay_s=180.0),
        circle("tsinghua-gate", 116.3265, 39.9925, 250.0, enter_delay_s=30.0),
        polygon("peking-university", ring(116.3045, 39.9925, 900.0, 9)),
        circle("wudaokou", 116.3318, 39.9922, 400.0),
        circle("wudaokou-station", 116.3318, 39.9922, 80.0, min_confidence=Confidence.HIGH),
        circle("zhongguancun", 116.3110, 39.9830, 800.0, opening_hours="Mo-Su 09:00-21:00", time_zone="Asia/Shanghai"),
        polygon(
            "sigma-building",
            box(116.3265, 39.9755, 116.3300, 39.9785),
            opening_hours="Mo-Fr 08:30-19:00",
            time_zone="Asia/Shanghai",
        ),
        polygon("zhichun-road-mall", ring(116.3390, 39.9765, 180.0, 6)),
        corridor("zhichun-road", [(116.3080, 39.9755), (116.3300, 39.9760), (116.3530, 39.9766)], 60.0),
        corridor(
            "third-ring-north",
            [(116.2990, 39.9660), (116.3450, 39.9680), (116.4000, 39.9690), (116.4330, 39.9600)],
            100.0,
        ),
        corridor(
            "subway-13",
            [(116.3480, 39.9420), (116.3390, 39.9760), (116.3318, 39.9922), (116.3210, 40.0330)],
            200.0,
            enter_delay_s=60.0,
        ),
        circle("summer-palace", 116.2680, 39.9990, 1200.0),
        polygon("forbidden-city", box(116.3915, 39.9130, 116.4015, 39.9225)),
        circle("beijing-west-station", 116.3155, 39.8948, 500.0, exit_delay_s=600.0),
        circle("yuyuantan", 116.3370, 39.9257, 600.0),
        circle("yuyuantan-inner", 116.3370, 39.9257, 150.0),
        circle(
            "olympic-park", 116.3880, 39.9990, 1500.0, valid_from_ms=1_225_000_000_000, valid_until_ms=1_225_200_000_000
        ),
        circle("zoo", 116.3330, 39.9390, 450.0),
        circle("beijing", 116.3900, 39.9200, 30_000.0),
        circle("capital-airport", 116.5840, 40.0800, 3_000.0),
        circle("tianjin", 117.2000, 39.1300, 15_000.0, min_confidence=Confidence.HIGH),
        polygon("haidian", [(116.2400, 39.9300), (116.3600, 39.9400), (116.3700, 40.0300), (116.2500, 40.0600)]),
        polygon("two-courts", box(116.3440, 39.9990, 116.3470, 40.0020)),
        circle("xizhimen", 116.3490, 39.9400, 300.0, enter_delay_s=120.0),
        *(circle(f"nested-{i:02d}", 116.3280, 39.9970, 40.0 * 1.25**i) for i in range(12)),
    ]


def hanover() -> list[Fence]:
    """Places of a small college town, for fixes of 3-5000 m accuracy."""
    return [
        polygon("campus", box(-72.2960, 43.6990, -72.2830, 43.7100)),
        circle("green", -72.2887, 43.7033, 120.0),
        circle("town", -72.2890, 43.7030, 2_000.0),
        circle("north", -72.3292, 43.7591, 300.0, enter_delay_s=120.0),
        circle("valley", -72.3000, 43.7200, 12_000.0, min_confidence=Confidence.LOW),
        corridor("river", [(-72.3060, 43.6700), (-72.3010, 43.7000), (-72.3030, 43.7300)], 250.0),
    ]


def autobahn() -> list[Fence]:
    """Stretches and towns on the way of the phone of the OwnTracks file."""
    return [
        corridor("a2", [(10.0000, 52.3800), (10.5300, 52.3300), (11.0000, 52.2300), (11.6000, 52.1700)], 8_000.0),
        circle("magdeburg", 11.6200, 52.1300, 12_000.0, min_confidence=Confidence.LOW),
        circle("leipzig", 12.3700, 51.3400, 25_000.0),
        circle("dresden", 13.7000, 51.0500, 20_000.0),
        circle("nossen", 13.3000, 51.0600, 9_000.0),
        polygon("saxony", [(11.9, 51.5), (14.9, 51.5), (14.9, 50.3), (11.9, 50.3)], min_confidence=Confidence.HIGH),
    ]


def venues(path: Path) -> list[Fence]:
    """A circle around every shop, cinema and store of a check-in file, larger ones around groups, one quarter."""
    places: dict[str, tuple[str, float, float]] = {}
    with opened(path) as file:
        for row in csv.DictReader(file):
            if row["venueCategory"] in SHOPPING:
                places.setdefault(
                    row["venueId"], (row["venueCategory"], float(row["longitude"]), float(row["latitude"]))
                )
    fences = [
        circle(f"{category.lower().replace(' ', '-')}-{venue}", lon, lat, 120.0, kind="venue", **settings)
        for (venue, (category, lon, lat)), settings in zip(sorted(places.items()), itertools.cycle(SETTINGS))
    ]
    return [
        *fences,
        circle("shibuya", 139.7016, 35.6580, 700.0),
        circle("shinjuku", 139.7005, 35.6900, 900.0, opening_hours="Mo-Su 10:00-21:00", time_zone="Asia/Tokyo"),
        polygon("ginza", ring(139.7650, 35.6715, 800.0, 7)),
        circle("akihabara", 139.7730, 35.6985, 500.0),
        polygon("tokyo", box(139.5600, 35.5300, 139.9200, 35.8200)),
    ]


def frequent_places(pings: Sequence[dict[str, Any]], count: int, name: str) -> list[Fence]:
    """Fences where a trace spends its time: circles, drawn polygons and corridors in turn, each with other settings."""
    spent: Counter[tuple[int, int]] = Counter()
    last: dict[str, dict[str, Any]] = {}
    for ping in pings:
        before = last.get(ping["user"])
        if before is not None and 0 < ping["at_ms"] - before["at_ms"] < 3_600_000:
            spent[(round(before["lon_e7"] / 30_000), round(before["lat_e7"] / 23_000))] += (
                ping["at_ms"] - before["at_ms"]
            )
        last[ping["user"]] = ping
    fences = []
    for i, ((column, row), _) in enumerate(sorted(spent.most_common(count), key=lambda item: (-item[1], item[0]))):
        lon, lat = column * 30_000 / 1e7, row * 23_000 / 1e7
        settings = SETTINGS[i % len(SETTINGS)]
        label = f"{name}-{i:02d}"
        if i % 3 == 0:
            fences.append(circle(label, lon, lat, (60.0, 150.0, 400.0)[i // 3 % 3], **settings))
        elif i % 3 == 1:
            fences.append(polygon(label, ring(lon, lat, (120.0, 300.0)[i // 3 % 2], 5 + i % 4), **settings))
        else:
            fences.append(
                corridor(
                    label,
                    [(lon - 0.004, lat), (lon, lat + 0.001), (lon + 0.004, lat)],
                    (40.0, 90.0)[i // 3 % 2],
                    **settings,
                )
            )
    return fences


def in_row_order(fences: Iterable[Fence]) -> tuple[Fence, ...]:
    """Sorted by id, as rows of a fence set are."""
    return tuple(sorted(fences, key=lambda fence: fence.id))


def thresholds_of(fences: Sequence[Fence]) -> dict[str, tuple[int, ...]]:
    """Dwell thresholds in turns; fence id -> seconds."""
    return {
        fence.id: THRESHOLDS_S[i % len(THRESHOLDS_S)]
        for i, fence in enumerate(fences)
        if THRESHOLDS_S[i % len(THRESHOLDS_S)]
    }
