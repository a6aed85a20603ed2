"""Datums (rule L3): vectors, inverses, and where the offset applies."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from engine.datum_kernel import (
    CHINA,
    bd09_to_gcj02,
    china_offset,
    convert_to_wgs84,
    gcj02_to_bd09,
    gcj02_to_wgs84,
    in_china,
    region_of,
    to_wgs84,
    to_wgs84_within,
    wgs84_to_gcj02,
)
from engine.model import Datum

INSIDE = {
    "Beijing": (116.40, 39.90), "Shanghai": (121.47, 31.23), "Shenzhen": (114.06, 22.54), "Luohu": (114.118, 22.5345),
    "Shekou": (113.912, 22.48), "Futian port": (114.068, 22.519), "Dapeng": (114.48, 22.59), "Zhuhai": (113.58, 22.27),
    "Gongbei": (113.549, 22.2185), "Hengqin": (113.53, 22.13), "Guangzhou": (113.26, 23.13), "Urumqi": (87.6, 43.8),
    "Lhasa": (91.1, 29.65), "Kunming": (102.7, 25.04), "Harbin": (126.63, 45.75), "Dandong": (124.385, 40.125),
    "Heihe": (127.50, 50.245), "Xiamen": (118.09, 24.48), "Fuzhou": (119.3, 26.08), "Suifenhe": (131.15, 44.41),
    "Manzhouli": (117.45, 49.58), "Erenhot": (111.97, 43.65), "Khorgos": (80.40, 44.21), "Kashgar": (75.99, 39.47),
    "Pingxiang": (106.76, 22.10), "Dongxing": (107.97, 21.545), "Ruili": (97.85, 24.01), "Sanya": (109.5, 18.25),
    "Hekou": (103.955, 22.515), "Hunchun": (130.36, 42.86), "Fuyuan": (134.28, 48.36), "Mohe": (122.53, 52.97),
    "Tashkurgan": (75.23, 37.77), "Yadong": (88.91, 27.49), "Nyingchi": (94.36, 29.65), "Altay": (88.13, 47.84),
    "Dalian": (121.6, 38.9), "Zhoushan": (122.2, 30.0), "Haikou": (110.3, 20.04), "Mohan": (101.68, 21.19),
}  # fmt: skip
OUTSIDE = {
    "Hong Kong": (114.17, 22.28), "Sheung Shui": (114.128, 22.502), "Tuen Mun": (113.97, 22.39),
    "Macau": (113.545, 22.195), "Cotai": (113.56, 22.14), "Taipei": (121.56, 25.03), "Kinmen": (118.32, 24.43),
    "Matsu": (119.94, 26.15), "Penghu": (119.57, 23.57), "Kaohsiung": (120.3, 22.6), "Seoul": (126.98, 37.57),
    "Pyongyang": (125.75, 39.03), "Sinuiju": (124.40, 40.09), "Tokyo": (139.7, 35.7), "Ulaanbaatar": (106.9, 47.9),
    "Hanoi": (105.85, 21.03), "Lao Cai": (103.97, 22.485), "Mong Cai": (107.966, 21.525), "Delhi": (77.2, 28.6),
    "Kathmandu": (85.3, 27.7), "Thimphu": (89.64, 27.47), "Vladivostok": (131.9, 43.1), "Almaty": (76.9, 43.25),
    "Bishkek": (74.6, 42.87), "Khabarovsk": (135.07, 48.48), "Blagoveshchensk": (127.54, 50.275),
    "Zamyn-Uud": (111.90, 43.71), "Fukuoka": (130.4, 33.6), "Naha": (127.7, 26.2), "Tawang": (91.86, 27.58),
    "Leh": (77.58, 34.16), "Gangtok": (88.61, 27.33), "Hyesan": (128.18, 41.40), "Jeju": (126.5, 33.5),
    "Naypyidaw": (96.1, 19.75), "Dhaka": (90.4, 23.8), "London": (-0.1, 51.5), "Null Island": (0.0, 0.0),
}  # fmt: skip


@pytest.fixture(scope="module")
def vectors(shared_data: Path) -> dict:
    return json.loads((shared_data / "vectors" / "gcj02_small.json").read_text())


@pytest.mark.parametrize("place", INSIDE)
def test_the_offset_applies_in_mainland_china_up_to_its_border_towns(place: str) -> None:
    assert in_china(*INSIDE[place])


@pytest.mark.parametrize("place", OUTSIDE)
def test_the_offset_does_not_apply_across_the_border_nor_in_hong_kong_macau_or_taiwan(place: str) -> None:
    lon, lat = OUTSIDE[place]
    assert not in_china(lon, lat)
    assert wgs84_to_gcj02(lon, lat) == (lon, lat)
    assert to_wgs84(lon, lat, int(Datum.GCJ02)) == (lon, lat)


def test_the_forward_transform_gives_the_published_vectors(vectors: dict) -> None:
    for wgs_lat, wgs_lon, lat, lon in vectors["wgs2gcj"]["rows"]:
        assert wgs84_to_gcj02(wgs_lon, wgs_lat) == pytest.approx((lon, lat), abs=1e-9)
    pairs = vectors["coordtransform_lng_lat"]
    assert wgs84_to_gcj02(*pairs["in"]) == pytest.approx(pairs["wgs84togcj02"], abs=1e-9)
    assert gcj02_to_bd09(*pairs["in"]) == pytest.approx(pairs["gcj02tobd09"], abs=1e-9)


def test_the_inverses_lie_within_a_step_of_the_published_approximations(vectors: dict) -> None:
    # The published inverses are one step only; ours goes on until the forward transform gives the input back.
    pairs = vectors["coordtransform_lng_lat"]
    assert bd09_to_gcj02(*pairs["in"]) == pytest.approx(pairs["bd09togcj02"], abs=1e-6)
    assert gcj02_to_wgs84(*pairs["in"], CHINA) == pytest.approx(pairs["gcj02towgs84"], abs=1e-6)


def test_the_published_bd09_inverses_come_from_a_formula_with_a_wrong_constant(vectors: dict) -> None:
    # They are reproduced to the last digit with pi in place of 3000 pi / 180, which is why they are no oracle here.
    for bd_lat, bd_lon, wgs_lat, wgs_lon in vectors["bd2wgs"]["rows"]:
        x, y = bd_lon - 0.0065, bd_lat - 0.006
        length = math.hypot(x, y) - 0.00002 * math.sin(y * math.pi)
        angle = math.atan2(y, x) - 0.000003 * math.cos(x * math.pi)
        lon, lat = length * math.cos(angle), length * math.sin(angle)
        east, north = china_offset(lon, lat)
        assert (lon - east, lat - north) == pytest.approx((wgs_lon, wgs_lat), abs=1e-9)
        assert to_wgs84(bd_lon, bd_lat, int(Datum.BD09)) == pytest.approx((wgs_lon, wgs_lat), abs=5e-4)


def test_inverses_return_to_the_start_within_a_millionth_of_a_degree() -> None:
    random = np.random.default_rng(7)
    for _ in range(2_000):
        lon, lat = random.uniform(75, 134), random.uniform(18, 53)
        if not in_china(lon, lat):
            continue
        gcj = wgs84_to_gcj02(lon, lat)
        assert to_wgs84(*gcj, int(Datum.GCJ02)) == pytest.approx((lon, lat), abs=1e-9)
        assert to_wgs84(*gcj02_to_bd09(*gcj), int(Datum.BD09)) == pytest.approx((lon, lat), abs=1e-8)


def test_the_offset_is_some_530_metres_in_beijing_and_bd09_twice_as_much() -> None:
    lon, lat = 116.404, 39.915
    gcj = wgs84_to_gcj02(lon, lat)
    baidu = gcj02_to_bd09(*gcj)

    def metres(place: tuple[float, float]) -> float:
        return math.hypot((place[0] - lon) * 85_300, (place[1] - lat) * 111_000)

    assert 500 < metres(gcj) < 600
    assert 1_000 < metres(baidu) < 1_500


def test_a_deployment_may_bring_its_own_region() -> None:
    island = region_of(np.array([[120.0, 21.8], [122.2, 21.8], [122.2, 25.5], [120.0, 25.5]]))
    taipei = (121.56, 25.03)
    assert to_wgs84(*taipei, int(Datum.GCJ02)) == taipei
    assert to_wgs84_within(*taipei, int(Datum.GCJ02), island) != taipei
    assert to_wgs84_within(116.4, 39.9, int(Datum.GCJ02), island) == (116.4, 39.9)


def test_arrays_are_converted_in_place_and_wgs84_is_left_alone() -> None:
    lon, lat = np.array([116.404, 2.35]), np.array([39.915, 48.85])
    expected = to_wgs84(116.404, 39.915, int(Datum.GCJ02))
    convert_to_wgs84(lon, lat, int(Datum.GCJ02))
    assert (lon[0], lat[0]) == expected
    assert (lon[1], lat[1]) == (2.35, 48.85)
    assert to_wgs84(116.404, 39.915, int(Datum.WGS84)) == (116.404, 39.915)
