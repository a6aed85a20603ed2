"""Chinese datums to WGS-84 and back (L3): GCJ-02 by its closed form, BD-09 on top of it, inverses by iteration.

Degrees as float64, lon before lat. The offset holds in mainland China only; `CHINA` says where that is.
"""

from __future__ import annotations

import math

import numpy as np

from engine.kernels import kernel
from engine.model import Datum

WGS84 = int(Datum.WGS84)
GCJ02 = int(Datum.GCJ02)

SEMI_MAJOR_M = 6378245.0
SQUARED_ECCENTRICITY = 0.006693421622965823
BAIDU_TURN = math.pi * 3000.0 / 180.0

# Mainland China with Hainan, simplified to some kilometres, closer where a town stands on the border; the sea side runs
# about 20 to 100 km off the coast. Hong Kong and Macau are cut out.
_OUTLINE = """
    135.09 48.45, 134.75 48.25, 134.55 47.95, 134.75 47.70, 134.20 47.32, 133.95 46.60, 133.85 46.25, 133.45 45.60,
    133.15 45.10, 132.95 45.02, 131.90 45.34, 131.45 44.95, 130.98 44.85, 131.30 44.05, 131.20 43.55, 131.28 43.38,
    131.20 42.95, 130.45 42.80, 130.42 42.72, 130.62 42.43, 130.52 42.55, 130.25 42.88, 129.93 42.97, 129.75 42.45,
    129.40 42.43, 128.95 42.03, 128.05 42.00, 128.28 41.50, 128.10 41.38, 127.10 41.52, 126.90 41.75, 126.55 41.35,
    126.00 40.90, 125.00 40.54, 124.75 40.33, 124.42 40.14, 124.375 40.095, 124.18 39.85, 123.90 39.45, 123.60 38.40,
    123.40 36.80, 122.80 35.50, 122.40 33.00, 123.30 31.50, 123.50 29.50, 122.30 27.50, 120.80 26.70, 120.25 26.45,
    119.85 26.25, 119.78 25.90, 119.95 25.30, 119.30 24.78, 118.78 24.62, 118.56 24.565, 118.30 24.53, 118.19 24.50,
    118.155 24.42, 118.21 24.37, 118.60 24.20, 118.00 23.30, 116.70 22.50, 114.60 21.60, 112.60 20.90, 111.40 19.60,
    110.90 18.20, 109.50 17.80, 108.30 18.40, 108.20 19.40, 108.50 20.60, 108.30 21.30, 108.02 21.47, 107.965 21.535,
    107.35 21.60, 106.98 21.93, 106.75 22.00, 106.68 22.30, 106.58 22.60, 106.83 22.82, 106.15 22.98, 105.55 23.08,
    105.32 23.36, 104.80 22.95, 104.60 22.83, 104.25 22.75, 103.965 22.505, 103.90 22.57, 103.65 22.78, 103.30 22.68,
    102.88 22.53, 102.42 22.77, 102.14 22.40, 101.60 22.20, 101.80 21.50, 101.74 21.15, 101.60 21.20, 101.15 21.57,
    100.55 21.45, 100.10 21.55, 99.95 22.05, 99.18 22.13, 99.50 22.92, 98.90 23.15, 98.90 23.98, 98.55 24.10,
    97.85 23.94, 97.55 23.94, 97.55 24.43, 97.70 24.83, 98.18 25.55, 98.72 26.15, 98.75 27.45, 98.20 28.20,
    97.60 28.50, 97.35 28.25, 96.60 28.45, 96.10 29.00, 95.30 29.10, 94.40 28.65, 93.30 28.10, 92.00 27.65,
    91.65 27.80, 91.20 28.08, 90.40 28.10, 89.80 28.20, 89.10 27.45, 88.98 27.22, 88.90 27.32, 88.75 28.05,
    88.13 27.95, 87.30 27.82, 86.50 28.05, 86.10 28.05, 85.98 27.95, 85.70 28.30, 85.10 28.35, 84.80 28.55,
    84.10 29.05, 83.50 29.20, 82.40 30.00, 81.40 30.42, 81.05 30.20, 80.20 30.62, 79.50 31.05, 78.80 31.35,
    78.70 32.05, 78.50 32.55, 79.10 32.60, 79.10 33.25, 78.75 34.00, 78.20 34.65, 78.00 35.45, 76.80 35.65,
    76.00 36.10, 75.90 36.65, 75.45 36.90, 74.85 37.05, 74.55 37.20, 74.95 37.45, 74.85 38.40, 73.85 38.55,
    73.55 39.25, 73.75 39.50, 73.90 39.90, 74.85 40.45, 75.60 40.55, 76.30 40.40, 76.90 41.00, 78.10 41.10,
    80.20 42.05, 80.20 42.65, 80.45 43.10, 80.75 43.20, 80.40 44.05, 80.385 44.22, 80.35 44.75, 79.90 44.92,
    81.80 45.25, 82.50 45.20, 82.30 45.55, 83.00 47.20, 84.80 46.90, 85.50 47.10, 85.70 48.35, 86.60 48.60,
    87.30 49.10, 87.85 49.15, 88.00 48.60, 89.70 47.85, 90.40 47.55, 90.90 46.90, 91.05 46.55, 90.70 45.50,
    91.60 45.10, 93.50 44.95, 95.40 44.25, 95.40 43.95, 96.35 42.75, 97.20 42.80, 99.50 42.57, 101.80 42.50,
    103.40 41.90, 105.00 41.60, 107.40 42.45, 109.30 42.45, 110.40 42.78, 111.05 43.35, 111.85 43.68, 111.99 43.69,
    111.95 43.80, 111.40 44.30, 111.90 45.05, 113.60 44.75, 114.50 45.40, 116.20 45.70, 116.25 46.30, 117.40 46.35,
    118.30 46.75, 119.70 46.60, 119.90 46.90, 118.50 47.95, 117.40 47.65, 115.60 47.85, 115.55 48.15, 116.70 49.85,
    117.80 49.52, 119.20 50.05, 119.30 50.35, 120.70 52.00, 120.65 52.90, 120.90 53.28, 122.30 53.50, 123.60 53.57,
    125.00 53.20, 125.60 53.05, 126.00 52.65, 126.95 51.35, 127.30 50.70, 127.33 50.35, 127.53 50.252, 127.56 50.20,
    127.52 49.82, 127.90 49.58, 128.75 49.58, 129.50 49.42, 130.20 48.88, 130.65 48.85, 130.95 47.70, 132.50 47.73,
    133.10 48.10, 134.50 48.42
"""
_HONG_KONG = """
    113.83 22.10, 114.55 22.10, 114.52 22.45, 114.40 22.565, 114.30 22.565, 114.245 22.55, 114.225 22.548,
    114.19 22.556, 114.157 22.556, 114.13 22.5375, 114.113 22.529, 114.085 22.515, 114.065 22.512, 114.03 22.502,
    113.97 22.482, 113.92 22.448, 113.86 22.42, 113.83 22.21
"""
_MACAU = """
    113.548 22.075, 113.605 22.09, 113.61 22.18, 113.565 22.205, 113.553 22.213, 113.547 22.216, 113.537 22.211,
    113.533 22.195, 113.545 22.17, 113.546 22.12
"""


def region_of(*rings: np.ndarray) -> np.ndarray:
    """Join open rings (float64[V, 2], lon and lat) into one region for `to_wgs84_within`: float64[E, 4] edges.

    A point is in the region where an odd number of rings hold it, so a ring inside another is a hole.
    """
    return np.ascontiguousarray(np.vstack([np.hstack([ring, np.roll(ring, -1, axis=0)]) for ring in rings]))


def _ring(text: str) -> np.ndarray:
    return np.array([[float(number) for number in pair.split()] for pair in text.split(",")])


CHINA = region_of(_ring(_OUTLINE), _ring(_HONG_KONG), _ring(_MACAU))
"""Where the offset applies unless a deployment brings its own region."""


@kernel
def region_holds(region: np.ndarray, lon: float, lat: float) -> bool:
    """Count crossings; which side a point exactly on the outline falls is not defined."""
    odd = False
    for i in range(len(region)):
        ay = region[i, 1]
        by = region[i, 3]
        if (ay > lat) != (by > lat) and lon < region[i, 0] + (lat - ay) * (region[i, 2] - region[i, 0]) / (by - ay):
            odd = not odd
    return odd


@kernel
def in_china(lon: float, lat: float) -> bool:
    """Say whether this WGS-84 point lies in mainland China: not Hong Kong, Macau or Taiwan."""
    return region_holds(CHINA, lon, lat)


@kernel
def china_offset(lon: float, lat: float) -> tuple[float, float]:
    """The closed form: degrees to add to a WGS-84 point, as if it lay in China."""
    x = lon - 105.0
    y = lat - 35.0
    root = 0.2 * math.sqrt(abs(x))
    ripple = (20.0 * math.sin(6.0 * x * math.pi) + 20.0 * math.sin(2.0 * x * math.pi)) * 2.0 / 3.0
    north = -100.0 + 2.0 * x + 3.0 * y + 0.2 * y * y + 0.1 * x * y + root + ripple
    north += (20.0 * math.sin(y * math.pi) + 40.0 * math.sin(y / 3.0 * math.pi)) * 2.0 / 3.0
    north += (160.0 * math.sin(y / 12.0 * math.pi) + 320.0 * math.sin(y * math.pi / 30.0)) * 2.0 / 3.0
    east = 300.0 + x + 2.0 * y + 0.1 * x * x + 0.1 * x * y + root / 2.0 + ripple
    east += (20.0 * math.sin(x * math.pi) + 40.0 * math.sin(x / 3.0 * math.pi)) * 2.0 / 3.0
    east += (150.0 * math.sin(x / 12.0 * math.pi) + 300.0 * math.sin(x / 30.0 * math.pi)) * 2.0 / 3.0
    sine = math.sin(math.radians(lat))
    square = 1.0 - SQUARED_ECCENTRICITY * sine * sine
    meridian = SEMI_MAJOR_M * (1.0 - SQUARED_ECCENTRICITY) / (square * math.sqrt(square))
    parallel = SEMI_MAJOR_M / math.sqrt(square) * math.cos(math.radians(lat))
    return math.degrees(east / parallel), math.degrees(north / meridian)


@kernel
def wgs84_to_gcj02(lon: float, lat: float) -> tuple[float, float]:
    """Shift a WGS-84 point; outside China nothing moves."""
    if not in_china(lon, lat):
        return lon, lat
    east, north = china_offset(lon, lat)
    return lon + east, lat + north


@kernel
def gcj02_to_wgs84(lon: float, lat: float, region: np.ndarray) -> tuple[float, float]:
    """Invert by fixed-point iteration (the offset changes by under 1 % over its own length): exact to 1e-9 degree."""
    true_lon = lon
    true_lat = lat
    for _ in range(12):
        east, north = china_offset(true_lon, true_lat)
        step = abs(lon - east - true_lon) + abs(lat - north - true_lat)
        true_lon = lon - east
        true_lat = lat - north
        if step < 1e-11:
            break
    if region_holds(region, true_lon, true_lat):
        return true_lon, true_lat
    return lon, lat


@kernel
def gcj02_to_bd09(lon: float, lat: float) -> tuple[float, float]:
    """Baidu's second shift, which holds everywhere."""
    length = math.sqrt(lon * lon + lat * lat) + 0.00002 * math.sin(lat * BAIDU_TURN)
    angle = math.atan2(lat, lon) + 0.000003 * math.cos(lon * BAIDU_TURN)
    return length * math.cos(angle) + 0.0065, length * math.sin(angle) + 0.006


@kernel
def bd09_to_gcj02(lon: float, lat: float) -> tuple[float, float]:
    """Invert by iteration to 1e-9 degree; the closed form commonly used is off by up to 1e-5."""
    true_lon = lon - 0.0065
    true_lat = lat - 0.006
    for _ in range(30):
        there_lon, there_lat = gcj02_to_bd09(true_lon, true_lat)
        true_lon += lon - there_lon
        true_lat += lat - there_lat
        if abs(lon - there_lon) + abs(lat - there_lat) < 1e-11:
            break
    return true_lon, true_lat


@kernel
def to_wgs84(lon: float, lat: float, datum: int) -> tuple[float, float]:
    """Convert a point of `datum` (a value of model.Datum) to WGS-84 degrees."""
    return to_wgs84_within(lon, lat, datum, CHINA)


@kernel
def to_wgs84_within(lon: float, lat: float, datum: int, region: np.ndarray) -> tuple[float, float]:
    """As `to_wgs84`, with the offset applied inside `region` (`region_of`) instead of CHINA."""
    if datum == WGS84:
        return lon, lat
    if datum != GCJ02:
        lon, lat = bd09_to_gcj02(lon, lat)
    return gcj02_to_wgs84(lon, lat, region)


@kernel
def convert_to_wgs84(lon: np.ndarray, lat: np.ndarray, datum: int) -> None:
    """Convert float64[N] arrays in place: the twin for files of fences and cells."""
    for i in range(len(lon)):
        lon[i], lat[i] = to_wgs84(lon[i], lat[i], datum)
