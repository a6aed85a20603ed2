"""Distances on the WGS-84 ellipsoid: point to point, and point to a line that is straight in degrees.

Sources: the mid-latitude (Gauss) formula for near points, Lambert's formula on reduced latitudes for far ones.
Oracle: geopy's geodesic and GeodTest (tests/property/test_locate.py); figures in docs/locate.md.
"""

from __future__ import annotations

import math

from engine.kernels import inlined_lean_kernel, lean_kernel

EQUATOR_M = 6378137.0
FLATTENING = 1 / 298.257223563
SQUARED_ECCENTRICITY = FLATTENING * (2 - FLATTENING)
RADIANS_PER_E7 = math.pi / 180 * 1e-7
EARTH_TURN_E7 = 3_600_000_000
METRES_PER_E7_LAT_MIN = 0.011054
"""Metres per e7 of latitude are never fewer, anywhere on the ellipsoid."""


@inlined_lean_kernel
def scales(lat: float) -> tuple[float, float]:
    """Metres per e7 of longitude and of latitude at a latitude in radians."""
    cosine = math.cos(lat)
    square = 1.0 - SQUARED_ECCENTRICITY * (1.0 - cosine * cosine)
    root = math.sqrt(square)
    kx = RADIANS_PER_E7 * EQUATOR_M * cosine / root
    return kx, RADIANS_PER_E7 * EQUATOR_M * (1.0 - SQUARED_ECCENTRICITY) / (square * root)


@lean_kernel
def point_distance_m(lon_e7: float, lat_e7: float, other_lon_e7: float, other_lat_e7: float) -> float:
    """Metres between two points in degrees x 1e7, integers or floats, any longitudes.

    Precision against the geodesic: 1 mm below 10 km, 5e-7 of the distance up to 100 km, 1e-5 beyond, except within
    about 1 degree of the antipode.
    """
    turn = float(lon_e7) - float(other_lon_e7)
    turn = abs(turn - EARTH_TURN_E7 * math.floor(turn / EARTH_TURN_E7 + 0.5)) * RADIANS_PER_E7
    rise = (float(lat_e7) - float(other_lat_e7)) * RADIANS_PER_E7
    middle = (float(lat_e7) + float(other_lat_e7)) * (0.5 * RADIANS_PER_E7)
    if turn < 0.1 and abs(rise) < 0.025 and abs(middle) < 1.4 and turn * math.cos(middle) < 0.025:
        return near_m(turn, rise, middle)
    return far_m(turn, float(lat_e7) * RADIANS_PER_E7, float(other_lat_e7) * RADIANS_PER_E7)


@inlined_lean_kernel
def near_m(turn: float, rise: float, middle: float) -> float:
    """Mid-latitude formula: differences in radians at the middle latitude."""
    kx, ky = scales(middle)
    # Chord on the sphere: sin^2(s/2) = sin^2(rise/2) cos^2(turn/2) + cos^2(middle) sin^2(turn/2).
    east = turn * (1.0 - turn * turn / 24.0) * (kx / RADIANS_PER_E7)
    north = rise * (1.0 - rise * rise / 24.0) * (1.0 - turn * turn / 8.0) * (ky / RADIANS_PER_E7)
    square = east * east + north * north
    return math.sqrt(square) * (1.0 + square / (24.0 * EQUATOR_M * EQUATOR_M))


@lean_kernel
def far_m(turn: float, lat: float, other_lat: float) -> float:
    """Lambert's formula on reduced latitudes, radians; right at the poles too."""
    beta = math.atan2((1.0 - FLATTENING) * math.sin(lat), math.cos(lat))
    other = math.atan2((1.0 - FLATTENING) * math.sin(other_lat), math.cos(other_lat))
    half_rise = math.sin((beta - other) / 2)
    half_turn = math.sin(turn / 2)
    square = half_rise * half_rise + math.cos(beta) * math.cos(other) * half_turn * half_turn
    if square <= 0.0:
        return 0.0
    half_angle = math.asin(min(1.0, math.sqrt(square)))
    angle = 2 * half_angle
    middle = (beta + other) / 2
    far_half = max(1.0 - square, 1e-12)
    first = (angle - math.sin(angle)) * (math.sin(middle) * math.cos((beta - other) / 2)) ** 2 / far_half
    second = (angle + math.sin(angle)) * (math.cos(middle) * half_rise) ** 2 / square
    return EQUATOR_M * (angle - FLATTENING / 2 * (first + second))


@lean_kernel
def line_m(ax: float, ay: float, bx: float, by: float, lat_e7: float) -> float:
    """Metres from a point at `lat_e7` to the line a-b, whose ends are relative to it in degrees x 1e7.

    The line is straight in degrees.  The nearest point is found in the metric half-way to it, in three rounds.
    """
    ux = bx - ax
    uy = by - ay
    rise = 0.0
    turn = 0.0
    for _ in range(3):
        kx, ky = scales((lat_e7 + 0.5 * rise) * RADIANS_PER_E7)
        kx *= kx
        ky *= ky
        length = ux * ux * kx + uy * uy * ky
        share = -(ax * ux * kx + ay * uy * ky) / length if length > 0.0 else 0.0
        share = min(1.0, max(0.0, share))
        turn = ax + share * ux
        rise = ay + share * uy
    return point_distance_m(turn, lat_e7 + rise, 0.0, float(lat_e7))


@lean_kernel
def bent_line_m(ax: float, ay: float, bx: float, by: float, lat_e7: float) -> float:
    """As `line_m`, near a pole: the line is followed in 64 steps and the best of them refined."""
    best = math.inf
    at = 0
    for step in range(65):
        share = step / 64
        distance = point_distance_m(ax + share * (bx - ax), lat_e7 + ay + share * (by - ay), 0.0, float(lat_e7))
        if distance < best:
            best = distance
            at = step
    low = max(0, at - 1) / 64
    high = min(64, at + 1) / 64
    for _ in range(30):
        third = (high - low) / 3
        left = low + third
        right = high - third
        left_m = point_distance_m(ax + left * (bx - ax), lat_e7 + ay + left * (by - ay), 0.0, float(lat_e7))
        right_m = point_distance_m(ax + right * (bx - ax), lat_e7 + ay + right * (by - ay), 0.0, float(lat_e7))
        if left_m <= right_m:
            high = right
        else:
            low = left
        best = min(best, left_m, right_m)
    return best
